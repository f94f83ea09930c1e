// Forward and input gradient of inputs with single zeros: each place's nonzeros are listed, the
// lists that a result meets through a row of taps are joined, and multiplied by all weights.
#pragma once
#include <cstdint>

#include "core/places_conv.h"
#include "core/status.h"
#include "core/task_pool.h"
#include "cpu/entry_tiles.h"
#include "cpu/place_map.h"
#include "cpu/tiles.h"

namespace jaxsparse::cpu {

// Source and target of one group; the target has no counts and there is one feature group.
struct EntriesProblem {
  const PlacesConv& problem;
  bool from_x;  // whether x is the source
  int64_t group;
  const char* source;
  const int32_t* counts;  // of the source
  int64_t nonzeros;       // their sum
  char* target;
};

// Whether lists of nonzeros beat whole rows of channels.
bool EntriesPay(int64_t nonzeros, int64_t active_places, int64_t places, int64_t source_channels,
                int64_t row_taps, const EntryTiles& tiles);

Status EntriesProduct(const EntriesProblem& problem, const PlaceMap& map, const Tiles& tiles,
                      const EntryTiles& entries, TaskPool& pool);

}  // namespace jaxsparse::cpu
