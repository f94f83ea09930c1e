#include "cuda/block/dispatch-inl.h"
#include "cuda/block/launch.h"
#include "cuda/common/launch.cuh"

namespace jaxsparse::cuda {

Status LaunchWeightGrad(const Variant& variant, const WeightGradArgs& args, const GridSize& grid,
                        Stream stream) {
  return DispatchWeightGrad(variant, [&](auto type) {
    return Launch<typename decltype(type)::Kernel>(args, grid, stream);
  });
}

Status LaunchAddSplits(ArithmeticKind arithmetic, const AddSplitsArgs& args, const GridSize& grid,
                       Stream stream) {
  return DispatchAddSplits(arithmetic, [&](auto type) {
    return Launch<typename decltype(type)::Kernel>(args, grid, stream);
  });
}

}  // namespace jaxsparse::cuda
