#include "cuda/block/dispatch-inl.h"
#include "cuda/block/launch.h"
#include "cuda/common/launch.cuh"

namespace jaxsparse::cuda {

Status LaunchInputGrad(const Variant& variant, const ProductArgs& args, const GridSize& grid,
                       Stream stream) {
  return DispatchProduct<Weight::kTransposed>(variant, [&](auto type) {
    return Launch<typename decltype(type)::Kernel>(args, grid, stream);
  });
}

}  // namespace jaxsparse::cuda
