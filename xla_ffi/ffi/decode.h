// From XLA's buffers to the problem that a kernel of any device gets. Every size is read from the
// buffers, so one executable serves all patterns of one capacity, and exported programs may have
// symbolic sizes.
//
//   x           [*group, *batch, in]                               y   [*group, *batch, out]
//   w           [*group, capacity, block_in, block_out]
//   rows, cols  [*group, capacity], int32
//   dense       [*group, in, out]
//
// `rows` has as many group axes as it has axes before the last, and so has every other array. Each
// is 1 or the full size in an operand, the full size in the result. Flattening group and batch axes
// costs nothing here. The values of rows and cols are not looked at: that is for the kernel, on
// the device where they live.
#pragma once
#include "core/block_matmul.h"
#include "core/status.h"
#include "ffi/check.h"

namespace jaxsparse {

enum class Role { kForward, kInputGrad, kWeightGrad };

// The kernels' name for a dtype; fails where they have none.
Status ReadDType(ffi::DataType given, DType* dtype);

// The arrays of one product; `role` says which of x, w, y is the result.
struct BlockMatmulBuffers {
  Role role;
  ffi::AnyBuffer x, w, y, rows, cols;
};

Status DecodeBlockMatmul(const BlockMatmulBuffers& buffers, BlockMatmul* problem, DType* dtype);

// The arrays of a copy between a dense weight and its blocks, of any one dtype.
struct BlockCopyBuffers {
  bool to_blocks;  // values are the result; else dense is
  ffi::AnyBuffer dense, values, rows, cols;
};

Status DecodeBlockCopy(const BlockCopyBuffers& buffers, BlockMatmul* problem, size_t* item_bytes);

}  // namespace jaxsparse
