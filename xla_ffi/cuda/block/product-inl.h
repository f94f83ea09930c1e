// c = a * W or c = a * W^T with W in blocks: the body of the kernels of the forward product and the
// input gradient.
//
// A block of threads makes a tile of c inside one block column of W (of W^T: block row of W): it
// goes through the stored blocks of that line, a step of their depth at a time, and multiplies the
// tile of a that each meets. Copies run kStages - 1 steps ahead, in a ring.
#pragma once
#include "cuda/block/arguments.h"
#include "cuda/block/copy_tile-inl.h"
#include "cuda/block/warp_tile-inl.h"
#include "cuda/primitives/primitives.h"

namespace jaxsparse::cuda {

enum class Weight { kAsStored, kTransposed };

// Which tile of c comes at `index`, in tiles; the line in order of length. In 32 bits, which count
// the tiles of a launch: a division in 64 takes longer than a step of products.
struct TilePlace {
  int row, nth_line, in_line;

  JAXSPARSE_DEVICE TilePlace(const ProductArgs& args, int index) {
    const int tiles_per_band = args.band * args.lines * args.tiles_per_line;
    const int in_band = index % tiles_per_band, in_row = in_band / args.band;
    row = index / tiles_per_band * args.band + in_band % args.band;
    nth_line = in_row / args.tiles_per_line;
    in_line = in_row % args.tiles_per_line;
  }
};

// kTileN: columns of a tile of c. kStep: depth of a step. kIsAligned: every row of every array
// starts at a multiple of 16 bytes and has a multiple of them, and so have the rows of blocks.
template <class Arithmetic_, Weight kWeight_, int kTileN_, int kStep_, bool kIsAligned_>
struct ProductConfig {
  using Arithmetic = Arithmetic_;
  static constexpr Weight kWeight = kWeight_;
  static constexpr bool kIsAligned = kIsAligned_;
  static constexpr int kTileM = Arithmetic::kOnTensorCores ? 128 : 64;
  static constexpr int kTileN = kTileN_;
  static constexpr int kStep = kStep_;
  static constexpr int kStages = 4;

  // Four warps. On tensor cores a warp makes 64 x 64, 64 x 32, 32 x 32 or 32 x 16 of the tile.
  static constexpr int kWarpN = kTileN == 128 ? 64 : kTileN >= 32 ? 32 : 16;
  static constexpr int kWarpM = kTileM * kTileN / (4 * kWarpN);
  static constexpr int kThreads = 128;

  using Element = typename Arithmetic::Element;
  static constexpr Along kAlongB = kWeight == Weight::kAsStored ? Along::kResult : Along::kDepth;
  using TileA = SharedTile<Arithmetic, Along::kDepth, kTileM, kStep>;
  using TileB = SharedTile<Arithmetic, kAlongB, kTileN, kStep>;

  static_assert(kTileM % kWarpM == 0 && kWarpM % 16 == 0 && kWarpN % 16 == 0,
                "Warps share the tile evenly, in whole matrices.");
  static_assert((kTileM / kWarpM) * (kTileN / kWarpN) * 32 == kThreads, "Every warp has a part.");
  static_assert(kStep % Arithmetic::kDepth == 0, "A step is whole matrix instructions.");
  static_assert(kStages * (TileA::kBytes + TileB::kBytes) <= 99 * 1024,
                "Shared memory of the smallest chips, sm_86, sm_89 and sm_120.");
};

template <class Config>
struct BlockProduct {
  using Args = ProductArgs;
  static constexpr int kThreads = Config::kThreads;
  using Element = typename Config::Element;
  using TileA = typename Config::TileA;
  using TileB = typename Config::TileB;
  static constexpr int kStages = Config::kStages;
  static constexpr size_t kSharedBytes = kStages * (TileA::kBytes + TileB::kBytes);

  static JAXSPARSE_DEVICE void Run(const Args& args) {
    constexpr int kTileM = Config::kTileM, kTileN = Config::kTileN, kStep = Config::kStep;
    constexpr int kWarpM = Config::kWarpM, kWarpN = Config::kWarpN;
    constexpr bool kTransposed = Config::kWeight == Weight::kTransposed;
    using Arithmetic = typename Config::Arithmetic;
    using Sum = typename Arithmetic::Sum;

    const PatternArrays& pattern = args.pattern;
    const int64_t pattern_index = At(args.pattern_group);
    const int32_t* rows = pattern.rows + pattern_index * pattern.capacity;
    const int32_t* cols = pattern.cols + pattern_index * pattern.capacity;
    const int32_t* words = pattern.words + pattern_index * pattern.words_per_pattern;

    const TilePlace place(args, static_cast<int>(BlockIndex()));
    const int64_t m0 = static_cast<int64_t>(place.row) * kTileM;
    const int line = LoadConstant(words + pattern.heaviest + place.nth_line);
    const int n_in_block = place.in_line * kTileN;

    const int32_t* start = words + (kTransposed ? pattern.row_start : pattern.column_start) + line;
    const bool is_invalid = LoadConstant(words) != 0;  // then no line has blocks
    const int first = LoadConstant(start), last = LoadConstant(start + 1);
    const int steps_per_block = (args.block_k + kStep - 1) / kStep;
    const int64_t steps = static_cast<int64_t>(last - first) * steps_per_block;

    const Element* a = static_cast<const Element*>(args.a) + At(args.a_group) * args.m * args.k;
    const int64_t block_size = static_cast<int64_t>(args.block_k) * args.block_n;
    const Element* w =
        static_cast<const Element*>(args.w) + At(args.w_group) * pattern.capacity * block_size;

    Element* const a_ring = SharedArray<Element>(0);
    Element* const b_ring = SharedArray<Element>(kStages * TileA::kBytes);

    // The next step to fetch: which stored block, and how deep in it.
    int next_entry = first, next_depth = 0;
    const auto fetch = [&](int stage) {
      const int block =
          kTransposed ? LoadConstant(words + pattern.by_row + next_entry) : next_entry;
      const int64_t k0 =
          static_cast<int64_t>(LoadConstant((kTransposed ? cols : rows) + block)) * args.block_k +
          next_depth;
      // What lies over the edge of the weight, or in the next block, is not read but zero.
      const int64_t in_weight = args.k - k0, in_block = args.block_k - next_depth;
      const int depth = static_cast<int>(in_weight < in_block ? in_weight : in_block);

      Element* a_tile = a_ring + stage * (TileA::kBytes / static_cast<int>(sizeof(Element)));
      CopyTile<kTileM, kStep>(a_tile, TileA::kStride, a + m0 * args.k + k0, args.k, args.m - m0,
                              depth);
      Element* b_tile = b_ring + stage * (TileB::kBytes / static_cast<int>(sizeof(Element)));
      const Element* w_block = w + block * block_size;
      const int columns = args.block_n - n_in_block;
      if constexpr (kTransposed) {
        CopyTile<kTileN, kStep>(
            b_tile, TileB::kStride,
            w_block + static_cast<int64_t>(n_in_block) * args.block_k + next_depth, args.block_k,
            columns, depth);
      } else {
        CopyTile<kStep, kTileN>(
            b_tile, TileB::kStride,
            w_block + static_cast<int64_t>(next_depth) * args.block_n + n_in_block, args.block_n,
            depth, columns);
      }
      next_depth += kStep;
      if (next_depth >= args.block_k) next_depth = 0, ++next_entry;
    };

    const int warp = ThreadIndex() / 32, lane = ThreadIndex() % 32;
    const int warp_m = warp % (kTileM / kWarpM) * kWarpM;
    const int warp_n = warp / (kTileM / kWarpM) * kWarpN;
    WarpTile<Arithmetic, kWarpM / 16, kWarpN / 8> result;
    result.Fill(is_invalid ? NaN<Sum>() : Sum(0));

    // A group is committed even when empty, so that "all but the newest" keeps its meaning.
    for (int s = 0; s < kStages - 1; ++s) {
      if (s < steps) fetch(s);
      CommitCopies();
    }
    int stage = 0, free_stage = kStages - 1;
    for (int64_t s = 0; s < steps; ++s) {
      // This step's copies have landed, of all threads; the last step's stage is read no more.
      WaitForCopies<kStages - 2>();
      SyncThreads();
      if (s + kStages - 1 < steps) fetch(free_stage);
      CommitCopies();

      const Element* a_tile = a_ring + stage * (TileA::kBytes / static_cast<int>(sizeof(Element))) +
                              warp_m * TileA::kStride;
      const Element* b_tile = b_ring + stage * (TileB::kBytes / static_cast<int>(sizeof(Element))) +
                              warp_n * (kTransposed ? TileB::kStride : 1);
      JAXSPARSE_UNROLL_BY(Arithmetic::kDepthsAtOnce)
      for (int k = 0; k < kStep; k += Arithmetic::kDepth) {
        result.template AddProduct<Along::kDepth, Config::kAlongB>(
            a_tile + k, TileA::kStride, b_tile + k * (kTransposed ? 1 : TileB::kStride),
            TileB::kStride);
      }
      stage = stage + 1 == kStages ? 0 : stage + 1;
      free_stage = free_stage + 1 == kStages ? 0 : free_stage + 1;
    }

    // A line without blocks is zero.
    const int64_t c0 = At(args.c_group) * args.m * args.n;
    JAXSPARSE_UNROLL
    for (int i = 0; i < kWarpM / 16; ++i) {
      JAXSPARSE_UNROLL
      for (int h = 0; h < 2; ++h) {
        const int64_t row = m0 + warp_m + 16 * i + 8 * h + lane / 4;
        JAXSPARSE_UNROLL
        for (int j = 0; j < kWarpN / 8; ++j) {
          const int in_block = n_in_block + warp_n + 8 * j + lane % 4 * 2;
          const int64_t col = static_cast<int64_t>(line) * args.block_n + in_block;
          const int64_t columns = args.n - col, block_columns = args.block_n - in_block;
          const int64_t there =
              row < args.m ? (columns < block_columns ? columns : block_columns) : 0;
          const int64_t at = c0 + row * args.n + col;
          const Sum first_sum = result.sums[i][j][2 * h], second_sum = result.sums[i][j][2 * h + 1];
          if (sizeof(Element) == 2 && args.c_is_float32) {
            Store(static_cast<float*>(args.c) + at, first_sum, second_sum, there);
          } else {
            Store(static_cast<Element*>(args.c) + at, first_sum, second_sum, there);
          }
        }
      }
    }
  }

 private:
  static JAXSPARSE_DEVICE int64_t At(const GroupIndices& groups) {
    return groups.first + GroupIndex() * groups.step;
  }

  template <class T, class Sum>
  static JAXSPARSE_DEVICE void Store(T* c, Sum first, Sum second, int64_t there) {
    if (Config::kIsAligned) {  // then `there` is even
      if (there > 0) StorePair(c, first, second);
    } else {
      if (there > 0) StoreRounded(c, first);
      if (there > 1) StoreRounded(c + 1, second);
    }
  }

  template <int kRows, int kLength>
  static JAXSPARSE_DEVICE void CopyTile(Element* tile, int tile_stride, const Element* source,
                                        int64_t source_stride, int64_t rows_there,
                                        int length_there) {
    cuda::CopyTile<kRows, kLength, kThreads, Config::kIsAligned>(
        tile, tile_stride, source, source_stride, rows_there, length_there);
  }
};

}  // namespace jaxsparse::cuda
