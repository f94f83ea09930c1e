#include "cpu/scatter_conv.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "cpu/ceil_div.h"
#include "cpu/parallel_for.h"
#include "cpu/scratch.h"
#include "cpu/strip_panel.h"

namespace jaxsparse::cpu {
namespace {

// Sums of a band of rows, which stay in L2 while all taps add to them. Bands of 8 to 32 KiB have
// few active places in a list, and took up to 1.6 times as long; 256 KiB up to 1.1 times.
constexpr int64_t kBandBytes = 128 << 10;
constexpr int64_t kLargestSumBytes = 8;

// The columns of the source that meet something through the same taps of a row, which follow each
// other: without a stride from the source, neighbouring taps meet targets alike.
struct Columns {
  int64_t first, taps;
  int64_t target_step;  // from the target of one tap to that of the next
  int64_t begin, end;   // none of the columns is outside
};

// All of them, and which of them each column is in, with the target of its first tap.
struct ColumnSets {
  std::vector<Columns> sets;
  std::vector<int32_t> set_of, target_of;
};

ColumnSets SetsOf(const PlaceMap& map, int64_t taps, int64_t width) {
  ColumnSets all;
  all.set_of.assign(width, -1);
  all.target_of.assign(width, 0);
  for (int64_t column = 0; column < width; ++column) {
    Columns its = {0, 0, 0, column, column + 1};
    int64_t last_target = 0;
    for (int64_t tap = 0; tap < taps; ++tap) {
      const int64_t target = map.TargetsOfRow()[tap * width + column];
      if (target < 0) continue;
      if (its.taps == 0) {
        its.first = tap;
        all.target_of[column] = static_cast<int32_t>(target);
      } else {
        its.target_step = target - last_target;
      }
      last_target = target;
      ++its.taps;
    }
    if (its.taps == 0) continue;
    const auto same = std::find_if(all.sets.begin(), all.sets.end(), [&](const Columns& other) {
      return other.first == its.first && other.taps == its.taps;
    });
    all.set_of[column] = static_cast<int32_t>(same - all.sets.begin());
    if (same == all.sets.end())
      all.sets.push_back(its);
    else
      same->end = column + 1;
  }
  return all;
}

bool SumsAreResult(int64_t target_channels, const Tiles& tiles) {
  return tiles.sums_are_stored && target_channels % tiles.lanes == 0;
}

}  // namespace

bool ScatterPays(const CountedSource& source, const Tiles& tiles) {
  const PlacesConv& p = source.problem;
  // Measured on Zen 4 with 56 x 56 places, 3 x 3 taps, 1 to 30 % of them active, each instruction
  // set: 1.1 to 3 times as fast as pairs tap by tap with 1 to 32 channels. From 64 channels on
  // pairs are as fast; to more than 64, weights come from L2 again for every band. With a stride
  // from x, neighbouring columns meet different taps: no gain.
  const int64_t target_channels = source.target_channels();
  if (source.channels() > kScatterChannels || target_channels > 64) return false;
  if (p.kernel[2] < 2 || (source.from_x && p.strides[2] > 1)) return false;
  const Space& space = source.space();
  const Space& target = source.target_space();
  if (!SumsAreResult(target_channels, tiles)) {
    // A row of sums is held, which must not be long. Where it is wider than the result, to cut it
    // costs 8 ns for each place.
    const int64_t row = target[2] * CeilDiv(target_channels, tiles.lanes) * tiles.lanes;
    if (row > 4 * kBandBytes / kLargestSumBytes) return false;
    if (tiles.sums_are_stored && 8 * source.active < p.batch * NumPlaces(target)) return false;
  }
  // Lists hold numbers of 32 bits.
  const int64_t width = std::max(p.x_space[2], p.y_space[2]);
  return p.batch * space[0] * space[1] * width <= INT32_MAX - kPlacesBeyond;
}

Status ScatterConv(const CountedSource& source, char* target, const PlaceMap& map,
                   const Tiles& tiles, const ScatterTiles& scatter, TaskPool& pool) {
  const PlacesConv& p = source.problem;
  const Space& source_space = source.space();
  const Space& target_space = source.target_space();
  const int64_t channels = source.channels(), target_channels = source.target_channels();
  const int64_t row_taps = p.kernel[2], tap_rows = p.num_taps() / row_taps;
  const int64_t width = source_space[2], target_width = target_space[2];
  const int64_t rows = p.batch * source_space[0] * source_space[1];
  const int64_t target_rows = p.batch * target_space[0] * target_space[1];
  StripPanel weights;
  const Status status = PackStrips(p, source.group, source.from_x, kMaxStripVectors * tiles.lanes,
                                   StripPacking(tiles), pool, &weights);
  if (!status.ok()) return status;

  // Lists, one after the other.
  const ColumnSets columns = SetsOf(map, row_taps, width);
  const int64_t sets = static_cast<int64_t>(columns.sets.size());
  const int64_t room = source.active + kPlacesBeyond;
  auto* sources = static_cast<int32_t*>(Scratch(
      ScratchUse::kSums, (2 * room + sets * (rows + 1)) * static_cast<int64_t>(sizeof(int32_t))));
  int32_t* targets = sources + room;
  int32_t* begins = targets + room;
  int32_t listed = 0;
  for (int64_t set = 0; set < sets; ++set) {
    ScatterList list = {};
    list.counts = source.counts;
    list.columns = columns.set_of.data();
    list.target_of = columns.target_of.data();
    list.rows = rows;
    list.width = width;
    list.target_width = target_width;
    list.column = static_cast<int32_t>(set);
    list.begin = columns.sets[set].begin;
    list.end = columns.sets[set].end;
    list.sources = sources;
    list.targets = targets;
    list.begins = begins + set * (rows + 1);
    list.begins[0] = listed;
    scatter.list(list);
    listed = list.begins[rows];
  }
  std::fill(sources + listed, sources + listed + kPlacesBeyond, 0);

  const bool is_direct = SumsAreResult(target_channels, tiles);
  const int64_t sums_stride =
      is_direct ? target_channels : CeilDiv(target_channels, tiles.lanes) * tiles.lanes;
  const int64_t sum_bytes = tiles.sum_bytes();
  const int64_t row_bytes = target_width * sums_stride * sum_bytes;
  int64_t band_rows = std::clamp<int64_t>(kBandBytes / std::max<int64_t>(1, row_bytes), 1,
                                          std::max<int64_t>(1, target_rows));
  if (pool.num_threads() > 1)
    band_rows = std::min(band_rows, CeilDiv(target_rows, 4 * pool.num_threads()));
  return ParallelFor(pool, CeilDiv(target_rows, band_rows), [&](int64_t band) {
    const int64_t begin = band * band_rows, end = std::min(target_rows, begin + band_rows);
    const int64_t places = (end - begin) * target_width;
    char* result = target + begin * target_width * target_channels * tiles.item_bytes;
    char* sums = result;
    if (!is_direct)
      sums = static_cast<char*>(Scratch(ScratchUse::kPieceSums, (end - begin) * row_bytes));
    std::memset(sums, 0, (end - begin) * row_bytes);
    for (int64_t strip = 0; strip < weights.strips; ++strip) {
      ScatterProduct product = {};
      product.source = source.data;
      product.source_stride = product.items = channels;
      product.weights_stride = weights.width;
      const int64_t cols = target_channels - strip * weights.width;
      product.vectors = cols <= tiles.lanes ? 1 : 2;
      product.sums = sums + strip * weights.width * sum_bytes;
      product.sums_stride = sums_stride;
      for (int64_t tap_row = 0; tap_row < tap_rows; ++tap_row) {
        const Space at = map.Tap(tap_row * row_taps);
        // Rows whose sources follow one another are one list.
        for (int64_t row = begin; row < end;) {
          const int64_t first = map.SourceRow(at, row);
          int64_t last = row + 1;
          if (first >= 0)
            while (last < end && map.SourceRow(at, last) == first + last - row) ++last;
          const int64_t from = row;
          row = last;
          if (first < 0) continue;
          for (int64_t set = 0; set < sets; ++set) {
            const int32_t* its = begins + set * (rows + 1) + first;
            product.places = its[last - from] - its[0];
            if (product.places == 0) continue;
            const Columns& set_of = columns.sets[set];
            product.sources = sources + its[0];
            product.targets = targets + its[0];
            product.tap_stride = weights.tap_words();
            product.target_step = set_of.target_step;
            for (int64_t tap = 0; tap < set_of.taps; tap += product.taps) {
              const int64_t left = set_of.taps - tap;
              product.taps = left == 4 ? 2 : std::min(left, kScatterTaps);
              const int64_t first_tap = tap_row * row_taps + set_of.first + tap;
              product.weights = weights.At(0, strip, first_tap);
              product.first_target =
                  (from - first - begin) * target_width + tap * set_of.target_step;
              scatter.add(product);
            }
          }
        }
      }
    }
    if (!is_direct)
      tiles.store({sums, sums_stride, places, target_channels, result, target_channels});
  });
}

}  // namespace jaxsparse::cpu
