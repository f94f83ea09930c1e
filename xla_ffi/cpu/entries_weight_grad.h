// Weight gradient of inputs with single zeros. The source is cut into tiles of places; of each,
// the nonzeros are listed by channel, once for all taps and all results. What a tile meets is
// packed with zeros around it, so that taps are fixed distances and borders need no thought: the
// numbers listed are finite. Sums of a list through up to nine taps stay in registers.
#pragma once
#include <cstdint>

#include "core/places_conv.h"
#include "core/status.h"
#include "core/task_pool.h"
#include "cpu/entry_grad_tiles.h"
#include "cpu/place_map.h"
#include "cpu/tiles.h"

namespace jaxsparse::cpu {

// Source and target of one group; the target has no counts.
struct EntriesGradProblem {
  const PlacesConv& problem;
  bool from_x;  // whether x is the source
  const char* source;
  const int32_t* counts;  // of the source
  int64_t nonzeros;       // their sum
  int64_t active_places;
  const char* target;
  char* result;  // the group's weight
};

// Whether lists of nonzeros beat whole rows of channels.
bool EntriesGradPays(const EntriesGradProblem& problem, const EntryGradTiles& entries);

Status EntriesWeightGrad(const EntriesGradProblem& problem, const PlaceMap& map, const Tiles& tiles,
                         const EntryGradTiles& entries, TaskPool& pool);

}  // namespace jaxsparse::cpu
