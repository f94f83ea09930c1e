// Plans kept between calls. What a plan depends on is compared in full, indices and all, so keeping
// it cannot be observed but in time: a pattern that changes gets a plan of its own.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>

#include "core/status.h"
#include "cpu/conv_plan.h"

namespace jaxsparse::cpu {

// Plans and copies of their indices take at most this; the least recently used go first.
inline constexpr int64_t kPlanMemoBytes = 256 << 20;

struct PlanMemoState {
  int64_t plans, bytes, hits, misses;
};
PlanMemoState ReadPlanMemo();
void ClearPlanMemo();

}  // namespace jaxsparse::cpu
