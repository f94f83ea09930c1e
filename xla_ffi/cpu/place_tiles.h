// What an instruction set offers to convolutions of sparse inputs: register tiles over rows that
// lie anywhere. Words as in tiles.h; a row is the channels of one place.
#pragma once
#include <cstdint>

#include "core/block_matmul.h"

namespace jaxsparse::cpu {

// A place of the source and the place of the result that it adds to, through one tap.
struct PlacePair {
  int64_t source, target;
};

// So many items of the depth are multiplied before sums go back to memory: 32 columns of weights
// then stay in L1.
constexpr int64_t kDepthOfProduct = 256;

// sums[target][cols] += source[source][items] * weights, for every pair.
struct PlaceProduct {
  const void* source;
  int64_t source_stride;  // items from one place to the next
  const PlacePair* pairs;
  int64_t num_pairs;
  const void* weights;  // [words of items][weights_stride], from ColumnPanels
  int64_t weights_stride, items;
  int64_t vectors, cols;  // of the strip, and how many of its columns exist
  void* sums;
  int64_t sums_stride;
};

// sums[rows][cols] (+)= sum over pairs of rows_of[place][rows]^T cols_of[place][cols].
struct PlaceOuter {
  const void* rows_of;
  const void* cols_of;
  int64_t rows_stride, cols_stride;  // items
  bool rows_are_sources;             // of the pairs
  const PlacePair* pairs;
  int64_t num_pairs;
  int64_t rows, vectors, cols;
  void* sums;
  int64_t sums_stride;
  bool accumulate;
};

// The nonzeros of each of `places` rows of `channels` items.
struct PlaceCount {
  const void* source;
  int64_t places, channels;
  int32_t* counts;
};

struct PlaceTiles {
  void (*count)(const PlaceCount&);
  void (*product)(const PlaceProduct&);
  void (*outer)(const PlaceOuter&);
};

}  // namespace jaxsparse::cpu
