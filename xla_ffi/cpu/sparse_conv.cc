// Forward and input gradient: packs the source into lanes, runs the list of entries over every
// register tile, unpacks.
#include "cpu/sparse_conv.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

#include "cpu/few_rows.h"
#include "cpu/parallel_for.h"
#include "cpu/scratch.h"

namespace jaxsparse::cpu {
namespace {

// A bound on the work of all groups, from above: as if every place were used.
TaskPool& PoolForProblem(const SparseConv& p, const LaneTiles& tiles, TaskPool& pool) {
  const double groups = p.num_groups();
  const double places = static_cast<double>(p.batch) * NumPlaces(p.y_space);
  const double numbers =
      places * p.out + static_cast<double>(p.batch) * NumPlaces(p.x_space) * p.in;
  return PoolForWork(pool, 2 * groups * p.num_values() * places,
                     groups * (p.num_values() + numbers) * tiles.item_bytes);
}

class LaneRun {
 public:
  LaneRun(const ConvPlan& plan, const LaneTiles& tiles, const void* source, const void* weights,
          void* result)
      : plan_(plan),
        tiles_(tiles),
        source_(source),
        weights_(weights),
        result_(result),
        vector_bytes_(plan.lanes * tiles.sum_bytes),
        packed_bytes_(PackedBytes(plan, tiles)) {}

  Status Run(TaskPool& pool) {
    PackWeights();
    const int64_t chunks = plan_.num_chunks(), threads = pool.num_threads();
    // A thread that has a chunk of its own finds what it packed in its own cache. What is left when
    // every thread has had as many is shared.
    const int64_t own = threads > 1 && chunks < 2 * threads ? 0 : chunks - chunks % threads;
    Status status = ParallelFor(pool, own, [&](int64_t chunk) {
      char* packed = static_cast<char*>(Scratch(ScratchUse::kPanel, packed_bytes_));
      PackSource(plan_, tiles_, source_, chunk, 0, plan_.positions.size(), packed);
      for (const RegisterTile& tile : plan_.register_tiles) {
        for (const Part& part : plan_.parts) RunPart(chunk, tile, part, packed);
      }
    });
    if (!status.ok() || own == chunks) return status;
    char* packed = static_cast<char*>(Scratch(ScratchUse::kPanel, packed_bytes_));
    const int64_t parts = plan_.parts.size();
    for (int64_t chunk = own; chunk < chunks; ++chunk) {
      status = PackSource(plan_, tiles_, source_, chunk, pool, packed);
      if (!status.ok()) return status;
      // Few pieces: one part of one register tile may take less time than to ask for the next.
      const int64_t runs = plan_.register_tiles.size() * parts;
      const int64_t run_pieces = std::min(runs, 16 * threads);
      status = ParallelFor(pool, run_pieces, [&](int64_t piece) {
        const int64_t last = (piece + 1) * runs / run_pieces;
        for (int64_t run = piece * runs / run_pieces; run < last; ++run) {
          RunPart(chunk, plan_.register_tiles[run / parts], plan_.parts[run % parts], packed);
        }
      });
      if (!status.ok()) return status;
    }
    return {};
  }

 private:
  // The weights in the order of the entries and in the sums' type, unless they are that already.
  void PackWeights() {
    const bool in_order = plan_.value_indices.empty();
    if (plan_.num_entries == 0 || (in_order && tiles_.sums_are_stored)) return;
    void* packed =
        Scratch(ScratchUse::kSums, plan_.num_entries * plan_.values() * tiles_.sum_bytes);
    tiles_.pack_values({weights_, in_order ? nullptr : plan_.value_indices.data(),
                        plan_.num_entries, plan_.values(), plan_.value_stride, packed});
    weights_ = packed;
  }

  void RunPart(int64_t chunk, const RegisterTile& register_tile, const Part& part,
               const char* packed) const {
    void* sums = Scratch(ScratchUse::kPieceSums,
                         plan_.max_part_rows * plan_.register_places() * vector_bytes_);
    LaneTile tile;
    tile.row_bytes = plan_.row_bytes;
    tile.values = weights_;
    tile.offsets = plan_.offsets.data();
    tile.sums = sums;
    for (size_t block = 0; block + 1 < part.segments.size(); ++block) {
      tile.source = packed + register_tile.source_bytes + block * plan_.block_bytes;
      tile.segments = plan_.segments.data() + part.segments[block];
      tile.num_segments = part.segments[block + 1] - part.segments[block];
      plan_.geometry.shape->run(tile);
    }
    UnpackResult(plan_, tiles_, sums, chunk, register_tile, part, result_);
  }

  const ConvPlan& plan_;
  const LaneTiles& tiles_;
  const void* source_;
  const void* weights_;
  void* result_;
  const int64_t vector_bytes_, packed_bytes_;
};

}  // namespace

Status ForEachConvGroup(const SparseConv& given, ConvRole role, const LaneTiles& tiles,
                        TaskPool& pool,
                        const std::function<Status(const ConvGroup&, TaskPool&)>& run) try {
  const SparseConv problem = Canonical(given);
  const int64_t groups = problem.num_groups();
  TaskPool& worthwhile = PoolForProblem(problem, tiles, pool);
  const bool side_by_side = worthwhile.num_threads() > 1 && groups >= 4 * worthwhile.num_threads();

  std::vector<std::shared_ptr<const ConvPlan>> plans;
  for (const int64_t group : problem.pattern_group) {
    if (group >= static_cast<int64_t>(plans.size())) plans.resize(group + 1);
    if (plans[group] != nullptr) continue;
    Status status = GetConvPlan(problem, group, role, tiles,
                                side_by_side ? 1 : worthwhile.num_threads(), &plans[group]);
    if (!status.ok()) return status;
  }

  const auto run_group = [&](int64_t group, TaskPool& group_pool) {
    const auto array = [&](void* base, int64_t index, int64_t items) {
      return static_cast<char*>(base) + index * items * tiles.item_bytes;
    };
    return run({array(problem.x, problem.x_group[group],
                      problem.batch * NumPlaces(problem.x_space) * problem.in),
                array(problem.w, problem.w_group[group], problem.num_values()),
                array(problem.y, problem.y_group[group],
                      problem.batch * NumPlaces(problem.y_space) * problem.out),
                plans[problem.pattern_group[group]].get()},
               group_pool);
  };

  if (!side_by_side) {
    for (int64_t group = 0; group < groups; ++group) {
      Status status = run_group(group, worthwhile);
      if (!status.ok()) return status;
    }
    return {};
  }
  std::mutex mutex;
  Status first_failure;
  Status status = ParallelFor(worthwhile, groups, [&](int64_t group) {
    Status result = run_group(group, CallerOnly());
    if (result.ok()) return;
    std::lock_guard<std::mutex> lock(mutex);
    if (first_failure.ok()) first_failure = std::move(result);
  });
  return status.ok() ? first_failure : status;
} catch (const std::bad_alloc&) {
  return Status::OutOfMemory("no memory for a kernel's scratch");
}

Status ConvForward(const SparseConv& problem, const LaneTiles& tiles, TaskPool& pool) {
  if (HasFewRows(problem, tiles)) return FewRowsForward(problem, tiles, pool);
  const int64_t bytes = problem.batch * NumPlaces(problem.y_space) * problem.out * tiles.item_bytes;
  return ForEachConvGroup(
      problem, ConvRole::kForward, tiles, pool,
      [&](const ConvGroup& group, TaskPool& group_pool) -> Status {
        if (bytes == 0) return {};
        AdviseHugePages(group.y, bytes);
        return LaneRun(*group.plan, tiles, group.x, group.w, group.y).Run(group_pool);
      });
}

Status ConvInputGrad(const SparseConv& problem, const LaneTiles& tiles, TaskPool& pool) {
  const int64_t bytes = problem.batch * NumPlaces(problem.x_space) * problem.in * tiles.item_bytes;
  return ForEachConvGroup(
      problem, ConvRole::kInputGrad, tiles, pool,
      [&](const ConvGroup& group, TaskPool& group_pool) -> Status {
        if (bytes == 0) return {};
        AdviseHugePages(group.x, bytes);
        if (group.plan->leaves_gaps) std::memset(group.x, 0, bytes);
        return LaneRun(*group.plan, tiles, group.y, group.w, group.x).Run(group_pool);
      });
}

}  // namespace jaxsparse::cpu
