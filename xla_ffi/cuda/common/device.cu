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

std::string CudaVersion(int number) {
  return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10);
}

// Such as "; 12 of 143771 MiB are free".
std::string FreeMemory() {
  size_t free = 0, total = 0;
  if (cudaMemGetInfo(&free, &total) != cudaSuccess) return "";
  return "; " + std::to_string(free >> 20) + " of " + std::to_string(total >> 20) + " MiB are free";
}

// The newest CUDA that the driver supports.
std::string DriverName() {
  int version = 0;
  if (cudaDriverGetVersion(&version) != cudaSuccess || version == 0) return "there is none";
  return "this one is for CUDA " + CudaVersion(version);
}

}  // namespace

Status DeviceStatus(cudaError_t error, const char* doing) {
  if (error == cudaSuccess) return {};
  const std::string what = std::string(doing) + " failed" + DeviceName() + ": " +
                           cudaGetErrorString(error) + " (" + cudaGetErrorName(error) + ")";
  switch (error) {
    case cudaErrorMemoryAllocation:
      return Status::OutOfMemory(what + FreeMemory());
    case cudaErrorNoKernelImageForDevice:
      return Status::DeviceError(what +
                                 ". The kernels need sm_80 or later, and an architecture that they "
                                 "were built for, which `python -m jaxsparse info` names");
    case cudaErrorInsufficientDriver:
    case cudaErrorUnsupportedPtxVersion:
      return Status::DeviceError(what + ". The kernels need a driver for CUDA " +
                                 CudaVersion(CUDART_VERSION) + ", and " + DriverName());
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
