// What an instruction set has to offer: register tiles and packing loops on raw pointers.
//
// Everything that knows patterns, threads and memory is ordinary code, compiled once for the
// baseline; only these functions are compiled per instruction set (targets/*.cc).
//
// Vocabulary, the same for every role:
//   item    a stored number (float32, float64, bfloat16, float16)
//   word    what the tile broadcasts: one number of the sum's type, or on AVX512_BF16 two
//           bfloat16 that lie next to each other along the sum
//   depth   the axis that is summed over, in items; the last word of an odd depth is half zero
//   strip   one or two vectors of neighbouring results inside one block column
//   slice   64 bytes of words of one row: a fixed distance between rows, whatever the block size,
//           so one tile serves all block shapes
// Strides count items, or words where the array holds words.
#pragma once
#include <cstdint>

#include "core/block_matmul.h"
#include "cpu/entry_grad_tiles.h"
#include "cpu/entry_tiles.h"
#include "cpu/lane_tiles.h"
#include "cpu/place_tiles.h"
#include "cpu/scatter_tiles.h"

namespace jaxsparse::cpu {

inline constexpr int64_t kSliceBytes = 64;
inline constexpr int64_t kMaxStripVectors = 2;

// Rows of a matrix, cut into blocks along the depth: panel [block][slice][row][words of a slice].
struct RowPanel {
  const void* source;
  int64_t source_stride;
  int64_t rows, depth, block_depth;
  void* panel;
};

// A matrix whose rows are the depth, cut into parts of `width` columns: panel
// [part][words of the depth][width], with parts `part_stride` words apart. Columns from `cols` on
// do not exist, and are zero.
struct ColumnPanel {
  const void* source;
  int64_t source_stride;
  int64_t depth, cols;
  int64_t width, parts, part_stride;
  void* panel;
};

// One register tile: result [num_rows][cols] = sum over blocks of rows * weights, overwritten.
struct ProductTile {
  const void* rows;  // a RowPanel of num_rows rows
  int64_t num_rows;
  const int32_t* blocks;  // which block of the depth each stored block multiplies
  int64_t num_blocks;
  const void* weights;  // [num_blocks][block depth][strip], stored or in ColumnPanels
  int64_t weights_block_stride, weights_stride;
  int64_t depth, block_depth;
  int64_t vectors;  // of the strip
  int64_t cols;     // of the strip that exist
  void* result;
  int64_t result_stride;
};

// All results of a block row of W for a small batch: dx = dy * (W's block row)^T, read in place.
struct DotBlockRow {
  const void* gradient;  // dy [batch][depth]
  int64_t gradient_stride;
  int64_t batch;
  const int32_t* blocks;     // block column of each block of this row
  const int64_t* positions;  // where its values are
  int64_t num_blocks;
  int64_t num_blocks_ahead;  // in `positions`, with those of the rows that follow
  const void* weights;       // [capacity][block_in][block_depth]
  int64_t block_in, block_depth, depth;
  int64_t cols;  // results that exist, at most block_in
  void* result;
  int64_t result_stride;
};

// Sums of products at the blocks of one strip: sums [num_blocks][block_in][strip].
struct WeightGradStrip {
  const void* x;  // [block rows][words of the depth][block_in]
  int64_t x_block_stride;
  const int32_t* blocks;  // block row of each stored block
  int64_t num_blocks, block_in;
  const void* gradient;  // [words of the depth][strip]
  int64_t depth_words;   // to sum over, of those
  int64_t vectors;
  void* sums;
  int64_t sums_block_stride, sums_stride;
  bool accumulate;  // add to what the sums hold
};

// Sums to stored numbers, rounded to the nearest, ties to even.
struct StoredRows {
  const void* sums;
  int64_t sums_stride;
  int64_t rows, cols;
  void* result;
  int64_t result_stride;
};

// One way to compute product tiles.
struct ProductKernel {
  int64_t items_per_word;
  int64_t max_rows[kMaxStripVectors + 1];  // of a tile, by the vectors of its strip
  // Weights are read where they lie when blocks are whole vectors wide; else they are packed.
  bool reads_stored_weights;
  void (*pack_rows)(const RowPanel&);
  void (*run)(const ProductTile&);
  void (*run_unrounded)(const ProductTile&);  // leaves the result in the type of the sums
};

// The functions for one dtype.
struct Tiles {
  int64_t item_bytes;
  int64_t word_bytes;  // the sums have this size too, except that pairs sum in float32: 4 as well
  int64_t lanes;       // words, and sums, in a vector
  int64_t items_per_word;
  bool sums_are_stored;  // the stored type is the sum's type

  int64_t sum_bytes() const { return sums_are_stored ? item_bytes : 4; }

  ProductKernel product;
  // For so few rows that reading the weights is all the cost: never packs them.
  ProductKernel streamed_product;
  void (*pack_columns)(const ColumnPanel&);
  // One part, from a source whose columns are the depth; `width` is whole vectors.
  void (*pack_transposed)(const ColumnPanel&);

  int64_t max_dot_batch;  // above, transposing the blocks costs less than dot products
  void (*dot)(const DotBlockRow&);

  void (*weight_grad)(const WeightGradStrip&);
  void (*store)(const StoredRows&);
};

// Those of an instruction set, and those for blocks narrower than its vectors: a block of half a
// vector or less takes as many narrow vectors as wide ones, without padding. Blocks of 8 x 8 ran at
// 50 % of peak with AVX2, 31 % with AVX-512, on the same machine.
struct TilesByWidth {
  const Tiles& wide;
  const Tiles& narrow;

  const Tiles& For(int64_t width) const { return width <= narrow.lanes ? narrow : wide; }
};

struct TileTable {
  const char* isa;
  Tiles tiles[kNumDTypes];  // by DType
  LaneTiles lanes[kNumDTypes];
  PlaceTiles places[kNumDTypes];
  EntryTiles entries[kNumDTypes];
  EntryGradTiles entry_grads[kNumDTypes];
  ScatterTiles scatter[kNumDTypes];
};

}  // namespace jaxsparse::cpu
