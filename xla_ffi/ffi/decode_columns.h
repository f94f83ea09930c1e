// From XLA's buffers to copies between a dense weight and its values, for formats that list single
// weights by column.
//
//   dense   [*group, taps * in, out], row = tap * in + channel
//   values  [*group, capacity] unstructured, [*group, capacity, width] grouped
//   places  [*group, capacity], int32
//   order   [*group, num_columns * width], int32; grouped only
//
// Group axes: as in ffi/decode.h, of `places`. `taps` is an attribute: no shape tells it.
#pragma once
#include <optional>

#include "core/column_copy.h"
#include "core/status.h"
#include "ffi/check.h"

namespace jaxsparse {

struct ColumnCopyBuffers {
  bool to_values;  // values are the result; else dense is
  ffi::AnyBuffer dense, values, places;
  std::optional<ffi::AnyBuffer> order;  // of a grouped weight
  int64_t taps;
};

Status DecodeColumnCopy(const ColumnCopyBuffers& buffers, ColumnCopy* problem);

// What is said wherever there are places: `places` is int32 [*group, capacity], and `order`, if
// there is one, int32 [*group, slots] of as many axes.
Status CheckColumnIndices(const NamedBuffer& places, const std::optional<NamedBuffer>& order);

// `slots` of the order are whole columns of `width`.
Status ReadColumns(const NamedBuffer& values, const NamedBuffer& order, int64_t width,
                   int64_t* num_columns);

}  // namespace jaxsparse
