// The probe on a GPU.
#include <cuda_runtime.h>

#include <cstdlib>

#include "layout_probe.h"

namespace jaxsparse::cuda {
namespace {

template <class Probe>
__global__ void RunProbe(const __grid_constant__ typename Probe::Args args) {
  Probe::Run(args);
}

void Check(cudaError_t error) {
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

}  // namespace
}  // namespace jaxsparse::cuda

int main() {
  using namespace jaxsparse::cuda;
  ForEachElement([](const char* name, auto element, LayoutProbeData data) {
    using Probe = LayoutProbe<decltype(element)>;
    const typename Probe::Args args{OnDevice(data.elements),
                                    OnDevice(data.registers),
                                    OnDevice(data.numbers),
                                    OnDevice(data.words),
                                    reinterpret_cast<BF16*>(OnDevice(data.bf16s)),
                                    reinterpret_cast<F16*>(OnDevice(data.f16s))};
    RunProbe<Probe><<<1, Probe::kThreads, Probe::kSharedBytes>>>(args);
    Check(cudaGetLastError());
    Check(cudaDeviceSynchronize());
    ToHost(data.words, args.words);
    ToHost(data.bf16s, args.bf16s);
    ToHost(data.f16s, args.f16s);
    Print(name, data);
  });
}
