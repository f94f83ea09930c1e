// How many blocks of threads a launch has: x of what the kernel counts, y groups, z splits.
#pragma once
#include <cstdint>

namespace jaxsparse::cuda {

struct GridSize {
  int64_t x = 1;
  int y = 1, z = 1;
};

// What CUDA allows.
inline constexpr int64_t kMaxGridX = INT32_MAX;
inline constexpr int kMaxGridYZ = 65535;

}  // namespace jaxsparse::cuda
