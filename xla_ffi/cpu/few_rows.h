// Products of few rows with single weights. Such a product reads its weights once and does little
// with each, so it goes without a plan: what a plan stores of a weight is more than the weight.
#pragma once
#include "core/sparse_conv.h"
#include "core/status.h"
#include "core/task_pool.h"
#include "cpu/lane_tiles.h"

namespace jaxsparse::cpu {

// Whether FewRowsForward does this problem: a product with single weights, whose rows fit two
// vectors.
bool HasFewRows(const SparseConv& problem, const LaneTiles& tiles);

Status FewRowsForward(const SparseConv& problem, const LaneTiles& tiles, TaskPool& pool);

}  // namespace jaxsparse::cpu
