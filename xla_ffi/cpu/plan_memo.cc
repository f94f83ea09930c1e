#include "cpu/plan_memo.h"

#include <algorithm>
#include <cstring>
#include <list>
#include <mutex>
#include <unordered_map>
#include <utility>
#include <vector>

namespace jaxsparse::cpu {
namespace {

// Everything that a plan depends on, but for the indices.
std::vector<int64_t> Sizes(const SparseConv& p, ConvRole role, const LaneTiles& tiles,
                           int64_t num_threads) {
  std::vector<int64_t> sizes = {static_cast<int64_t>(role),
                                reinterpret_cast<int64_t>(&tiles),
                                num_threads,
                                p.batch,
                                p.in,
                                p.out,
                                p.feature_groups,
                                p.mirrored,
                                static_cast<int64_t>(p.format),
                                p.capacity,
                                p.num_columns,
                                p.width,
                                p.block_in,
                                p.block_out,
                                p.order != nullptr};
  for (const Space* space : {&p.x_space, &p.y_space, &p.kernel, &p.strides, &p.low, &p.dilation}) {
    sizes.insert(sizes.end(), space->begin(), space->end());
  }
  return sizes;
}

struct Indices {
  const int32_t* data;
  int64_t size;
};

uint64_t Mix(uint64_t hash, uint64_t value) {
  hash = (hash ^ value) * 0x9e3779b97f4a7c15;
  return hash ^ (hash >> 29);
}

// Of the sizes and of some hundred indices: the rest is compared, not hashed.
uint64_t Hash(const std::vector<int64_t>& sizes, const Indices (&indices)[2]) {
  uint64_t hash = 0;
  for (const int64_t size : sizes) hash = Mix(hash, size);
  for (const Indices& array : indices) {
    const int64_t step = array.size / 128 + 1;
    for (int64_t i = 0; i < array.size; i += step) hash = Mix(hash, array.data[i]);
  }
  return hash;
}

struct Kept {
  uint64_t hash;
  std::vector<int64_t> sizes;
  std::vector<int32_t> indices[2];
  std::shared_ptr<const ConvPlan> plan;
  int64_t bytes;

  bool Matches(const std::vector<int64_t>& other_sizes, const Indices (&other)[2]) const {
    if (sizes != other_sizes) return false;
    for (int i = 0; i < 2; ++i) {
      if (other[i].size != static_cast<int64_t>(indices[i].size())) return false;
      if (other[i].size != 0 &&
          std::memcmp(other[i].data, indices[i].data(), other[i].size * sizeof(int32_t)) != 0) {
        return false;
      }
    }
    return true;
  }
};

// Patterns that agree in the indices that are hashed: those of one weight that changes slowly.
constexpr int64_t kMaxAlike = 4;

class Memo {
 public:
  using Item = std::shared_ptr<const Kept>;

  // Plans whose hash is the same, latest first. They are compared without the lock.
  std::vector<Item> Candidates(uint64_t hash) {
    std::lock_guard<std::mutex> lock(mutex_);
    std::vector<Item> items;
    const auto [begin, end] = by_hash_.equal_range(hash);
    for (auto i = begin; i != end; ++i) items.push_back(*i->second);
    return items;
  }

  void Used(const Item& item) {
    std::lock_guard<std::mutex> lock(mutex_);
    ++hits_;
    const auto place = Find(item);
    if (place != by_hash_.end()) items_.splice(items_.begin(), items_, place->second);
  }

  void Keep(Item item) {
    std::lock_guard<std::mutex> lock(mutex_);
    ++misses_;
    if (item->bytes > kPlanMemoBytes) return;
    // The oldest of those alike makes room: a pattern that changes at every step leaves no trail.
    while (static_cast<int64_t>(by_hash_.count(item->hash)) >= kMaxAlike) {
      for (auto i = items_.end(); i != items_.begin();) {
        if ((*--i)->hash == item->hash) {
          Drop(i);
          break;
        }
      }
    }
    bytes_ += item->bytes;
    items_.push_front(item);
    by_hash_.emplace(item->hash, items_.begin());
    while (bytes_ > kPlanMemoBytes) Drop(std::prev(items_.end()));
  }

  PlanMemoState Read() {
    std::lock_guard<std::mutex> lock(mutex_);
    return {static_cast<int64_t>(items_.size()), bytes_, hits_, misses_};
  }

  void Clear() {
    std::lock_guard<std::mutex> lock(mutex_);
    items_.clear();
    by_hash_.clear();
    bytes_ = hits_ = misses_ = 0;
  }

 private:
  using Items = std::list<Item>;  // latest first
  using ByHash = std::unordered_multimap<uint64_t, Items::iterator>;

  ByHash::iterator Find(const Item& item) {
    const auto [begin, end] = by_hash_.equal_range(item->hash);
    for (auto i = begin; i != end; ++i) {
      if (*i->second == item) return i;
    }
    return by_hash_.end();
  }

  void Drop(Items::iterator item) {
    bytes_ -= (*item)->bytes;
    by_hash_.erase(Find(*item));
    items_.erase(item);
  }

  std::mutex mutex_;
  Items items_;
  ByHash by_hash_;
  int64_t bytes_ = 0, hits_ = 0, misses_ = 0;
};

Memo& TheMemo() {
  static Memo* memo = new Memo;  // outlives every thread of XLA's pool
  return *memo;
}

}  // namespace

Status GetConvPlan(const SparseConv& problem, int64_t pattern_group, ConvRole role,
                   const LaneTiles& tiles, int64_t num_threads,
                   std::shared_ptr<const ConvPlan>* plan) {
  const std::vector<int64_t> sizes = Sizes(problem, role, tiles, num_threads);
  const int64_t order_size = problem.order_size();
  const Indices indices[2] = {
      {problem.places + pattern_group * problem.capacity, problem.capacity},
      {problem.order == nullptr ? nullptr : problem.order + pattern_group * order_size,
       order_size}};
  const uint64_t hash = Hash(sizes, indices);
  for (const Memo::Item& item : TheMemo().Candidates(hash)) {
    if (!item->Matches(sizes, indices)) continue;
    *plan = item->plan;
    TheMemo().Used(item);
    return {};
  }

  auto made = std::make_shared<ConvPlan>();
  Status status = MakeConvPlan(problem, pattern_group, role, tiles, num_threads, made.get());
  if (!status.ok()) return status;
  auto kept = std::make_shared<Kept>();
  kept->hash = hash;
  kept->sizes = sizes;
  for (int i = 0; i < 2; ++i) {
    kept->indices[i].assign(indices[i].data, indices[i].data + indices[i].size);
  }
  kept->plan = made;
  kept->bytes = made->bytes() + (indices[0].size + indices[1].size) * sizeof(int32_t) +
                sizes.size() * sizeof(int64_t) + sizeof(Kept);
  *plan = std::move(made);
  TheMemo().Keep(std::move(kept));
  return {};
}

PlanMemoState ReadPlanMemo() { return TheMemo().Read(); }
void ClearPlanMemo() { TheMemo().Clear(); }

}  // namespace jaxsparse::cpu
