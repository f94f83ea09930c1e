// Which kernel runs a pass: a pure function of the problem, so that it is tested without a GPU.
#pragma once
#include <cstdint>
#include <vector>

#include "cuda/block_matmul.h"

namespace jaxsparse::cuda {

enum class ArithmeticKind {
  kTensorBF16,
  kTensorF16,
  kTensorTF32,
  kExactF32,
  kExactF64,
  kHopperBF16,  // asynchronous products of sm_90a
  kHopperF16,
};

// What a choice takes into account. No result depends on it, but for rounding, and no scratch.
struct Device {
  int multiprocessors = 1;
  // From how many rows on to take the products of sm_90a, whose tiles have 256; never elsewhere.
  int64_t fewest_hopper_rows = INT64_MAX;
  int64_t l2_bytes = 0;
};

// The kernels of block/*_list.inc.
struct Variant {
  ArithmeticKind arithmetic;
  int tile;         // columns of the result's tile: along n of a product, along out of dW
  int step;         // depth of a step; of dW it follows from the arithmetic, and is 0 here
  bool is_aligned;  // asynchronous copies of 16 bytes; else element by element

  bool operator==(const Variant& other) const {
    return arithmetic == other.arithmetic && tile == other.tile && step == other.step &&
           is_aligned == other.is_aligned;
  }
};

Variant Select(Pass pass, const BlockMatmul& problem, DType dtype, Precision precision,
               const Device& device);

inline bool IsHopper(const Variant& variant) {
  return variant.arithmetic == ArithmeticKind::kHopperBF16 ||
         variant.arithmetic == ArithmeticKind::kHopperF16;
}

// How many groups an array has, given the index of each group of the problem.
int64_t NumGroups(const std::vector<int64_t>& map);

// Rows of a tile of the result: along the batch of a product, along `in` of dW.
int TileRows(ArithmeticKind arithmetic);
// Bytes of what is stored, and of the sums.
int ElementBytes(ArithmeticKind arithmetic);
int SumBytes(ArithmeticKind arithmetic);

}  // namespace jaxsparse::cuda
