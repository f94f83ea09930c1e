// A kernel of the primitive layer in a program of its own, on a GPU.
#pragma once
#include <cuda_runtime.h>

#include <cstdio>
#include <cstdlib>
#include <vector>

namespace jaxsparse::cuda {

template <class Kernel>
__global__ void RunAlone(const __grid_constant__ typename Kernel::Args args) {
  Kernel::Run(args);
}

inline void Check(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s\n", cudaGetErrorString(error));
  std::exit(1);
}

template <class T>
T* OnDevice(const std::vector<T>& v) {
  T* p = nullptr;
  Check(cudaMalloc(&p, v.size() * sizeof(T)));
  Check(cudaMemcpy(p, v.data(), v.size() * sizeof(T), cudaMemcpyHostToDevice));
  return p;
}

template <class T>
void ToHost(std::vector<T>& v, const void* p) {
  Check(cudaMemcpy(v.data(), p, v.size() * sizeof(T), cudaMemcpyDeviceToHost));
}

template <class Kernel>
void RunOnGpu(const typename Kernel::Args& args) {
  RunAlone<Kernel><<<1, Kernel::kThreads, Kernel::kSharedBytes>>>(args);
  Check(cudaGetLastError());
  Check(cudaDeviceSynchronize());
}

}  // namespace jaxsparse::cuda
