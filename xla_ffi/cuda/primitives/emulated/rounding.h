// Conversions between floats and short ones, to nearest, ties to even.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "cuda/primitives/numbers.h"

namespace jaxsparse::cuda {

inline uint32_t BitsOf(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
inline float FloatOf(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline float ToFloat(BF16 value) { return FloatOf(static_cast<uint32_t>(value.bits) << 16); }

inline BF16 RoundToBF16(float value) {
  const uint32_t bits = BitsOf(value);
  if (std::isnan(value)) return {0x7FFF};
  return {static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16)};
}

inline float ToFloat(F16 value) {
  const int exponent = value.bits >> 10 & 31, mantissa = value.bits & 1023;
  const float magnitude = exponent == 31  ? (mantissa == 0 ? INFINITY : NAN)
                          : exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -24)
                                          : std::ldexp(1024.0f + mantissa, exponent - 25);
  return value.bits >> 15 ? -magnitude : magnitude;
}

inline F16 RoundToF16(float value) {
  const uint16_t sign = static_cast<uint16_t>(BitsOf(value) >> 16 & 0x8000);
  if (std::isnan(value)) return {0x7FFF};
  const float magnitude = std::fabs(value);
  if (magnitude >= 65520) return {static_cast<uint16_t>(sign | 0x7C00)};  // halfway to 65536
  // In units of the last place, where nearbyint rounds ties to even; the carry into the exponent is
  // what addition does anyway.
  const int exponent = magnitude < std::ldexp(1.0f, -14) ? -14 : std::ilogb(magnitude);
  const int units = static_cast<int>(std::nearbyint(std::ldexp(magnitude, 10 - exponent)));
  return {static_cast<uint16_t>(sign | (((exponent + 14) << 10) + units))};
}

}  // namespace jaxsparse::cuda
