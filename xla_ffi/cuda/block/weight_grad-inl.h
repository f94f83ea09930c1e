// dW = x^T * dy at the stored blocks: the body of the kernel, and the sum over splits.
//
// A block of threads makes a tile of a strip, a few blocks of one block column below each other:
// they share the tile of dy, and lie together in w, so nothing is scattered. It goes through the
// rows of x and dy a step at a time; copies run kStages - 1 steps ahead, in a ring.
#pragma once
#include "cuda/block/arguments.h"
#include "cuda/block/copy_tile-inl.h"
#include "cuda/block/warp_tile-inl.h"
#include "cuda/primitives/primitives.h"

namespace jaxsparse::cuda {

// kTileOut: columns of a tile of a strip. kIsAligned: as in ProductConfig.
template <class Arithmetic_, int kTileOut_, bool kIsAligned_>
struct WeightGradConfig {
  using Arithmetic = Arithmetic_;
  using Element = typename Arithmetic::Element;
  static constexpr bool kIsAligned = kIsAligned_;
  static constexpr int kTileIn = Arithmetic::kOnTensorCores ? 128 : 64;
  static constexpr int kTileOut = kTileOut_;
  static constexpr int kStep = sizeof(Element) == 2 ? 32 : 64 / static_cast<int>(sizeof(Element));
  static constexpr int kStages = 4;

  static constexpr int kWarpOut = kTileOut == 128 ? 64 : kTileOut >= 32 ? 32 : 16;
  static constexpr int kWarpIn = kTileIn * kTileOut / (4 * kWarpOut);
  static constexpr int kThreads = 128;

  using TileX = SharedTile<Arithmetic, Along::kResult, kTileIn, kStep>;
  using TileY = SharedTile<Arithmetic, Along::kResult, kTileOut, kStep>;

  static_assert((kTileIn / kWarpIn) * (kTileOut / kWarpOut) * 32 == kThreads,
                "Every warp has a part.");
  static_assert(kStep % Arithmetic::kDepth == 0, "A step is whole matrix instructions.");
  static_assert(kStages * (TileX::kBytes + TileY::kBytes) <= 99 * 1024,
                "Shared memory of the smallest chips, sm_86, sm_89 and sm_120.");
};

template <class Config>
struct BlockWeightGrad {
  using Args = WeightGradArgs;
  static constexpr int kThreads = Config::kThreads;
  using Arithmetic = typename Config::Arithmetic;
  using Element = typename Config::Element;
  using Sum = typename Arithmetic::Sum;
  using TileX = typename Config::TileX;
  using TileY = typename Config::TileY;
  static constexpr int kStages = Config::kStages;
  static constexpr size_t kSharedBytes = kStages * (TileX::kBytes + TileY::kBytes);

  static JAXSPARSE_DEVICE void Run(const Args& args) {
    constexpr int kTileIn = Config::kTileIn, kTileOut = Config::kTileOut, kStep = Config::kStep;
    constexpr int kWarpIn = Config::kWarpIn, kWarpOut = Config::kWarpOut;

    const int64_t tiles_per_strip = static_cast<int64_t>(args.tiles_in) * args.tiles_out;
    const int strip = static_cast<int>(BlockIndex() / tiles_per_strip);
    const int tile = static_cast<int>(BlockIndex() % tiles_per_strip);
    const int strip_row0 = tile / args.tiles_out * kTileIn;
    const int out_in_block = tile % args.tiles_out * kTileOut;

    // The strip's column and blocks. There are fewer strips than the grid has room for.
    const PatternArrays& pattern = args.pattern;
    const int64_t pattern_index = At(args.pattern_group);
    const int32_t* rows = pattern.rows + pattern_index * pattern.capacity;
    const int32_t* words = pattern.words + pattern_index * pattern.words_per_pattern;
    const int32_t* strip_start = words + pattern.strip_start;
    if (strip >= LoadConstant(strip_start + pattern.grid_cols + 1)) return;
    int column = 0, end = pattern.grid_cols + 1;  // the last with strip_start <= strip
    while (end - column > 1) {
      const int middle = column + (end - column) / 2;
      if (LoadConstant(strip_start + middle) <= strip) {
        column = middle;
      } else {
        end = middle;
      }
    }
    const int32_t* column_start = words + pattern.column_start + column;
    const int block0 = LoadConstant(column_start) +
                       (strip - LoadConstant(strip_start + column)) * pattern.blocks_per_strip;
    const int blocks_left = LoadConstant(column_start + 1) - block0;
    const int blocks =
        blocks_left < pattern.blocks_per_strip ? blocks_left : pattern.blocks_per_strip;
    const bool is_unused = column == pattern.grid_cols;
    const bool is_invalid = LoadConstant(words) != 0;  // then every place is unused

    // Rows of x and dy that this split sums over; none where the result is known.
    const int64_t begin = SplitIndex() * args.rows_per_split;
    const int64_t there = args.m - begin;
    const int64_t num_rows = is_unused                     ? 0
                             : there < args.rows_per_split ? there
                                                           : args.rows_per_split;
    const int64_t steps = num_rows > 0 ? (num_rows + kStep - 1) / kStep : 0;

    // Column of x of this row of the strip; negative where there is none.
    const auto column_of_x = [&](int strip_row) -> int64_t {
      const int block = strip_row / args.block_in;
      if (is_unused || block >= blocks) return -1;
      const int64_t col =
          static_cast<int64_t>(LoadConstant(rows + block0 + block)) * args.block_in +
          strip_row % args.block_in;
      return col < args.in ? col : -1;
    };

    // A thread copies the same columns of every tile: the strip's rows are looked up once.
    constexpr int kVector = Config::kIsAligned ? 16 / static_cast<int>(sizeof(Element)) : 1;
    constexpr int kPerRow = kTileIn / kVector;
    static_assert(kThreads % kPerRow == 0, "A thread keeps its columns.");
    const int x_at = ThreadIndex() % kPerRow * kVector;
    const int64_t x_col = column_of_x(strip_row0 + x_at);
    const Element* x =
        static_cast<const Element*>(args.x) + At(args.x_group) * args.m * args.in + begin * args.in;
    const int64_t y_col = static_cast<int64_t>(column) * args.block_out + out_in_block;
    const Element* y = static_cast<const Element*>(args.y) + At(args.y_group) * args.m * args.out +
                       begin * args.out + y_col;
    const int64_t out_left = args.out - y_col, out_in_block_left = args.block_out - out_in_block;
    const int columns =
        static_cast<int>(out_left < out_in_block_left ? out_left : out_in_block_left);

    Element* const x_ring = SharedArray<Element>(0);
    Element* const y_ring = SharedArray<Element>(kStages * TileX::kBytes);

    const auto fetch = [&](int64_t step, int stage) {
      const int64_t row0 = step * kStep, rows_there = num_rows - row0;
      Element* x_tile = x_ring + stage * (TileX::kBytes / static_cast<int>(sizeof(Element)));
      JAXSPARSE_UNROLL_BY(kCopiesAtOnce<Config::kIsAligned>)
      for (int first = 0; first < kStep; first += kThreads / kPerRow) {
        const int row = first + ThreadIndex() / kPerRow;
        if (kStep % (kThreads / kPerRow) != 0 && row >= kStep) break;
        const bool is_there = x_col >= 0 && row < rows_there;
        Element* to = x_tile + row * TileX::kStride + x_at;
        const Element* from = x + (row0 + row) * args.in + x_col;
        if constexpr (Config::kIsAligned) {
          CopyAsync16(to, is_there ? from : x, is_there);
        } else {
          StoreShared(to, is_there ? LoadConstant(from) : Element{});
        }
      }
      CopyTile<kStep, kTileOut, kThreads, Config::kIsAligned>(
          y_ring + stage * (TileY::kBytes / static_cast<int>(sizeof(Element))), TileY::kStride,
          y + row0 * args.out, args.out, rows_there, columns);
    };

    const int warp = ThreadIndex() / 32, lane = ThreadIndex() % 32;
    const int warp_in = warp % (kTileIn / kWarpIn) * kWarpIn;
    const int warp_out = warp / (kTileIn / kWarpIn) * kWarpOut;
    WarpTile<Arithmetic, kWarpIn / 16, kWarpOut / 8> result;
    result.Fill(Sum(0));

    for (int s = 0; s < kStages - 1; ++s) {
      if (s < steps) fetch(s, s);
      CommitCopies();
    }
    int stage = 0, free_stage = kStages - 1;
    for (int64_t s = 0; s < steps; ++s) {
      // This step's copies have landed, of all threads; the last step's stage is read no more.
      WaitForCopies<kStages - 2>();
      SyncThreads();
      if (s + kStages - 1 < steps) fetch(s + kStages - 1, free_stage);
      CommitCopies();

      const Element* x_tile =
          x_ring + stage * (TileX::kBytes / static_cast<int>(sizeof(Element))) + warp_in;
      const Element* y_tile =
          y_ring + stage * (TileY::kBytes / static_cast<int>(sizeof(Element))) + warp_out;
      JAXSPARSE_UNROLL_BY(Arithmetic::kDepthsAtOnce)
      for (int k = 0; k < kStep; k += Arithmetic::kDepth) {
        result.template AddProduct<Along::kResult, Along::kResult>(
            x_tile + k * TileX::kStride, TileX::kStride, y_tile + k * TileY::kStride,
            TileY::kStride);
      }
      stage = stage + 1 == kStages ? 0 : stage + 1;
      free_stage = free_stage + 1 == kStages ? 0 : free_stage + 1;
    }

    // What lies over the weight's edge, and unused places, are zero whatever x and dy hold.
    const int64_t block_size = static_cast<int64_t>(args.block_in) * args.block_out;
    const int64_t w0 = SplitIndex() * args.split_stride +
                       At(args.w_group) * pattern.capacity * block_size + block0 * block_size;
    JAXSPARSE_UNROLL
    for (int i = 0; i < kWarpIn / 16; ++i) {
      JAXSPARSE_UNROLL
      for (int h = 0; h < 2; ++h) {
        const int strip_row = strip_row0 + warp_in + 16 * i + 8 * h + lane / 4;
        if (strip_row >= blocks * static_cast<int64_t>(args.block_in)) continue;
        const bool is_in_weight = column_of_x(strip_row) >= 0;
        JAXSPARSE_UNROLL
        for (int j = 0; j < kWarpOut / 8; ++j) {
          const int out = warp_out + 8 * j + lane % 4 * 2;  // in the tile
          Sum numbers[2];
          JAXSPARSE_UNROLL
          for (int e = 0; e < 2; ++e) {
            numbers[e] = is_invalid                          ? NaN<Sum>()
                         : is_in_weight && out + e < columns ? result.sums[i][j][2 * h + e]
                                                             : Sum(0);
          }
          const int64_t at =
              w0 + strip_row * static_cast<int64_t>(args.block_out) + out_in_block + out;
          const int64_t left = args.block_out - out_in_block - out;
          if (args.w_holds_sums) {
            Store(static_cast<Sum*>(args.w) + at, numbers, left);
          } else {
            Store(static_cast<Element*>(args.w) + at, numbers, left);
          }
        }
      }
    }
  }

 private:
  static JAXSPARSE_DEVICE int64_t At(const GroupIndices& groups) {
    return groups.first + GroupIndex() * groups.step;
  }

  template <class T>
  static JAXSPARSE_DEVICE void Store(T* w, const Sum (&numbers)[2], int64_t left) {
    if (Config::kIsAligned) {  // then `left` is even
      if (left > 0) StorePair(w, numbers[0], numbers[1]);
    } else {
      if (left > 0) StoreRounded(w, numbers[0]);
      if (left > 1) StoreRounded(w + 1, numbers[1]);
    }
  }
};

// Adds the partial sums of all splits, always in the same order.
template <class Arithmetic>
struct AddSplits {
  using Args = AddSplitsArgs;
  static constexpr int kThreads = 256;
  static constexpr size_t kSharedBytes = 0;

  static JAXSPARSE_DEVICE void Run(const Args& args) {
    using Element = typename Arithmetic::Element;
    using Sum = typename Arithmetic::Sum;
    const int64_t i = BlockIndex() * kThreads + ThreadIndex();
    if (i >= args.size) return;
    const Sum* sums = static_cast<const Sum*>(args.sums);
    Sum sum = 0;
    for (int split = 0; split < args.splits; ++split)
      sum += LoadConstant(sums + split * args.size + i);
    StoreRounded(static_cast<Element*>(args.w) + i, sum);
  }
};

}  // namespace jaxsparse::cuda
