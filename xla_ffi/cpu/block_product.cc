// Forward, y = x W, and input gradient, dx = dy W^T: one product of rows with blocks. The input
// gradient takes the blocks by row and transposes each, right before use.
#include <algorithm>
#include <cstring>
#include <optional>
#include <vector>

#include "cpu/block_matmul.h"
#include "cpu/block_pattern.h"
#include "cpu/groups.h"
#include "cpu/joined_blocks.h"
#include "cpu/parallel_for.h"
#include "cpu/scratch.h"
#include "cpu/strips.h"

namespace jaxsparse::cpu {
namespace {

// Packed rows that stay in L3 while the weights pass by. A panel that only fills L2 passes the
// weights through from memory too often: 44 % of peak at 4096 x 4096, against 83 %.
constexpr int64_t kPanelBytes = 4 << 20;
// Where every panel packs the weights again, fewer panels pay: 512 x 3072 rows at once made an
// input gradient of 3072 x 768 8 % faster.
constexpr int64_t kPanelBytesIfPacking = 8 << 20;
// A limit for long rows of tiny blocks, each of which takes a slice of 64 bytes.
constexpr int64_t kMaxTileBytes = 64 << 20;
// Weights that stay in L2 while the rows of the panel pass by.
constexpr int64_t kChunkBytes = 256 << 10;
// Pieces per thread: enough that a thread which comes late or is interrupted costs little.
constexpr int64_t kPiecesPerThread = 8;

// result [batch, width] = rows [batch, depth] * (weights, or their transpose).
struct Product {
  const char* rows;
  const char* weights;
  char* result;
  int64_t batch, depth, width;
  int64_t block_depth, block_width;
  const BlockOrder* order;  // lines of blocks along the width
  bool transposed;
  int64_t result_bytes;                  // of a number
  const JoinedBlocks* joined = nullptr;  // how these blocks are made of stored ones, if they are

  int64_t num_depth_blocks() const { return CeilDiv(depth, block_depth); }
};

template <int64_t kBytes>
void CopyRowsOf(const char* from, int64_t rows, char* to, int64_t stride) {
  for (int64_t r = 0; r < rows; ++r) std::memcpy(to + r * stride, from + r * kBytes, kBytes);
}

// Rows that follow each other. Of a few bytes: a call for each would take longer than the copy.
void CopyRows(const char* from, int64_t rows, int64_t bytes, char* to, int64_t stride) {
  if (bytes == 16) return CopyRowsOf<16>(from, rows, to, stride);
  if (bytes == 32) return CopyRowsOf<32>(from, rows, to, stride);
  if (bytes == 64) return CopyRowsOf<64>(from, rows, to, stride);
  for (int64_t r = 0; r < rows; ++r) std::memcpy(to + r * stride, from + r * bytes, bytes);
}

// How a product is computed with some tiles, for pieces of work on any thread.
class ProductRun {
 public:
  ProductRun(const Product& product, const Tiles& tiles)
      : p_(product),
        t_(tiles),
        strips_(tiles.lanes, product.block_width, product.width),
        kernel_(Kernel(product, tiles)),
        packs_weights_(product.joined != nullptr || product.transposed ||
                       !kernel_.reads_stored_weights || product.block_width % tiles.lanes != 0),
        block_words_(CeilDiv(product.block_depth, kernel_.items_per_word)),
        row_bytes_(product.num_depth_blocks() *
                   CeilDiv(block_words_ * tiles.word_bytes, kSliceBytes) * kSliceBytes),
        max_rows_(std::clamp<int64_t>(kMaxTileBytes / std::max<int64_t>(1, row_bytes_), 1,
                                      kernel_.max_rows[strips_.vectors])),
        row_tiles_(product.batch, max_rows_) {}

  Status Run(TaskPool& pool) {
    const int64_t panel_tiles =
        std::clamp<int64_t>((packs_weights_ ? kPanelBytesIfPacking : kPanelBytes) /
                                std::max<int64_t>(1, max_rows_ * row_bytes_),
                            1, row_tiles_.count);
    const int64_t strip_block_bytes = block_words_ * strips_.items * t_.word_bytes;
    const int64_t total = p_.order->num_blocks() * strips_.per_block * strip_block_bytes;
    const int64_t target = pool.num_threads() > 1 ? kPiecesPerThread * pool.num_threads() : 1;
    chunks_ = ChunkStrips(strips_, *p_.order, strip_block_bytes,
                          std::clamp<int64_t>(total / target, 32 << 10, kChunkBytes),
                          CeilDiv(strips_.count, target));
    const int64_t num_chunks = static_cast<int64_t>(chunks_.size()) - 1;
    char* panel =
        static_cast<char*>(Scratch(ScratchUse::kPanel, panel_tiles * max_rows_ * row_bytes_));

    for (int64_t first = 0; first < row_tiles_.count; first += panel_tiles) {
      const int64_t last = std::min(first + panel_tiles, row_tiles_.count);
      Status status = ParallelFor(pool, last - first, [&](int64_t tile) {
        PackRows(first + tile, panel + PanelOffset(first, first + tile));
      });
      if (!status.ok()) return status;
      // Chunks may be too few for the threads; then their rows are shared out as well.
      const int64_t shares = std::clamp<int64_t>(target / num_chunks, 1, last - first);
      status = ParallelFor(pool, num_chunks * shares, [&](int64_t piece) {
        const int64_t chunk = piece / shares, share = piece % shares;
        RunChunk(chunk, first, first + share * (last - first) / shares,
                 first + (share + 1) * (last - first) / shares, panel);
      });
      if (!status.ok()) return status;
    }
    return {};
  }

 private:
  static const ProductKernel& Kernel(const Product& p, const Tiles& t) {
    const bool stream =
        p.batch <= t.streamed_product.max_rows[1] && !p.transposed && p.block_width % t.lanes == 0;
    return stream ? t.streamed_product : t.product;
  }

  int64_t PanelOffset(int64_t first_tile, int64_t tile) const {
    return (row_tiles_.begin(tile) - row_tiles_.begin(first_tile)) * row_bytes_;
  }

  void PackRows(int64_t tile, char* panel) const {
    const char* source = p_.rows + row_tiles_.begin(tile) * p_.depth * t_.item_bytes;
    kernel_.pack_rows({source, p_.depth, row_tiles_.size(tile), p_.depth, p_.block_depth, panel});
  }

  // Rows [begin, end) of tiles of the results in a chunk of strips.
  void RunChunk(int64_t chunk, int64_t panel_first, int64_t begin, int64_t end,
                const char* panel) const {
    const int64_t first = chunks_[chunk], last = chunks_[chunk + 1];
    const char* packed = packs_weights_ ? PackWeights(first, last) : nullptr;
    for (int64_t tile = begin; tile < end; ++tile) {
      const char* weights = packed;
      for (int64_t strip = first; strip < last; ++strip) {
        const int64_t line = strips_.line(strip);
        const int64_t start = p_.order->starts[line];
        ProductTile t;
        t.rows = panel + PanelOffset(panel_first, tile);
        t.num_rows = row_tiles_.size(tile);
        t.blocks = p_.order->inner + start;
        t.num_blocks = p_.order->starts[line + 1] - start;
        if (packs_weights_) {
          t.weights = weights;
          t.weights_block_stride = block_words_ * strips_.items;
          t.weights_stride = strips_.items;
          weights += t.num_blocks * t.weights_block_stride * t_.word_bytes;
        } else {
          t.weights_block_stride = p_.block_depth * p_.block_width;
          t.weights_stride = p_.block_width;
          t.weights =
              p_.weights + (start * t.weights_block_stride + strips_.offset(strip)) * t_.item_bytes;
        }
        t.depth = p_.depth;
        t.block_depth = p_.block_depth;
        t.vectors = strips_.vectors;
        t.cols = strips_.cols(strip);
        t.result = p_.result +
                   (row_tiles_.begin(tile) * p_.width + strips_.begin(strip)) * p_.result_bytes;
        t.result_stride = p_.width;
        if (t.cols > 0) (p_.result_bytes == t_.item_bytes ? kernel_.run : kernel_.run_unrounded)(t);
      }
    }
  }

  // The weights of strips [first, last), one after the other, in this thread's scratch.
  const char* PackWeights(int64_t first, int64_t last) const {
    const BlockOrder& order = *p_.order;
    const int64_t block_bytes = block_words_ * strips_.items * t_.word_bytes;
    const int64_t stored_block_bytes = p_.block_depth * p_.block_width * t_.item_bytes;
    int64_t blocks = 0;
    for (int64_t strip = first; strip < last; ++strip) {
      const int64_t line = strips_.line(strip);
      blocks += order.starts[line + 1] - order.starts[line];
    }
    char* packed = static_cast<char*>(Scratch(ScratchUse::kPieceWeights, blocks * block_bytes));
    char* target = packed;
    char* joined = nullptr;
    if (p_.joined != nullptr) {
      joined = static_cast<char*>(Scratch(ScratchUse::kPieceSums, stored_block_bytes));
    }
    for (int64_t strip = first; strip < last; ++strip) {
      const int64_t line = strips_.line(strip), offset = strips_.offset(strip);
      const int64_t cols = std::min(strips_.items, p_.block_width - offset);
      for (int64_t k = order.starts[line]; k < order.starts[line + 1]; ++k) {
        const char* block = joined;
        if (p_.joined != nullptr) {
          const bool is_packed = !p_.transposed && kernel_.reads_stored_weights;
          JoinBlock(p_.joined->parts(k), is_packed ? target : joined);
          if (is_packed) {
            target += block_bytes;
            continue;
          }
        } else {
          block = p_.weights + (p_.transposed ? order.positions[k] : k) * stored_block_bytes;
        }
        if (p_.joined == nullptr && p_.transposed && k + 1 < order.num_blocks()) {
          // The blocks of a row are strewn over memory, where no hardware prefetcher follows.
          const char* next = p_.weights + order.positions[k + 1] * stored_block_bytes +
                             offset * p_.block_depth * t_.item_bytes;
          for (int64_t i = 0; i < cols * p_.block_depth * t_.item_bytes; i += 64) {
            __builtin_prefetch(next + i);
          }
        }
        // Not further than the edge: half of a word could be a NaN from beyond.
        const int64_t depth = std::min(p_.block_depth, p_.depth - order.inner[k] * p_.block_depth);
        if (p_.transposed) {
          t_.pack_transposed({block + offset * p_.block_depth * t_.item_bytes, p_.block_depth,
                              depth, cols, strips_.items, 1, 0, target});
        } else {
          t_.pack_columns({block + offset * t_.item_bytes, p_.block_width, depth, cols,
                           strips_.items, 1, 0, target});
        }
        target += block_bytes;
      }
    }
    return packed;
  }

  // A block as it would be stored, of parts that are, and zeros.
  void JoinBlock(const int64_t* parts, char* block) const {
    const JoinedBlocks& joined = *p_.joined;
    const int64_t part_depth = p_.block_depth / joined.inner_parts;
    const int64_t part_width = p_.block_width / joined.line_parts;
    // Blocks are stored with the weight's inputs as rows: the depth, or transposed the width.
    const int64_t rows = p_.transposed ? part_width : part_depth;
    const int64_t row_bytes = (p_.transposed ? part_depth : part_width) * t_.item_bytes;
    const int64_t block_row_bytes =
        (p_.transposed ? p_.block_depth : p_.block_width) * t_.item_bytes;
    for (int64_t i = 0; i < joined.line_parts; ++i) {
      for (int64_t j = 0; j < joined.inner_parts; ++j) {
        const int64_t down = p_.transposed ? i : j, across = p_.transposed ? j : i;
        const int64_t position = parts[i * joined.inner_parts + j];
        const char* from = p_.weights + position * rows * row_bytes;
        char* to = block + down * rows * block_row_bytes + across * row_bytes;
        if (position >= 0) {
          CopyRows(from, rows, row_bytes, to, block_row_bytes);
        } else {
          for (int64_t r = 0; r < rows; ++r) std::memset(to + r * block_row_bytes, 0, row_bytes);
        }
      }
    }
  }

  const Product p_;
  const Tiles& t_;
  const Strips strips_;
  const ProductKernel& kernel_;
  const bool packs_weights_;
  const int64_t block_words_;
  const int64_t row_bytes_;  // of a packed row
  const int64_t max_rows_;   // of a tile
  const RowTiles row_tiles_;
  std::vector<int64_t> chunks_;
};

// Few rows: dot products with the blocks where they lie.
Status RunDots(const Product& p, const Tiles& tiles, TaskPool& pool) {
  const int64_t lines = p.order->num_lines();
  const int64_t pieces = std::min(lines, kPiecesPerThread * pool.num_threads());
  return ParallelFor(pool, pieces, [&](int64_t piece) {
    for (int64_t line = piece * lines / pieces; line < (piece + 1) * lines / pieces; ++line) {
      const int64_t start = p.order->starts[line];
      DotBlockRow t;
      t.gradient = p.rows;
      t.gradient_stride = p.depth;
      t.batch = p.batch;
      t.blocks = p.order->inner + start;
      t.positions = p.order->positions + start;
      t.num_blocks = p.order->starts[line + 1] - start;
      t.num_blocks_ahead = p.order->num_blocks() - start;
      t.weights = p.weights;
      t.block_in = p.block_width;
      t.block_depth = p.block_depth;
      t.depth = p.depth;
      t.cols = std::min(p.block_width, p.width - line * p.block_width);
      t.result = p.result + line * p.block_width * tiles.item_bytes;
      t.result_stride = p.width;
      tiles.dot(t);
    }
  });
}

Status RunProduct(const Product& p, const TilesByWidth& by_width, TaskPool& pool) {
  if (p.batch == 0 || p.width == 0) return {};
  // Transposed, narrow blocks are no less of a burden if it is their depth that is narrow.
  const int64_t narrowest = p.transposed ? std::min(p.block_width, p.block_depth) : p.block_width;
  const Tiles& tiles = by_width.For(narrowest);
  if (p.transposed && p.batch <= tiles.max_dot_batch) return RunDots(p, tiles, pool);
  const auto joined = JoinBlocks(*p.order, p.num_depth_blocks(), p.block_width, p.block_depth,
                                 p.batch, by_width.wide.lanes);
  if (joined) {
    Product wide = p;
    wide.block_width *= joined->line_parts;
    wide.block_depth *= joined->inner_parts;
    wide.order = &joined->order;
    wide.joined = &*joined;
    return ProductRun(wide, by_width.wide).Run(pool);
  }
  return ProductRun(p, tiles).Run(pool);
}

}  // namespace

Status BlockForward(const BlockMatmul& problem, const TilesByWidth& tiles, TaskPool& pool) {
  const int64_t item_bytes = tiles.wide.item_bytes;
  const int64_t y_bytes = problem.y_is_float32 ? sizeof(float) : item_bytes;
  return ForEachGroup(problem, item_bytes, pool, Order::kByColumn,
                      [&](const GroupView& group, TaskPool& group_pool) {
                        AdviseHugePages(group.y, problem.batch * problem.out * y_bytes);
                        return RunProduct(
                            {group.x, group.w, group.y, problem.batch, problem.in, problem.out,
                             problem.block_in, problem.block_out, group.order, false, y_bytes},
                            tiles, group_pool);
                      });
}

Status BlockInputGrad(const BlockMatmul& problem, const TilesByWidth& tiles, TaskPool& pool) {
  const int64_t item_bytes = tiles.wide.item_bytes;
  return ForEachGroup(
      problem, item_bytes, pool, Order::kByRow, [&](const GroupView& group, TaskPool& group_pool) {
        AdviseHugePages(group.x, problem.batch * problem.in * item_bytes);
        return RunProduct({group.y, group.w, group.x, problem.batch, problem.out, problem.in,
                           problem.block_out, problem.block_in, group.order, true, item_bytes},
                          tiles, group_pool);
      });
}

}  // namespace jaxsparse::cpu
