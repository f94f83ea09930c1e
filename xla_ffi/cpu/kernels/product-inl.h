// Register tiles of forward and input gradient.
#pragma once
#include "cpu/kernels/packing-inl.h"

namespace jaxsparse::cpu {
namespace {

// Rows of the largest tile, by the vectors of its strip. 28 of 32 registers hold sums, the others
// the weights and a broadcast; of 16, 12 do.
constexpr int kTileSums = kVectorRegisters == 32 ? 28 : 12;
constexpr int MaxRows(int vectors) { return kTileSums / vectors; }
// From here on there are rows enough to hide the latency of the additions.
constexpr int kMaxStreamedRows = 4;

// How many sums each result is split into: a tile of few rows needs eight independent chains.
constexpr int Unroll(int rows, int vectors) {
  return rows * vectors >= 8 ? 1 : rows * vectors >= 3 ? 2 : 4;
}

// Packed weights, as words.
template <class Op>
struct PackedWords {
  using Stored = typename Op::Word;
  static JAXSPARSE_INLINE typename Op::Words Load(const Stored* from) {
    return LoadVector<typename Op::Words>(from);
  }
};

// result [kRows][kVectors] = sum over the strip's blocks of rows * weights. The sums stay in
// registers across all blocks.
template <class Op, class Weights, int kRows, int kVectors>
void RunTile(const ProductTile& t, typename Op::Sum* result, int64_t result_stride) {
  using Word = typename Op::Word;
  constexpr int kUnroll = Unroll(kRows, kVectors);
  constexpr int64_t kSliceWords = kSliceBytes / sizeof(Word);
  const int64_t block_words = CeilDiv(t.block_depth, Op::kItemsPerWord);
  const int64_t x_block_stride = CeilDiv(block_words, kSliceWords) * kSliceWords * kRows;
  const auto* x_panel = static_cast<const Word*>(t.rows);
  const auto* w_block = static_cast<const typename Weights::Stored*>(t.weights);

  typename Op::Sums sums[kUnroll][kRows][kVectors];
#pragma GCC unroll 4
  for (int u = 0; u < kUnroll; ++u)
#pragma GCC unroll 32
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sums[u][r][v] = typename Op::Sums{};

  for (int64_t b = 0; b < t.num_blocks; ++b) {
    const Word* x = x_panel + t.blocks[b] * x_block_stride;
    const auto* w = w_block;
    w_block += t.weights_block_stride;
    if (b + 1 < t.num_blocks) {
      const char* next = reinterpret_cast<const char*>(x_panel + t.blocks[b + 1] * x_block_stride);
      // From there on the hardware follows; all 3.5 KB of a block of 64 cost 2 to 4 %.
      const int64_t bytes = Min(x_block_stride * static_cast<int64_t>(sizeof(Word)), 1024);
      for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(next + i);
    }
    const int64_t items = Min(t.block_depth, t.depth - t.blocks[b] * t.block_depth);
    for (int64_t words = CeilDiv(items, Op::kItemsPerWord); words > 0; words -= kSliceWords) {
      const int64_t count = Min(words, kSliceWords);
      int64_t k = 0;
      for (; k + kUnroll <= count; k += kUnroll) {
#pragma GCC unroll 4
        for (int u = 0; u < kUnroll; ++u) {
          typename Op::Words wv[kVectors];
#pragma GCC unroll 4
          for (int v = 0; v < kVectors; ++v) wv[v] = Weights::Load(w + v * Op::kLanes);
#pragma GCC unroll 32
          for (int r = 0; r < kRows; ++r) {
            const auto xv = Op::Broadcast(x + r * kSliceWords + k + u);
#pragma GCC unroll 4
            for (int v = 0; v < kVectors; ++v) {
              sums[u][r][v] = Op::MulAdd(xv, wv[v], sums[u][r][v]);
            }
          }
          w += t.weights_stride;
        }
      }
      if constexpr (kUnroll > 1) {
        for (; k < count; ++k) {
#pragma GCC unroll 32
          for (int r = 0; r < kRows; ++r) {
            const auto xv = Op::Broadcast(x + r * kSliceWords + k);
#pragma GCC unroll 4
            for (int v = 0; v < kVectors; ++v) {
              sums[0][r][v] = Op::MulAdd(xv, Weights::Load(w + v * Op::kLanes), sums[0][r][v]);
            }
          }
          w += t.weights_stride;
        }
      }
      x += kRows * kSliceWords;
    }
  }

#pragma GCC unroll 32
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      auto sum = sums[0][r][v];
#pragma GCC unroll 4
      for (int u = 1; u < kUnroll; ++u) sum += sums[u][r][v];
      StoreVector(result + r * result_stride + v * Op::kLanes, sum);
    }
}

template <class Op>
using TileFunction = void (*)(const ProductTile&, typename Op::Sum*, int64_t);

// The function for each number of rows, from 1.
template <class Op, class Weights, int kVectors, class Rows>
struct TilesByRows;
template <class Op, class Weights, int kVectors, int... kRowsLessOne>
struct TilesByRows<Op, Weights, kVectors, std::integer_sequence<int, kRowsLessOne...>> {
  static constexpr TileFunction<Op> kRun[] = {RunTile<Op, Weights, kRowsLessOne + 1, kVectors>...};
};

// Runs the tile; into `result`, whose numbers are of Type, itself where the sums can go there
// whole.
template <class Type, class Op, class Weights, int kMaxRows1, int kMaxRows2>
void RunProduct(const ProductTile& t) {
  using Sum = typename Op::Sum;
  const TileFunction<Op> run =
      t.vectors == 1
          ? TilesByRows<Op, Weights, 1,
                        std::make_integer_sequence<int, kMaxRows1>>::kRun[t.num_rows - 1]
          : TilesByRows<Op, Weights, 2,
                        std::make_integer_sequence<int, kMaxRows2>>::kRun[t.num_rows - 1];
  const int64_t width = t.vectors * Op::kLanes;
  if (Type::kSumsAreStored && t.cols == width) {
    run(t, static_cast<Sum*>(t.result), t.result_stride);
    return;
  }
  constexpr int kMaxRows = kMaxRows1 > 2 * kMaxRows2 ? kMaxRows1 : 2 * kMaxRows2;
  alignas(64) Sum sums[kMaxRows * Op::kLanes];
  run(t, sums, width);
  StoreRows<Type>({sums, width, t.num_rows, t.cols, t.result, t.result_stride});
}

// --- Input gradient of few rows.

constexpr int kMaxDotRows = kVectorRegisters == 32 ? 6 : 4;
// Rows of W per tile, by rows of the gradient: sums and one row of operands fit the registers.
constexpr int DotColumns(int rows) {
  if (kVectorRegisters == 32) return rows == 1 ? 16 : rows <= 3 ? 8 : 4;
  return rows == 1 ? 8 : rows == 2 ? 4 : 2;
}

// Latency times bandwidth of memory, and some more.
constexpr int64_t kDotPrefetchBytes = 8192;

// The sums of the lanes of `count` vectors.
template <class Op, int kCount>
JAXSPARSE_INLINE void SumLanes(const typename Op::Sums (&sums)[kCount], typename Op::Sum* result) {
#pragma GCC unroll 16
  for (int i = 0; i < kCount; i += Op::kLanes) {
    typename Op::Sums rows[Op::kLanes];
#pragma GCC unroll 16
    for (int j = 0; j < Op::kLanes; ++j) {
      rows[j] = i + j < kCount ? sums[i + j < kCount ? i + j : 0] : typename Op::Sums{};
    }
    Transpose<typename Op::Sum>(rows);
    typename Op::Sums total = rows[0];
#pragma GCC unroll 16
    for (int j = 1; j < Op::kLanes; ++j) total += rows[j];
    StoreVector(result + i, total);
  }
}

// dx[m][i] = sum over the blocks of the row of dy[m] . W[i], for kRows m and kCols i, whose values
// begin at row `col` of the blocks.
template <class Type, class Op, int kRows, int kCols>
void RunDotTile(const DotBlockRow& t, int64_t row, int64_t col) {
  using Stored = typename Type::Stored;
  constexpr int64_t kItems = Op::kLanes * Op::kItemsPerWord;
  constexpr int kSums = kRows * kCols;
  const auto* gradient = static_cast<const Stored*>(t.gradient) + row * t.gradient_stride;
  const auto* weights = static_cast<const Stored*>(t.weights) + col * t.block_depth;
  const int64_t block_items = t.block_in * t.block_depth;
  const int64_t tile_bytes = kCols * t.block_depth * static_cast<int64_t>(sizeof(Stored));
  const int64_t ahead = CeilDiv(kDotPrefetchBytes, tile_bytes);

  typename Op::Sums sums[kSums];
#pragma GCC unroll 32
  for (int i = 0; i < kSums; ++i) sums[i] = typename Op::Sums{};
  for (int64_t b = 0; b < t.num_blocks; ++b) {
    const Stored* g = gradient + t.blocks[b] * t.block_depth;
    const Stored* w = weights + t.positions[b] * block_items;
    if (row == 0) {
      // What comes next: these rows of a later block, then the next rows of the first blocks, then
      // the next block row. Blocks of a row are strewn over memory; no hardware prefetcher follows.
      const Stored* next = nullptr;
      int64_t later = b + ahead;
      if (later < t.num_blocks) {
        next = weights + t.positions[later] * block_items;
      } else if (col + kCols < t.cols) {
        later -= t.num_blocks;
        if (later < t.num_blocks) {
          next = weights + t.positions[later] * block_items + kCols * t.block_depth;
        }
      } else if (later < t.num_blocks_ahead) {
        next = static_cast<const Stored*>(t.weights) + t.positions[later] * block_items;
      }
      if (next != nullptr) {
        for (int64_t i = 0; i < tile_bytes; i += 64) {
          __builtin_prefetch(reinterpret_cast<const char*>(next) + i);
        }
      }
    }
    const int64_t depth = Min(t.block_depth, t.depth - t.blocks[b] * t.block_depth);
    int64_t d = 0;
    for (; d + kItems <= depth; d += kItems) {
      typename Op::Words gv[kRows];
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) gv[r] = Op::Load(g + r * t.gradient_stride + d);
#pragma GCC unroll 16
      for (int c = 0; c < kCols; ++c) {
        const auto wv = Op::Load(w + c * t.block_depth + d);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
          sums[r * kCols + c] = Op::MulAdd(gv[r], wv, sums[r * kCols + c]);
        }
      }
    }
    if (d < depth) {
      typename Op::Words gv[kRows];
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        gv[r] = LoadPartial<Op>(g + r * t.gradient_stride + d, depth - d);
      }
#pragma GCC unroll 16
      for (int c = 0; c < kCols; ++c) {
        const auto wv = LoadPartial<Op>(w + c * t.block_depth + d, depth - d);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
          sums[r * kCols + c] = Op::MulAdd(gv[r], wv, sums[r * kCols + c]);
        }
      }
    }
  }

  alignas(64) typename Op::Sum totals[(kSums + Op::kLanes - 1) / Op::kLanes * Op::kLanes];
  SumLanes<Op, kSums>(sums, totals);
  StoreRows<Type>({totals, kCols, kRows, kCols,
                   static_cast<Stored*>(t.result) + row * t.result_stride + col, t.result_stride});
}

template <class Type, class Op, int kRows>
void RunDotRows(const DotBlockRow& t, int64_t row) {
  constexpr int kCols = DotColumns(kRows);
  int64_t col = 0;
  for (; col + kCols <= t.cols; col += kCols) RunDotTile<Type, Op, kRows, kCols>(t, row, col);
  for (; col < t.cols; ++col) RunDotTile<Type, Op, kRows, 1>(t, row, col);
}

using DotFunction = void (*)(const DotBlockRow&, int64_t);

template <class Type, class Op, class Rows>
struct DotByRows;
template <class Type, class Op, int... kRowsLessOne>
struct DotByRows<Type, Op, std::integer_sequence<int, kRowsLessOne...>> {
  static constexpr DotFunction kRun[] = {RunDotRows<Type, Op, kRowsLessOne + 1>...};
};

template <class Type, class Op>
void RunDot(const DotBlockRow& t) {
  using ByRows = DotByRows<Type, Op, std::make_integer_sequence<int, kMaxDotRows>>;
  for (int64_t row = 0; row < t.batch; row += kMaxDotRows) {
    ByRows::kRun[Min(kMaxDotRows, t.batch - row) - 1](t, row);
  }
}

}  // namespace
}  // namespace jaxsparse::cpu
