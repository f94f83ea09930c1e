#include "cuda/block/launch.h"
#include "cuda/common/device.cuh"

namespace jaxsparse::cuda {
namespace {

class GpuKernels final : public BlockKernels {
 public:
  explicit GpuKernels(Stream stream) : stream_(stream) {}

  Status Pattern(PatternStep step, const PatternArrays& args, const GridSize& grid) override {
    return LaunchPatternStep(step, args, grid, stream_);
  }
  Status Forward(const Variant& variant, const ProductArgs& args, const GridSize& grid) override {
    return LaunchForward(variant, args, grid, stream_);
  }
  Status InputGrad(const Variant& variant, const ProductArgs& args, const GridSize& grid) override {
    return LaunchInputGrad(variant, args, grid, stream_);
  }
  Status WeightGrad(const Variant& variant, const WeightGradArgs& args,
                    const GridSize& grid) override {
    return LaunchWeightGrad(variant, args, grid, stream_);
  }
  Status Splits(ArithmeticKind arithmetic, const AddSplitsArgs& args,
                const GridSize& grid) override {
    return LaunchAddSplits(arithmetic, args, grid, stream_);
  }

 private:
  Stream stream_;
};

}  // namespace

Status LaunchBlockMatmul(Pass pass, const BlockMatmul& problem, DType dtype, Precision precision,
                         Scratch scratch, Stream stream) {
  const OnDeviceOf device(stream);
  if (!device.status().ok()) return device.status();
  GpuKernels kernels(stream);
  return RunBlockMatmul(pass, problem, dtype, precision, scratch, kernels);
}

}  // namespace jaxsparse::cuda
