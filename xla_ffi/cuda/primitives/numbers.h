// Short floats as they are stored. Both backends convert them on their own; CUDA's headers would do
// it, too, but the emulation has to build where they are not.
#pragma once
#include <cstdint>

namespace jaxsparse::cuda {

struct BF16 {
  uint16_t bits;
};
struct F16 {
  uint16_t bits;
};

}  // namespace jaxsparse::cuda
