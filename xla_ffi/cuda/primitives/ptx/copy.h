// Asynchronous copies from global to shared memory, PTX backend. The emulation: emulated/copy.h.
#pragma once
#include <cstdint>

#include "cuda/primitives/ptx/memory.h"

namespace jaxsparse::cuda {

JAXSPARSE_DEVICE uint32_t SharedAddress(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// Starts to copy 16 bytes between multiples of 16. Where `valid` is false nothing is read and zeros
// are written. PTX ISA: cp.async.
JAXSPARSE_DEVICE void CopyAsync16(void* shared, const void* global, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(SharedAddress(shared)),
               "l"(global), "r"(valid ? 16 : 0)
               : "memory");
}

// Makes a group of this thread's copies since the last one. PTX ISA: cp.async.commit_group.
JAXSPARSE_DEVICE void CommitCopies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Returns once all of this thread's groups but the newest kPending have landed; other threads see
// them after a barrier. PTX ISA: cp.async.wait_group.
template <int kPending>
JAXSPARSE_DEVICE void WaitForCopies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

}  // namespace jaxsparse::cuda
