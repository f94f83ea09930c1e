#include <string>

#include "cuda/common/device.cuh"

namespace jaxsparse::cuda {
namespace {

// Such as " on NVIDIA T4 (sm_75)"; empty where not even that can be found out.
std::string DeviceName() {
  int device = 0;
  cudaDeviceProp properties;
  if (cudaGetDevice(&device) != cudaSuccess) return "";
  if (cudaGetDeviceProperties(&properties, device) != cudaSuccess) return "";
  return std::string(" on ") + properties.name + " (sm_" + std::to_string(properties.major) +
         std::to_string(properties.minor) + ")";
}

}  // namespace

Status DeviceStatus(cudaError_t error, const char* doing) {
  if (error == cudaSuccess) return {};
  const std::string what = std::string(doing) + " failed" + DeviceName() + ": " +
                           cudaGetErrorString(error) + " (" + cudaGetErrorName(error) + ")";
  switch (error) {
    case cudaErrorMemoryAllocation:
      return Status::OutOfMemory(what);
    case cudaErrorNoKernelImageForDevice:
      return Status::DeviceError(what + ". The kernels need sm_80 or later");
    case cudaErrorInsufficientDriver:
    case cudaErrorUnsupportedPtxVersion:
      return Status::DeviceError(what + ". The kernels need a driver for CUDA " +
                                 std::to_string(CUDART_VERSION / 1000) + "." +
                                 std::to_string(CUDART_VERSION % 1000 / 10));
    default:
      return Status::DeviceError(what);
  }
}

OnDeviceOf::OnDeviceOf(Stream stream) {
  int current = 0, wanted = 0;
  cudaError_t error = cudaGetDevice(&current);
  if (error == cudaSuccess) error = cudaStreamGetDevice(static_cast<cudaStream_t>(stream), &wanted);
  if (error == cudaSuccess && wanted != current) {
    error = cudaSetDevice(wanted);
    if (error == cudaSuccess) before_ = current;
  }
  status_ = DeviceStatus(error, "finding the device of a stream");
}

OnDeviceOf::~OnDeviceOf() {
  if (before_ >= 0) cudaSetDevice(before_);
}

}  // namespace jaxsparse::cuda
