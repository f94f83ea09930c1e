// Copies between dense weights and the values of a list of single weights per column, as every
// device sees them.
//
//   dense   [num_groups or 1, taps * in, out]             row = tap * in + channel
//   values  [num_groups or 1, capacity, width]
//   places  [num_groups or 1, capacity]                   column * (in * taps) + channel * taps +
//   tap order   [num_groups or 1, num_columns * width]        output channel of each slot of each
//   column
//
// A column has `width` slots, each an output channel, or none (`out`). Without an order width is 1
// and a column is the output channel of its number.
//
//   gather    values[k][slot] = dense[row of place k][channel of the slot]
//   scatter   dense = zero, but for those
//
// Places are strictly ascending; unused ones are num_columns * in * taps, come last, and gather as
// zero, as a slot without a channel does. No channel is in two slots.
#pragma once
#include <cstdint>
#include <vector>

namespace jaxsparse {

struct ColumnCopy {
  int64_t taps = 1, in = 0, out = 0;
  int64_t capacity = 0, width = 1, num_columns = 0;
  int64_t item_bytes = 0;  // 1, 2, 4, 8 or 16

  // Flat group of each array for each group of the result. An array without groups has zeros.
  std::vector<int64_t> dense_group, values_group, places_group, order_group;

  void* dense = nullptr;
  void* values = nullptr;
  const int32_t* places = nullptr;
  const int32_t* order = nullptr;  // null: unstructured

  int64_t num_groups() const { return static_cast<int64_t>(dense_group.size()); }
  int64_t column_size() const { return in * taps; }
};

}  // namespace jaxsparse
