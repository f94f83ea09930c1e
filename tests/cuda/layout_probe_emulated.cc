// The probe in the emulation.
#include "cuda/primitives/emulated/machine.h"
#include "layout_probe.h"

int main() {
  using namespace jaxsparse::cuda;
  ForEachElement([](const char* name, auto element, LayoutProbeData data) {
    Machine machine(Timing::kLazy, 1);
    const auto read = [&](const auto& v) {
      machine.Allow(v.data(), v.size() * sizeof v[0], Machine::Access::kRead);
    };
    const auto write = [&](auto& v) {
      machine.Allow(v.data(), v.size() * sizeof v[0], Machine::Access::kWriteOnce);
    };
    read(data.elements), read(data.registers), read(data.numbers);
    write(data.words), write(data.bf16s), write(data.f16s);
    machine.Run<LayoutProbe<decltype(element)>>(
        {data.elements.data(), data.registers.data(), data.numbers.data(), data.words.data(),
         reinterpret_cast<BF16*>(data.bf16s.data()), reinterpret_cast<F16*>(data.f16s.data())},
        GridSize{});
    Print(name, data);
  });
}
