// Prints what the probe found, a line per register, so that two programs can be compared.
#pragma once
#include <cstdio>

#include "layout_probe-inl.h"

namespace jaxsparse::cuda {

inline void Print(const char* name, const LayoutProbeData& data) {
  for (int word = 0; word < LayoutProbe<BF16>::kWords; ++word) {
    std::printf("%s word %d:", name, word);
    for (int lane = 0; lane < 32; ++lane) std::printf(" %08x", data.words[32 * word + lane]);
    std::printf("\n");
  }
  for (const auto* numbers : {&data.bf16s, &data.f16s}) {
    std::printf("%s rounded:", name);
    for (uint16_t bits : *numbers) std::printf(" %04x", bits);
    std::printf("\n");
  }
}

}  // namespace jaxsparse::cuda
