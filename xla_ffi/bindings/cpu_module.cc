// The Python module `jaxsparse._cpu`: hands over the handlers as capsules and says what they need.
// Python does the rest (jaxsparse/core/native.py).
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <string>

#include "cpu/kernel_table.h"
#include "ffi/targets.h"

namespace nb = nanobind;

namespace {

nb::dict Registrations() {
  nb::dict targets;
  for (const jaxsparse::Target& target : jaxsparse::cpu::AllTargets())
    targets[target.name] = nb::capsule(target.handler);
  return targets;
}

nb::tuple FfiApiVersion() {
  const jaxsparse::FfiApiVersion version = jaxsparse::BuiltFfiApiVersion();
  return nb::make_tuple(version.major_version, version.minor_version);
}

std::string Isa() {
  std::string why;
  const jaxsparse::cpu::KernelTable* kernels = jaxsparse::cpu::ActiveKernels(&why);
  if (kernels == nullptr) throw nb::value_error(why.c_str());
  return kernels->isa;
}

}  // namespace

NB_MODULE(_cpu, m) {
  m.def("registrations", Registrations);
  m.def("ffi_api_version", FfiApiVersion);
  m.def("isa", Isa);
  m.def("runnable_isas", jaxsparse::cpu::RunnableIsas);
}
