// From XLA's buffers to a convolution, or a product of matrices, with a sparse weight.
//
//   x       [*group, *batch, *x_space, in]
//   y       [*group, *batch, *y_space, out]
//   w       [*group, capacity] unstructured, [*group, capacity, width] grouped,
//           [*group, capacity, block_in, block_out] blocks
//   places  [*group, capacity], int32                       of blocks: rows
//   order   [*group, num_columns * width], int32, grouped   of blocks: cols [*group, capacity]
//
// Group axes: as in ffi/decode.h, of `places`. Which numbers the indices may hold is for the kernel
// to check. The window comes as attributes, one number per space axis, of which there are one to
// three; a product has none, and images of one place. The spaces are those of the buffers: with
// numbers of x outside of its space read as zero, every size of y has a meaning.
#pragma once
#include <optional>
#include <vector>

#include "core/sparse_conv.h"
#include "core/status.h"
#include "ffi/check.h"
#include "ffi/decode.h"

namespace jaxsparse {

struct ConvAttributes {
  ffi::Span<const int64_t> kernel, strides, padding_low, kernel_dilation;
  int64_t feature_groups;
  int64_t mirrored;  // 0 or 1
};

// The window but for its spaces.
Status ReadWindow(const ConvAttributes& given, ConvWindow* window);

// Batch, spaces and channels, out of x and y. `last` is the array that the group axes are those of.
Status ReadActivations(const NamedBuffer& x, const NamedBuffer& y, const NamedBuffer& last,
                       size_t num_group_axes, size_t num_space_axes, bool is_conv,
                       ConvWindow* window);

enum class Form { kUnstructured, kGrouped, kBlocks };

struct SparseConvBuffers {
  Role role;  // which of x, w, y is the result
  Form form;
  ffi::AnyBuffer x, w, y, places;
  std::optional<ffi::AnyBuffer> order;   // for blocks, their columns; none for unstructured weights
  std::optional<ConvAttributes> window;  // none for a product of matrices
};

// A problem, and the memory of its indices where the buffers' cannot serve.
struct DecodedConv {
  SparseConv problem;
  DType dtype;
  std::vector<int32_t> places, order;
};

Status DecodeSparseConv(const SparseConvBuffers& buffers, DecodedConv* decoded);

}  // namespace jaxsparse
