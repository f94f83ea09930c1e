// Convolutions with random sparse weights, and their results by definition.
#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "core/sparse_conv.h"
#include "problems.h"

namespace jaxsparse::testing {

cpu::SparseConvKernel ConvKernel(const cpu::KernelTable& table, Role role, DType dtype);

// The sizes of a convolution and how its weight is stored. Made by one of the functions below and
// changed from there.
struct ConvShape {
  std::string name;
  int64_t batch = 2, in = 1, out = 1;
  Space x_space = {1, 1, 1}, y_space = {1, 1, 1}, kernel = {1, 1, 1};
  Space strides = {1, 1, 1}, low = {0, 0, 0}, dilation = {1, 1, 1};
  int64_t feature_groups = 1;
  bool mirrored = false;
  int64_t width = 0;                    // of columns; 0: unstructured
  int64_t block_in = 0, block_out = 0;  // nonzero: blocks
  double density = 0.4;
  int64_t groups = 1;
  bool shared_pattern = false;

  ConvShape Stored(int64_t width) const;  // as columns
  ConvShape Blocks(int64_t block_in, int64_t block_out) const;
};
std::string Name(const ConvShape& shape);
ConvWindow WindowOf(const ConvShape& shape);

// A square window over images, whose results are as many places as it has if stride is 1.
ConvShape Conv2d(int64_t batch, int64_t size, int64_t in, int64_t out, int64_t taps,
                 int64_t stride = 1);
ConvShape Product(int64_t rows, int64_t in, int64_t out);

// A bit of everything that a window can be, small.
std::vector<ConvShape> SomeConvs();

class ConvProblem {
 public:
  // Operands are drawn by `draw`. What no result may depend on is NaN: the result before the call,
  // and weights at unused places, in slots that are none, and over the weight's edge.
  ConvProblem(const ConvShape& shape, Role role, DType dtype, const std::function<double()>& draw);

  Status Run(const cpu::KernelTable& table, TaskPool& pool);

  Array& result() { return role == Role::kForward ? y : role == Role::kInputGrad ? x : w; }

  // For each number of the result: its exact value, and the sum of its terms' magnitudes.
  std::vector<Problem::Sum> Expected();

  // Calls visit(x index, w index, y index) for every product of the definition.
  void ForEachProduct(const std::function<void(int64_t, int64_t, int64_t)>& visit) const;

  const ConvShape shape;
  const Role role;
  const DType dtype;
  SparseConv args;
  Array x, w, y;
  std::vector<int32_t> places, order;

 private:
  // Of one stored weight in one group: which tap, input and output of W it is, or tap -1 for none.
  struct Weight {
    int64_t tap, in, out;
  };
  Weight Find(int64_t group, int64_t value) const;
  void DrawPattern();
};

}  // namespace jaxsparse::testing
