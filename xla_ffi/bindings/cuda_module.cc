// The Python module `jaxsparse._cuda`: hands over the handlers as capsules and says what they need.
// Loads without a driver. Python does the rest (jaxsparse/core/native.py, jaxsparse/ops/cuda.py).
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <string>

#include "ffi/cuda/block_matmul.h"
#include "ffi/cuda/driver.h"
#include "ffi/targets.h"

namespace nb = nanobind;

namespace {

nb::dict Registrations() {
  nb::dict targets;
  for (const jaxsparse::Target& target : jaxsparse::cuda::AllTargets())
    targets[target.name] = nb::capsule(target.handler);
  return targets;
}

nb::tuple FfiApiVersion() {
  const jaxsparse::FfiApiVersion version = jaxsparse::BuiltFfiApiVersion();
  return nb::make_tuple(version.major_version, version.minor_version);
}

size_t ScratchBytes(const std::string& role, const jaxsparse::cuda::Shape& x,
                    const jaxsparse::cuda::Shape& w, const jaxsparse::cuda::Shape& y,
                    const jaxsparse::cuda::Shape& indices, const std::string& dtype,
                    const std::string& dtype_of_y, bool exact) {
  size_t bytes = 0;
  const jaxsparse::Status status =
      jaxsparse::cuda::ScratchBytesOf(role, x, w, y, indices, dtype, dtype_of_y, exact, &bytes);
  if (!status.ok()) throw nb::value_error(status.message.c_str());
  return bytes;
}

}  // namespace

NB_MODULE(_cuda, m) {
  m.def("registrations", Registrations);
  m.def("ffi_api_version", FfiApiVersion);
  m.def("driver_version", jaxsparse::cuda::DriverVersion);
  m.def("toolkit_version", jaxsparse::cuda::ToolkitVersion);
  m.def("architectures", jaxsparse::cuda::Architectures);
  m.def("scratch_bytes", ScratchBytes);
}
