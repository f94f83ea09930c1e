// A parallel loop on a pool of threads that may be busy. It cannot deadlock.
#pragma once
#include <cstdint>
#include <functional>

#include "core/status.h"
#include "core/task_pool.h"

namespace jaxsparse::cpu {

// Calls body(piece) for each piece in [0, pieces), on the calling thread and on idle threads of
// `pool`, and returns when every piece is done. What a piece throws does not stop the others; the
// first is reported.
Status ParallelFor(TaskPool& pool, int64_t pieces, const std::function<void(int64_t)>& body);

// A pool of no threads: the caller does all the work.
TaskPool& CallerOnly();

// `pool` where the work is worth its scheduling, else CallerOnly().
TaskPool& PoolForWork(TaskPool& pool, double flops, double bytes);

}  // namespace jaxsparse::cpu
