// What a kernel may ask of the threads it runs on. The FFI layer puts XLA's pool behind it, the
// C++ tests a pool of their own.
#pragma once
#include <cstdint>
#include <functional>

namespace jaxsparse {

class TaskPool {
 public:
  virtual ~TaskPool() = default;
  virtual int64_t num_threads() const = 0;
  // Runs `task` some time, on some thread, perhaps much later: the caller must never wait for a
  // task that has not started (the pool may be busy with callers that wait).
  virtual void Schedule(std::function<void()> task) = 0;
};

}  // namespace jaxsparse
