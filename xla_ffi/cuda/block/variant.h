// Which kernel runs a pass: a pure function of the problem, so that it is tested without a GPU.
#pragma once
#include "cuda/block_matmul.h"

namespace jaxsparse::cuda {

enum class ArithmeticKind { kTensorBF16, kTensorF16, kTensorTF32, kExactF32, kExactF64 };

// The kernels of block/product_list.inc and block/weight_grad_list.inc.
struct Variant {
  ArithmeticKind arithmetic;
  int tile;         // columns of the result's tile: along n of a product, along out of dW
  int step;         // depth of a step; of dW it follows from the arithmetic, and is 0 here
  bool is_aligned;  // asynchronous copies of 16 bytes; else element by element

  bool operator==(const Variant& other) const {
    return arithmetic == other.arithmetic && tile == other.tile && step == other.step &&
           is_aligned == other.is_aligned;
  }
};

Variant Select(Pass pass, const BlockMatmul& problem, DType dtype, Precision precision);

// Rows of a tile of the result: along the batch of a product, along `in` of dW.
int TileRows(ArithmeticKind arithmetic);
// Bytes of what is stored, and of the sums.
int ElementBytes(ArithmeticKind arithmetic);
int SumBytes(ArithmeticKind arithmetic);

}  // namespace jaxsparse::cuda
