#include <algorithm>

#include "cuda/block/hopper.h"
#include "cuda/block/hopper_dispatch-inl.h"
#include "emulated_kernels.h"

namespace jaxsparse::testing {

Status EmulateHopperProduct(cuda::Machine& machine, cuda::Pass pass, const cuda::Variant& variant,
                            const cuda::ProductArgs& args, const cuda::GridSize& grid,
                            const cuda::Device& device) {
  if (grid.x == 0 || grid.y == 0) return {};
  const auto encode = [](const cuda::BoxedArray& array, cuda::TensorMap* map) {
    *map = {array.data, array.layers, array.rows, array.columns, array.box_rows};
    return Status();
  };
  cuda::HopperProductArgs all{};
  if (Status s = cuda::FillHopperArgs(pass, args, grid, encode, &all); !s.ok()) return s;
  const cuda::GridSize blocks{std::min(all.tiles, device.multiprocessors), 1, 1};
  const auto run = [&](auto type) {
    machine.Run<typename decltype(type)::Kernel>(all, blocks);
    return Status();
  };
  return pass == cuda::Pass::kForward
             ? cuda::DispatchHopperProduct<cuda::Weight::kAsStored>(variant, run)
             : cuda::DispatchHopperProduct<cuda::Weight::kTransposed>(variant, run);
}

}  // namespace jaxsparse::testing
