#include "cpu/column_copy.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <string>
#include <vector>

#include "cpu/ceil_div.h"
#include "cpu/column_pattern.h"
#include "cpu/parallel_for.h"
#include "cpu/scratch.h"

namespace jaxsparse::cpu {
namespace {

// Zeroed items per piece of work: some 100 us.
constexpr int64_t kPieceItems = 256 << 10;

// Neighbouring columns whose numbers share lines of the dense weight are a band. It is copied so
// many places at a time, through a tile of its own: rows of the dense weight are often a power of
// two apart, and would meet in a few sets of the cache.
constexpr int64_t kLineBytes = 128;
constexpr int64_t kTilePlaces = 128;

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

// The row of the dense weight of each place of a column.
std::vector<int32_t> RowsOfPlaces(const ColumnCopy& p) {
  std::vector<int32_t> rows;
  rows.reserve(p.column_size());
  for (int64_t c = 0; c < p.in; ++c) {
    for (int64_t t = 0; t < p.taps; ++t) rows.push_back(t * p.in + c);
  }
  return rows;
}

// The places of some neighbouring columns of a group, in tiles of kTilePlaces.
class Band {
 public:
  Band(const ColumnCopy& p, int64_t group, int64_t used, int64_t first_column, int64_t num_columns)
      : places_(p.places + p.places_group[group] * p.capacity),
        used_(used),
        column_size_(p.column_size()),
        first_column_(first_column),
        num_columns_(num_columns) {
    const int32_t* from = places_;
    for (int64_t j = 0; j < num_columns; ++j) {
      from = std::lower_bound(from, places_ + used, (first_column + j) * column_size_);
      next_[j] = from - places_;
    }
  }

  // Calls visit(k, place in its column, column of the band) for the places of the next tile.
  template <class Visit>
  void ForTile(int64_t begin, int64_t size, const Visit& visit) {
    for (int64_t j = 0; j < num_columns_; ++j) {
      const int64_t base = (first_column_ + j) * column_size_, end = base + begin + size;
      int64_t k = next_[j];
      for (; k < used_ && places_[k] < end; ++k) visit(k, places_[k] - base, j);
      next_[j] = k;
    }
  }

 private:
  const int32_t* const places_;
  const int64_t used_, column_size_, first_column_, num_columns_;
  int64_t next_[kLineBytes];  // of each column
};

// Calls copy(group, first column, number of columns, their Band, the rows of places) for all
// columns of all groups, a band at a time.
template <class Copy>
Status ForBands(const ColumnCopy& p, const std::vector<int64_t>& used, double bytes, TaskPool& pool,
                const Copy& copy) {
  const int64_t width = std::max<int64_t>(1, kLineBytes / (p.item_bytes * p.width));
  const int64_t bands = CeilDiv(p.num_columns, width);
  if (bands == 0) return {};
  const std::vector<int32_t> rows = RowsOfPlaces(p);
  return ParallelFor(PoolForWork(pool, 0, bytes), p.num_groups() * bands, [&](int64_t piece) {
    const int64_t group = piece / bands, first = piece % bands * width;
    const int64_t columns = std::min(width, p.num_columns - first);
    Band band(p, group, used[p.places_group[group]], first, columns);
    copy(group, first, columns, band, rows);
  });
}

// Calls visit(k, slot, index into the dense weight, or -1) for the weights of a band whose columns
// have an order.
template <class Visit>
void ForSlots(const ColumnCopy& p, int64_t group, int64_t first_column, Band& band,
              const std::vector<int32_t>& rows, const Visit& visit) {
  const int32_t* order = p.order + p.order_group[group] * p.num_columns * p.width;
  band.ForTile(0, p.column_size(), [&](int64_t k, int64_t place, int64_t j) {
    const int64_t row = int64_t{rows[place]} * p.out;
    for (int64_t slot = 0; slot < p.width; ++slot) {
      const int64_t channel = order[(first_column + j) * p.width + slot];
      visit(k, slot, channel == p.out ? -1 : row + channel);
    }
  });
}

// Items are moved whole, whatever they are.
template <int kBytes>
struct Item {
  char bytes[kBytes];
};

// Of few weights not every line is touched; and columns with an order are wide, in lines of their
// own.
bool InTiles(const ColumnCopy& p) {
  return p.order == nullptr && 5 * p.capacity >= p.column_size() * p.out;
}

template <class Stored>
Status Gather(const ColumnCopy& p, const std::vector<int64_t>& used, TaskPool& pool) {
  const int64_t dense_items = p.column_size() * p.out;
  const auto values_of = [&](int64_t group) {
    return static_cast<Stored*>(p.values) + p.values_group[group] * p.capacity * p.width;
  };
  for (int64_t group = 0; group < p.num_groups(); ++group) {
    Stored* values = values_of(group);
    std::fill(values + used[p.places_group[group]] * p.width, values + p.capacity * p.width,
              Stored{});
  }
  const bool in_tiles = InTiles(p);
  const double bytes = 2.0 * p.num_groups() * p.capacity * p.width * sizeof(Stored);
  return ForBands(p, used, bytes, pool,
                  [&](int64_t group, int64_t first, int64_t columns, Band& band,
                      const std::vector<int32_t>& rows) {
                    Stored* values = values_of(group);
                    const auto* dense =
                        static_cast<const Stored*>(p.dense) + p.dense_group[group] * dense_items;
                    if (p.order != nullptr) {
                      ForSlots(p, group, first, band, rows,
                               [&](int64_t k, int64_t slot, int64_t index) {
                                 values[k * p.width + slot] = index < 0 ? Stored{} : dense[index];
                               });
                      return;
                    }
                    dense += first;
                    if (!in_tiles) {
                      band.ForTile(0, p.column_size(), [&](int64_t k, int64_t place, int64_t j) {
                        values[k] = dense[int64_t{rows[place]} * p.out + j];
                      });
                      return;
                    }
                    constexpr int64_t kWidth = kLineBytes / sizeof(Stored);
                    Stored tile[kTilePlaces][kWidth];
                    for (int64_t begin = 0; begin < p.column_size(); begin += kTilePlaces) {
                      const int64_t size = std::min(kTilePlaces, p.column_size() - begin);
                      for (int64_t i = 0; i < size; ++i) {
                        const Stored* row = dense + int64_t{rows[begin + i]} * p.out;
                        if (columns == kWidth) {
                          std::memcpy(tile[i], row, kLineBytes);
                        } else {
                          std::memcpy(tile[i], row, columns * sizeof(Stored));
                        }
                      }
                      band.ForTile(begin, size, [&](int64_t k, int64_t place, int64_t j) {
                        values[k] = tile[place - begin][j];
                      });
                    }
                  });
}

template <class Stored>
Status Scatter(const ColumnCopy& p, const std::vector<int64_t>& used, TaskPool& pool) {
  const int64_t dense_items = p.column_size() * p.out;
  const auto dense_of = [&](int64_t group) {
    return static_cast<Stored*>(p.dense) + p.dense_group[group] * dense_items;
  };
  const double bytes = 2.0 * p.num_groups() * dense_items * sizeof(Stored);
  const bool in_tiles = InTiles(p);
  if (!in_tiles) {
    const int64_t pieces = CeilDiv(dense_items, kPieceItems);
    if (pieces == 0) return {};
    Status status =
        ParallelFor(PoolForWork(pool, 0, bytes), p.num_groups() * pieces, [&](int64_t piece) {
          const int64_t begin = piece % pieces * kPieceItems;
          std::memset(static_cast<void*>(dense_of(piece / pieces) + begin), 0,
                      std::min(kPieceItems, dense_items - begin) * sizeof(Stored));
        });
    if (!status.ok()) return status;
  }
  // No two weights have one index, so bands may be done in any order.
  return ForBands(
      p, used, bytes, pool,
      [&](int64_t group, int64_t first, int64_t columns, Band& band,
          const std::vector<int32_t>& rows) {
        const auto* values =
            static_cast<const Stored*>(p.values) + p.values_group[group] * p.capacity * p.width;
        Stored* dense = dense_of(group);
        if (p.order != nullptr) {
          ForSlots(p, group, first, band, rows, [&](int64_t k, int64_t slot, int64_t index) {
            if (index >= 0) dense[index] = values[k * p.width + slot];
          });
          return;
        }
        constexpr int64_t kWidth = kLineBytes / sizeof(Stored);
        Stored tile[kTilePlaces][kWidth];
        for (int64_t begin = 0; begin < p.column_size(); begin += kTilePlaces) {
          const int64_t size = std::min(kTilePlaces, p.column_size() - begin);
          std::memset(static_cast<void*>(tile), 0, size * kLineBytes);
          band.ForTile(begin, size, [&](int64_t k, int64_t place, int64_t j) {
            tile[place - begin][j] = values[k];
          });
          for (int64_t i = 0; i < size; ++i) {
            Stored* row = dense + int64_t{rows[begin + i]} * p.out + first;
            if (columns == kWidth) {
              std::memcpy(row, tile[i], kLineBytes);
            } else {
              std::memcpy(row, tile[i], columns * sizeof(Stored));
            }
          }
        }
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
