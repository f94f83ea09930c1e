// What an instruction set offers to convolutions of few channels with inactive places: what a place
// sends to its neighbours in a row, through some taps, is summed in registers and added to the
// result once. Words as in tiles.h.
#pragma once
#include <cstdint>

namespace jaxsparse::cpu {

// Of a place, so many channels at most.
constexpr int64_t kScatterChannels = 32;
// Taps of one call.
constexpr int64_t kScatterTaps = 3;
// Lists are written in whole vectors, and read ahead: so many numbers are touched behind the last.
constexpr int64_t kPlacesBeyond = 16, kPlacesAhead = 8;

// The active places of some columns of every row, in order.
struct ScatterList {
  const int32_t* counts;     // [rows][width]; 0: not active
  const int32_t* columns;    // [width]: those that are listed hold `column`
  const int32_t* target_of;  // [width]: the target in its row that a column meets
  int64_t rows, width, target_width;
  int32_t column;
  int64_t begin, end;  // columns outside hold other numbers
  int32_t* sources;    // row * width + column
  int32_t* targets;    // row * target_width + target of the column
  int32_t* begins;     // [rows + 1]; the first is given
};

// sums[target + first_target + t * target_step] += source[source] * weights[t], for every place and
// tap.
struct ScatterProduct {
  const void* source;
  int64_t source_stride, items;  // from one place to the next, and how many of a place
  const int32_t* sources;
  const int32_t* targets;
  int64_t places;
  const void* weights;  // [taps][words of items][weights_stride], from ColumnPanels
  int64_t tap_stride, weights_stride;
  int64_t taps, vectors;  // 1 to kScatterTaps, 1 or 2
  void* sums;
  int64_t sums_stride;  // all vectors exist
  int64_t first_target, target_step;
};

struct ScatterTiles {
  void (*list)(const ScatterList&);
  void (*add)(const ScatterProduct&);
};

}  // namespace jaxsparse::cpu
