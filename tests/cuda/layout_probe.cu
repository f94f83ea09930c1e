// The probe on a GPU.
#include "layout_probe.h"
#include "on_gpu.cuh"

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
    RunOnGpu<Probe>(args);
    ToHost(data.words, args.words);
    ToHost(data.bf16s, args.bf16s);
    ToHost(data.f16s, args.f16s);
    Print(name, data);
  });
}
