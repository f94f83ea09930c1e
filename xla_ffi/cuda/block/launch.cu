#include "cuda/block/hopper.h"
#include "cuda/block/launch.h"
#include "cuda/common/device.cuh"

namespace jaxsparse::cuda {
namespace {

Status DescribeDevice(Device* device) {
  int current = 0, major = 0, minor = 0, l2_bytes = 0;
  cudaError_t error = cudaGetDevice(&current);
  const auto ask = [&](int* value, cudaDeviceAttr attribute) {
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(value, attribute, current);
  };
  ask(&device->multiprocessors, cudaDevAttrMultiProcessorCount);
  ask(&l2_bytes, cudaDevAttrL2CacheSize);
  device->l2_bytes = l2_bytes;
  ask(&major, cudaDevAttrComputeCapabilityMajor);
  ask(&minor, cudaDevAttrComputeCapabilityMinor);
#ifdef JAXSPARSE_HOPPER
  // Below, a tile of 128 rows by mma.sync wastes less than one of 256.
  if (major == 9 && minor == 0) device->fewest_hopper_rows = 129;
#endif
  return DeviceStatus(error, "asking for the properties of a device");
}

class GpuKernels final : public BlockKernels {
 public:
  GpuKernels(const Device& device, Stream stream) : device_(device), stream_(stream) {}

  const Device& device() const override { return device_; }

  Status Pattern(PatternStep step, const PatternArrays& args, const GridSize& grid) override {
    return LaunchPatternStep(step, args, grid, stream_);
  }
  Status Forward(const Variant& variant, const ProductArgs& args, const GridSize& grid) override {
    if (IsHopper(variant))
      return LaunchHopperProduct(Pass::kForward, variant, args, grid, device_, stream_);
    return LaunchForward(variant, args, grid, stream_);
  }
  Status InputGrad(const Variant& variant, const ProductArgs& args, const GridSize& grid) override {
    if (IsHopper(variant))
      return LaunchHopperProduct(Pass::kInputGrad, variant, args, grid, device_, stream_);
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
  const Device device_;
  Stream stream_;
};

}  // namespace

#ifndef JAXSPARSE_HOPPER
Status LaunchHopperProduct(Pass, const Variant&, const ProductArgs&, const GridSize&, const Device&,
                           Stream) {
  return Status::DeviceError("no kernel was compiled for sm_90a");
}
#endif

Status LaunchBlockMatmul(Pass pass, const BlockMatmul& problem, DType dtype, Precision precision,
                         Scratch scratch, Stream stream) {
  const OnDeviceOf current(stream);
  if (!current.status().ok()) return current.status();
  Device device;
  if (Status s = DescribeDevice(&device); !s.ok()) return s;
  GpuKernels kernels(device, stream);
  return RunBlockMatmul(pass, problem, dtype, precision, scratch, kernels);
}

}  // namespace jaxsparse::cuda
