// What an instruction set offers to the kernels of sparse convolution: register tiles over lanes,
// and packing. See conv_plan.h for the words. Sums and packed numbers are float32, float64 for
// float64.
#pragma once
#include <cstdint>

#include "core/block_matmul.h"

namespace jaxsparse::cpu {

// The entries of `values` rows of sums within one block of source channels.
struct Segment {
  int32_t begin, count;  // of its entries: their offsets
  int32_t weights;       // the entry, in the order of the weights, that is its first one
  int32_t row;           // of sums, of its first value
  int32_t is_first;      // its rows have no sums yet
};

// So many offsets behind the last entry's are read, though not used.
constexpr int64_t kOffsetsAhead = 8;

// sums[row] (+)= for every entry of the segments: value * packed[source + offset].
struct LaneTile {
  const char* source;  // packed channels, at the register tile
  int64_t row_bytes;   // between rows of the register tile
  const void* values;  // [entries][values]
  const int32_t* offsets;
  const Segment* segments;
  int64_t num_segments;
  void* sums;  // [row][place][lane]
};

// weights[entry] += sum over places and lanes of result[row] * packed[source + offset]. The entries
// of the segments follow each other.
struct LaneDot {
  const char* source;
  int64_t row_bytes;
  const void* result;  // packed, [row][place][lane]
  const void* exists;  // [place][lane] all ones where the result has the place, for masked_dot
  const int32_t* offsets;
  const Segment* segments;
  int64_t num_segments;
  void* weights;  // [entries], in the sums' type
};

// A register tile: rows x cols places of each lane, for `values` results that share their entries.
struct LaneShape {
  int values, rows, cols;
  void (*run)(const LaneTile&);
  void (*dot)(const LaneDot&);
};

// `lanes` rows of stored numbers, transposed: packed[channel][lane]. Channel c lies at c * stride,
// or at order[c] * stride.
struct LanePack {
  const void* const* rows;  // [lanes]; null for a row of zeros
  const void* const* next;  // [lanes]; rows to fetch into the cache meanwhile, any may be null
  int64_t channels;
  void* packed;
  int64_t stride;  // numbers between channels
  const int32_t* order;
};

// The opposite, rounded. A row that is null is not written.
struct LaneUnpack {
  const void* packed;
  int64_t stride;
  const int32_t* order;
  int64_t channels;
  void* const* rows;
  const void* const* next;  // [lanes]; rows to fetch into the cache meanwhile, any may be null
};

// packed[k][v] = stored[indices[k] + v * value_stride]; without indices, all `count` in order.
struct ValuePack {
  const void* stored;
  const int32_t* indices;
  int64_t count, values, value_stride;
  void* packed;
};

// stored[indices[k]] = sums[k], rounded; without indices, all `count` in order.
struct ValueStore {
  const void* sums;
  const int32_t* indices;
  int64_t count;
  void* stored;
};

// sums[column][row] = sum over the column's weights of value * source[input][row].
struct FewRowsTile {
  const void* values;
  const int32_t* places;
  const int64_t* begins;  // [columns + 1] of the columns' weights
  int64_t first_place;    // of the first column
  int64_t columns, size_in;
  const void* source;  // in the sums' type, with an input more, of zeros
  void* sums;
};

// The functions for one dtype.
struct LaneTiles {
  int64_t item_bytes, sum_bytes;
  int64_t lanes;
  bool sums_are_stored;     // the stored type is the sum's type
  const LaneShape* shapes;  // with `run`
  int64_t num_shapes;
  const LaneShape* dot_shapes;  // with `dot`
  int64_t num_dot_shapes;
  void (*pack)(const LanePack&);
  void (*unpack)(const LaneUnpack&);
  void (*pack_values)(const ValuePack&);
  void (*store_values)(const ValueStore&);
  // A shape's `dot` that takes the source as zero where the result has no place.
  void (*masked_dot)(const LaneDot&, const LaneShape&);
  // For one row, for a vector of rows, for two.
  void (*few_rows[3])(const FewRowsTile&);
  bool (*ascend)(const int32_t* places, int64_t count);  // strictly
  bool (*all_finite)(const void* stored, int64_t count);
};

}  // namespace jaxsparse::cpu
