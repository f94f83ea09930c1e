// Prints what the probe found, so that two programs can be compared.
#pragma once
#include <cstdio>

#include "hopper_probe-inl.h"

namespace jaxsparse::cuda {

inline void Print(const char* name, const HopperProbeData& data) {
  const auto print = [&](const char* what, const auto& numbers, const char* format) {
    std::printf("%s %s:", name, what);
    for (const auto number : numbers) std::printf(format, number);
    std::printf("\n");
  };
  print("from", data.from, " %04x");
  print("lies", data.lies, " %04x");
  print("to", data.to, " %04x");
  print("sums", data.sums, " %g");
}

}  // namespace jaxsparse::cuda
