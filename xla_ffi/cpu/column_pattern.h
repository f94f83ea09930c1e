// The places of weights stored by column, checked.
#pragma once
#include <cstdint>

#include "core/status.h"

namespace jaxsparse::cpu {

// num_columns * column_size is at most this: the number of an unused place is an int32, too.
inline constexpr int64_t kMaxColumnPlaces = INT32_MAX - 1;

// `places` [capacity]: each column * column_size + something below column_size, strictly ascending;
// unused ones are num_columns * column_size and come last. `used` is how many come before.
Status CheckPlaces(const int32_t* places, int64_t capacity, int64_t num_columns,
                   int64_t column_size, int64_t* used);

// `order` [slots]: every output channel in one slot, and `out` in the others.
Status CheckOrder(const int32_t* order, int64_t slots, int64_t out);

}  // namespace jaxsparse::cpu
