// The groups of a problem, one after the other or side by side.
#pragma once
#include <functional>

#include "core/block_matmul.h"
#include "core/status.h"
#include "core/task_pool.h"
#include "cpu/block_pattern.h"

namespace jaxsparse::cpu {

struct GroupView {
  char* x;
  char* w;
  char* y;
  const BlockOrder* order;
};

enum class Order { kByColumn, kByRow };

// Checks the problem, then calls run(group, pool) for each: groups side by side on one thread each
// where there are many, else one after the other with every thread of the pool in each.
Status ForEachGroup(const BlockMatmul& problem, int64_t item_bytes, TaskPool& pool, Order order,
                    const std::function<Status(const GroupView&, TaskPool&)>& run);

}  // namespace jaxsparse::cpu
