#include "cpu/few_rows.h"

#include <algorithm>
#include <atomic>
#include <vector>

#include "cpu/ceil_div.h"
#include "cpu/column_pattern.h"
#include "cpu/parallel_for.h"
#include "cpu/scratch.h"

namespace jaxsparse::cpu {
namespace {

// About so many weights are a piece of work: they stay in L2 between the check of their places and
// their use. A vector of outputs at least.
constexpr int64_t kPieceWeights = 16 << 10;

int64_t NumRows(const SparseConv& p) { return p.batch * NumPlaces(p.y_space); }

// One group of a product.
class FewRows {
 public:
  FewRows(const SparseConv& p, const LaneTiles& tiles, int64_t group)
      : p_(p),
        tiles_(tiles),
        rows_(NumRows(p)),
        x_(Group(p.x, p.x_group[group], rows_ * p.in)),
        weights_(Group(p.w, p.w_group[group], p.capacity)),
        y_(Group(p.y, p.y_group[group], rows_ * p.out)),
        places_(p.places + p.pattern_group[group] * p.capacity),
        vectors_(rows_ == 1 ? 0 : CeilDiv(rows_, tiles.lanes)),
        width_(vectors_ == 0 ? 1 : vectors_ * tiles.lanes) {}

  Status Run(TaskPool& pool) {
    PackRows();
    const int64_t average = std::max<int64_t>(1, p_.capacity / p_.out);
    const int64_t columns =
        CeilDiv(std::clamp<int64_t>(kPieceWeights / average, 1, p_.out), tiles_.lanes) *
        tiles_.lanes;
    std::atomic<bool> is_valid{true};
    Status status = ParallelFor(pool, CeilDiv(p_.out, columns), [&](int64_t piece) {
      const int64_t first = piece * columns;
      if (!RunColumns(first, std::min(columns, p_.out - first))) is_valid = false;
    });
    if (!status.ok() || (is_valid && IsUnused(FirstOf(p_.out)))) return status;
    // The complaint. A piece that starts after a place out of order may be wrong by itself only.
    int64_t used;
    status = CheckPlaces(places_, p_.capacity, p_.out, p_.in, &used);
    return status.ok() ? Status::InvalidArgument("places changed while they were read") : status;
  }

 private:
  char* Group(void* base, int64_t group, int64_t items) const {
    return static_cast<char*>(base) + group * items * tiles_.item_bytes;
  }

  // The first weight whose place is none before this column, where places are in order.
  int64_t FirstOf(int64_t column) const {
    return std::lower_bound(places_, places_ + p_.capacity, column * p_.in) - places_;
  }

  bool IsUnused(int64_t k) const {
    bool is_unused = true;
    for (; k < p_.capacity; ++k) is_unused &= places_[k] == p_.out * p_.in;
    return is_unused;
  }

  // source_[input][row], in the sums' type, and an input more that is zero.
  void PackRows() {
    const int64_t bytes = (p_.in + 1) * width_ * tiles_.sum_bytes;
    char* source = static_cast<char*>(Scratch(ScratchUse::kPanel, bytes));
    std::fill(source + bytes - width_ * tiles_.sum_bytes, source + bytes, 0);
    source_ = source;
    if (vectors_ == 0) {
      tiles_.pack_values({x_, nullptr, p_.in, 1, 0, source});
      return;
    }
    const std::vector<const void*> none(tiles_.lanes);
    for (int64_t v = 0; v < vectors_; ++v) {
      const auto rows = RowsOf<const void*>(x_, v, p_.in);
      tiles_.pack({rows.data(), none.data(), p_.in, source + v * tiles_.lanes * tiles_.sum_bytes,
                   width_, nullptr});
    }
  }

  // Where the rows of a vector start in an array of `channels` each; null beyond the last.
  template <class Pointer>
  std::vector<Pointer> RowsOf(char* array, int64_t vector, int64_t channels) const {
    std::vector<Pointer> rows(tiles_.lanes);
    for (int64_t lane = 0; lane < tiles_.lanes; ++lane) {
      const int64_t row = vector * tiles_.lanes + lane;
      if (row < rows_) rows[lane] = array + row * channels * tiles_.item_bytes;
    }
    return rows;
  }

  // False, with nothing read by them, if the places are wrong.
  bool RunColumns(int64_t first, int64_t columns) const {
    const int64_t begin = FirstOf(first), end = FirstOf(first + columns);
    const int64_t low = first * p_.in, high = (first + columns) * p_.in;
    // A search among places that are out of order may end anywhere.
    if (begin > end || (first == 0 && begin > 0)) return false;
    if (begin < end && (places_[begin] < low || places_[end - 1] >= high ||
                        !tiles_.ascend(places_ + begin, end - begin))) {
      return false;
    }
    auto* begins = static_cast<int64_t*>(
        Scratch(ScratchUse::kPieceWeights, (columns + 1) * static_cast<int64_t>(sizeof(int64_t))));
    const int64_t average = (end - begin) / columns;
    begins[0] = begin;
    for (int64_t j = 0; j < columns; ++j) {
      const int64_t limit = low + (j + 1) * p_.in;
      int64_t k = std::min(begins[j] + average, end);
      while (k > begins[j] && places_[k - 1] >= limit) --k;
      while (k < end && places_[k] < limit) ++k;
      begins[j + 1] = k;
    }
    char* sums =
        static_cast<char*>(Scratch(ScratchUse::kPieceSums, columns * width_ * tiles_.sum_bytes));
    tiles_.few_rows[vectors_]({weights_, places_, begins, low, columns, p_.in, source_, sums});
    char* y = y_ + first * tiles_.item_bytes;
    if (vectors_ == 0) {
      tiles_.store_values({sums, nullptr, columns, y});
      return true;
    }
    const std::vector<const void*> none(tiles_.lanes);
    for (int64_t v = 0; v < vectors_; ++v) {
      const auto rows = RowsOf<void*>(y, v, p_.out);
      tiles_.unpack({sums + v * tiles_.lanes * tiles_.sum_bytes, width_, nullptr, columns,
                     rows.data(), none.data()});
    }
    return true;
  }

  const SparseConv& p_;
  const LaneTiles& tiles_;
  const int64_t rows_;
  char* const x_;
  const char* const weights_;
  char* const y_;
  const int32_t* const places_;
  const int64_t vectors_, width_;
  const char* source_ = nullptr;
};

}  // namespace

bool HasFewRows(const SparseConv& p, const LaneTiles& tiles) {
  const bool is_product = p.num_taps() == 1 && p.x_space == p.y_space &&
                          p.strides == Space{1, 1, 1} && p.low == Space{0, 0, 0} &&
                          p.feature_groups == 1 && !p.mirrored;
  return is_product && p.format == WeightFormat::kColumns && p.width == 1 && p.order == nullptr &&
         p.num_columns == p.out && p.out > 0 && p.in > 0 && NumRows(p) > 0 &&
         NumRows(p) <= 2 * tiles.lanes;
}

Status FewRowsForward(const SparseConv& p, const LaneTiles& tiles, TaskPool& pool) {
  if (p.out * p.in > kMaxColumnPlaces) {
    int64_t used;
    return CheckPlaces(p.places, p.capacity, p.out, p.in, &used);
  }
  TaskPool& worthwhile =
      PoolForWork(pool, 0, p.capacity * static_cast<double>(tiles.item_bytes + sizeof(int32_t)));
  for (int64_t group = 0; group < p.num_groups(); ++group) {
    Status status = FewRows(p, tiles, group).Run(worthwhile);
    if (!status.ok()) return status;
  }
  return {};
}

}  // namespace jaxsparse::cpu
