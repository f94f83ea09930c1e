// From a variant to the kernel type that is compiled for it.
#pragma once
#include "core/status.h"
#include "cuda/block/arithmetic.h"
#include "cuda/block/pattern-inl.h"
#include "cuda/block/product-inl.h"
#include "cuda/block/variant.h"
#include "cuda/block/weight_grad-inl.h"

namespace jaxsparse::cuda {

template <class Kernel_>
struct KernelType {
  using Kernel = Kernel_;
};

// Never seen by users: a test goes through all that Select can choose.
inline Status NoSuchKernel() {
  return Status::DeviceError("no kernel was compiled for this variant");
}

// Calls `run` with the KernelType of the variant.
template <Weight kWeight, class Run>
Status DispatchProduct(const Variant& variant, const Run& run) {
#define JAXSPARSE_PRODUCT(ARITHMETIC, TILE, STEP, IS_ALIGNED)                    \
  if (variant == Variant{ArithmeticKind::k##ARITHMETIC, TILE, STEP, IS_ALIGNED}) \
    return run(                                                                  \
        KernelType<BlockProduct<ProductConfig<ARITHMETIC, kWeight, TILE, STEP, IS_ALIGNED>>>());
#include "cuda/block/product_list.inc"
#undef JAXSPARSE_PRODUCT
  return NoSuchKernel();
}

template <class Run>
Status DispatchWeightGrad(const Variant& variant, const Run& run) {
#define JAXSPARSE_WEIGHT_GRAD(ARITHMETIC, TILE, IS_ALIGNED)                   \
  if (variant == Variant{ArithmeticKind::k##ARITHMETIC, TILE, 0, IS_ALIGNED}) \
    return run(KernelType<BlockWeightGrad<WeightGradConfig<ARITHMETIC, TILE, IS_ALIGNED>>>());
#include "cuda/block/weight_grad_list.inc"
#undef JAXSPARSE_WEIGHT_GRAD
  return NoSuchKernel();
}

template <class Run>
Status DispatchAddSplits(ArithmeticKind arithmetic, const Run& run) {
  switch (arithmetic) {
    case ArithmeticKind::kTensorBF16:
      return run(KernelType<AddSplits<TensorBF16>>());
    case ArithmeticKind::kTensorF16:
      return run(KernelType<AddSplits<TensorF16>>());
    case ArithmeticKind::kTensorTF32:
    case ArithmeticKind::kExactF32:
      return run(KernelType<AddSplits<ExactF32>>());
    case ArithmeticKind::kExactF64:
      return run(KernelType<AddSplits<ExactF64>>());
    case ArithmeticKind::kHopperBF16:
    case ArithmeticKind::kHopperF16:
      break;  // no weight gradient is theirs
  }
  return NoSuchKernel();
}

}  // namespace jaxsparse::cuda
