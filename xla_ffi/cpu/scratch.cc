#include "cpu/scratch.h"

#include <cstdlib>
#include <new>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace jaxsparse::cpu {
namespace {

constexpr int64_t kPage = 4096;

// Smaller results come from memory that the allocator has kept, and have their pages.
constexpr int64_t kLargeResult = 2 << 20;

// More than a kernel asks for at common sizes is not kept for the next call.
constexpr int64_t kMaxKept = 32 << 20;

class Buffer {
 public:
  Buffer() = default;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { std::free(data_); }

  void* AtLeast(int64_t bytes) {
    const bool oversized = size_ > kMaxKept && bytes <= kMaxKept;
    if (bytes <= size_ && !oversized) return data_;
    std::free(data_);
    data_ = nullptr;
    size_ = 0;
    const int64_t rounded = (bytes + kPage - 1) / kPage * kPage;
    data_ = std::aligned_alloc(kPage, rounded);
    if (data_ == nullptr) throw std::bad_alloc();
    size_ = rounded;
    return data_;
  }

 private:
  void* data_ = nullptr;
  int64_t size_ = 0;
};

}  // namespace

void* Scratch(ScratchUse use, int64_t bytes) {
  thread_local Buffer buffers[kNumScratchUses];
  return buffers[static_cast<int>(use)].AtLeast(bytes);
}

void AdviseHugePages([[maybe_unused]] void* memory, [[maybe_unused]] int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  if (bytes < kLargeResult) return;
  const auto begin = (reinterpret_cast<uintptr_t>(memory) + kPage - 1) / kPage * kPage;
  const auto end = (reinterpret_cast<uintptr_t>(memory) + bytes) / kPage * kPage;
  if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

}  // namespace jaxsparse::cpu
