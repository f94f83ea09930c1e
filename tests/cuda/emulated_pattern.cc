#include "cuda/block/pattern-inl.h"
#include "emulated_kernels.h"

namespace jaxsparse::testing {

Status EmulatePattern(cuda::Machine& machine, cuda::PatternStep step,
                      const cuda::PatternArrays& args, const cuda::GridSize& grid) {
  switch (step) {
    case cuda::PatternStep::kCheck:
      machine.Run<cuda::CheckPattern>(args, grid);
      break;
    case cuda::PatternStep::kCountRows:
      machine.Run<cuda::CountRows>(args, grid);
      break;
    case cuda::PatternStep::kSumCounts:
      machine.Run<cuda::SumCounts>(args, grid);
      break;
    case cuda::PatternStep::kListArrivals:
      machine.Run<cuda::ListArrivals>(args, grid);
      break;
    case cuda::PatternStep::kPrepare:
      machine.Run<cuda::PreparePattern>(args, grid);
      break;
    case cuda::PatternStep::kOrderArrivals:
      machine.Run<cuda::OrderArrivals>(args, grid);
      break;
  }
  return {};
}

}  // namespace jaxsparse::testing
