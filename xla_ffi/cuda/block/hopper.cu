#include <algorithm>

#include "cuda/block/hopper.h"
#include "cuda/block/hopper_dispatch-inl.h"
#include "cuda/common/launch.cuh"
#include "cuda/common/tensor_map.cuh"

namespace jaxsparse::cuda {
Status LaunchHopperProduct(Pass pass, const Variant& variant, const ProductArgs& args,
                           const GridSize& grid, const Device& device, Stream stream) {
  if (grid.x == 0 || grid.y == 0) return {};
  const auto encode = [&](const BoxedArray& array, TensorMap* map) {
    return EncodeTensorMap(array, variant.arithmetic == ArithmeticKind::kHopperBF16, map);
  };
  HopperProductArgs all{};
  if (Status s = FillHopperArgs(pass, args, grid, encode, &all); !s.ok()) return s;
  const GridSize blocks{std::min(all.tiles, device.multiprocessors), 1, 1};
  const auto launch = [&](auto type) {
    return Launch<typename decltype(type)::Kernel>(all, blocks, stream);
  };
  return pass == Pass::kForward ? DispatchHopperProduct<Weight::kAsStored>(variant, launch)
                                : DispatchHopperProduct<Weight::kTransposed>(variant, launch);
}

}  // namespace jaxsparse::cuda
