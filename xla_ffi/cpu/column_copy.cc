#include "cpu/column_copy.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <string>
#include <vector>

#include "cpu/column_pattern.h"
#include "cpu/parallel_for.h"
#include "cpu/scratch.h"

namespace jaxsparse::cpu {
namespace {

// Weights, or zeroed items, per piece of work: some 100 us of random access.
constexpr int64_t kPieceItems = 32 << 10;

// The number of used places of each pattern, at the index of its group.
Status CheckPatterns(const ColumnCopy& p, std::vector<int64_t>* used) {
  std::vector<bool> order_checked;
  for (int64_t group = 0; group < p.num_groups(); ++group) {
    const int64_t places_group = p.places_group[group], order_group = p.order_group[group];
    used->resize(std::max<size_t>(used->size(), places_group + 1), -1);
    if ((*used)[places_group] < 0) {
      Status status = CheckPlaces(p.places + places_group * p.capacity, p.capacity, p.num_columns,
                                  p.column_size(), &(*used)[places_group]);
      if (!status.ok()) return status;
    }
    order_checked.resize(std::max<size_t>(order_checked.size(), order_group + 1), false);
    if (p.order == nullptr || order_checked[order_group]) continue;
    const int64_t slots = p.num_columns * p.width;
    Status status = CheckOrder(p.order + order_group * slots, slots, p.out);
    if (!status.ok()) return status;
    order_checked[order_group] = true;
  }
  return {};
}

struct Range {
  int64_t group, begin, end;
};

// Calls body on ranges of the `items` of each group, `grain` items each, of `width` numbers.
template <class Body>
Status ForRanges(const ColumnCopy& p, int64_t items, int64_t grain, int64_t width, TaskPool& pool,
                 const Body& body) {
  const int64_t pieces = (items + grain - 1) / grain;
  if (pieces == 0) return {};
  const double bytes = 2.0 * p.num_groups() * items * width * p.item_bytes;
  return ParallelFor(PoolForWork(pool, 0, bytes), p.num_groups() * pieces, [&](int64_t piece) {
    const int64_t begin = piece % pieces * grain;
    body(Range{piece / pieces, begin, std::min(begin + grain, items)});
  });
}

// Calls visit(k, slot, index into the group's dense weight) for each of the range's weights.
template <class Visit>
void ForWeights(const ColumnCopy& p, const Range& range, const Visit& visit) {
  const int32_t* places = p.places + p.places_group[range.group] * p.capacity;
  const int32_t* order =
      p.order == nullptr ? nullptr : p.order + p.order_group[range.group] * p.num_columns * p.width;
  const int64_t column_size = p.column_size();
  const auto taps = static_cast<uint32_t>(p.taps);
  int64_t column = -1, begin = 0, end = 0;  // the column's places
  for (int64_t k = range.begin; k < range.end; ++k) {
    if (places[k] >= end) {
      column = places[k] / column_size;
      begin = column * column_size;
      end = begin + column_size;
    }
    const auto inner = static_cast<uint32_t>(places[k] - begin);
    const int64_t row = inner % taps * p.in + inner / taps;
    if (order == nullptr) {
      visit(k, 0, row * p.out + column);
      continue;
    }
    for (int64_t slot = 0; slot < p.width; ++slot) {
      const int64_t channel = order[column * p.width + slot];
      visit(k, slot, channel == p.out ? -1 : row * p.out + channel);
    }
  }
}

// Items are moved whole, whatever they are.
template <int kBytes>
struct Item {
  char bytes[kBytes];
};

template <class Stored>
Status Gather(const ColumnCopy& p, const std::vector<int64_t>& used, TaskPool& pool) {
  const int64_t grain = std::max<int64_t>(1, kPieceItems / p.width);
  return ForRanges(p, p.capacity, grain, p.width, pool, [&](const Range& range) {
    const auto* dense =
        static_cast<const Stored*>(p.dense) + p.dense_group[range.group] * p.column_size() * p.out;
    auto* values =
        static_cast<Stored*>(p.values) + p.values_group[range.group] * p.capacity * p.width;
    const int64_t last = std::clamp(used[p.places_group[range.group]], range.begin, range.end);
    ForWeights(p, {range.group, range.begin, last}, [&](int64_t k, int64_t slot, int64_t index) {
      values[k * p.width + slot] = index < 0 ? Stored{} : dense[index];
    });
    std::fill(values + last * p.width, values + range.end * p.width, Stored{});
  });
}

template <class Stored>
Status Scatter(const ColumnCopy& p, const std::vector<int64_t>& used, TaskPool& pool) {
  const int64_t dense_items = p.column_size() * p.out;
  const auto dense_of = [&](int64_t group) {
    return static_cast<Stored*>(p.dense) + p.dense_group[group] * dense_items;
  };
  Status status = ForRanges(p, dense_items, 8 * kPieceItems, 1, pool, [&](const Range& range) {
    std::memset(static_cast<void*>(dense_of(range.group) + range.begin), 0,
                (range.end - range.begin) * sizeof(Stored));
  });
  if (!status.ok()) return status;
  const int64_t grain = std::max<int64_t>(1, kPieceItems / p.width);
  return ForRanges(p, p.capacity, grain, p.width, pool, [&](const Range& range) {
    Stored* dense = dense_of(range.group);
    const auto* values =
        static_cast<const Stored*>(p.values) + p.values_group[range.group] * p.capacity * p.width;
    const int64_t last = std::clamp(used[p.places_group[range.group]], range.begin, range.end);
    // No two weights have one index, so pieces may run in any order.
    ForWeights(p, {range.group, range.begin, last}, [&](int64_t k, int64_t slot, int64_t index) {
      if (index >= 0) dense[index] = values[k * p.width + slot];
    });
  });
}

// After the checks, calls copy(used places of each pattern, an item of the right size).
template <class Copy>
Status Run(const ColumnCopy& p, const Copy& copy) try {
  std::vector<int64_t> used;
  if (Status s = CheckPatterns(p, &used); !s.ok()) return s;
  switch (p.item_bytes) {
    case 1:
      return copy(used, Item<1>{});
    case 2:
      return copy(used, Item<2>{});
    case 4:
      return copy(used, Item<4>{});
    case 8:
      return copy(used, Item<8>{});
    case 16:
      return copy(used, Item<16>{});
    default:
      return Status::InvalidArgument("items have 1, 2, 4, 8 or 16 bytes, got " +
                                     std::to_string(p.item_bytes));
  }
} catch (const std::bad_alloc&) {
  return Status::OutOfMemory("no memory for the pattern of the weights");
}

}  // namespace

Status GatherColumns(const ColumnCopy& p, TaskPool& pool) {
  return Run(p, [&](const std::vector<int64_t>& used, auto item) {
    AdviseHugePages(p.values, p.num_groups() * p.capacity * p.width * p.item_bytes);
    return Gather<decltype(item)>(p, used, pool);
  });
}

Status ScatterColumns(const ColumnCopy& p, TaskPool& pool) {
  return Run(p, [&](const std::vector<int64_t>& used, auto item) {
    AdviseHugePages(p.dense, p.num_groups() * p.column_size() * p.out * p.item_bytes);
    return Scatter<decltype(item)>(p, used, pool);
  });
}

}  // namespace jaxsparse::cpu
