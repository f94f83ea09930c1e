#include "numbers.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

namespace jaxsparse::testing {
namespace {

// A binary format of 16 bits.
struct Small {
  int mantissa_bits;
  int exponent_bits;
  int bias() const { return (1 << (exponent_bits - 1)) - 1; }
  int max_exponent() const { return (1 << exponent_bits) - 1; }
};

constexpr Small kBF16Format = {7, 8};
constexpr Small kF16Format = {10, 5};

double Decode(Small f, uint16_t bits) {
  const int mantissa = bits & ((1 << f.mantissa_bits) - 1);
  const int exponent = (bits >> f.mantissa_bits) & f.max_exponent();
  double value;
  if (exponent == f.max_exponent()) {
    value = mantissa != 0 ? std::numeric_limits<double>::quiet_NaN()
                          : std::numeric_limits<double>::infinity();
  } else if (exponent == 0) {
    value = std::ldexp(mantissa, 1 - f.bias() - f.mantissa_bits);
  } else {
    value = std::ldexp(mantissa + (1 << f.mantissa_bits), exponent - f.bias() - f.mantissa_bits);
  }
  return (bits >> 15) != 0 ? -value : value;
}

uint16_t Encode(Small f, double value) {
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const uint16_t infinity = static_cast<uint16_t>(f.max_exponent() << f.mantissa_bits);
  if (std::isnan(value)) return sign | infinity | (1 << (f.mantissa_bits - 1));
  const double magnitude = std::fabs(value);
  if (std::isinf(value)) return sign | infinity;
  if (magnitude == 0) return sign;
  int exponent;
  std::frexp(magnitude, &exponent);  // magnitude in [2^(exponent-1), 2^exponent)
  const int scale = std::max(exponent - 1, 1 - f.bias()) - f.mantissa_bits;
  const double steps = std::nearbyint(std::ldexp(magnitude, -scale));  // ties to even
  const int field = scale + f.mantissa_bits + f.bias();
  // Steps of 2^mantissa_bits and more carry into the exponent field, as they should.
  const int64_t bits =
      static_cast<int64_t>(steps) + (static_cast<int64_t>(field - 1) << f.mantissa_bits);
  return sign | static_cast<uint16_t>(std::min<int64_t>(bits, infinity));
}

}  // namespace

std::string Name(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return "float32";
    case DType::kF64:
      return "float64";
    case DType::kBF16:
      return "bfloat16";
    case DType::kF16:
      return "float16";
  }
  return "";
}

size_t ItemBytes(DType dtype) { return dtype == DType::kF64 ? 8 : dtype == DType::kF32 ? 4 : 2; }

double Unit(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return 0x1p-24;
    case DType::kF64:
      return 0x1p-53;
    case DType::kBF16:
      return 0x1p-8;
    case DType::kF16:
      return 0x1p-11;
  }
  return 0;
}

double SumUnit(DType dtype) { return dtype == DType::kF64 ? 0x1p-53 : 0x1p-24; }

double Load(DType dtype, const void* array, size_t index) {
  switch (dtype) {
    case DType::kF32:
      return static_cast<const float*>(array)[index];
    case DType::kF64:
      return static_cast<const double*>(array)[index];
    case DType::kBF16:
      return Decode(kBF16Format, static_cast<const uint16_t*>(array)[index]);
    case DType::kF16:
      return Decode(kF16Format, static_cast<const uint16_t*>(array)[index]);
  }
  return 0;
}

void Store(DType dtype, void* array, size_t index, double value) {
  switch (dtype) {
    case DType::kF32:
      static_cast<float*>(array)[index] = static_cast<float>(value);
      return;
    case DType::kF64:
      static_cast<double*>(array)[index] = value;
      return;
    case DType::kBF16:
      static_cast<uint16_t*>(array)[index] = Encode(kBF16Format, value);
      return;
    case DType::kF16:
      static_cast<uint16_t*>(array)[index] = Encode(kF16Format, value);
      return;
  }
}

double Rounded(DType dtype, double value) {
  double item;
  Store(dtype, &item, 0, value);
  return Load(dtype, &item, 0);
}

}  // namespace jaxsparse::testing
