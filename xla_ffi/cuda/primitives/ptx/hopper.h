// What sm_90a adds, PTX backend: barriers that count bytes, boxes of an array copied by one thread,
// and asynchronous products of 128 threads, a warpgroup. The emulation: emulated/hopper.h.
#pragma once
#include <cuda.h>

#include <cstdint>

#include "cuda/primitives/ptx/copy.h"

namespace jaxsparse::cuda {

// ---- barriers
// ------------------------------------------------------------------------------------

// A barrier in shared memory: a phase ends when `arrivals` have arrived and all bytes they
// announced have landed. PTX ISA: mbarrier.init.
JAXSPARSE_DEVICE void InitBarrier(uint64_t* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(SharedAddress(barrier)),
               "r"(arrivals)
               : "memory");
}
// Makes barriers that this thread initialised known to copies of boxes. PTX ISA:
// fence.mbarrier_init.
JAXSPARSE_DEVICE void FenceBarriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
// PTX ISA: mbarrier.arrive.
JAXSPARSE_DEVICE void Arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(SharedAddress(barrier)) : "memory");
}
// Arrives, and announces bytes. PTX ISA: mbarrier.arrive.expect_tx.
JAXSPARSE_DEVICE void ArriveExpecting(uint64_t* barrier, int bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(SharedAddress(barrier)),
      "r"(bytes)
      : "memory");
}
// Returns once the phase of this parity has ended: 0 for the first, then 1, 0, ... Of a new
// barrier, the phase of parity 1 counts as ended. PTX ISA: mbarrier.try_wait.
JAXSPARSE_DEVICE void WaitForPhase(uint64_t* barrier, int parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}" ::"r"(SharedAddress(barrier)),
      "r"(parity)
      : "memory");
}
// The 128 threads of a warpgroup arrive; each warpgroup has a number from 1 to 15. PTX ISA:
// barrier.
JAXSPARSE_DEVICE void SyncWarpgroup(int number) {
  asm volatile("barrier.sync.aligned %0, 128;" ::"r"(number) : "memory");
}

// ---- boxes
// ---------------------------------------------------------------------------------------

// An array of short floats in global memory, [layers, rows, columns], and the size of a box of it:
// 64 columns wide, so many rows high. In shared memory, row r of a box is the 128 bytes at 128 r,
// of which 16-byte piece i is stored as piece i ^ (r % 8); it starts at a multiple of 1024 bytes.
// PTX ISA: tensors; swizzling modes.
using TensorMap = CUtensorMap;

// Where byte `offset` of a box lies.
JAXSPARSE_DEVICE int Swizzled(int offset) { return offset ^ (offset >> 7 & 7) << 4; }

// Starts to fetch the box at this place, with zeros where it lies outside of the array. The barrier
// counts its bytes as they land. PTX ISA: cp.async.bulk.tensor.
JAXSPARSE_DEVICE void FetchBox(void* shared, const TensorMap* map, int column, int row, int layer,
                               uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %5}], [%2];" ::"r"(SharedAddress(shared)),
      "l"(map), "r"(SharedAddress(barrier)), "r"(column), "r"(row), "r"(layer)
      : "memory");
}
// Starts to store a box; what lies outside of the array is not. PTX ISA: cp.async.bulk.tensor.
JAXSPARSE_DEVICE void StoreBox(const TensorMap* map, int column, int row, int layer,
                               const void* shared) {
  asm volatile(
      "cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(map),
      "r"(SharedAddress(shared)), "r"(column), "r"(row), "r"(layer)
      : "memory");
}
// Makes a group of this thread's stores of boxes. PTX ISA: cp.async.bulk.commit_group.
JAXSPARSE_DEVICE void CommitBoxes() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
// Returns once shared memory of all of this thread's groups has been read and may be written again.
// PTX ISA: cp.async.bulk.wait_group.read.
JAXSPARSE_DEVICE void WaitForBoxesRead() {
  asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
}
// Makes what this thread has written into shared memory known to copies of boxes and asynchronous
// products, which go another way. PTX ISA: fence.proxy.async.
JAXSPARSE_DEVICE void FenceShared() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// ---- asynchronous products
// -----------------------------------------------------------------------

// Where an operand lies in shared memory, in boxes: bytes from 64 elements along the result to the
// next (of kResult), and from eight rows to the next. PTX ISA: matrix descriptor of wgmma.
JAXSPARSE_DEVICE uint64_t Descriptor(const void* shared, int next_64, int next_8_rows) {
  return (SharedAddress(shared) & 0x3FFFF) >> 4 | static_cast<uint64_t>(next_64 >> 4) << 16 |
         static_cast<uint64_t>(next_8_rows >> 4) << 32 | 1ull << 62;
}

// Before the first product after registers of sums were written or read. PTX ISA: wgmma.fence.
JAXSPARSE_DEVICE void FenceProducts() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
// Makes a group of the products since the last one. PTX ISA: wgmma.commit_group.
JAXSPARSE_DEVICE void CommitProducts() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Returns once all groups but the newest kPending are done. PTX ISA: wgmma.wait_group.
template <int kPending>
JAXSPARSE_DEVICE void WaitForProducts() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// Starts sums += A * B with A of 64 x 16, rows of depth, and B of 16 x 64 or 16 x 128. The flag
// says whether rows of B's boxes run along the result. Thread t of the warpgroup has sums[4 j + 2 h
// + e] at row 16 (t / 32) + 8 h + t % 32 / 4 and column 8 j + 2 (t % 4) + e. PTX ISA:
// wgmma.mma_async.
#define JAXSPARSE_4(i) "+f"(sums[i]), "+f"(sums[i + 1]), "+f"(sums[i + 2]), "+f"(sums[i + 3])
#define JAXSPARSE_16(i) JAXSPARSE_4(i), JAXSPARSE_4(i + 4), JAXSPARSE_4(i + 8), JAXSPARSE_4(i + 12)
#define JAXSPARSE_WGMMA_64(TYPES)                                                                 \
  asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32." TYPES                                \
               " {%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21," \
               "%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, %32, %33, 1, 1, 1, 0, %34;"             \
               : JAXSPARSE_16(0), JAXSPARSE_16(16)                                                \
               : "l"(a), "l"(b), "n"(kResultAlongRowsOfB ? 1 : 0))
#define JAXSPARSE_WGMMA_128(TYPES)                                                                \
  asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32." TYPES                               \
               " {%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21," \
               "%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41," \
               "%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61," \
               "%62,%63}, %64, %65, 1, 1, 1, 0, %66;"                                             \
               : JAXSPARSE_16(0), JAXSPARSE_16(16), JAXSPARSE_16(32), JAXSPARSE_16(48)            \
               : "l"(a), "l"(b), "n"(kResultAlongRowsOfB ? 1 : 0))

template <bool kResultAlongRowsOfB>
JAXSPARSE_DEVICE void StartProduct(float (&sums)[32], uint64_t a, uint64_t b, BF16) {
  JAXSPARSE_WGMMA_64("bf16.bf16");
}
template <bool kResultAlongRowsOfB>
JAXSPARSE_DEVICE void StartProduct(float (&sums)[32], uint64_t a, uint64_t b, F16) {
  JAXSPARSE_WGMMA_64("f16.f16");
}
template <bool kResultAlongRowsOfB>
JAXSPARSE_DEVICE void StartProduct(float (&sums)[64], uint64_t a, uint64_t b, BF16) {
  JAXSPARSE_WGMMA_128("bf16.bf16");
}
template <bool kResultAlongRowsOfB>
JAXSPARSE_DEVICE void StartProduct(float (&sums)[64], uint64_t a, uint64_t b, F16) {
  JAXSPARSE_WGMMA_128("f16.f16");
}
#undef JAXSPARSE_WGMMA_128
#undef JAXSPARSE_WGMMA_64
#undef JAXSPARSE_16
#undef JAXSPARSE_4

// Two numbers rounded, the first in the low half. PTX ISA: cvt.
JAXSPARSE_DEVICE uint32_t RoundedPair(float a, float b, BF16) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(b), "f"(a));
  return pair;
}
JAXSPARSE_DEVICE uint32_t RoundedPair(float a, float b, F16) {
  uint32_t pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(b), "f"(a));
  return pair;
}

// The warpgroup gives up registers, or waits until others have; then each thread has kCount of
// them. PTX ISA: setmaxnreg.
template <int kCount>
JAXSPARSE_DEVICE void GiveRegisters() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
}
template <int kCount>
JAXSPARSE_DEVICE void TakeRegisters() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
}

}  // namespace jaxsparse::cuda
