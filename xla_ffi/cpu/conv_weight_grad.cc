// Weight gradient: packs both arrays into lanes, and takes the dot product of every stored weight
// over every register tile. Each weight belongs to one part, which adds up chunks in order: results
// do not depend on the number of threads.
#include <atomic>
#include <cstring>

#include "cpu/parallel_for.h"
#include "cpu/scratch.h"
#include "cpu/sparse_conv.h"

namespace jaxsparse::cpu {
namespace {

class DotRun {
 public:
  DotRun(const ConvPlan& plan, const LaneTiles& tiles, const void* source, const void* result)
      : plan_(plan),
        tiles_(tiles),
        source_(static_cast<const char*>(source)),
        result_(result),
        vector_bytes_(plan.lanes * tiles.sum_bytes) {}

  Status Run(TaskPool& pool, void* weights, int64_t weight_bytes) {
    const int64_t sums_bytes = plan_.num_entries * tiles_.sum_bytes;
    sums_ = Scratch(ScratchUse::kSums, sums_bytes);
    std::memset(sums_, 0, sums_bytes);
    if (Status status = FindMasks(pool); !status.ok()) return status;
    // While the products of one chunk are summed, the next one is packed: threads meet once a
    // chunk.
    const int64_t chunks = plan_.num_chunks(), parts = plan_.parts.size();
    const int64_t packed_bytes = PackedBytes(plan_, tiles_), positions = plan_.positions.size();
    const bool alone = pool.num_threads() == 1;
    char* panels = static_cast<char*>(Scratch(ScratchUse::kPanel, (alone ? 1 : 2) * packed_bytes));
    const int64_t pack_pieces = std::min<int64_t>(positions, 8 * pool.num_threads());
    for (int64_t step = 0; step <= chunks; ++step) {
      const int64_t sum_parts = step > 0 ? parts : 0, packs = step < chunks ? pack_pieces : 0;
      const auto panel = [&](int64_t chunk) {
        return panels + (alone ? 0 : chunk % 2) * packed_bytes;
      };
      Status status = ParallelFor(pool, sum_parts + packs, [&](int64_t piece) {
        if (piece < sum_parts) {
          RunPart(step - 1, plan_.parts[piece], panel(step - 1));
        } else {
          piece -= sum_parts;
          PackSource(plan_, tiles_, source_, step, piece * positions / packs,
                     (piece + 1) * positions / packs, panel(step));
        }
      });
      if (!status.ok()) return status;
    }
    Store(weights, weight_bytes);
    return {};
  }

 private:
  // Places beyond the result are zero in the packed one, so what the source has there does not
  // matter if it is finite.
  Status FindMasks(TaskPool& pool) {
    if (plan_.covers_exactly()) return {};
    const int64_t count = plan_.images * NumPlaces(plan_.source_space) * plan_.source_channels;
    const int64_t pieces = pool.num_threads();
    std::atomic<bool> is_finite{true};
    Status status = ParallelFor(pool, pieces, [&](int64_t piece) {
      const int64_t first = piece * count / pieces, last = (piece + 1) * count / pieces;
      if (!tiles_.all_finite(source_ + first * tiles_.item_bytes, last - first)) is_finite = false;
    });
    needs_masks_ = !is_finite;
    return status;
  }

  void RunPart(int64_t chunk, const Part& part, const char* packed) const {
    if (part.segments.front() == part.segments.back()) return;
    const int64_t places = plan_.register_places();
    const int64_t result_bytes = plan_.max_part_rows * places * vector_bytes_;
    char* result =
        static_cast<char*>(Scratch(ScratchUse::kPieceSums, result_bytes + places * vector_bytes_));
    LaneDot dot;
    dot.row_bytes = plan_.row_bytes;
    dot.result = result;
    dot.exists = result + result_bytes;
    dot.offsets = plan_.offsets.data();
    dot.weights = sums_;
    for (const RegisterTile& tile : plan_.register_tiles) {
      PackResult(plan_, tiles_, result_, chunk, tile, part, result,
                 needs_masks_ ? result + result_bytes : nullptr);
      for (size_t block = 0; block + 1 < part.segments.size(); ++block) {
        dot.segments = plan_.segments.data() + part.segments[block];
        dot.num_segments = part.segments[block + 1] - part.segments[block];
        if (dot.num_segments == 0) continue;
        dot.source = packed + tile.source_bytes + block * plan_.block_bytes;
        if (needs_masks_) {
          tiles_.masked_dot(dot, *plan_.geometry.shape);
        } else {
          plan_.geometry.shape->dot(dot);
        }
      }
    }
  }

  // Places of `weights` that no entry has are zero.
  void Store(void* weights, int64_t weight_bytes) const {
    const bool in_order = plan_.value_indices.empty();
    const int64_t written = in_order ? plan_.num_entries * tiles_.item_bytes : int64_t{0};
    std::memset(static_cast<char*>(weights) + written, 0, weight_bytes - written);
    tiles_.store_values(
        {sums_, in_order ? nullptr : plan_.value_indices.data(), plan_.num_entries, weights});
  }

  const ConvPlan& plan_;
  const LaneTiles& tiles_;
  const char* source_;
  const void* result_;
  const int64_t vector_bytes_;
  void* sums_ = nullptr;
  bool needs_masks_ = false;
};

}  // namespace

Status ConvWeightGrad(const SparseConv& problem, const LaneTiles& tiles, TaskPool& pool) {
  const int64_t bytes = problem.num_values() * tiles.item_bytes;
  return ForEachConvGroup(
      problem, ConvRole::kWeightGrad, tiles, pool,
      [&](const ConvGroup& group, TaskPool& group_pool) -> Status {
        if (bytes == 0) return {};
        const char* source = problem.mirrored ? group.y : group.x;
        const char* result = problem.mirrored ? group.x : group.y;
        return DotRun(*group.plan, tiles, source, result).Run(group_pool, group.w, bytes);
      });
}

}  // namespace jaxsparse::cpu
