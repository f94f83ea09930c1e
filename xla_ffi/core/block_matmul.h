// A batch of products with block-sparse weights, as every device sees it.
//
//   x     [num_groups or 1, batch, in]
//   w     [num_groups or 1, capacity, block_in, block_out]      the stored blocks
//   y     [num_groups or 1, batch, out]
//   rows  [num_groups or 1, capacity]    block row of each block, counted along `in`
//   cols  [num_groups or 1, capacity]    block column of each block, counted along `out`
//
//   forward       y  = x  * W
//   input_grad    x  = y  * W^T          (dx of an arriving gradient dy)
//   weight_grad   w  = (x^T * y) at the stored blocks
//
// Blocks are in order of (column, row), strictly increasing; places with col == ceil(out /
// block_out) are unused, come last, and read as zero (their weight gradient is zero). The last
// block row and column may reach over the edge of the weight: what lies outside is ignored when
// read and zero when written.
#pragma once
#include <cstdint>
#include <vector>

namespace jaxsparse {

enum class DType { kF32, kF64, kBF16, kF16 };
inline constexpr int kNumDTypes = 4;

struct BlockMatmul {
  int64_t batch = 0, in = 0, out = 0;
  int64_t capacity = 0, block_in = 0, block_out = 0;

  // Flat group of each array for each group of the result. An array without groups has zeros.
  std::vector<int64_t> x_group, w_group, y_group, pattern_group;

  // Of the three, the role's result is written, the others only read; all in one dtype, but that
  // the result of a forward product of short floats may be left in float32.
  void* x = nullptr;
  void* w = nullptr;
  void* y = nullptr;
  const int32_t* rows = nullptr;
  const int32_t* cols = nullptr;
  bool y_is_float32 = false;

  int64_t num_groups() const { return static_cast<int64_t>(x_group.size()); }
  int64_t grid_rows() const { return (in + block_in - 1) / block_in; }
  int64_t grid_cols() const { return (out + block_out - 1) / block_out; }
};

}  // namespace jaxsparse
