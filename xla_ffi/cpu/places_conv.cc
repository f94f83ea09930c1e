#include "cpu/places_conv.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "cpu/ceil_div.h"
#include "cpu/counted_source.h"
#include "cpu/entries_conv.h"
#include "cpu/entries_weight_grad.h"
#include "cpu/parallel_for.h"
#include "cpu/place_map.h"
#include "cpu/scatter_conv.h"
#include "cpu/scratch.h"
#include "cpu/strip_panel.h"

namespace jaxsparse::cpu {
namespace {

// A band has at most so many places: 512 KiB of the sums of a strip, half of an L2.
constexpr int64_t kBandPlaces = 4096;
// And at most so many pairs, unless one row of places has more.
constexpr int64_t kBandPairs = 1 << 17;

// One side of one group, with its numbers.
struct Side : PlaceSide {
  char* data;
  int64_t channels;

  int64_t places(int64_t batch) const { return batch * NumPlaces(space); }
};

Side MakeSide(const PlacesConv& p, bool is_x, int64_t group, int64_t item_bytes) {
  Side side;
  side.space = is_x ? p.x_space : p.y_space;
  side.channels = is_x ? p.in : p.out;
  const int64_t places = side.places(p.batch);
  const int32_t* counts = is_x ? p.x_counts : p.y_counts;
  const auto& counts_group = is_x ? p.x_counts_group : p.y_counts_group;
  side.counts = counts == nullptr ? nullptr : counts + counts_group[group] * places;
  side.data = static_cast<char*>(is_x ? p.x : p.y) +
              (is_x ? p.x_group : p.y_group)[group] * places * side.channels * item_bytes;
  return side;
}

// The active places of a side that has counts.
class ActiveList {
 public:
  ActiveList(const PlaceSide& side, int64_t batch) {
    const int64_t rows = side.rows(batch), width = side.space[2];
    begin_.resize(rows + 1);
    last_.resize(rows * width + 1);
    int64_t size = 0;
    for (int64_t row = 0; row < rows; ++row) {
      begin_[row] = size;
      if (side.counts == nullptr) continue;  // of an empty array: nothing meets anything
      const int32_t* counts = side.counts + row * width;
      for (int64_t i = 0; i < width; ++i) {
        last_[size] = static_cast<int32_t>(i);
        size += counts[i] > 0;
      }
    }
    begin_[rows] = size;
  }

  int64_t size() const { return begin_.back(); }
  ActivePlaces places() const { return {begin_.data(), last_.data()}; }

 private:
  std::vector<int64_t> begin_;
  std::vector<int32_t> last_;
};

// The source that a side with counts is, and its totals, which wrong counts must not make more than
// there can be, or less than nothing.
CountedSource Counted(const PlacesConv& p, bool from_x, int64_t group, const Side& side) {
  CountedSource source = {p, from_x, group, side.data, side.counts, 0, 0};
  const int64_t places = source.places();
  for (int64_t i = 0; i < places; ++i) {
    source.nonzeros += side.counts[i];
    source.active += side.counts[i] > 0;
  }
  source.nonzeros = std::clamp<int64_t>(source.nonzeros, 0, source.active * side.channels);
  return source;
}

// How the work of forward and input gradient is cut: into bands of rows of the target's places,
// and groups of strips.
struct Cut {
  int64_t rows_per_band, bands;
  int64_t strips_per_piece, strip_groups;
};

Cut MakeCut(const Side& target, const PlacesConv& p, int64_t strips, int64_t threads) {
  Cut cut;
  const int64_t rows = target.rows(p.batch), width = std::max<int64_t>(1, target.space[2]);
  const int64_t places = std::min(kBandPlaces, kBandPairs / p.num_taps());
  cut.rows_per_band = std::max<int64_t>(1, std::min(rows, places / width));
  if (threads > 1)  // some pieces for each, as they take unequal times
    cut.rows_per_band = std::min(
        cut.rows_per_band, std::max(CeilDiv(rows, 4 * threads), CeilDiv(int64_t{256}, width)));
  cut.bands = CeilDiv(rows, cut.rows_per_band);
  cut.strip_groups = 1;
  if (threads > 1 && cut.bands < 2 * threads)
    cut.strip_groups = std::min(strips, CeilDiv(2 * threads, std::max<int64_t>(1, cut.bands)));
  cut.strips_per_piece = CeilDiv(strips, cut.strip_groups);
  cut.strip_groups = CeilDiv(strips, cut.strips_per_piece);
  return cut;
}

class Product {
 public:
  Product(const PlacesConv& problem, const PlaceKernels& kernels, bool from_x)
      : p_(problem),
        kernels_(kernels),
        from_x_(from_x),
        map_(problem, from_x),
        sum_bytes_(kernels.tiles.sum_bytes()) {}

  Status Run(int64_t group, TaskPool& pool) {
    const Tiles& tiles = kernels_.tiles;
    const Side source = MakeSide(p_, from_x_, group, tiles.item_bytes);
    const Side target = MakeSide(p_, !from_x_, group, tiles.item_bytes);
    if (target.places(p_.batch) == 0 || target.channels == 0) return {};
    const bool by_source = source.counts != nullptr;
    const auto worth_for = [&](int64_t active) -> TaskPool& {
      const double flops =
          2.0 * active * p_.num_taps() * source.channels * target.channels / p_.feature_groups;
      const double bytes =
          static_cast<double>(target.places(p_.batch)) * target.channels * tiles.item_bytes;
      return PoolForWork(pool, flops, bytes);
    };
    if (by_source && target.counts == nullptr && p_.feature_groups == 1) {
      const CountedSource counted = Counted(p_, from_x_, group, source);
      if (EntriesPay(counted, kernels_.entries))
        return EntriesProduct(counted, target.data, map_, tiles, kernels_.entries,
                              worth_for(counted.active));
      if (ScatterPays(counted, tiles))
        return ScatterConv(counted, target.data, map_, tiles, kernels_.scatter,
                           worth_for(counted.active));
    }
    const ActiveList active(by_source ? static_cast<const PlaceSide&>(source) : target, p_.batch);
    TaskPool& worth = worth_for(active.size());
    StripPanel weights;
    const Status status = PackStrips(p_, group, from_x_, kMaxStripVectors * tiles.lanes,
                                     StripPacking(tiles), worth, &weights);
    if (!status.ok()) return status;
    const Cut cut = MakeCut(target, p_, weights.strips * p_.feature_groups, worth.num_threads());
    return ParallelFor(worth, cut.bands * cut.strip_groups, [&](int64_t piece) {
      Band(source, target, active.places(), by_source, weights, cut, piece / cut.strip_groups,
           piece % cut.strip_groups);
    });
  }

 private:
  // Some strips of all results of a band.
  void Band(const Side& source, const Side& target, const ActivePlaces& active, bool by_source,
            const StripPanel& weights, const Cut& cut, int64_t band, int64_t strip_group) const {
    const Tiles& tiles = kernels_.tiles;
    const int64_t taps = p_.num_taps(), width = target.space[2];
    const int64_t begin = band * cut.rows_per_band;
    const int64_t end = std::min(target.rows(p_.batch), begin + cut.rows_per_band);
    const int64_t places = (end - begin) * width;
    const int64_t first_strip = strip_group * cut.strips_per_piece;
    const int64_t end_strip =
        std::min(weights.strips * weights.feature_groups, first_strip + cut.strips_per_piece);
    const int64_t first_col = FirstColumn(weights, first_strip);
    const int64_t cols = FirstColumn(weights, end_strip) - first_col;

    // Pairs of all taps, one after the other.
    auto* pairs = static_cast<PlacePair*>(Scratch(
        ScratchUse::kPieceWeights, (taps * places + 1) * static_cast<int64_t>(sizeof(PlacePair)) +
                                       (taps + 1) * static_cast<int64_t>(sizeof(int64_t))));
    auto* starts = reinterpret_cast<int64_t*>(pairs + taps * places + 1);
    starts[0] = 0;
    for (int64_t tap = 0; tap < taps; ++tap)
      starts[tap + 1] = starts[tap] + map_.ListPairs(tap, begin, end, source, target, active,
                                                     by_source, pairs + starts[tap]);

    char* result = target.data + (begin * width * target.channels + first_col) * tiles.item_bytes;
    char* sums = result;
    int64_t sums_stride = target.channels;
    if (!tiles.sums_are_stored) {
      sums = static_cast<char*>(Scratch(ScratchUse::kPieceSums, places * cols * sum_bytes_ + 64));
      sums_stride = cols;
    }
    if (cols == sums_stride) {
      std::memset(sums, 0, places * cols * sum_bytes_);
    } else {
      for (int64_t i = 0; i < places; ++i)
        std::memset(sums + i * sums_stride * sum_bytes_, 0, cols * sum_bytes_);
    }
    for (int64_t strip = first_strip; strip < end_strip; ++strip)
      Strip(source, weights, strip, pairs, starts,
            sums + (FirstColumn(weights, strip) - first_col) * sum_bytes_, sums_stride);
    if (!tiles.sums_are_stored)
      tiles.store({sums, sums_stride, places, cols, result, target.channels});
  }

  static int64_t FirstColumn(const StripPanel& weights, int64_t strip) {
    const int64_t within = strip % weights.strips * weights.width;
    return strip / weights.strips * weights.target_channels +
           std::min(within, weights.target_channels);
  }

  void Strip(const Side& source, const StripPanel& weights, int64_t strip, const PlacePair* pairs,
             const int64_t* starts, char* sums, int64_t sums_stride) const {
    const Tiles& tiles = kernels_.tiles;
    const int64_t feature_group = strip / weights.strips;
    const int64_t strip_in_group = strip % weights.strips;
    PlaceProduct product = {};
    product.source_stride = source.channels;
    product.weights_stride = weights.width;
    product.cols =
        std::min(weights.width, weights.target_channels - strip_in_group * weights.width);
    product.vectors = product.cols <= tiles.lanes ? 1 : 2;
    product.sums = sums;
    product.sums_stride = sums_stride;
    const char* first = source.data + feature_group * weights.source_channels * tiles.item_bytes;
    for (int64_t tap = 0; tap < weights.taps; ++tap) {
      product.pairs = pairs + starts[tap];
      product.num_pairs = starts[tap + 1] - starts[tap];
      for (int64_t c = 0; c < weights.source_channels; c += kDepthOfProduct) {
        product.source = first + c * tiles.item_bytes;
        product.items = std::min(kDepthOfProduct, weights.source_channels - c);
        product.weights = weights.At(feature_group, strip_in_group, tap, c / tiles.items_per_word);
        kernels_.places.product(product);
      }
    }
  }

  const PlacesConv& p_;
  const PlaceKernels& kernels_;
  const bool from_x_;
  const PlaceMap map_;
  const int64_t sum_bytes_;
};

Status RunProduct(const PlacesConv& p, const PlaceKernels& kernels, bool from_x, TaskPool& pool) {
  const int64_t per_group = (from_x ? p.out : p.in) * p.batch *
                            NumPlaces(from_x ? p.y_space : p.x_space) * kernels.tiles.item_bytes;
  AdviseHugePages(from_x ? p.y : p.x, per_group * p.num_groups());
  Product product(p, kernels, from_x);
  for (int64_t group = 0; group < p.num_groups(); ++group)
    if (Status s = product.Run(group, pool); !s.ok()) return s;
  return {};
}

}  // namespace

Status PlacesForward(const PlacesConv& problem, const PlaceKernels& kernels, TaskPool& pool) {
  return RunProduct(problem, kernels, /*from_x=*/true, pool);
}

Status PlacesInputGrad(const PlacesConv& problem, const PlaceKernels& kernels, TaskPool& pool) {
  return RunProduct(problem, kernels, /*from_x=*/false, pool);
}

Status PlacesWeightGrad(const PlacesConv& p, const PlaceKernels& kernels, TaskPool& pool) {
  const Tiles& tiles = kernels.tiles;
  const bool from_x = p.x_counts != nullptr;
  const PlaceMap map(p, from_x);
  const int64_t taps = p.num_taps(), depth = p.depth(), channels = p.channels();
  const int64_t per_group = channels / p.feature_groups;
  const int64_t sum_bytes = tiles.sum_bytes();
  const int64_t width = kMaxStripVectors * tiles.lanes;
  const int64_t strips = CeilDiv(per_group, width);
  for (int64_t group = 0; group < p.num_groups(); ++group) {
    const Side source = MakeSide(p, from_x, group, tiles.item_bytes);
    const Side target = MakeSide(p, !from_x, group, tiles.item_bytes);
    char* w =
        static_cast<char*>(p.w) + p.w_group[group] * taps * depth * channels * tiles.item_bytes;
    const auto worth_for = [&](int64_t active) -> TaskPool& {
      return PoolForWork(pool, 2.0 * active * taps * depth * channels, 0);
    };
    if (source.counts != nullptr && target.counts == nullptr) {
      const CountedSource counted = Counted(p, from_x, group, source);
      if (EntriesGradPays(counted, kernels.entry_grads)) {
        const Status status = EntriesWeightGrad(counted, target.data, w, map, tiles,
                                                kernels.entry_grads, worth_for(counted.active));
        if (!status.ok()) return status;
        continue;
      }
    }
    const ActiveList active(source, p.batch);
    TaskPool& worth = worth_for(active.size());
    // Rows of the stored weight are the depth: x's channels, or y's where it is mirrored.
    const bool rows_are_sources = from_x != p.mirrored;
    const Side& of_rows = rows_are_sources ? source : target;
    const Side& of_cols = rows_are_sources ? target : source;
    const int64_t rows = target.rows(p.batch), row_width = std::max<int64_t>(1, target.space[2]);
    const int64_t rows_at_once = std::max<int64_t>(1, kBandPlaces / row_width);
    const int64_t parts =
        std::min(strips * p.feature_groups, CeilDiv(2 * worth.num_threads(), taps));
    const int64_t strips_per_part = CeilDiv(strips * p.feature_groups, std::max<int64_t>(1, parts));
    const Status status = ParallelFor(worth, taps * parts, [&](int64_t piece) {
      const int64_t tap = piece / parts, part = piece % parts;
      const int64_t stored_tap = p.stored_tap(tap);
      auto* pairs = static_cast<PlacePair*>(
          Scratch(ScratchUse::kPieceWeights,
                  (rows_at_once * row_width + 1) * static_cast<int64_t>(sizeof(PlacePair))));
      char* result = w + stored_tap * depth * channels * tiles.item_bytes;
      char* sums = result;
      if (!tiles.sums_are_stored)
        sums =
            static_cast<char*>(Scratch(ScratchUse::kPieceSums, depth * channels * sum_bytes + 64));
      const int64_t first = part * strips_per_part;
      const int64_t last = std::min(strips * p.feature_groups, first + strips_per_part);
      bool is_first = true;
      for (int64_t row = 0; is_first || row < rows; row += rows_at_once) {
        PlaceOuter outer = {};
        outer.num_pairs = map.ListPairs(tap, row, std::min(rows, row + rows_at_once), source,
                                        target, active.places(), true, pairs);
        // Targets are counted from the first of the rows.
        const char* target_data =
            target.data + row * row_width * target.channels * tiles.item_bytes;
        outer.pairs = pairs;
        outer.rows_are_sources = rows_are_sources;
        outer.rows = depth;
        outer.rows_stride = of_rows.channels;
        outer.cols_stride = of_cols.channels;
        outer.sums_stride = channels;
        outer.accumulate = !is_first;
        for (int64_t strip = first; strip < last; ++strip) {
          const int64_t feature_group = strip / strips, begin = strip % strips * width;
          const char* rows_of = rows_are_sources ? source.data : target_data;
          const char* cols_of = rows_are_sources ? target_data : source.data;
          const int64_t col = feature_group * per_group + begin;
          outer.rows_of = rows_of + feature_group * depth * tiles.item_bytes;
          outer.cols_of = cols_of + col * tiles.item_bytes;
          outer.cols = std::min(width, per_group - begin);
          outer.vectors = outer.cols <= tiles.lanes ? 1 : 2;
          char* to = sums + col * sum_bytes;
          if (is_first && outer.num_pairs == 0)
            for (int64_t i = 0; i < depth; ++i)
              std::memset(to + i * channels * sum_bytes, 0, outer.cols * sum_bytes);
          outer.sums = to;
          kernels.places.outer(outer);
        }
        is_first = false;
      }
      if (tiles.sums_are_stored || first >= last) return;
      const auto column = [&](int64_t strip) {
        return strip / strips * per_group + std::min(per_group, strip % strips * width);
      };
      const int64_t begin = column(first), end = column(last);
      tiles.store({sums + begin * sum_bytes, channels, depth, end - begin,
                   result + begin * tiles.item_bytes, channels});
    });
    if (!status.ok()) return status;
  }
  return {};
}

Status CountNonzeros(const void* source, int64_t places, int64_t channels, int32_t* counts,
                     const PlaceKernels& kernels, TaskPool& pool) {
  constexpr int64_t kPlacesPerPiece = 4096;
  const double bytes = static_cast<double>(places) * channels * kernels.tiles.item_bytes;
  return ParallelFor(
      PoolForWork(pool, 0, bytes), CeilDiv(places, kPlacesPerPiece), [&](int64_t piece) {
        const int64_t first = piece * kPlacesPerPiece;
        const auto* from =
            static_cast<const char*>(source) + first * channels * kernels.tiles.item_bytes;
        kernels.places.count(
            {from, std::min(kPlacesPerPiece, places - first), channels, counts + first});
      });
}

}  // namespace jaxsparse::cpu
