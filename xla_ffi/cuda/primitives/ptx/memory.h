// Threads and memory, PTX backend. The emulation of each function: emulated/memory.h.
#pragma once
#include <cstdint>

#include "cuda/primitives/numbers.h"

#define JAXSPARSE_DEVICE __device__ __forceinline__
#define JAXSPARSE_PRAGMA(TEXT) _Pragma(#TEXT)
#define JAXSPARSE_UNROLL JAXSPARSE_PRAGMA(unroll)
#define JAXSPARSE_UNROLL_BY(COUNT) JAXSPARSE_PRAGMA(unroll COUNT)

namespace jaxsparse::cuda {

// ---- the place of a thread
// -----------------------------------------------------------------------

JAXSPARSE_DEVICE int ThreadIndex() { return static_cast<int>(threadIdx.x); }

// Which block of the grid: x is what the kernel counts, y a group, z a split.
JAXSPARSE_DEVICE int64_t BlockIndex() { return blockIdx.x; }
JAXSPARSE_DEVICE int64_t NumBlocks() { return gridDim.x; }
JAXSPARSE_DEVICE int GroupIndex() { return static_cast<int>(blockIdx.y); }
JAXSPARSE_DEVICE int SplitIndex() { return static_cast<int>(blockIdx.z); }

// ---- global memory
// -------------------------------------------------------------------------------

// Memory that nobody writes while the kernel runs: may come through the read-only cache.
template <class T>
JAXSPARSE_DEVICE T LoadConstant(const T* p) {
  return __ldg(p);
}
template <>
JAXSPARSE_DEVICE BF16 LoadConstant(const BF16* p) {
  return {__ldg(&p->bits)};
}
template <>
JAXSPARSE_DEVICE F16 LoadConstant(const F16* p) {
  return {__ldg(&p->bits)};
}

// Memory that threads of this block may have written before a barrier.
template <class T>
JAXSPARSE_DEVICE T LoadGlobal(const T* p) {
  return *p;
}

template <class T>
JAXSPARSE_DEVICE void StoreGlobal(T* p, T value) {
  *p = value;
}

// Two neighbours, the first at a multiple of twice their size.
JAXSPARSE_DEVICE void StorePair(float* p, float a, float b) {
  *reinterpret_cast<float2*>(p) = make_float2(a, b);
}
JAXSPARSE_DEVICE void StorePair(double* p, double a, double b) {
  *reinterpret_cast<double2*>(p) = make_double2(a, b);
}
// Rounded to nearest, ties to even. PTX ISA: cvt.
JAXSPARSE_DEVICE void StorePair(BF16* p, float a, float b) {
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(*reinterpret_cast<uint32_t*>(p)) : "f"(b), "f"(a));
}
JAXSPARSE_DEVICE void StorePair(F16* p, float a, float b) {
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(*reinterpret_cast<uint32_t*>(p)) : "f"(b), "f"(a));
}

// One number, rounded likewise.
JAXSPARSE_DEVICE void StoreRounded(float* p, float a) { *p = a; }
JAXSPARSE_DEVICE void StoreRounded(double* p, double a) { *p = a; }
JAXSPARSE_DEVICE void StoreRounded(BF16* p, float a) {
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(p->bits) : "f"(a));
}
JAXSPARSE_DEVICE void StoreRounded(F16* p, float a) {
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(p->bits) : "f"(a));
}

// Adds, and returns what was there. Order among threads is open: sums of integers only.
JAXSPARSE_DEVICE int32_t AddAtomically(int32_t* p, int32_t value) { return atomicAdd(p, value); }

// ---- shared memory
// -------------------------------------------------------------------------------

extern __shared__ __align__(1024) uint8_t shared_bytes[];

// The block's dynamic shared memory from this byte on.
template <class T>
JAXSPARSE_DEVICE T* SharedArray(int first_byte) {
  return reinterpret_cast<T*>(shared_bytes + first_byte);
}

template <class T>
JAXSPARSE_DEVICE T LoadShared(const T* p) {
  return *p;
}

template <class T>
JAXSPARSE_DEVICE void StoreShared(T* p, T value) {
  *p = value;
}

// ---- other threads
// -------------------------------------------------------------------------------

// Every thread of the block arrives; what they wrote before is there for all after.
// PTX ISA: barrier.
JAXSPARSE_DEVICE void SyncThreads() { __syncthreads(); }
// The same, and whether any thread brought true.
JAXSPARSE_DEVICE bool SyncThreadsOr(bool mine) { return __syncthreads_or(mine) != 0; }

// The value of the lane `distance` below, or this lane's own where there is none. All lanes of the
// warp arrive. PTX ISA: shfl.sync.
JAXSPARSE_DEVICE int32_t ShuffleUp(int32_t value, int distance) {
  return __shfl_up_sync(0xFFFFFFFFu, value, distance);
}

}  // namespace jaxsparse::cuda
