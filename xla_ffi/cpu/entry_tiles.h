// What an instruction set offers for inputs with single zeros: lists of the numbers that are none,
// made once for each place and used for every tap and every result.
#pragma once
#include <cstdint>

namespace jaxsparse::cpu {

struct ColumnPanel;  // tiles.h

// A list has room for so many more entries than there are channels: they are written in vectors.
constexpr int64_t kEntriesBeyond = 16;

// The nonzeros of some channels of some places.
struct EntryLists {
  const void* source;
  int64_t source_stride;    // items from one place to the next
  const int32_t* nonzeros;  // of each place, all channels; a place without is not read
  int64_t places, channels;
  int64_t weight_bytes;  // from the weights of one channel to those of the next
  int64_t list_stride;   // entries from one list to the next
  void* values;          // [place][list_stride], in the sum's type
  int32_t* offsets;      // [place][list_stride]: bytes to the weights of the entry's channel
  int32_t* counts;       // [place]
};

// A row of results: sums[target] (+)= sum over taps and entries of value * weights.
struct EntryRow {
  const void* values;
  const int32_t* offsets;
  const int32_t* counts;
  int64_t list_stride;
  const int32_t* source_of;  // [tap][source_stride]: the list that a target meets, or -1
  int64_t source_stride;
  int64_t targets, taps;
  const void* weights;  // [tap][channels][vectors]
  int64_t weights_tap_bytes;
  int64_t vectors, cols;  // 1, 2, 4 or 8 vectors, and how many columns exist
  void* sums;
  int64_t sums_stride;
  bool accumulate;
};

struct EntryTiles {
  int64_t sum_bytes, lanes;
  void (*list)(const EntryLists&);
  void (*row)(const EntryRow&);
  // As those of Tiles, but that a word is always one number.
  void (*pack_columns)(const ColumnPanel&);
  void (*pack_transposed)(const ColumnPanel&);
};

}  // namespace jaxsparse::cpu
