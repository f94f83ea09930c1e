// A batch of convolutions of which one side has places that count as zero, as every device sees it.
// A product of matrices is the convolution with one tap over a space of its rows.
//
//   x         [num_groups or 1, batch, *x_space, in]
//   y         [num_groups or 1, batch, *y_space, out]
//   w         [num_groups or 1, *kernel, depth, channels]
//   x_counts  [num_groups or 1, batch, *x_space]      nonzeros of each place; 0: it counts as zero
//   y_counts  [num_groups or 1, batch, *y_space]      the same of y; at least one of the two. Those
//                                                     of a result say nothing but that
//
//   forward      y[n, q, o] = sum over t, i of x[n, q * strides + t * dilation - low, i] W[t, i, o]
//   input_grad   its transpose, from y to x: also the public transposed convolution
//   weight_grad  its derivative by the weights
//
// Places that count as zero are not read where they are operands and zero where they are results.
// Window, feature groups and `mirrored` are those of core/sparse_conv.h, and so is the order of w:
// not mirrored, the depth is x's and the channels are y's; mirrored, exchanged and with taps
// backwards.
#pragma once
#include <cstdint>
#include <vector>

#include "core/sparse_conv.h"

namespace jaxsparse {

struct PlacesConv : ConvWindow {
  // Flat group of each array for each group of the result. An array without groups has zeros.
  std::vector<int64_t> x_group, w_group, y_group, x_counts_group, y_counts_group;

  // Of x, w and y, the role's result is written, the others only read; all in one dtype.
  void* x = nullptr;
  void* w = nullptr;
  void* y = nullptr;
  const int32_t* x_counts = nullptr;  // null: all places of x take part
  const int32_t* y_counts = nullptr;

  int64_t num_groups() const { return static_cast<int64_t>(x_group.size()); }
};

}  // namespace jaxsparse
