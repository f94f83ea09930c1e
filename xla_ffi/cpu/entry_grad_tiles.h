// What an instruction set offers to the weight gradient of inputs with single zeros: lists of the
// numbers that are none, by channel, and their products with what they meet.
#pragma once
#include <cstdint>

namespace jaxsparse::cpu {

struct ColumnPanel;  // tiles.h

// Of some places the numbers that are listed, each with the offset of its place: those of a channel
// are one list. Lists are written in whole vectors.
struct ChannelLists {
  const void* source;
  int64_t source_stride;  // items from one place to the next
  const int64_t* places;  // of the source, as many as there are offsets
  const int32_t* offsets;
  int64_t num_places, channels;
  // Whether infinities and NaN are listed, and nothing else; or else the finite nonzeros.
  bool of_nonfinite;
  void* values;  // [channels][room], in the sum's type
  int32_t* its_offsets;
  int64_t room;    // num_places and a vector more
  int32_t* sizes;  // of each list
};

// For each channel and each tap: sums += sum over the channel's list of value * the row of the
// panel that lies `offset` bytes and those of the tap from its beginning.
struct ChannelSums {
  const void* values;
  const int32_t* offsets;
  int64_t room;
  const int32_t* sizes;
  int64_t channels;
  const char* panel;
  const int64_t* tap_bytes;
  int64_t num_taps;    // at most EntryGradTiles::MaxTaps
  int64_t vectors;     // of a row of the panel: 1, 2 or 4
  char* sums;          // [channels][taps][vectors]
  int64_t sums_bytes;  // from one channel to the next
  const char* ahead;   // memory that is needed next, so many lines of it for each channel
  int64_t lines_ahead;
};

struct EntryGradTiles {
  int64_t sum_bytes, lanes;
  bool (*list)(const ChannelLists&);  // returns whether there are infinities or NaN
  void (*sum)(const ChannelSums&);
  void (*pack)(const ColumnPanel&);  // places to rows of a panel

  // So many sums stay in registers.
  static constexpr int64_t MaxTaps(int64_t vectors) { return vectors == 1 ? 9 : 8 / vectors; }
};

}  // namespace jaxsparse::cpu
