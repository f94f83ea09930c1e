// From XLA's buffers to a convolution of which one side has places that count as zero.
//
//   x         [*group, *batch, *x_space, in]
//   y         [*group, *batch, *y_space, out]
//   w         [*group, *kernel, depth, channels]
//   x_counts  [*group, *batch, *x_space], int32    where `places` has bit 0
//   y_counts  [*group, *batch, *y_space], int32    where `places` has bit 1
//
// Group axes are what w has before its own: in each array 1 or the full size. The window comes as
// in ffi/decode_conv.h; a product of matrices has one without axes.
#pragma once
#include <vector>

#include "core/places_conv.h"
#include "core/status.h"
#include "ffi/check.h"
#include "ffi/decode.h"

namespace jaxsparse {

struct PlacesAttributes {
  ffi::Span<const int64_t> kernel, strides, padding_low, kernel_dilation;
  int64_t feature_groups;
  int64_t mirrored;  // 0 or 1
  int64_t places;    // which counts there are: 1 of x, 2 of y, 3 of both
};

struct PlacesConvBuffers {
  Role role;  // which of x, w, y is the result
  ffi::AnyBuffer x, w, y;
  std::vector<ffi::AnyBuffer> counts;  // in the order x, y
  PlacesAttributes attributes;
};

Status DecodePlacesConv(const PlacesConvBuffers& buffers, PlacesConv* problem, DType* dtype);

}  // namespace jaxsparse
