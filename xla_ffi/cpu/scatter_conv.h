// Forward and input gradient where few channels meet and places are inactive: each active place of
// the source is multiplied with the weights of a row of taps at once, and added to the result.
#pragma once
#include <cstdint>

#include "core/places_conv.h"
#include "core/status.h"
#include "core/task_pool.h"
#include "cpu/place_map.h"
#include "cpu/scatter_tiles.h"
#include "cpu/tiles.h"

namespace jaxsparse::cpu {

// Source and target of one group; the target has no counts and there is one feature group.
struct ScatterProblem {
  const PlacesConv& problem;
  bool from_x;  // whether x is the source
  int64_t group;
  const char* source;
  const int32_t* counts;  // of the source
  int64_t active;         // places that are
  char* target;
};

// Whether it beats products of pairs of places, tap by tap. `active`: places of the source.
bool ScatterPays(const PlacesConv& problem, bool from_x, int64_t active, const Tiles& tiles);

Status ScatterConv(const ScatterProblem& problem, const PlaceMap& map, const Tiles& tiles,
                   const ScatterTiles& scatter, TaskPool& pool);

}  // namespace jaxsparse::cpu
