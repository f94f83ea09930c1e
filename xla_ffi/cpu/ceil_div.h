// Sizes in whole parts.
#pragma once
#include <cstdint>

namespace jaxsparse::cpu {

inline int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace jaxsparse::cpu
