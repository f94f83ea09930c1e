// A batch of convolutions with sparse weights, as every device sees it. A product of a matrix with
// a sparse weight is the convolution with one tap over a space of its rows.
//
//   x        [num_groups or 1, batch, *x_space, in]
//   y        [num_groups or 1, batch, *y_space, out]
//   w        [num_groups or 1, capacity, width]                 columns
//            [num_groups or 1, capacity, block_in, block_out]   blocks
//   places   [num_groups or 1, capacity]      where each weight, or the row of each block, is
//   order    [num_groups or 1, num_columns * width]; the column of each block [.., capacity]
//
//   forward      y[n, q, o] = sum over t, i of x[n, q * strides + t * dilation - low, i] W[t, i, o]
//   input_grad   its transpose, from y to x: also the public transposed convolution
//   weight_grad  its derivative by the stored weights
//
// x outside of its space is zero. Space has three axes always: the leading ones of a window of
// fewer have one place, one tap, stride 1 and no padding. With feature groups, output channels in
// the g-th of `feature_groups` equal parts read the g-th part of the input channels; W's `i` counts
// inside it.
//
// Stored weights are `[taps, depth, channels]`. Not mirrored, that is W: channels are those of y
// and the depth counts x's inside their feature group. Mirrored, they are W with its two channel
// axes exchanged and the taps reversed: channels are those of x, the depth counts y's, and the
// stored tap t is W's tap num_taps - 1 - t.
//
// Columns: each of `width` channels that share one list of places; place = (column * depth + c) *
// num_taps + t, strictly increasing; unused places are num_columns * depth * num_taps, and last.
// Slot s of column j is channel order[j * width + s], or none where that is `channels`; without an
// order it is channel j * width + s. Every channel is one slot. Blocks: of the matrix [taps
// * depth, channels], in the order and with the edges of BlockMatmul.
#pragma once
#include <array>
#include <cstdint>
#include <vector>

#include "core/block_matmul.h"

namespace jaxsparse {

using Space = std::array<int64_t, 3>;

inline int64_t NumPlaces(const Space& space) { return space[0] * space[1] * space[2]; }

enum class WeightFormat { kColumns, kBlocks };

// What every convolution has: its window, and the sizes of x, y and w.
struct ConvWindow {
  Space x_space = {1, 1, 1}, y_space = {1, 1, 1};
  Space kernel = {1, 1, 1}, strides = {1, 1, 1}, low = {0, 0, 0}, dilation = {1, 1, 1};
  int64_t feature_groups = 1;
  bool mirrored = false;
  int64_t batch = 0, in = 0, out = 0;

  int64_t num_taps() const { return NumPlaces(kernel); }
  // Of the weights as they are stored.
  int64_t channels() const { return mirrored ? in : out; }
  int64_t depth() const { return (mirrored ? out : in) / feature_groups; }
  int64_t stored_tap(int64_t tap) const { return mirrored ? num_taps() - 1 - tap : tap; }
};

struct SparseConv : ConvWindow {
  // The stored weights.
  WeightFormat format = WeightFormat::kColumns;
  int64_t capacity = 0;
  int64_t num_columns = 0, width = 1;   // columns
  int64_t block_in = 0, block_out = 0;  // blocks

  // Flat group of each array for each group of the result. An array without groups has zeros.
  std::vector<int64_t> x_group, w_group, y_group, pattern_group;

  // Of the three, the role's result is written, the others only read; all in one dtype.
  void* x = nullptr;
  void* w = nullptr;
  void* y = nullptr;
  const int32_t* places = nullptr;  // of blocks, their rows
  const int32_t* order = nullptr;   // of blocks, their columns; null for columns without an order

  int64_t num_groups() const { return static_cast<int64_t>(x_group.size()); }
  int64_t grid_rows() const { return (num_taps() * depth() + block_in - 1) / block_in; }
  int64_t grid_cols() const { return (channels() + block_out - 1) / block_out; }
  // Of one group: numbers in `order`, and stored weights.
  int64_t order_size() const {
    if (format == WeightFormat::kBlocks) return capacity;
    return order == nullptr ? 0 : num_columns * width;
  }
  int64_t num_values() const {
    return capacity * (format == WeightFormat::kBlocks ? block_in * block_out : width);
  }
};

}  // namespace jaxsparse
