// The tiles of the best instruction set that this machine has, and numbers for benchmarks of them.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <string>

#include "cpu/kernel_table.h"
#include "cpu/tiles.h"

namespace jaxsparse::cpu {
#define JAXSPARSE_TARGET(id, name, narrower) extern const TileTable k##id##Tiles;
#include "cpu/targets/target_list.inc"
#undef JAXSPARSE_TARGET
}  // namespace jaxsparse::cpu

namespace jaxsparse::testing {

inline const cpu::TileTable& BestTiles() {
  const std::string best = cpu::RunnableIsas().back();
#define JAXSPARSE_TARGET(id, name, narrower) \
  if (best == name) return cpu::k##id##Tiles;
#include "cpu/targets/target_list.inc"
#undef JAXSPARSE_TARGET
  std::abort();
}

// Whole cache lines, as the kernels' scratch.
struct Floats {
  explicit Floats(int64_t count)
      : data(static_cast<float*>(std::aligned_alloc(4096, (count * 4 + 4095) / 4096 * 4096))),
        count(count) {}
  Floats(const Floats&) = delete;
  ~Floats() { std::free(data); }
  float* const data;
  const int64_t count;
};

}  // namespace jaxsparse::testing
