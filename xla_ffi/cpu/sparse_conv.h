// The roles of a sparse convolution, for any instruction set and dtype.
#pragma once
#include <functional>

#include "core/sparse_conv.h"
#include "core/status.h"
#include "core/task_pool.h"
#include "cpu/conv_plan.h"
#include "cpu/lane_tiles.h"

namespace jaxsparse::cpu {

Status ConvForward(const SparseConv& problem, const LaneTiles& tiles, TaskPool& pool);
Status ConvInputGrad(const SparseConv& problem, const LaneTiles& tiles, TaskPool& pool);
Status ConvWeightGrad(const SparseConv& problem, const LaneTiles& tiles, TaskPool& pool);

struct ConvGroup {
  char* x;
  char* w;
  char* y;
  const ConvPlan* plan;
};

// Gets the plans, then calls run(group, pool) for each group: side by side on one thread each where
// there are many, else one after the other with every thread of the pool in each.
Status ForEachConvGroup(const SparseConv& problem, ConvRole role, const LaneTiles& tiles,
                        TaskPool& pool,
                        const std::function<Status(const ConvGroup&, TaskPool&)>& run);

}  // namespace jaxsparse::cpu
