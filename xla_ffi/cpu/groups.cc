#include "cpu/groups.h"

#include <algorithm>
#include <mutex>
#include <new>
#include <vector>

#include "cpu/parallel_for.h"

namespace jaxsparse::cpu {
namespace {

// A bound on the work of all groups, from above: as if every place were used.
TaskPool& PoolForProblem(const BlockMatmul& problem, int64_t item_bytes, TaskPool& pool) {
  const double groups = problem.num_groups();
  const double weights =
      static_cast<double>(problem.capacity) * problem.block_in * problem.block_out;
  const double rows = static_cast<double>(problem.batch) * (problem.in + problem.out);
  return PoolForWork(pool, 2 * groups * weights * problem.batch,
                     groups * (weights + rows) * item_bytes);
}

}  // namespace

Status ForEachGroup(const BlockMatmul& problem, int64_t item_bytes, TaskPool& pool, Order order,
                    const std::function<Status(const GroupView&, TaskPool&)>& run) try {
  std::vector<BlockPattern> patterns;
  Status status = CheckPatterns(problem, &patterns);
  if (!status.ok()) return status;
  std::vector<const BlockOrder*> orders(patterns.size());
  for (const int64_t group : problem.pattern_group) {
    orders[group] =
        order == Order::kByRow ? &patterns[group].by_row() : &patterns[group].by_column();
  }

  const auto run_group = [&](int64_t group, TaskPool& group_pool) {
    const auto array = [&](void* base, int64_t index, int64_t items) {
      return static_cast<char*>(base) + index * items * item_bytes;
    };
    const int64_t y_scale = problem.y_is_float32 ? sizeof(float) / item_bytes : 1;
    const int64_t block_items = problem.block_in * problem.block_out;
    return run({array(problem.x, problem.x_group[group], problem.batch * problem.in),
                array(problem.w, problem.w_group[group], problem.capacity * block_items),
                array(problem.y, problem.y_group[group], problem.batch * problem.out * y_scale),
                orders[problem.pattern_group[group]]},
               group_pool);
  };

  const int64_t groups = problem.num_groups();
  TaskPool& worthwhile = PoolForProblem(problem, item_bytes, pool);
  if (groups < 4 * worthwhile.num_threads() || worthwhile.num_threads() == 1) {
    for (int64_t group = 0; group < groups; ++group) {
      status = run_group(group, worthwhile);
      if (!status.ok()) return status;
    }
    return {};
  }
  std::mutex mutex;
  Status first_failure;
  status = ParallelFor(worthwhile, groups, [&](int64_t group) {
    Status result = run_group(group, CallerOnly());
    if (result.ok()) return;
    std::lock_guard<std::mutex> lock(mutex);
    if (first_failure.ok()) first_failure = std::move(result);
  });
  return status.ok() ? first_failure : status;
} catch (const std::bad_alloc&) {
  return Status::OutOfMemory("no memory for a kernel's scratch");
}

}  // namespace jaxsparse::cpu
