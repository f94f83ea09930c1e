// Weight gradient, dW = x^T dy at the stored blocks.
#include <algorithm>
#include <cstring>
#include <vector>

#include "cpu/block_matmul.h"
#include "cpu/groups.h"
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
  WeightGradRun(const BlockMatmul& problem, const Tiles& tiles, const GroupView& group)
      : p_(problem),
        t_(tiles),
        g_(group),
        order_(*group.order),
        strips_(tiles.lanes, problem.block_out, problem.out),
        in_place_(tiles.sums_are_stored && problem.block_out % tiles.lanes == 0) {}

  Status Run(TaskPool& pool) {
    const int64_t x_row_bytes = p_.grid_rows() * p_.block_in * t_.word_bytes;
    const int64_t depth_words = CeilDiv(p_.batch, t_.items_per_word);
    panel_words_ = std::max(kMinPanelWords, kPanelBytes / std::max<int64_t>(1, x_row_bytes));
    if (panel_words_ > kDepthWords) panel_words_ -= panel_words_ % kDepthWords;
    panel_words_ = std::min(panel_words_, depth_words);
    const int64_t num_panels = depth_words == 0 ? 0 : CeilDiv(depth_words, panel_words_);
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

    ClearPlaces(p_.batch == 0 ? 0 : order_.num_blocks(), p_.capacity);
    if (p_.batch == 0) return {};
    char* panel = static_cast<char*>(Scratch(ScratchUse::kPanel, panel_words_ * x_row_bytes));

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
  // Where the sums of a strip begin if those of all strips follow each other.
  int64_t SumsOffset(int64_t strip) const {
    const int64_t sums_bytes = p_.block_in * strips_.items * t_.word_bytes;
    if (strip == strips_.count) return order_.num_blocks() * strips_.per_block * sums_bytes;
    const int64_t line = strips_.line(strip);
    const int64_t in_line = order_.starts[line + 1] - order_.starts[line];
    return (order_.starts[line] * strips_.per_block + strip % strips_.per_block * in_line) *
           sums_bytes;
  }

  void ClearPlaces(int64_t begin, int64_t end) const {
    const int64_t block_bytes = p_.block_in * p_.block_out * t_.item_bytes;
    if (begin < end) std::memset(g_.w + begin * block_bytes, 0, (end - begin) * block_bytes);
  }

  // The rows that belong to `words` words of the batch, from `word`.
  int64_t Items(int64_t word, int64_t words) const {
    return std::min(words * t_.items_per_word, p_.batch - word * t_.items_per_word);
  }

  void PackX(int64_t word, int64_t words, int64_t begin, int64_t end, char* panel) const {
    const int64_t first = begin * p_.block_in;
    const int64_t part_stride = panel_words_ * p_.block_in;
    t_.pack_columns({g_.x + (word * t_.items_per_word * p_.in + first) * t_.item_bytes, p_.in,
                     Items(word, words), p_.in - first, p_.block_in, end - begin, part_stride,
                     panel + begin * part_stride * t_.word_bytes});
  }

  // Adds `words` of the batch, from `word`, to the sums of a chunk of strips.
  void RunChunk(int64_t chunk, int64_t word, int64_t words, const char* panel) const {
    const int64_t first = chunks_[chunk], last = chunks_[chunk + 1];
    const int64_t gradient_stride = kDepthWords * strips_.items;
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
    const int64_t part_stride = kDepthWords * strips_.items;
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
    t.x_block_stride = panel_words_ * p_.block_in;
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
    char* stored = Stored(strip);
    const int64_t width = std::min(strips_.items, p_.block_out - strips_.offset(strip));
    const int64_t cols = strips_.cols(strip);
    const char* sums = static_cast<const char*>(t.sums);
    for (int64_t b = 0; b < t.num_blocks; ++b) {
      const int64_t rows = std::min(p_.block_in, p_.in - t.blocks[b] * p_.block_in);
      if (!in_place_) {
        t_.store({sums, t.sums_stride, rows, cols, stored, p_.block_out});
        sums += t.sums_block_stride * t_.word_bytes;
      }
      if (rows < p_.block_in || cols < width) {
        for (int64_t i = 0; i < p_.block_in; ++i) {
          const int64_t from = i < rows ? cols : 0;
          std::memset(stored + (i * p_.block_out + from) * t_.item_bytes, 0,
                      (width - from) * t_.item_bytes);
        }
      }
      stored += p_.block_in * p_.block_out * t_.item_bytes;
    }
  }

  const BlockMatmul& p_;
  const Tiles& t_;
  const GroupView g_;
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

Status BlockWeightGrad(const BlockMatmul& problem, const Tiles& tiles, TaskPool& pool) {
  return ForEachGroup(
      problem, tiles, pool, Order::kByColumn, [&](const GroupView& group, TaskPool& group_pool) {
        AdviseHugePages(group.w,
                        problem.capacity * problem.block_in * problem.block_out * tiles.item_bytes);
        return WeightGradRun(problem, tiles, group).Run(group_pool);
      });
}

}  // namespace jaxsparse::cpu
