// XLA's thread pool as the kernels see it.
#pragma once
#include <algorithm>
#include <functional>
#include <utility>

#include "core/task_pool.h"
#include "xla/ffi/api/ffi.h"

namespace jaxsparse {

// Lives as long as the call of the handler, as `pool` does: tasks must hold neither. XLA runs
// handlers on this very pool, hence the rule of TaskPool never to wait for a task that has not
// started.
class XlaTaskPool final : public TaskPool {
 public:
  explicit XlaTaskPool(::xla::ffi::ThreadPool& pool) : pool_(pool) {}

  int64_t num_threads() const override { return std::max<int64_t>(1, pool_.num_threads()); }
  void Schedule(std::function<void()> task) override { pool_.Schedule(std::move(task)); }

 private:
  ::xla::ffi::ThreadPool& pool_;
};

}  // namespace jaxsparse
