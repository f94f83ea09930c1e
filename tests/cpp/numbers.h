// Stored numbers to and from double, one at a time and by arithmetic: an oracle for the kernels'
// conversions, which work on bits.
#pragma once
#include <cstddef>
#include <string>

#include "core/block_matmul.h"

namespace jaxsparse::testing {

inline constexpr DType kDTypes[] = {DType::kF32, DType::kF64, DType::kBF16, DType::kF16};

std::string Name(DType dtype);
size_t ItemBytes(DType dtype);

// The distance to a neighbour of numbers near 1, halved: rounding moves x by at most Unit * |x|.
double Unit(DType dtype);
// The same of the type in which the kernels sum.
double SumUnit(DType dtype);

double Load(DType dtype, const void* array, size_t index);
// The nearest number of the type, ties to even.
void Store(DType dtype, void* array, size_t index, double value);
double Rounded(DType dtype, double value);

}  // namespace jaxsparse::testing
