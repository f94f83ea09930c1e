#include "cuda/block/dispatch-inl.h"
#include "emulated_kernels.h"

namespace jaxsparse::testing {

Status EmulateForward(cuda::Machine& machine, const cuda::Variant& variant,
                      const cuda::ProductArgs& args, const cuda::GridSize& grid) {
  return cuda::DispatchProduct<cuda::Weight::kAsStored>(variant, [&](auto type) {
    machine.Run<typename decltype(type)::Kernel>(args, grid);
    return Status();
  });
}

}  // namespace jaxsparse::testing
