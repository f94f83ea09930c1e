// From a variant for sm_90a to the kernel type that is compiled for it.
#pragma once
#include "cuda/block/dispatch-inl.h"
#include "cuda/block/hopper_product-inl.h"

namespace jaxsparse::cuda {

template <Weight kWeight, class Run>
Status DispatchHopperProduct(const Variant& variant, const Run& run) {
#define JAXSPARSE_HOPPER_PRODUCT(ELEMENT, TILE)                             \
  if (variant == Variant{ArithmeticKind::kHopper##ELEMENT, TILE, 64, true}) \
    return run(KernelType<HopperProduct<HopperConfig<ELEMENT, kWeight, TILE>>>());
#include "cuda/block/hopper_list.inc"
#undef JAXSPARSE_HOPPER_PRODUCT
  return NoSuchKernel();
}

}  // namespace jaxsparse::cuda
