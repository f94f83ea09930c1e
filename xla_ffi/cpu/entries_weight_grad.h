// Weight gradient of inputs with single zeros. The source is cut into tiles of places; of each,
// the nonzeros are listed by channel, once for all taps and all results. What a tile meets is
// packed with zeros around it, so that taps are fixed distances and borders need no thought: the
// numbers listed are finite. Sums of a list through up to nine taps stay in registers.
#pragma once
#include "core/status.h"
#include "core/task_pool.h"
#include "cpu/counted_source.h"
#include "cpu/entry_grad_tiles.h"
#include "cpu/place_map.h"
#include "cpu/tiles.h"

namespace jaxsparse::cpu {

// Whether lists of nonzeros beat whole rows of channels.
bool EntriesGradPays(const CountedSource& source, const EntryGradTiles& entries);

// Writes `result`, the gradient of the group's weight; `target` are the numbers without counts.
Status EntriesWeightGrad(const CountedSource& source, const char* target, char* result,
                         const PlaceMap& map, const Tiles& tiles, const EntryGradTiles& entries,
                         TaskPool& pool);

}  // namespace jaxsparse::cpu
