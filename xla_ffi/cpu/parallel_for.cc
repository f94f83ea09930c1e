#include "cpu/parallel_for.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <thread>

namespace jaxsparse::cpu {
namespace {

// What is left when the caller has found no more work are pieces that others have begun. To sleep
// and be woken takes longer than most of those: a convolution of 0.35 ms took 0.6. So the caller
// gives its core away some hundred times, less than 100 us, before it sleeps.
constexpr int kYields = 300;

// The kernels allocate, and throw nothing else.
Status StatusOf(const std::exception_ptr& error) {
  if (!error) return {};
  try {
    std::rethrow_exception(error);
  } catch (const std::exception& e) {
    return Status::OutOfMemory(std::string("no memory for a kernel's scratch: ") + e.what());
  } catch (...) {
    return Status::OutOfMemory("a kernel's task failed");
  }
}

// Owned by the caller and by every scheduled task, as a task may start after the loop is over.
struct Loop {
  Loop(int64_t pieces, const std::function<void(int64_t)>& body) : pieces(pieces), body(&body) {}

  const int64_t pieces;
  const std::function<void(int64_t)>* body;  // alive while a piece is left
  std::atomic<int64_t> next{0};
  std::atomic<int64_t> done{0};
  std::mutex mutex;
  std::condition_variable all_done;
  std::exception_ptr error;

  void Work() {
    for (;;) {
      const int64_t piece = next.fetch_add(1, std::memory_order_relaxed);
      if (piece >= pieces) return;
      try {
        (*body)(piece);
      } catch (...) {  // must not reach the pool's thread
        std::lock_guard<std::mutex> lock(mutex);
        if (!error) error = std::current_exception();
      }
      if (done.fetch_add(1, std::memory_order_acq_rel) + 1 == pieces) {
        std::lock_guard<std::mutex> lock(mutex);
        all_done.notify_all();
      }
    }
  }
};

class NoThreads final : public TaskPool {
 public:
  int64_t num_threads() const override { return 1; }
  void Schedule(std::function<void()> task) override { task(); }
};

}  // namespace

Status ParallelFor(TaskPool& pool, int64_t pieces, const std::function<void(int64_t)>& body) {
  // The caller is one of the workers. A handler may itself run on this very pool, so a wait for a
  // task that has not started could last for ever; the caller waits for taken pieces only.
  const int64_t helpers = std::min(pool.num_threads(), pieces) - 1;
  if (helpers <= 0) {
    std::exception_ptr error;
    for (int64_t piece = 0; piece < pieces; ++piece) {
      try {
        body(piece);
      } catch (...) {
        if (!error) error = std::current_exception();
      }
    }
    return StatusOf(error);
  }

  std::shared_ptr<Loop> loop;
  try {
    loop = std::make_shared<Loop>(pieces, body);
  } catch (...) {
    return StatusOf(std::current_exception());
  }
  try {
    for (int64_t i = 0; i < helpers; ++i) pool.Schedule([loop] { loop->Work(); });
  } catch (...) {
    // Fewer helpers, then: the caller is able to do every piece.
  }
  loop->Work();
  const auto is_done = [&] { return loop->done.load(std::memory_order_acquire) == pieces; };
  for (int i = 0; i < kYields && !is_done(); ++i) std::this_thread::yield();
  std::unique_lock<std::mutex> lock(loop->mutex);
  loop->all_done.wait(lock, is_done);
  return StatusOf(loop->error);
}

TaskPool& CallerOnly() {
  static NoThreads pool;
  return pool;
}

TaskPool& PoolForWork(TaskPool& pool, double flops, double bytes) {
  // 64 empty tasks cost 66 us where four threads share a core. One core does 100 Gflop/s and moves
  // 20 GB/s, give or take a factor of two; below some 100 us there is nothing to win.
  return flops / 100e9 + bytes / 20e9 < 100e-6 ? CallerOnly() : pool;
}

}  // namespace jaxsparse::cpu
