// What the kernels of block-sparse products get: plain data, passed by value.
#pragma once
#include <cstdint>

namespace jaxsparse::cuda {

// Arrays of group g of a launch are at index first + g * step of their groups; step is 0 where all
// groups share one.
struct GroupIndices {
  int64_t first = 0, step = 0;
};

// Lines of so many blocks or more count as equally long.
constexpr int kBuckets = 1024;

// The patterns of all groups, and what is derived from them on the device, all int32. The derived
// arrays of a pattern lie one after another in its `words_per_pattern` words of scratch:
//
//   is_invalid   [1]             not 0: results are NaN, and every place counts as unused
//   column_start [columns + 2]   the first block of each column; then of the unused places, as if
//                                they were one more column; then their end, the capacity
//   strip_start  [columns + 2]   weight gradient: the first strip of each column, likewise
//   row_start    [rows + 1]      input gradient: where each row's blocks begin in `by_row`
//   by_row       [capacity]      the blocks in order of (row, column)
//   arrival      [capacity]      the blocks of a row in any order, while by_row is being made
//   slot         [capacity]      the place of each block among these
//   bucket       [kBuckets + 1]  products: where lines of each length begin in `heaviest`
//   heaviest     [lines]         columns, or for the input gradient rows, from the longest on
struct PatternArrays {
  const int32_t* rows;  // [patterns, capacity]
  const int32_t* cols;
  int32_t* words;
  int64_t words_per_pattern;
  int32_t capacity, grid_rows, grid_cols;
  int64_t column_start, strip_start, row_start, by_row, arrival, slot, bucket, heaviest;  // words
  int32_t blocks_per_strip;
};

// y = x * W or dx = dy * W^T, of groups:
//   a [m, k], c [m, n], and of w the sides of a block along k and n, however it is stored
struct ProductArgs {
  PatternArrays pattern;
  GroupIndices a_group, w_group, c_group, pattern_group;
  const void* a;
  const void* w;
  void* c;
  bool c_is_float32;
  int64_t m, k, n;
  int64_t a_groups, w_groups, c_groups;  // in all, whatever this launch takes
  int32_t block_k, block_n;
  int32_t lines;           // block columns of W, or of W^T
  int32_t tiles_per_line;  // of c, along n
  // Tiles are taken in bands of so many rows of tiles, in a band from the longest line on: either
  // all, where a fits the L2 cache, or one.
  int32_t band;
};

// dW = x^T * dy at the stored blocks, of groups: x [m, in], dy [m, out].
//
// A strip is up to blocks_per_strip neighbours of one block column. Its blocks lie below each
// other, strip_rows rows in all, and are cut into tiles. Split s sums over rows [s, s + 1) *
// rows_per_split of x and dy; with several splits, each writes its own w, in `Sum`, and AddSplits
// adds them.
struct WeightGradArgs {
  PatternArrays pattern;
  GroupIndices x_group, y_group, w_group, pattern_group;
  const void* x;
  const void* y;
  void* w;
  bool w_holds_sums;  // w is the array of partial sums [splits, groups, capacity, in, out]
  int64_t m, in, out;
  int32_t block_in, block_out;
  int32_t tiles_in, tiles_out;  // of a strip
  int64_t rows_per_split;
  int64_t split_stride;  // in numbers
};

struct AddSplitsArgs {
  const void* sums;  // [splits, size]
  void* w;           // [size]
  int64_t size;
  int32_t splits;
};

}  // namespace jaxsparse::cuda
