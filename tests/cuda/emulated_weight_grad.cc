#include "cuda/block/dispatch-inl.h"
#include "emulated_kernels.h"

namespace jaxsparse::testing {

Status EmulateWeightGrad(cuda::Machine& machine, const cuda::Variant& variant,
                         const cuda::WeightGradArgs& args, const cuda::GridSize& grid) {
  return cuda::DispatchWeightGrad(variant, [&](auto type) {
    machine.Run<typename decltype(type)::Kernel>(args, grid);
    return Status();
  });
}

Status EmulateSplits(cuda::Machine& machine, cuda::ArithmeticKind arithmetic,
                     const cuda::AddSplitsArgs& args, const cuda::GridSize& grid) {
  return cuda::DispatchAddSplits(arithmetic, [&](auto type) {
    machine.Run<typename decltype(type)::Kernel>(args, grid);
    return Status();
  });
}

}  // namespace jaxsparse::testing
