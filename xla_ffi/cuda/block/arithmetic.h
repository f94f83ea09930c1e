// The ways to multiply: what a kernel stores, in what it sums, and which unit does it.
#pragma once
#include "cuda/primitives/numbers.h"

namespace jaxsparse::cuda {

template <class Element_, class Sum_, int kDepth_>
struct Arithmetic {
  using Element = Element_;
  using Sum = Sum_;
  static constexpr int kDepth = kDepth_;   // of one matrix instruction
  static constexpr int kDepthsAtOnce = 2;  // in one go, as many as there are registers for
  static constexpr bool kOnTensorCores = kDepth > 1;
};

// Tensor cores, sums in float32.
struct TensorBF16 : Arithmetic<BF16, float, 16> {};
struct TensorF16 : Arithmetic<F16, float, 16> {};
struct TensorTF32 : Arithmetic<float, float, 8> {};
// Ordinary fused multiply-adds: every product exact.
struct ExactF32 : Arithmetic<float, float, 1> {};
struct ExactF64 : Arithmetic<double, double, 1> {};

}  // namespace jaxsparse::cuda
