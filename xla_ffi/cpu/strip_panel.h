// The weights of a convolution over places, packed as strips of words in the order of their use.
#pragma once
#include <cstdint>

#include "core/places_conv.h"
#include "core/status.h"
#include "core/task_pool.h"
#include "cpu/tiles.h"

namespace jaxsparse::cpu {

// Which functions pack weights, and into what words.
struct StripPacking {
  int64_t item_bytes, items_per_word, word_bytes;
  void (*columns)(const ColumnPanel&);
  void (*transposed)(const ColumnPanel&);

  // In the words of the register tiles.
  explicit StripPacking(const Tiles& tiles)
      : item_bytes(tiles.item_bytes),
        items_per_word(tiles.items_per_word),
        word_bytes(tiles.word_bytes),
        columns(tiles.pack_columns),
        transposed(tiles.pack_transposed) {}
  // In words of one number.
  StripPacking(const Tiles& tiles, const EntryTiles& entries)
      : item_bytes(tiles.item_bytes),
        items_per_word(1),
        word_bytes(entries.sum_bytes),
        columns(entries.pack_columns),
        transposed(entries.pack_transposed) {}
};

// Weights from the channels of a source to those of a target.
//   panel [feature group][strip][tap][words of the source's channels][width]
struct StripPanel {
  int64_t feature_groups, strips, taps, source_channels, target_channels;  // of a feature group
  int64_t words, width, word_bytes;
  char* data;

  int64_t tap_words() const { return words * width; }
  int64_t tap_bytes() const { return tap_words() * word_bytes; }
  int64_t strip_bytes() const { return taps * tap_bytes(); }
  char* At(int64_t feature_group, int64_t strip, int64_t tap, int64_t word = 0) const {
    const int64_t before = (feature_group * strips + strip) * taps + tap;
    return data + before * tap_bytes() + word * width * word_bytes;
  }
};

// The weights of a group of the problem; `from_x`: whether x is the source. The panel lies in
// ScratchUse::kPanel of the calling thread.
Status PackStrips(const PlacesConv& problem, int64_t group, bool from_x, int64_t width,
                  const StripPacking& packing, TaskPool& pool, StripPanel* panel);

}  // namespace jaxsparse::cpu
