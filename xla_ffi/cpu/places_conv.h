// Convolutions of which one side has places that count as zero. Problem: core/places_conv.h.
//
// Every role works on pairs of places that meet through a tap. Forward and input gradient: the
// result is cut into bands whose sums stay in L2; for each tap, the rows of the source that have a
// result in the band are multiplied by the tap's weights and added there. Taps follow in one order,
// so the bits depend on nothing but the numbers. Weight gradient: each tap's pairs are one product
// of matrices. Where many single numbers are zero too, entries_conv.h and entries_weight_grad.h;
// where channels are few, scatter_conv.h.
#pragma once
#include "core/places_conv.h"
#include "core/status.h"
#include "core/task_pool.h"
#include "cpu/place_tiles.h"
#include "cpu/scatter_tiles.h"
#include "cpu/tiles.h"

namespace jaxsparse::cpu {

// What the kernels need of an instruction set, for one dtype.
struct PlaceKernels {
  const Tiles& tiles;
  const PlaceTiles& places;
  const EntryTiles& entries;
  const EntryGradTiles& entry_grads;
  const ScatterTiles& scatter;
};

Status PlacesForward(const PlacesConv& problem, const PlaceKernels& kernels, TaskPool& pool);
Status PlacesInputGrad(const PlacesConv& problem, const PlaceKernels& kernels, TaskPool& pool);
Status PlacesWeightGrad(const PlacesConv& problem, const PlaceKernels& kernels, TaskPool& pool);

// The nonzeros of each of `places` rows of `channels` numbers.
Status CountNonzeros(const void* source, int64_t places, int64_t channels, int32_t* counts,
                     const PlaceKernels& kernels, TaskPool& pool);

}  // namespace jaxsparse::cpu
