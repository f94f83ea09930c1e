#include "cuda/block/variant.h"

#include <algorithm>
#include <cstdint>
#include <vector>

namespace jaxsparse::cuda {
namespace {

ArithmeticKind ArithmeticFor(DType dtype, Precision precision) {
  switch (dtype) {
    case DType::kBF16:
      return ArithmeticKind::kTensorBF16;
    case DType::kF16:
      return ArithmeticKind::kTensorF16;
    case DType::kF64:
      return ArithmeticKind::kExactF64;
    case DType::kF32:
      break;
  }
  return precision == Precision::kHighest ? ArithmeticKind::kExactF32 : ArithmeticKind::kTensorTF32;
}

bool OnTensorCores(ArithmeticKind arithmetic) {
  return arithmetic != ArithmeticKind::kExactF32 && arithmetic != ArithmeticKind::kExactF64;
}

// Whether all rows of all arrays, and of blocks, start at multiples of 16 bytes and hold multiples.
bool IsAligned(const BlockMatmul& problem, int element_bytes) {
  const int64_t vector = 16 / element_bytes;
  for (const int64_t length : {problem.in, problem.out, problem.block_in, problem.block_out}) {
    if (length % vector != 0) return false;
  }
  for (const void* array : {problem.x, problem.w, problem.y}) {
    if (reinterpret_cast<uintptr_t>(array) % 16 != 0) return false;
  }
  return true;
}

// The tile for a side of `width` columns. A tile costs its columns, and to fetch its other operand
// as much as 32 more: not measured, but the choice is the same from 16 to 64.
int TileFor(int64_t width, bool on_tensor_cores) {
  int best = 16;
  int64_t best_cost = INT64_MAX;
  for (const int tile : {16, 32, 64, 128}) {
    if (tile == 128 && !on_tensor_cores) continue;  // its sums would not fit into registers
    const int64_t cost = (width + tile - 1) / tile * (tile + 32);
    if (cost <= best_cost) best = tile, best_cost = cost;
  }
  return best;
}

// A step is 64 bytes deep. Short floats have one of 32 bytes, too, for blocks that it fits better.
int StepFor(int64_t block_depth, int element_bytes) {
  const int64_t beyond = block_depth % 32;
  if (element_bytes == 2 && beyond >= 1 && beyond <= 16) return 16;
  return 64 / element_bytes;
}

// The products of sm_90a take whole boxes of the weight, and count rows, blocks of all groups and
// tiles of all groups in 32 bits.
bool FitsHopper(Pass pass, const BlockMatmul& problem) {
  if (pass == Pass::kWeightGrad) return false;
  const bool forward = pass == Pass::kForward;
  const int64_t k = forward ? problem.in : problem.out;
  const int64_t n = forward ? problem.out : problem.in;
  const int64_t block_k = forward ? problem.block_in : problem.block_out;
  const int64_t block_n = forward ? problem.block_out : problem.block_in;
  const int64_t blocks = NumGroups(problem.w_group) * problem.capacity;
  if (block_k % 64 != 0 || block_n % 64 != 0 || k % block_k != 0) return false;
  if (k == 0 || blocks == 0 || blocks > INT32_MAX || problem.batch > INT32_MAX - 256) return false;
  const int64_t tiles = (problem.batch / 256 + 1) * (n / 64 + 1);
  return tiles <= INT32_MAX / std::max<int64_t>(1, problem.num_groups());
}

}  // namespace

int64_t NumGroups(const std::vector<int64_t>& map) {
  return map.empty() ? 0 : *std::max_element(map.begin(), map.end()) + 1;
}

int TileRows(ArithmeticKind arithmetic) {
  if (arithmetic == ArithmeticKind::kHopperBF16 || arithmetic == ArithmeticKind::kHopperF16)
    return 256;
  return OnTensorCores(arithmetic) ? 128 : 64;
}

int ElementBytes(ArithmeticKind arithmetic) {
  switch (arithmetic) {
    case ArithmeticKind::kTensorBF16:
    case ArithmeticKind::kTensorF16:
    case ArithmeticKind::kHopperBF16:
    case ArithmeticKind::kHopperF16:
      return 2;
    case ArithmeticKind::kTensorTF32:
    case ArithmeticKind::kExactF32:
      return 4;
    case ArithmeticKind::kExactF64:
      break;
  }
  return 8;
}

int SumBytes(ArithmeticKind arithmetic) { return arithmetic == ArithmeticKind::kExactF64 ? 8 : 4; }

Variant Select(Pass pass, const BlockMatmul& problem, DType dtype, Precision precision,
               const Device& device) {
  const ArithmeticKind arithmetic = ArithmeticFor(dtype, precision);
  const int element_bytes = ElementBytes(arithmetic);
  const bool is_aligned = IsAligned(problem, element_bytes);
  const bool is_input_grad = pass == Pass::kInputGrad;
  const int64_t width = is_input_grad            ? std::min(problem.block_in, problem.in)
                        : pass == Pass::kForward ? std::min(problem.block_out, problem.out)
                                                 : problem.block_out;
  const int64_t depth = is_input_grad ? problem.block_out : problem.block_in;

  if (problem.batch >= device.fewest_hopper_rows && element_bytes == 2 && is_aligned &&
      FitsHopper(pass, problem)) {
    const int64_t side = is_input_grad ? problem.block_in : problem.block_out;
    return {dtype == DType::kBF16 ? ArithmeticKind::kHopperBF16 : ArithmeticKind::kHopperF16,
            side % 128 == 0 ? 128 : 64, 64, true};
  }

  // Copies element by element are slow in any tile: there is one, and one step.
  Variant variant{arithmetic, 32, 0, is_aligned};
  if (is_aligned) variant.tile = TileFor(width, OnTensorCores(arithmetic));
  if (pass != Pass::kWeightGrad) {
    variant.step = is_aligned ? StepFor(depth, element_bytes) : std::min(16, 64 / element_bytes);
  }
  return variant;
}

}  // namespace jaxsparse::cuda
