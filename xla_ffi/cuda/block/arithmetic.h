// The ways to multiply: what a kernel stores, in what it sums, and which unit does it.
#pragma once
#include "cuda/primitives/numbers.h"

namespace jaxsparse::cuda {

// Tensor cores, sums in float32.
struct TensorBF16 {
  using Element = BF16;
  using Sum = float;
  static constexpr bool kOnTensorCores = true;
  static constexpr int kDepth = 16;        // of one matrix instruction
  static constexpr int kDepthsAtOnce = 2;  // in one go, as many as there are registers for
};
struct TensorF16 {
  using Element = F16;
  using Sum = float;
  static constexpr bool kOnTensorCores = true;
  static constexpr int kDepth = 16;
  static constexpr int kDepthsAtOnce = 2;
};
struct TensorTF32 {
  using Element = float;
  using Sum = float;
  static constexpr bool kOnTensorCores = true;
  static constexpr int kDepth = 8;
  static constexpr int kDepthsAtOnce = 2;
};
// Ordinary fused multiply-adds: every product exact.
struct ExactF32 {
  using Element = float;
  using Sum = float;
  static constexpr bool kOnTensorCores = false;
  static constexpr int kDepth = 1;
  static constexpr int kDepthsAtOnce = 2;
};
struct ExactF64 {
  using Element = double;
  using Sum = double;
  static constexpr bool kOnTensorCores = false;
  static constexpr int kDepth = 1;
  static constexpr int kDepthsAtOnce = 2;
};

}  // namespace jaxsparse::cuda
