// From a kernel type of the primitive layer to a launch, checked.
#pragma once
#include <cuda_runtime.h>

#include "core/status.h"
#include "cuda/block_matmul.h"
#include "cuda/common/device.cuh"
#include "cuda/common/grid_size.h"
#include "cuda/primitives/primitives.h"

namespace jaxsparse::cuda {

template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreads, 1)
    RunKernel(const __grid_constant__ typename Kernel::Args args) {
  Kernel::Run(args);
}

// Enqueues the kernel on the stream, whose device is current. Launches nothing for an empty grid.
template <class Kernel>
Status Launch(const typename Kernel::Args& args, const GridSize& grid, Stream stream) {
  static_assert(sizeof(typename Kernel::Args) <= 4096, "What every driver takes as parameters.");
  constexpr size_t kWithoutAsking = 48 << 10;
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return {};
  if (Kernel::kSharedBytes > kWithoutAsking) {
    const cudaError_t error =
        cudaFuncSetAttribute(RunKernel<Kernel>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(Kernel::kSharedBytes));
    if (error != cudaSuccess) return DeviceStatus(error, "shared memory of a kernel");
  }
  RunKernel<Kernel>
      <<<dim3(static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y),
              static_cast<unsigned>(grid.z)),
         Kernel::kThreads, Kernel::kSharedBytes, static_cast<cudaStream_t>(stream)>>>(args);
  return DeviceStatus(cudaGetLastError(), "launch of a kernel");
}

}  // namespace jaxsparse::cuda
