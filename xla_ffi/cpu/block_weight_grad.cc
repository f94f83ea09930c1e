// Weight gradient, dW = x^T dy at the stored blocks.
#include <algorithm>
#include <cstring>
#include <vector>

#include "cpu/block_matmul.h"
#include "cpu/groups.h"
#include "cpu/joined_blocks.h"
#include "cpu/parallel_for.h"
#include "cpu/scratch.h"
#include "cpu/strips.h"

namespace jaxsparse::cpu {
namespace {

// Packed x that stays in L3 while the columns pass by.
constexpr int64_t kPanelBytes = 4 << 20;
// Every panel reads and writes all sums; with fewer words that would cost more than the products.
constexpr int64_t kMinPanelWords = 64;
// Rows of x and dy that a tile sums at a time: 128 rows of a strip of 32 are 16 KiB, half of L1.
constexpr int64_t kDepthWords = 128;
// Sums that cannot be in dW itself, and must wait for the next panel.
constexpr int64_t kWaitingBytes = 8 << 20;
// Sums of a piece, and its part of dy, stay in L2.
constexpr int64_t kChunkBytes = 256 << 10;
constexpr int64_t kPiecesPerThread = 8;

class WeightGradRun {
 public:
  // With `joined`, the blocks are those that it makes of the problem's.
  WeightGradRun(const BlockMatmul& problem, const TilesByWidth& by_width, const GroupView& group,
                const JoinedBlocks* joined)
      : p_(joined == nullptr ? problem : Joined(problem, *joined)),
        t_(joined == nullptr ? by_width.For(problem.block_out) : by_width.wide),
        store_(by_width.For(problem.block_out).store),
        g_(group),
        joined_(joined),
        order_(joined == nullptr ? *group.order : joined->order),
        strips_(t_.lanes, p_.block_out, p_.out),
        in_place_(joined == nullptr && t_.sums_are_stored && p_.block_out % t_.lanes == 0) {}

  Status Run(TaskPool& pool) {
    const int64_t x_row_bytes = p_.grid_rows() * p_.block_in * t_.word_bytes;
    const int64_t depth_words = CeilDiv(p_.batch, t_.items_per_word);
    panel_words_ = std::max(kMinPanelWords, kPanelBytes / std::max<int64_t>(1, x_row_bytes));
    if (panel_words_ > kDepthWords) panel_words_ -= panel_words_ % kDepthWords;
    panel_words_ = std::min(panel_words_, depth_words);
    const int64_t num_panels = CeilDiv(depth_words, panel_words_);
    one_panel_ = num_panels <= 1;

    const int64_t sums_bytes = p_.block_in * strips_.items * t_.word_bytes;
    const int64_t total = order_.num_blocks() * strips_.per_block * sums_bytes;
    const int64_t most_strips =
        std::max<int64_t>(1, kChunkBytes / (kDepthWords * strips_.items * t_.word_bytes));
    const int64_t target = pool.num_threads() > 1 ? kPiecesPerThread * pool.num_threads() : 1;
    chunks_ = ChunkStrips(strips_, order_, sums_bytes,
                          std::clamp<int64_t>(total / target, 32 << 10, kChunkBytes),
                          std::min(CeilDiv(strips_.count, target), most_strips));
    const int64_t num_chunks = static_cast<int64_t>(chunks_.size()) - 1;

    char* panel =
        static_cast<char*>(Scratch(ScratchUse::kPanel, p_.grid_rows() * XStride() * t_.word_bytes));

    // Chunks whose sums may wait together between panels.
    for (int64_t first = 0, last; first < num_chunks; first = last) {
      last = first + 1;
      if (in_place_ || one_panel_) {
        last = num_chunks;
      } else {
        const auto bytes = [&](int64_t end) {
          return SumsOffset(chunks_[end]) - SumsOffset(chunks_[first]);
        };
        while (last < num_chunks && bytes(last + 1) <= kWaitingBytes) ++last;
        waiting_sums_ = static_cast<char*>(Scratch(ScratchUse::kSums, bytes(last)));
        waiting_begin_ = SumsOffset(chunks_[first]);
      }
      for (int64_t word = 0; word < depth_words; word += panel_words_) {
        const int64_t words = std::min(panel_words_, depth_words - word);
        const int64_t pack_pieces = std::min(p_.grid_rows(), target);
        Status status = ParallelFor(pool, pack_pieces, [&](int64_t piece) {
          PackX(word, words, piece * p_.grid_rows() / pack_pieces,
                (piece + 1) * p_.grid_rows() / pack_pieces, panel);
        });
        if (!status.ok()) return status;
        status = ParallelFor(pool, last - first,
                             [&](int64_t chunk) { RunChunk(first + chunk, word, words, panel); });
        if (!status.ok()) return status;
      }
    }
    return {};
  }

 private:
  static BlockMatmul Joined(BlockMatmul problem, const JoinedBlocks& joined) {
    problem.block_in *= joined.inner_parts;
    problem.block_out *= joined.line_parts;
    return problem;
  }

  // Where the sums of a strip begin if those of all strips follow each other.
  int64_t SumsOffset(int64_t strip) const {
    const int64_t sums_bytes = p_.block_in * strips_.items * t_.word_bytes;
    if (strip == strips_.count) return order_.num_blocks() * strips_.per_block * sums_bytes;
    const int64_t line = strips_.line(strip);
    const int64_t in_line = order_.starts[line + 1] - order_.starts[line];
    return (order_.starts[line] * strips_.per_block + strip % strips_.per_block * in_line) *
           sums_bytes;
  }

  // Words between packed parts of dy, and of x. Parts a power of two apart would all meet in one
  // set of L1 while rows are dealt out to them.
  int64_t GradientStride() const {
    return kDepthWords * strips_.items + kSliceBytes / t_.word_bytes;
  }
  int64_t XStride() const { return panel_words_ * p_.block_in + kSliceBytes / t_.word_bytes; }

  // The rows that belong to `words` words of the batch, from `word`.
  int64_t Items(int64_t word, int64_t words) const {
    return std::min(words * t_.items_per_word, p_.batch - word * t_.items_per_word);
  }

  void PackX(int64_t word, int64_t words, int64_t begin, int64_t end, char* panel) const {
    const int64_t first = begin * p_.block_in;
    const int64_t part_stride = XStride();
    t_.pack_columns({g_.x + (word * t_.items_per_word * p_.in + first) * t_.item_bytes, p_.in,
                     Items(word, words), p_.in - first, p_.block_in, end - begin, part_stride,
                     panel + begin * part_stride * t_.word_bytes});
  }

  // Adds `words` of the batch, from `word`, to the sums of a chunk of strips.
  void RunChunk(int64_t chunk, int64_t word, int64_t words, const char* panel) const {
    const int64_t first = chunks_[chunk], last = chunks_[chunk + 1];
    const int64_t gradient_stride = GradientStride();
    char* gradient = static_cast<char*>(
        Scratch(ScratchUse::kPieceWeights, (last - first) * gradient_stride * t_.word_bytes));
    char* piece_sums = nullptr;
    if (!in_place_ && one_panel_) {
      piece_sums =
          static_cast<char*>(Scratch(ScratchUse::kPieceSums, SumsOffset(last) - SumsOffset(first)));
    }
    for (int64_t d = 0; d < words; d += kDepthWords) {
      const int64_t depth = std::min(kDepthWords, words - d);
      PackGradient(first, last, word + d, depth, gradient);
      for (int64_t strip = first; strip < last; ++strip) {
        WeightGradStrip t = Strip(strip);
        if (t.num_blocks == 0) continue;
        t.x = panel + d * p_.block_in * t_.word_bytes;
        t.gradient = gradient + (strip - first) * gradient_stride * t_.word_bytes;
        t.depth_words = depth;
        t.accumulate = word > 0 || d > 0;
        if (!in_place_) {
          t.sums = one_panel_ ? piece_sums + SumsOffset(strip) - SumsOffset(first)
                              : waiting_sums_ + SumsOffset(strip) - waiting_begin_;
        }
        t_.weight_grad(t);
        if ((word + d + depth) * t_.items_per_word >= p_.batch) Finish(strip, t);
      }
    }
  }

  // The strip's part of dy, for each run of strips that have blocks.
  void PackGradient(int64_t first, int64_t last, int64_t word, int64_t words,
                    char* gradient) const {
    const int64_t part_stride = GradientStride();
    const int64_t first_row = word * t_.items_per_word;
    const auto has_blocks = [&](int64_t strip) {
      const int64_t line = strips_.line(strip);
      return order_.starts[line + 1] > order_.starts[line];
    };
    for (int64_t begin = first; begin < last;) {
      // Strips follow each other without gaps, but for blocks that end in half a vector.
      int64_t end = begin + 1;
      while (end < last && has_blocks(begin) && has_blocks(end) &&
             strips_.begin(end) == strips_.begin(end - 1) + strips_.items) {
        ++end;
      }
      if (has_blocks(begin)) {
        const int64_t col = strips_.begin(begin);
        const int64_t cols = end - begin == 1 ? strips_.cols(begin) : p_.out - col;
        t_.pack_columns({g_.y + (first_row * p_.out + col) * t_.item_bytes, p_.out,
                         Items(word, words), cols, strips_.items, end - begin, part_stride,
                         gradient + (begin - first) * part_stride * t_.word_bytes});
      }
      begin = end;
    }
  }

  // All of a strip's tile but for its operands; its sums are dW itself.
  WeightGradStrip Strip(int64_t strip) const {
    const int64_t line = strips_.line(strip), start = order_.starts[line];
    WeightGradStrip t = {};
    t.x_block_stride = XStride();
    t.blocks = order_.inner + start;
    t.num_blocks = order_.starts[line + 1] - start;
    t.block_in = p_.block_in;
    t.vectors = strips_.vectors;
    t.sums = Stored(strip);
    t.sums_stride = in_place_ ? p_.block_out : strips_.items;
    t.sums_block_stride = p_.block_in * t.sums_stride;
    return t;
  }

  char* Stored(int64_t strip) const {
    const int64_t start = order_.starts[strips_.line(strip)];
    return g_.w + (start * p_.block_in * p_.block_out + strips_.offset(strip)) * t_.item_bytes;
  }

  // Rounds the sums where they are not in dW yet, and clears what lies over the weight's edge.
  void Finish(int64_t strip, const WeightGradStrip& t) const {
    const int64_t width = std::min(strips_.items, p_.block_out - strips_.offset(strip));
    const int64_t cols = strips_.cols(strip);
    const char* sums = static_cast<const char*>(t.sums);
    for (int64_t b = 0; b < t.num_blocks; ++b) {
      const int64_t rows = std::min(p_.block_in, p_.in - t.blocks[b] * p_.block_in);
      if (joined_ == nullptr) {
        FinishBlock(sums, t.sums_stride, rows, p_.block_in, cols, width,
                    Stored(strip) + b * p_.block_in * p_.block_out * t_.item_bytes, p_.block_out);
      } else {
        FinishParts(joined_->parts(order_.starts[strips_.line(strip)] + b), sums, t.sums_stride,
                    rows, cols);
      }
      if (!in_place_) sums += t.sums_block_stride * t_.word_bytes;
    }
  }

  // The same for the stored blocks of a joined one, of which `rows` and `cols` exist.
  void FinishParts(const int64_t* parts, const char* sums, int64_t stride, int64_t rows,
                   int64_t cols) const {
    const int64_t part_in = p_.block_in / joined_->inner_parts;
    const int64_t part_out = p_.block_out / joined_->line_parts;
    for (int64_t i = 0; i < joined_->line_parts; ++i) {
      for (int64_t j = 0; j < joined_->inner_parts; ++j) {
        const int64_t position = parts[i * joined_->inner_parts + j];
        if (position < 0) continue;
        FinishBlock(sums + (j * part_in * stride + i * part_out) * t_.word_bytes, stride,
                    std::min(part_in, rows - j * part_in), part_in,
                    std::min(part_out, cols - i * part_out), part_out,
                    g_.w + position * part_in * part_out * t_.item_bytes, part_out);
      }
    }
  }

  // `rows` of `height` and `cols` of `width` of a strip of a block exist.
  void FinishBlock(const char* sums, int64_t sums_stride, int64_t rows, int64_t height,
                   int64_t cols, int64_t width, char* stored, int64_t stored_stride) const {
    if (!in_place_) store_({sums, sums_stride, rows, cols, stored, stored_stride});
    if (rows == height && cols == width) return;
    for (int64_t i = 0; i < height; ++i) {
      const int64_t from = i < rows ? cols : 0;
      std::memset(stored + (i * stored_stride + from) * t_.item_bytes, 0,
                  (width - from) * t_.item_bytes);
    }
  }

  const BlockMatmul p_;
  const Tiles& t_;
  void (*const store_)(const StoredRows&);
  const GroupView g_;
  const JoinedBlocks* joined_;
  const BlockOrder& order_;
  const Strips strips_;
  const bool in_place_;  // dW itself holds the sums
  int64_t panel_words_ = 0;
  bool one_panel_ = true;
  char* waiting_sums_ = nullptr;
  int64_t waiting_begin_ = 0;
  std::vector<int64_t> chunks_;
};

}  // namespace

Status BlockWeightGrad(const BlockMatmul& problem, const TilesByWidth& by_width, TaskPool& pool) {
  const int64_t block_bytes = problem.block_in * problem.block_out * by_width.wide.item_bytes;
  return ForEachGroup(
      problem, by_width.wide.item_bytes, pool, Order::kByColumn,
      [&](const GroupView& group, TaskPool& group_pool) -> Status {
        AdviseHugePages(group.w, problem.capacity * block_bytes);
        const int64_t unused = problem.batch == 0 ? 0 : group.order->num_blocks();
        if (const int64_t bytes = (problem.capacity - unused) * block_bytes; bytes > 0) {
          std::memset(group.w + unused * block_bytes, 0, bytes);
        }
        if (problem.batch == 0) return {};
        const auto joined = JoinBlocks(*group.order, problem.grid_rows(), problem.block_out,
                                       problem.block_in, problem.batch, by_width.wide.lanes);
        return WeightGradRun(problem, by_width, group, joined ? &*joined : nullptr).Run(group_pool);
      });
}

}  // namespace jaxsparse::cpu
