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
//   tile             a box of places of a result's plane. Each lane of a vector has a tile of its
//                    own, of any image: reading a tap is reading one whole, aligned vector.
//   chunk            as many tiles as a vector has lanes.
//   register tile    the part of a tile whose sums are in registers while a list of weights passes.
//   row              of sums: one result channel, in one phase.
//   column           of `values` rows, which share their entries.
//   entry            one place of the source, relative to the register tile and the block of
//                    channels, that is multiplied by the column's `values` stored weights. Of a
//                    weight gradient, the place whose products with the column's result are summed
//                    to one stored weight.
//   segment          the entries of a column within one block of source channels.
//   part             a range of columns of one phase: what one thread does at a time.
//
// Packed source of a chunk: [channel][position][lane], channels `channel_stride` vectors apart.
// Sums of a part and a register tile: [row - first_row][place in the tile][lane].
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include "core/sparse_conv.h"
#include "core/status.h"
#include "core/task_pool.h"
#include "cpu/lane_geometry.h"
#include "cpu/lane_tiles.h"

namespace jaxsparse::cpu {

enum class ConvRole { kForward, kInputGrad, kWeightGrad };

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

struct Part {
  int64_t phase;
  int64_t first_row, num_rows;    // of the phase; num_rows is a multiple of `values`
  std::vector<int64_t> segments;  // [channel blocks + 1]: the part's segments of each block
};

struct ConvPlan {
  int64_t images;
  int64_t source_channels, result_channels;
  Space source_space, result_space;
  // Tile place p of a result is place class + p * result_step + phase of the array; the source's
  // places move by source_step per place, and as the class.
  Space source_step, result_step;
  Space classes;
  std::vector<Space> result_phases;  // those that taps meet
  bool leaves_gaps = false;          // there are others, whose results are zero

  LaneGeometry geometry;
  int64_t lanes;
  Space tiles;  // per image and class

  std::vector<PackedPosition> positions;  // those that some tap reads
  int64_t channel_stride;                 // vectors, of the packed source
  int64_t row_bytes;                      // between rows of a register tile, in the packed source
  int64_t block_bytes;                    // between blocks of channels, in the packed source
  std::vector<RegisterTile> register_tiles;

  // Where `value_indices` is empty, entry k has the stored weights from k * values on.
  // [entries + kOffsetsAhead] bytes from the register tile's source, in the block of channels
  std::vector<int32_t> offsets;
  std::vector<int32_t> value_indices;  // [entries] index of an entry's first stored weight
  int64_t value_stride = 1;            // between the stored weights of one entry
  int64_t num_entries = 0;
  std::vector<Segment> segments;
  std::vector<Part> parts;
  int64_t max_part_rows = 0;
  // [result_channels] where results are computed out of order: their row. Each phase is one part
  // then. Channels without weights have the last row, which is zero.
  std::vector<int32_t> channel_rows;

  int64_t num_tiles() const { return images * NumPlaces(classes) * NumPlaces(tiles); }
  int64_t num_chunks() const { return (num_tiles() + lanes - 1) / lanes; }
  int64_t values() const { return geometry.shape->values; }
  int64_t register_places() const { return geometry.shape->rows * geometry.shape->cols; }
  bool covers_exactly() const;  // no tile has places beyond the result
  int64_t bytes() const;        // of memory
};

// Makes a plan, without the memo.
Status MakeConvPlan(const SparseConv& problem, int64_t pattern_group, ConvRole role,
                    const LaneTiles& tiles, int64_t num_threads, ConvPlan* plan);

// The plan for one pattern of a problem, from the memo or made now. Fails where the pattern is not
// valid, with the sentence for the user. May throw std::bad_alloc.
Status GetConvPlan(const SparseConv& problem, int64_t pattern_group, ConvRole role,
                   const LaneTiles& tiles, int64_t num_threads,
                   std::shared_ptr<const ConvPlan>* plan);

// A product or a 1x1 window without strides and padding has no space, only rows: the same problem
// with all of it in the last axis of one image.
SparseConv Canonical(const SparseConv& problem);

// Packs positions [first, last) of plan.positions, all channels, of a chunk; without a range all of
// them, on the threads of a pool. Places outside of the source are zero. `source` and `packed` are
// the arrays of one group, the latter of `PackedBytes`.
int64_t PackedBytes(const ConvPlan& plan, const LaneTiles& tiles);
void PackSource(const ConvPlan& plan, const LaneTiles& tiles, const void* source, int64_t chunk,
                int64_t first, int64_t last, void* packed);
Status PackSource(const ConvPlan& plan, const LaneTiles& tiles, const void* source, int64_t chunk,
                  TaskPool& pool, void* packed);

// Between the result's array and the sums of a register tile of a chunk, for the rows of a part.
// Packing makes zeros of lanes and places that do not exist; unpacking rounds. Packing also says in
// `exists`, unless that is null, which of [place][lane] do, by bits that are all ones or zeros.
void PackResult(const ConvPlan& plan, const LaneTiles& tiles, const void* result, int64_t chunk,
                const RegisterTile& register_tile, const Part& part, void* sums, void* exists);
void UnpackResult(const ConvPlan& plan, const LaneTiles& tiles, const void* sums, int64_t chunk,
                  const RegisterTile& register_tile, const Part& part, void* result);

}  // namespace jaxsparse::cpu
