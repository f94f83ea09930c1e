// Forward and input gradient where few channels meet and places are inactive: each active place of
// the source is multiplied with the weights of a row of taps at once, and added to the result.
#pragma once
#include "core/status.h"
#include "core/task_pool.h"
#include "cpu/counted_source.h"
#include "cpu/place_map.h"
#include "cpu/scatter_tiles.h"
#include "cpu/tiles.h"

namespace jaxsparse::cpu {

// Whether it beats products of pairs of places, tap by tap.
bool ScatterPays(const CountedSource& source, const Tiles& tiles);

// Writes `target`, of the source's group. There is one feature group.
Status ScatterConv(const CountedSource& source, char* target, const PlaceMap& map,
                   const Tiles& tiles, const ScatterTiles& scatter, TaskPool& pool);

}  // namespace jaxsparse::cpu
