#include "cpu/lane_geometry.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu/ceil_div.h"

namespace jaxsparse::cpu {
namespace {

// Cycles of the steps of a call, on a Zen 5 core (48 KiB L1, 1 MiB L2).
struct StepCosts {
  // A packed block of channels of the first size is read from L1 as fast as can be, one of the
  // second always from L2: it competes with sums, weights and offsets.
  double fast_bytes, slow_bytes;
  double slow_read;     // more, per vector
  double entry;         // of the loads and additions of an entry, to their number by two a cycle
  double segment, sum;  // per segment; per vector of sums that it reads and writes
  double near_line;     // per vector of a block that comes to L1, once per register tile
  // Per packed vector, where a packed chunk is near and where it is not; per unpacked vector; per
  // place, whose rows are found.
  double near_packed, far_packed, unpacked, rows;
};
// Fitted to some thousand timings of 3x3, 4x4 and 1x1 windows and products, at densities of 0.5 to
// 0.02: what they choose was 3 and 4 % slower than the best geometry, in the mean.
constexpr StepCosts kSumCosts = {41 << 10, 360 << 10, 0.98, 1.07, 2, 2.5, 3.1, 5, 22, 15, 60};
constexpr StepCosts kDotCosts = {27 << 10, 282 << 10, 0.5, 1.15, 9, 1.5, 0, 8, 30, 16, 60};

// A packed chunk of so many bytes is near: about what L2 holds.
constexpr double kNearBytes = 1.2 * (1 << 20);
// A chunk that threads share takes so much longer than one that each has for itself.
constexpr double kSharedLoss = 0.4;

// Candidates for the size of a packed block of channels.
constexpr double kBlockBytes[] = {24 << 10, 32 << 10, 40 << 10, 56 << 10, 80 << 10, 128 << 10};
// Sums of a part, which are in L2 while the blocks of channels pass.
constexpr double kPartBytes = 128 << 10;

// Extents of a tile along one axis of `places`, in multiples of `step`, that divide it evenly.
std::vector<int64_t> Extents(int64_t places, int64_t step, int64_t lanes) {
  std::vector<int64_t> extents;
  for (int64_t parts = 1; parts <= 16 * lanes; parts = parts < 8 ? parts + 1 : parts * 3 / 2) {
    const int64_t extent = CeilDiv(CeilDiv(std::max<int64_t>(1, places), parts), step) * step;
    if (extents.empty() || extents.back() != extent) extents.push_back(extent);
    if (extent == step) break;
  }
  return extents;
}

struct Cost {
  double cycles;
  int64_t block_channels;
};

int64_t NumChunks(const GeometrySizes& s, const Space& tile) {
  int64_t tiles = s.images;
  for (int a = 0; a < 3; ++a) tiles *= CeilDiv(s.space[a], tile[a]);
  return CeilDiv(tiles, s.lanes);
}

// Bytes of one packed channel of a chunk, of a source with these tiles.
double ChannelBytes(const GeometrySizes& s, const Space& tile) {
  double places = 0;
  for (const Space& span : s.spans) {
    places =
        std::max(places, 1.0 * (tile[0] + span[0]) * (tile[1] + span[1]) * (tile[2] + span[2]));
  }
  return (places * s.spans.size() + 1) * s.lanes * s.sum_bytes;
}

// An estimate of the cycles of a whole call.
Cost Estimate(const GeometrySizes& s, const Space& tile, const LaneShape& shape) {
  const StepCosts& costs = s.dots ? kDotCosts : kSumCosts;
  const double vector_bytes = s.lanes * s.sum_bytes;
  const double places = shape.rows * shape.cols;
  const double chunks = NumChunks(s, tile);
  double packed = 0, read = 0;  // places of a channel: of a tile, of a register tile
  for (const Space& span : s.spans) {
    packed += static_cast<double>(tile[0] + span[0]) * (tile[1] + span[1]) * (tile[2] + span[2]);
    read += static_cast<double>(1 + span[0]) * (shape.rows + span[1]) * (shape.cols + span[2]);
  }
  const double register_tiles = static_cast<double>(NumPlaces(tile)) / places;
  const double channel_bytes = read * vector_bytes;

  // Loads: of the source and of broadcast values; additions: two a cycle, each with 4 of latency.
  const double sums = places * shape.values;
  const double loads = (places + shape.values) / 2 + 0.5;
  const double adds = std::max(sums, 4.0) / 2;
  // Every dot ends in a share of adding up lanes; rows are stepped through one by one. Of more than
  // 24 results, fewer dots are in flight.
  const double dot = 3.0 * shape.values + std::max(0, shape.rows - 2) + (sums > 24 ? 3.0 : 0.0);
  const double entry = s.dots ? std::max(places / 2, adds) * costs.entry + dot
                              : std::max(loads, adds) * costs.entry + 0.3;
  const bool near = packed * s.source_channels * vector_bytes <= kNearBytes;
  const double per_column = static_cast<double>(s.entries) / std::max<int64_t>(1, s.columns);

  // Offsets in a block have 32 bits.
  const double most_channels =
      std::min<double>(s.source_channels, std::floor(INT32_MAX / ChannelBytes(s, tile)));
  Cost best = {INFINITY, 1};
  const auto consider = [&](double block) {
    block = std::max(1.0, std::min(std::floor(block), most_channels));
    const double blocks = std::ceil(s.source_channels / block);
    const double segments = std::min(per_column, std::ceil(s.group_channels / block));
    const double slow = std::clamp(
        (block * channel_bytes - costs.fast_bytes) / (costs.slow_bytes - costs.fast_bytes), 0.0,
        1.0);
    // Sums of a column's only segment are not read.
    const double moves = (segments <= 1 && !s.dots ? sums / 2 : sums) * costs.sum;
    const double cycles =
        per_column * (entry + slow * costs.slow_read * places) + segments * (costs.segment + moves);
    // Segments are listed, also the empty ones: one for each block of each column.
    if (block < most_channels && s.columns * blocks > 8.0 * s.entries + 1e6) return;
    if (cycles < best.cycles) best = {cycles, static_cast<int64_t>(block)};
  };
  for (const double bytes : kBlockBytes) consider(bytes / channel_bytes);
  consider(most_channels);
  const double lines = near ? read * s.source_channels * costs.near_line : 0;
  const double kernel = register_tiles * (best.cycles * s.columns + lines);
  const double pack = packed * (std::max<int64_t>(s.source_channels, s.lanes) *
                                    (near ? costs.near_packed : costs.far_packed) +
                                costs.rows);
  const double unpack = NumPlaces(tile) * (s.columns * s.values * costs.unpacked + costs.rows);
  best.cycles = chunks * (kernel + pack + unpack);
  return best;
}

// Calls visit(tile) for every candidate of a tile that the register tile divides, and of which a
// packed chunk has at most so many bytes.
template <class Visit>
void ForTiles(const GeometrySizes& sizes, const LaneShape& shape, double most_bytes,
              const Visit& visit) {
  for (const int64_t depth : Extents(sizes.space[0], 1, sizes.lanes)) {
    for (const int64_t rows : Extents(sizes.space[1], shape.rows, sizes.lanes)) {
      for (const int64_t cols : Extents(sizes.space[2], shape.cols, sizes.lanes)) {
        const Space tile = {depth, rows, cols};
        const double channel = ChannelBytes(sizes, tile);
        if (channel <= INT32_MAX && channel * sizes.source_channels <= most_bytes) visit(tile);
      }
    }
  }
}

// How large a packed chunk may be: two gigabytes, or more where there is no smaller one.
double MostBytes(const GeometrySizes& sizes, const LaneShape* shapes, int64_t num_shapes) {
  const double whole = ChannelBytes(sizes, sizes.space) * sizes.source_channels;
  if (whole <= INT32_MAX) return INT32_MAX;  // of the largest tile, in most calls
  double least = INFINITY;
  for (int64_t i = 0; i < num_shapes; ++i) {
    if (shapes[i].values != sizes.values) continue;
    ForTiles(sizes, shapes[i], INFINITY, [&](const Space& tile) {
      least = std::min(least, ChannelBytes(sizes, tile) * sizes.source_channels);
    });
  }
  return std::max<double>(INT32_MAX, least);
}

// How many times longer a call takes than all its chunks' cycles on so many threads: those that are
// shared are packed by all, then computed by all, through a cache that is not a core's own.
double ThreadsLoss(const GeometrySizes& sizes, const Space& tile) {
  const int64_t chunks = NumChunks(sizes, tile);
  if (sizes.num_threads == 1 || sizes.dots) return 1;
  const int64_t shared = chunks < 2 * sizes.num_threads ? chunks : chunks % sizes.num_threads;
  return 1 + kSharedLoss * shared / std::max<int64_t>(1, chunks);
}

}  // namespace

LaneGeometry ChooseGeometry(const GeometrySizes& sizes, const LaneShape* shapes,
                            int64_t num_shapes) {
  LaneGeometry best;
  const double most_bytes = MostBytes(sizes, shapes, num_shapes);
  double best_cycles = INFINITY;
  for (int64_t i = 0; i < num_shapes; ++i) {
    if (shapes[i].values != sizes.values) continue;
    ForTiles(sizes, shapes[i], most_bytes, [&](const Space& tile) {
      const Cost cost = Estimate(sizes, tile, shapes[i]);
      if (cost.cycles >= best_cycles) return;
      best_cycles = cost.cycles;
      best.tile = tile;
      best.shape = &shapes[i];
      best.block_channels = cost.block_channels;
    });
  }
  if (best.shape == nullptr) return best;
  if (sizes.num_threads > 1) {
    // The tile only: the order of sums is that of the register tile and of the blocks of channels,
    // and does not depend on threads.
    best_cycles = INFINITY;
    ForTiles(sizes, *best.shape, most_bytes, [&](const Space& tile) {
      const double cycles = Estimate(sizes, tile, *best.shape).cycles * ThreadsLoss(sizes, tile);
      if (cycles >= best_cycles) return;
      best_cycles = cycles;
      best.tile = tile;
    });
  }
  const double column_bytes = 1.0 * best.shape->values * best.shape->rows * best.shape->cols *
                              sizes.lanes * sizes.sum_bytes;
  best.part_columns = std::max(1.0, kPartBytes / column_bytes);
  if (sizes.num_threads > 1) {
    best.part_columns = std::min(
        best.part_columns, std::max<int64_t>(1, CeilDiv(sizes.columns, 4 * sizes.num_threads)));
  }
  return best;
}

}  // namespace jaxsparse::cpu
