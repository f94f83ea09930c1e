// Addresses of packed places. See lane_tiles.h.
#pragma once
#include <cstdint>

#include "cpu/kernels/simd-inl.h"

namespace jaxsparse::cpu {
namespace {

// One addition per row. The compiler would else keep the address of every place in a register, of
// which there are too few.
JAXSPARSE_INLINE const char* NextRow(const char* row, int64_t row_bytes) {
  row += row_bytes;
  asm("" : "+r"(row));
  return row;
}

// Offsets of two entries, loaded at once. The asm keeps the load where it is written: loads whose
// addresses are themselves loaded just before run a quarter slower than two a cycle, on Zen 5, be
// all of it in L1. Loaded four entries ahead, in pairs, they cost nothing that can be measured.
JAXSPARSE_INLINE uint64_t LoadTwoOffsets(const int32_t* offsets) {
  uint64_t two;
  __builtin_memcpy(&two, offsets, sizeof(two));
  asm volatile("" : "+r"(two));
  return two;
}
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the first offset is the lower half");
JAXSPARSE_INLINE int64_t FirstOffset(uint64_t two) { return static_cast<uint32_t>(two); }
JAXSPARSE_INLINE int64_t SecondOffset(uint64_t two) { return two >> 32; }

}  // namespace
}  // namespace jaxsparse::cpu
