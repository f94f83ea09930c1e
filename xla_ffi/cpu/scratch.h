// Memory that a thread keeps between calls: fresh memory costs a page fault per 4 KiB.
#pragma once
#include <cstddef>
#include <cstdint>

namespace jaxsparse::cpu {

// What a thread may need at the same time. A pool's thread only works on pieces; the caller packs
// panels that it shares with them, and works on pieces too.
enum class ScratchUse { kPanel, kSums, kPieceWeights, kPieceSums };
inline constexpr int kNumScratchUses = 4;

// At least `bytes` of this thread's memory, aligned to cache lines, unset. Valid until the thread
// asks for the same use again. Throws std::bad_alloc.
void* Scratch(ScratchUse use, int64_t bytes);

// Asks for huge pages where a fresh result is large, before it is first written: page faults of
// 4 KiB cost more than a sparse product (a fresh 50 MB result 20 ms, against 4). Does nothing where
// the result is small or the system cannot.
void AdviseHugePages(void* memory, int64_t bytes);

}  // namespace jaxsparse::cpu
