#include "cuda/block/launch.h"
#include "cuda/block/pattern-inl.h"
#include "cuda/common/launch.cuh"

namespace jaxsparse::cuda {

Status LaunchPatternStep(PatternStep step, const PatternArrays& args, const GridSize& grid,
                         Stream stream) {
  switch (step) {
    case PatternStep::kCheck:
      return Launch<CheckPattern>(args, grid, stream);
    case PatternStep::kCountRows:
      return Launch<CountRows>(args, grid, stream);
    case PatternStep::kSumCounts:
      return Launch<SumCounts>(args, grid, stream);
    case PatternStep::kListArrivals:
      return Launch<ListArrivals>(args, grid, stream);
    case PatternStep::kPrepare:
      return Launch<PreparePattern>(args, grid, stream);
    case PatternStep::kOrderArrivals:
      return Launch<OrderArrivals>(args, grid, stream);
  }
  return Status::DeviceError("no kernel for this step");
}

}  // namespace jaxsparse::cuda
