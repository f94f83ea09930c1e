// Forward and input gradient of inputs with single zeros: each place's nonzeros are listed, the
// lists that a result meets through a row of taps follow each other, and are multiplied by all
// weights.
#pragma once
#include "core/status.h"
#include "core/task_pool.h"
#include "cpu/counted_source.h"
#include "cpu/entry_tiles.h"
#include "cpu/place_map.h"
#include "cpu/tiles.h"

namespace jaxsparse::cpu {

// Whether lists of nonzeros beat whole rows of channels.
bool EntriesPay(const CountedSource& source, const EntryTiles& entries);

// Writes `target`, of the source's group. There is one feature group.
Status EntriesProduct(const CountedSource& source, char* target, const PlaceMap& map,
                      const Tiles& tiles, const EntryTiles& entries, TaskPool& pool);

}  // namespace jaxsparse::cpu
