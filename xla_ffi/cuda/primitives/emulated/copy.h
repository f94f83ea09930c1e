// Asynchronous copies from global to shared memory, emulated. What each means: ptx/copy.h.
#pragma once
#include "cuda/primitives/emulated/memory.h"

namespace jaxsparse::cuda {

// Global memory is read when the copy lands, late or at once; it is checked when it starts.
inline void CopyAsync16(void* shared, const void* global, bool valid) {
  Machine& machine = Machine::Now();
  if (valid) machine.CheckGlobal(global, 16, 16, false);
  machine.AddCopy([&machine, shared, global, valid] {
    uint8_t bytes[16] = {};
    if (valid) std::memcpy(bytes, global, sizeof bytes);
    machine.WriteShared(shared, bytes, sizeof bytes, sizeof bytes);
  });
}

inline void CommitCopies() { Machine::Now().CommitCopies(); }

template <int kPending>
void WaitForCopies() {
  Machine::Now().WaitForCopies(kPending);
}

}  // namespace jaxsparse::cuda
