// Prints what is said of errors that a device may return, and of a stream on this machine's.
#include <cstdio>

#include "cuda/common/device.cuh"

int main() {
  using jaxsparse::cuda::DeviceStatus;
  for (const cudaError_t error : {cudaErrorMemoryAllocation, cudaErrorNoKernelImageForDevice,
                                  cudaErrorUnsupportedPtxVersion, cudaErrorInvalidConfiguration})
    std::printf("%s\n", DeviceStatus(error, "launch of a kernel").message.c_str());
  const jaxsparse::cuda::OnDeviceOf current(nullptr);
  std::printf("%s\n", current.status().message.c_str());
  std::printf("%s", DeviceStatus(cudaSuccess, "nothing").message.c_str());
}
