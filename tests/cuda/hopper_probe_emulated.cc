// The probe of sm_90a in the emulation.
#include "cuda/primitives/emulated/machine.h"
#include "hopper_probe.h"

int main() {
  using namespace jaxsparse::cuda;
  ForEachHopperElement([](const char* name, auto element, HopperProbeData data) {
    Machine machine(Timing::kLazy, 1);
    const auto allow = [&](auto& v, Machine::Access access) {
      machine.Allow(v.data(), v.size() * sizeof v[0], access);
    };
    allow(data.from, Machine::Access::kRead);
    allow(data.to, Machine::Access::kWriteOnce);
    allow(data.lies, Machine::Access::kWriteOnce);
    allow(data.sums, Machine::Access::kWriteOnce);
    machine.Run<HopperProbe<decltype(element)>>({{data.from.data(), 1, 128, 128, 128},
                                                 {data.to.data(), 1, 60, 64, 64},
                                                 data.lies.data(),
                                                 data.sums.data()},
                                                GridSize{});
    Print(name, data);
  });
}
