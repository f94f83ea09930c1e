#include "cpu/column_pattern.h"

#include <algorithm>
#include <string>
#include <vector>

namespace jaxsparse::cpu {
namespace {

// What jaxsparse/patterns puts into a pattern made in jit that has not room enough.
constexpr int64_t kLostWeights = INT32_MIN;

// Why places[k], the first one that is wrong, is.
std::string Complaint(const int32_t* places, int64_t k, int64_t num_columns, int64_t column_size) {
  const int64_t unused = num_columns * column_size, place = places[k];
  const auto name = [&](int64_t i) {
    return "place " + std::to_string(places[i]) + " of weight " + std::to_string(i);
  };
  if (place == kLostWeights) {
    return "the pattern lost weights when it was made, for its capacity was too small; make it "
           "with a larger capacity";
  }
  if (place < 0 || place > unused) {
    return name(k) + " lies outside the weight of " + std::to_string(num_columns) + " columns of " +
           std::to_string(column_size);
  }
  return "places must be in strictly ascending order; " + name(k) + " comes after " +
         (places[k - 1] == unused ? "an unused place" : name(k - 1));
}

// So many neighbours are compared at once, without a branch between them.
constexpr int64_t kRun = 64;

bool Ascends(const int32_t* places) {
  bool ascends = true;
  for (int64_t i = 0; i < kRun; ++i) ascends &= places[i] < places[i + 1];
  return ascends;
}

}  // namespace

Status CheckPlaces(const int32_t* places, int64_t capacity, int64_t num_columns,
                   int64_t column_size, int64_t* used) {
  const int64_t unused = num_columns * column_size;
  if (unused > kMaxColumnPlaces) {
    return Status::InvalidArgument("a weight has fewer than 2^31 - 1 places, got " +
                                   std::to_string(num_columns) + " columns of " +
                                   std::to_string(column_size));
  }
  // Strictly ascending from 0 to below `unused`, then nothing but `unused`.
  int64_t k = 0;
  if (capacity > 0 && places[0] >= 0) {
    while (k + kRun < capacity && places[k + kRun] < unused && Ascends(places + k)) k += kRun;
  }
  for (int64_t last = k > 0 ? places[k - 1] : -1;
       k < capacity && places[k] > last && places[k] < unused; ++k) {
    last = places[k];
  }
  *used = k;
  while (k < capacity && places[k] == unused) ++k;
  // A lost weight is told whatever else is wrong.
  for (int64_t i = k; i < capacity; ++i) {
    if (places[i] == kLostWeights) k = i;
  }
  if (k < capacity) {
    return Status::InvalidArgument(Complaint(places, k, num_columns, column_size));
  }
  return {};
}

Status CheckOrder(const int32_t* order, int64_t slots, int64_t out) {
  std::vector<bool> seen(out, false);
  for (int64_t slot = 0; slot < slots; ++slot) {
    const int64_t channel = order[slot];
    const auto got = [&] {
      return ", got " + std::to_string(channel) + " in slot " + std::to_string(slot);
    };
    if (channel == out) continue;
    if (channel < 0 || channel > out) {
      return Status::InvalidArgument("order holds output channels from 0 to " +
                                     std::to_string(out) + ", the last for none" + got());
    }
    if (seen[channel]) {
      return Status::InvalidArgument("order has each output channel once" + got() + " again");
    }
    seen[channel] = true;
  }
  const auto missing = std::find(seen.begin(), seen.end(), false);
  if (missing != seen.end()) {
    return Status::InvalidArgument("order has each output channel once, got none with " +
                                   std::to_string(missing - seen.begin()));
  }
  return {};
}

}  // namespace jaxsparse::cpu
