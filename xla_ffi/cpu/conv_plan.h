// All of a convolution that depends on its sizes and its pattern only: checked indices, how the
// result is cut into lanes, and the list of multiplications with byte offsets. Numbers are not in
// it. A plan is kept between calls, see plan_memo.h.
//
// One kernel computes forward and input gradient. Words, the same for both:
//   source, result   the array that is read through the weights, and the other one: x and y of
//                    forward, y and x of input gradient. In a weight gradient both are read; the
//                    result is the one whose channels are the columns.
//   phase            with stride s, every s-th place of the finer space (x's), from the phase on. A
//                    source of many phases is packed in one plane per phase, so that neighbouring
//                    results read neighbouring places; a result of many is computed plane by plane.
//   tile             a box of places of the result's planes. Each lane of a vector has a tile of
//   its
//                    own, of any image: reading a tap is reading one whole, aligned vector.
//   chunk            as many tiles as a vector has lanes.
//   register tile    the part of a tile whose sums are in registers while a list of weights passes.
//   row              of sums: one result channel of one phase, row = phase * channels + channel.
//   entry            one place of the source, relative to the register tile, that is multiplied by
//                    `values` stored weights, which belong to as many rows.
//   segment          the entries of `values` rows within one block of source channels.
//   part             a range of segments with rows of their own: what one thread does at a time.
//
// Packed source of a chunk: [channel][position][lane], channels `channel_stride` vectors apart.
// Sums of a part and a register tile: [row - first row of the part][place in the tile][lane].
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include "core/sparse_conv.h"
#include "core/status.h"
#include "cpu/lane_tiles.h"

namespace jaxsparse::cpu {

enum class ConvRole { kForward, kInputGrad, kWeightGrad };

// How a chunk is cut. A pure function of sizes: ChooseGeometry in lane_geometry.h.
struct LaneGeometry {
  int64_t lanes = 1;
  Space tile = {1, 1, 1};  // a multiple of the register tile
  const LaneShape* shape =
      nullptr;                 // the register tile: shape->rows x shape->cols of the last axes
  int64_t block_channels = 1;  // source channels per segment
  int64_t part_segments = 1;   // columns per part
};

// One place of a packed tile: where the source's place is for the tile at result place (0, 0, 0).
struct PackedPosition {
  int64_t index;  // in the packed channel
  Space place;
};

// The sums of one register tile, within its tile.
struct RegisterTile {
  int64_t source_bytes;  // from the start of a packed channel
  Space place;
};

struct Segment {
  int32_t begin, count;  // of its entries
  int32_t row;           // row of sums of its first value, within the part
  int32_t is_first;      // its rows have no sums yet
};

struct Part {
  int64_t first_row, num_rows;    // num_rows is a multiple of `values`
  std::vector<int64_t> segments;  // [channel blocks + 1]: the part's segments of each block
};

struct ConvPlan {
  // The arrays.
  int64_t images;
  int64_t source_channels, result_channels;
  Space source_space, result_space;
  // Tile place p of the result is place p * result_step + phase of the array; the source's places
  // move by source_step per result place.
  Space source_step, result_step;
  std::vector<Space> result_phases;

  LaneGeometry geometry;
  Space tiles;         // tiles per image
  int64_t num_chunks;  // of all images

  std::vector<PackedPosition> positions;  // those that some tap reads
  int64_t channel_stride;                 // vectors, of the packed source
  int64_t row_bytes;                      // between rows of a register tile, in the packed source
  std::vector<RegisterTile> register_tiles;

  // In stored order where `value_indices` is empty: then entry k has the values from k * values on.
  std::vector<int32_t> offsets;        // [entries] bytes from the register tile's source
  std::vector<int32_t> value_indices;  // [entries] index of an entry's first stored weight
  int64_t value_stride = 1;            // between the stored weights of one entry
  int64_t num_entries = 0;             // those stored; offsets of unused places are not read
  std::vector<Segment> segments;
  std::vector<Part> parts;
  // Result row of every row of sums, in order of the parts; -1 for none. Empty where it is the
  // index itself.
  std::vector<int32_t> rows;

  int64_t num_tiles() const { return images * NumPlaces(tiles); }
  int64_t values() const { return geometry.shape->values; }
  int64_t register_places() const { return geometry.shape->rows * geometry.shape->cols; }
  int64_t bytes() const;  // of memory
};

// The plan for one pattern of a problem, from the memo or made now. Fails where the pattern is not
// valid, with the sentence for the user. May throw std::bad_alloc.
Status GetConvPlan(const SparseConv& problem, int64_t pattern_group, ConvRole role,
                   const LaneTiles& tiles, int64_t num_threads,
                   std::shared_ptr<const ConvPlan>* plan);

// A product or a 1x1 window without strides and padding has no space, only rows: the same problem
// with all of it in the last axis of one image.
SparseConv Canonical(const SparseConv& problem);

// Packs positions [first, last) of plan.positions, all channels, of a chunk. Places outside of the
// source are zero. `source` and `packed` are the arrays of one group.
void PackSource(const ConvPlan& plan, const LaneTiles& tiles, const void* source, int64_t chunk,
                int64_t first, int64_t last, void* packed);

// Between the result's array and the sums of a register tile of a chunk, for the rows of a part.
// Packing makes zeros of lanes and places that do not exist; unpacking rounds.
void PackResult(const ConvPlan& plan, const LaneTiles& tiles, const void* result, int64_t chunk,
                const RegisterTile& register_tile, const Part& part, void* sums);
void UnpackResult(const ConvPlan& plan, const LaneTiles& tiles, const void* sums, int64_t chunk,
                  const RegisterTile& register_tile, const Part& part, void* result);

}  // namespace jaxsparse::cpu
