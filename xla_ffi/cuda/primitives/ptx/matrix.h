// Fragments of small matrices in the registers of a warp, and their products, PTX backend. All
// lanes of the warp arrive at every one of these functions. The emulation: emulated/matrix.h.
#pragma once
#include <cstdint>

#include "cuda/primitives/ptx/copy.h"

namespace jaxsparse::cuda {

// Loads four 8 x 8 matrices of 16-bit elements: lane 8 m + r gives the address of row r of matrix
// m, a multiple of 16 bytes, and gets of each matrix the elements (lane / 4, 2 (lane % 4)) and the
// next in the row. PTX ISA: ldmatrix.
JAXSPARSE_DEVICE void LoadMatrices(uint32_t (&out)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(SharedAddress(row))
               : "memory");
}

// The same with rows and columns of each matrix exchanged.
JAXSPARSE_DEVICE void LoadMatricesTransposed(uint32_t (&out)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(SharedAddress(row))
               : "memory");
}

// sums += A * B with A of 16 x depth and B of depth x 8. With g = lane / 4 and p = lane % 4, sums
// are at rows g, g, g + 8, g + 8 and columns 2 p, 2 p + 1, 2 p, 2 p + 1. PTX ISA:
// mma.sync.
#define JAXSPARSE_MMA(SHAPE_AND_TYPES)                                      \
  asm volatile("mma.sync.aligned." SHAPE_AND_TYPES                          \
               " {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"     \
               : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3]) \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))

// Depth 16. a[i] holds row g + 8 (i % 2) at depth 2 p + 8 (i / 2) and the next; b[i] column g at
// depth 2 p + 8 i and the next. PTX ISA: matrix fragments for mma.m16n8k16.
JAXSPARSE_DEVICE void MultiplyAdd(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                  BF16) {
  JAXSPARSE_MMA("m16n8k16.row.col.f32.bf16.bf16.f32");
}
JAXSPARSE_DEVICE void MultiplyAdd(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                  F16) {
  JAXSPARSE_MMA("m16n8k16.row.col.f32.f16.f16.f32");
}
// Depth 8, of float32 whose low 13 bits do not count. a[i] holds row g + 8 (i % 2) at depth
// p + 4 (i / 2); b[i] column g at depth p + 4 i. PTX ISA: matrix fragments for mma.m16n8k8.
JAXSPARSE_DEVICE void MultiplyAdd(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                                  float) {
  JAXSPARSE_MMA("m16n8k8.row.col.f32.tf32.tf32.f32");
}
#undef JAXSPARSE_MMA

// A float32 rounded to TF32, to nearest, ties away from zero; the matrix unit would cut it off.
// PTX ISA: cvt.rna.
JAXSPARSE_DEVICE uint32_t RoundToTF32(uint32_t bits) {
  uint32_t rounded;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(__uint_as_float(bits)));
  return rounded;
}

// a * b + c, rounded once.
JAXSPARSE_DEVICE float FusedMultiplyAdd(float a, float b, float c) { return __fmaf_rn(a, b, c); }
JAXSPARSE_DEVICE double FusedMultiplyAdd(double a, double b, double c) { return __fma_rn(a, b, c); }

}  // namespace jaxsparse::cuda
