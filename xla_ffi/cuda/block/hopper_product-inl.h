// c = a * W or c = a * W^T with W in blocks, for sm_90a: the body of the kernels.
//
// Blocks of threads stay and take one tile of c after the other. One thread fetches, boxes of a and
// of W, up to kStages steps ahead; two warpgroups multiply, straight from shared memory, 128 rows
// each. They hand a stage back once the products that read it are done, one step later. A result
// goes through shared memory, 64 rows at a time, and is stored while the next tile begins.
//
// Blocks divide k, for what lies over the weight's edge may be NaN, and are multiples of 64 along k
// and of kTileN along n.
#pragma once
#include "cuda/block/arguments.h"
#include "cuda/block/product-inl.h"
#include "cuda/primitives/hopper.h"

namespace jaxsparse::cuda {

struct HopperProductArgs {
  ProductArgs product;
  TensorMap a_map;  // a [groups, m, k], boxes of 256 rows
  TensorMap w_map;  // w [groups * capacity, block rows, block columns], of 64 rows
  TensorMap c_map;  // c [groups, m, n], of 64 rows; not where c is float32
  int tiles_per_group, tiles;
};

template <class Element_, Weight kWeight_, int kTileN_>
struct HopperConfig {
  using Element = Element_;
  static constexpr Weight kWeight = kWeight_;
  static constexpr int kTileM = 256, kTileN = kTileN_;
  static constexpr int kStep = 64;  // 128 bytes: a row of a box
  static constexpr int kStages = 4;
  static constexpr int kParts = kTileN / 64;  // boxes beside each other
  static constexpr int kBoxBytes = 64 * kStep * static_cast<int>(sizeof(Element));
  static constexpr int kABytes = kTileM / 64 * kBoxBytes,
                       kBBytes = kParts * kBoxBytes;                // of a stage
  static constexpr int kRing = kStages * (kABytes + kBBytes);       // then the results of both
  static constexpr int kBarriers = kRing + 2 * kParts * kBoxBytes;  // warpgroups, then barriers
  static constexpr int kSharedBytes = kBarriers + 2 * kStages * static_cast<int>(sizeof(uint64_t));
  static_assert(sizeof(Element) == 2, "The asynchronous products here are of short floats.");
  static_assert(kBoxBytes % 1024 == 0, "Boxes start at multiples of 1024.");
  static_assert(kSharedBytes <= 227 * 1024, "Shared memory of sm_90.");
};

template <class Config>
struct HopperProduct {
  using Args = HopperProductArgs;
  using Element = typename Config::Element;
  static constexpr int kThreads = 384;  // three warpgroups
  static constexpr int kStages = Config::kStages;
  static constexpr size_t kSharedBytes = Config::kSharedBytes;

  static JAXSPARSE_DEVICE void Run(const Args& args) {
    uint64_t* full = SharedArray<uint64_t>(Config::kBarriers);
    uint64_t* empty = full + kStages;
    if (ThreadIndex() == 0) {
      for (int i = 0; i < kStages; ++i) {
        InitBarrier(full + i, 1);   // the thread that fetches, and the bytes that it announces
        InitBarrier(empty + i, 8);  // a thread of each warp that multiplies
      }
      FenceBarriers();
    }
    SyncThreads();
    const int warpgroup = ThreadIndex() / 128;
    if (warpgroup == 0) {
      GiveRegisters<24>();
      if (ThreadIndex() == 0) Fetch(args, full, empty);
    } else {
      TakeRegisters<240>();
      Multiply(args, full, empty, warpgroup - 1);
    }
  }

 private:
  static constexpr bool kTransposed = Config::kWeight == Weight::kTransposed;
  using Sums = float[2][Config::kTileN / 2];  // of two times 64 rows

  // The tiles of this block of threads: in turns of all, every other in the other direction, so
  // that whoever has had a long one gets a short one.
  class Turn {
   public:
    explicit JAXSPARSE_DEVICE Turn(const Args& args) : tiles_(args.tiles) {}
    JAXSPARSE_DEVICE int tile() const {
      const int me = static_cast<int>(BlockIndex());
      return first_ + (is_reversed_ ? blocks() - 1 - me : me);
    }
    JAXSPARSE_DEVICE bool has_tile() const { return tile() < tiles_; }
    JAXSPARSE_DEVICE void Next() {
      first_ += blocks();
      is_reversed_ = !is_reversed_;
    }

   private:
    static JAXSPARSE_DEVICE int blocks() { return static_cast<int>(NumBlocks()); }
    const int tiles_;
    int first_ = 0;
    bool is_reversed_ = false;
  };

  // One tile of c: where it is, and the blocks that it meets.
  struct Tile {
    int group, m0, line, n_in_block;
    const int32_t *inner, *words;  // block rows, or columns, of the stored blocks; the scratch
    int first, last;
    bool is_invalid;

    JAXSPARSE_DEVICE Tile(const Args& args, int index) {
      const ProductArgs& product = args.product;
      const PatternArrays& pattern = product.pattern;
      group = index / args.tiles_per_group;
      const TilePlace place(product, index % args.tiles_per_group);
      m0 = place.row * Config::kTileM;
      n_in_block = place.in_line * Config::kTileN;

      const int64_t pattern_index = At(product.pattern_group, group);
      inner = (kTransposed ? pattern.cols : pattern.rows) + pattern_index * pattern.capacity;
      words = pattern.words + pattern_index * pattern.words_per_pattern;
      line = LoadConstant(words + pattern.heaviest + place.nth_line);
      const int32_t* start =
          words + (kTransposed ? pattern.row_start : pattern.column_start) + line;
      first = LoadConstant(start);
      last = LoadConstant(start + 1);
      is_invalid = LoadConstant(words) != 0;
    }
  };

  static JAXSPARSE_DEVICE int64_t At(const GroupIndices& groups, int64_t group) {
    return groups.first + group * groups.step;
  }

  static JAXSPARSE_DEVICE uint8_t* StageOfA(int stage) {
    return SharedArray<uint8_t>(stage * Config::kABytes);
  }
  static JAXSPARSE_DEVICE uint8_t* StageOfB(int stage) {
    return SharedArray<uint8_t>(kStages * Config::kABytes + stage * Config::kBBytes);
  }

  static JAXSPARSE_DEVICE void Fetch(const Args& args, uint64_t* full, uint64_t* empty) {
    const ProductArgs& product = args.product;
    const PatternArrays& pattern = product.pattern;
    // Every stage counts as handed back at the start.
    int stage = 0, parity = 1;
    for (Turn turn(args); turn.has_tile(); turn.Next()) {
      const Tile tile(args, turn.tile());
      const int a_layer = static_cast<int>(At(product.a_group, tile.group));
      const int first_block = static_cast<int>(At(product.w_group, tile.group)) * pattern.capacity;
      for (int entry = tile.first; entry < tile.last; ++entry) {
        const int block = kTransposed ? LoadConstant(tile.words + pattern.by_row + entry) : entry;
        const int k0 = LoadConstant(tile.inner + block) * product.block_k;
        for (int depth = 0; depth < product.block_k; depth += Config::kStep) {
          WaitForPhase(empty + stage, parity);
          ArriveExpecting(full + stage, Config::kABytes + Config::kBBytes);
          FetchBox(StageOfA(stage), &args.a_map, k0 + depth, tile.m0, a_layer, full + stage);
          for (int part = 0; part < Config::kParts; ++part) {
            const int n = tile.n_in_block + part * 64;
            FetchBox(StageOfB(stage) + part * Config::kBoxBytes, &args.w_map,
                     kTransposed ? depth : n, kTransposed ? n : depth, first_block + block,
                     full + stage);
          }
          if (++stage == kStages) stage = 0, parity ^= 1;
        }
      }
    }
  }

  static JAXSPARSE_DEVICE void Multiply(const Args& args, uint64_t* full, uint64_t* empty,
                                        int half) {
    const ProductArgs& product = args.product;
    const bool is_leader = ThreadIndex() % 128 == 0, hands_back = ThreadIndex() % 32 == 0;
    int stage = 0, parity = 0;
    Turn turn(args);
    Tile tile(args, turn.tile());
    while (turn.has_tile()) {
      const int steps = (tile.last - tile.first) * (product.block_k / Config::kStep);
      Sums sums;
      JAXSPARSE_UNROLL
      for (int i = 0; i < 2; ++i) {
        JAXSPARSE_UNROLL
        for (int e = 0; e < Config::kTileN / 2; ++e)
          sums[i][e] = tile.is_invalid ? NaN<float>() : 0.0f;
      }

      int last_stage = -1;  // its products may still be running
      for (int s = 0; s < steps; ++s) {
        WaitForPhase(full + stage, parity);
        const uint8_t* a = StageOfA(stage) + half * 2 * Config::kBoxBytes;
        const uint8_t* b = StageOfB(stage);
        FenceProducts();
        JAXSPARSE_UNROLL
        for (int k = 0; k < Config::kStep; k += 16) {
          // 16 of the depth are 32 bytes of a row, or 16 rows; eight rows are 1024 bytes.
          const uint64_t b_place = kTransposed ? Descriptor(b + k * 2, 16, 1024)
                                               : Descriptor(b + k * 128, Config::kBoxBytes, 1024);
          JAXSPARSE_UNROLL
          for (int i = 0; i < 2; ++i) {
            StartProduct<!kTransposed>(sums[i],
                                       Descriptor(a + i * Config::kBoxBytes + k * 2, 16, 1024),
                                       b_place, Element());
          }
        }
        CommitProducts();
        // The products of the last step are done: its stage can be filled again.
        WaitForProducts<1>();
        if (last_stage >= 0 && hands_back) Arrive(empty + last_stage);
        last_stage = stage;
        if (++stage == kStages) stage = 0, parity ^= 1;
      }

      // Where the next tile is, found out while the last products run.
      turn.Next();
      const Tile next_tile(args, turn.has_tile() ? turn.tile() : 0);
      WaitForProducts<0>();
      if (last_stage >= 0 && hands_back) Arrive(empty + last_stage);

      if (product.c_is_float32) {
        StoreFloat32(product, tile, half, sums);
      } else {
        StoreRounded(args, tile, half, sums);
      }
      tile = next_tile;
    }
    if (is_leader) WaitForBoxesRead();
  }

  // Calls use(row, column, first and second sum) for each pair of sums of 64 rows.
  template <class Use>
  static JAXSPARSE_DEVICE void ForEachPair(const float (&sums)[Config::kTileN / 2],
                                           const Use& use) {
    const int lane = ThreadIndex() % 32, warp = ThreadIndex() % 128 / 32;
    JAXSPARSE_UNROLL
    for (int j = 0; j < Config::kTileN / 8; ++j) {
      JAXSPARSE_UNROLL
      for (int h = 0; h < 2; ++h) {
        use(warp * 16 + h * 8 + lane / 4, j * 8 + lane % 4 * 2, sums[4 * j + 2 * h],
            sums[4 * j + 2 * h + 1]);
      }
    }
  }

  static JAXSPARSE_DEVICE void StoreRounded(const Args& args, const Tile& tile, int half,
                                            const Sums& sums) {
    const bool is_leader = ThreadIndex() % 128 == 0;
    uint8_t* boxes =
        SharedArray<uint8_t>(Config::kRing + half * Config::kParts * Config::kBoxBytes);
    JAXSPARSE_UNROLL
    for (int i = 0; i < 2; ++i) {
      if (is_leader) WaitForBoxesRead();
      SyncWarpgroup(1 + half);
      ForEachPair(sums[i], [&](int row, int column, float first, float second) {
        const int offset = column / 64 * Config::kBoxBytes + Swizzled(row * 128 + column % 64 * 2);
        StoreShared(reinterpret_cast<uint32_t*>(boxes + offset),
                    RoundedPair(first, second, Element()));
      });
      FenceShared();
      SyncWarpgroup(1 + half);
      if (is_leader) {
        const int column = tile.line * args.product.block_n + tile.n_in_block;
        for (int part = 0; part < Config::kParts; ++part) {
          StoreBox(&args.c_map, column + part * 64, tile.m0 + half * 128 + i * 64,
                   static_cast<int>(At(args.product.c_group, tile.group)),
                   boxes + part * Config::kBoxBytes);
        }
        CommitBoxes();
      }
    }
  }

  static JAXSPARSE_DEVICE void StoreFloat32(const ProductArgs& product, const Tile& tile, int half,
                                            const Sums& sums) {
    float* c =
        static_cast<float*>(product.c) + At(product.c_group, tile.group) * product.m * product.n;
    JAXSPARSE_UNROLL
    for (int i = 0; i < 2; ++i) {
      ForEachPair(sums[i], [&](int row, int column, float first, float second) {
        const int64_t m = tile.m0 + half * 128 + i * 64 + row;
        const int64_t n =
            static_cast<int64_t>(tile.line) * product.block_n + tile.n_in_block + column;
        if (m < product.m && n < product.n) StorePair(c + m * product.n + n, first, second);
      });
    }
  }
};

}  // namespace jaxsparse::cuda
