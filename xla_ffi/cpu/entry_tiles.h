// What an instruction set offers for inputs with single zeros: lists of the numbers that are none,
// made once for each place and used for every tap and every result.
#pragma once
#include <cstdint>

namespace jaxsparse::cpu {

struct ColumnPanel;  // tiles.h

// Lists are written in whole vectors: so many entries are written beyond the last one.
constexpr int64_t kEntriesBeyond = 16;

// Lists, one after the other: of values in the sum's type, and of bytes to the weights that each
// one multiplies.
struct EntryStore {
  void* values;
  int32_t* offsets;
  int64_t* begins;  // the entry with which each list begins, and the last one ends
};

// The nonzeros of some channels of a row of places, listed by place.
struct EntryLists {
  const void* source;
  int64_t source_stride;    // items from one place to the next
  const int32_t* nonzeros;  // of each place, all channels; a place without is not read
  int64_t places, channels;
  // Bytes to the weights of the first place's first channel, to those of the next channel, and to
  // those of the next place.
  int64_t first_bytes, channel_bytes, place_bytes;
  EntryStore lists;  // begins[0] is given
};

// A list that a target meets through a row of taps. The offsets of its entries count from `weights`
// bytes behind the first weight of the row.
struct EntryRange {
  int64_t begin, count, weights;
};

// What targets meet through a row of taps: [ranges][targets], and the bytes to its weights.
struct EntrySegment {
  const EntryRange* ranges;
  int64_t weights;
};

// A row of results: sums[target] (+)= sum over segments, ranges and entries of value * weights.
struct EntryRow {
  const void* values;
  const int32_t* offsets;
  const EntrySegment* segments;
  int64_t num_segments, num_ranges, targets;
  const void* weights;  // of each strip [rows of taps][weights of a row]
  int64_t strips, strip_bytes;
  int64_t vectors, cols;  // of a strip 1, 2, 4 or 8 vectors; the columns that exist, of all strips
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
