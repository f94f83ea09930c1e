#include "cpu/entries_conv.h"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <vector>

#include "cpu/ceil_div.h"
#include "cpu/parallel_for.h"
#include "cpu/scratch.h"
#include "cpu/strip_panel.h"

namespace jaxsparse::cpu {
namespace {

// What is multiplied in one pass over a row: some taps, some channels and some strips of results,
// of so many vectors.
struct Pass {
  int64_t vectors, tap_rows, channels, strips;
};

// What targets meet through a row of taps. Where neighbouring taps see neighbouring places, as
// without dilation, one range has all taps: the lists of places follow each other, and offsets that
// count places too lead to the weights of the next tap.
struct Windows {
  // Places of a row whose lists are a range.
  struct Window {
    int64_t begin, end, weights;
  };
  std::vector<Window> windows;  // [per_target][targets]
  int64_t per_target = 1;
  int64_t first_bytes = 0, place_bytes = 0;  // of EntryLists

  Windows(const int32_t* source_of, int64_t taps, int64_t targets, int64_t sources,
          int64_t tap_bytes) {
    int64_t taps_per_place = 0;
    const bool are_joined = Join(source_of, taps, targets, &taps_per_place) &&
                            std::abs(taps_per_place) * sources <= (INT32_MAX / 2) / tap_bytes;
    if (are_joined) {
      place_bytes = taps_per_place * tap_bytes;
      first_bytes = std::max<int64_t>(0, -place_bytes * (sources - 1));
    } else {
      per_target = taps;
    }
    windows.resize(per_target * targets);
    for (int64_t tap = 0; tap < taps; ++tap)
      for (int64_t target = 0; target < targets; ++target) {
        const int64_t source = source_of[tap * targets + target];
        if (source < 0) continue;
        Window& its = windows[(are_joined ? 0 : tap) * targets + target];
        const bool is_first = its.begin == its.end;
        its.begin = is_first ? source : std::min(its.begin, source);
        its.end = is_first ? source + 1 : std::max(its.end, source + 1);
        its.weights = tap * tap_bytes - first_bytes - source * place_bytes;
      }
  }

  // The ranges of a row, of which list k begins with entry begins[k].
  void Ranges(const int64_t* begins, EntryRange* ranges) const {
    for (const Window& window : windows)
      *ranges++ = {begins[window.begin], begins[window.end] - begins[window.begin], window.weights};
  }

 private:
  // Whether the sources of each target follow each other, and how many taps lie from one to the
  // next.
  static bool Join(const int32_t* source_of, int64_t taps, int64_t targets, int64_t* step) {
    for (int64_t target = 0; target < targets; ++target) {
      int64_t last = -1;
      for (int64_t tap = 0; tap < taps; ++tap) {
        if (source_of[tap * targets + target] < 0) continue;
        if (last >= 0) {
          const int64_t places =
              source_of[tap * targets + target] - source_of[last * targets + target];
          if (std::abs(places) != 1) return false;
          if (*step != 0 && *step != (tap - last) * places) return false;
          *step = (tap - last) * places;
        }
        last = tap;
      }
    }
    return true;
  }
};

// The weights of a pass stay in L1 beside the lists, or half of them, or in L2: longer lists end
// less often and load and store sums less often.
constexpr int64_t kWeightsInL1 = 36 << 10, kWeightsAboutL1 = 48 << 10, kWeightsInL2 = 640 << 10;
// The sums of a piece and the lists of its sources stay in L2, too.
constexpr int64_t kPieceInL2 = 512 << 10;

// A pass whose weights take up to so many bytes, with strips of up to so many vectors.
Pass Fitting(const PlacesConv& p, int64_t bytes, bool by_rows, int64_t most_vectors,
             int64_t channels, int64_t target_channels, const EntryTiles& entries) {
  const int64_t vectors = CeilDiv(target_channels, entries.lanes);
  Pass pass;
  pass.vectors = vectors % most_vectors == 0 ? most_vectors : vectors > 2 ? 4 : vectors;
  pass.tap_rows = by_rows ? 1 : p.num_taps() / p.kernel[2];
  pass.strips = by_rows ? 1 : CeilDiv(vectors, pass.vectors);
  const int64_t of_channel =
      pass.tap_rows * p.kernel[2] * pass.strips * pass.vectors * entries.lanes * entries.sum_bytes;
  // Blocks of channels that are equal to 16.
  const int64_t blocks = CeilDiv(channels, std::max<int64_t>(16, bytes / of_channel / 16 * 16));
  pass.channels = std::min(channels, CeilDiv(CeilDiv(channels, blocks), int64_t{16}) * 16);
  return pass;
}

Pass PassFor(const PlacesConv& p, double nonzero_share, int64_t channels, int64_t target_channels,
             const EntryTiles& entries) {
  const auto entries_of = [&](const Pass& pass) {
    return nonzero_share * static_cast<double>(pass.channels * p.kernel[2]);
  };
  const Pass in_l1 = Fitting(p, kWeightsInL1, true, 4, channels, target_channels, entries);
  const Pass about = Fitting(p, kWeightsAboutL1, true, 4, channels, target_channels, entries);
  const Pass in_l2 = Fitting(p, kWeightsInL2, false, 8, channels, target_channels, entries);
  // Measured with 16 to 512 channels and one to seven taps in a row.
  return entries_of(about) < 6 ? in_l2 : entries_of(in_l1) > 36 ? in_l1 : about;
}

// Rows of the target, all in one image: few enough for L2, and for every thread to have some.
int64_t RowsPerPiece(int64_t rows_per_image, int64_t batch, int64_t sums_of_row,
                     double lists_of_row, const TaskPool& pool) {
  auto rows = static_cast<int64_t>(kPieceInL2 / std::max(1.0, sums_of_row + lists_of_row));
  if (pool.num_threads() > 1)
    rows = std::min(rows, CeilDiv(rows_per_image * batch, 4 * pool.num_threads()));
  return std::clamp<int64_t>(rows, 1, std::max<int64_t>(1, rows_per_image));
}

}  // namespace

bool EntriesPay(const CountedSource& source, const EntryTiles& entries) {
  // Offsets of 32 bits reach the weights of a row of taps.
  const int64_t widest = 8 * entries.lanes * entries.sum_bytes;
  if (source.problem.kernel[2] > INT32_MAX / (source.channels() + 1) / widest) return false;
  // In multiplications with a nonzero: those of whole rows are faster, but for what a row costs; a
  // list costs as much as some three. Measured with 4 to 256 channels and one to five taps in a
  // row.
  return source.nonzeros + 3.0 * source.places() < source.active * (0.75 * source.channels() + 2);
}

Status EntriesProduct(const CountedSource& source, char* target, const PlaceMap& map,
                      const Tiles& tiles, const EntryTiles& entries, TaskPool& pool) {
  const PlacesConv& p = source.problem;
  const Space& source_space = source.space();
  const Space& target_space = source.target_space();
  const int64_t channels = source.channels(), target_channels = source.target_channels();
  const int64_t row_taps = p.kernel[2], tap_rows = p.num_taps() / row_taps;
  const double numbers = static_cast<double>(source.places() * channels);
  const double nonzero_share = source.nonzeros / std::max(1.0, numbers);
  const Pass pass = PassFor(p, nonzero_share, channels, target_channels, entries);
  const int64_t width = pass.vectors * entries.lanes;
  const int64_t weight_bytes = width * entries.sum_bytes;
  const int64_t blocks = CeilDiv(channels, pass.channels);
  StripPanel weights;
  const Status status = PackStrips(p, source.group, source.from_x, width,
                                   StripPacking(tiles, entries), pool, &weights);
  if (!status.ok()) return status;
  const int64_t tap_bytes = weights.tap_bytes();

  const int64_t row_width = target_space[2], source_width = source_space[2];
  const Windows windows(map.SourcesOfRow(), row_taps, row_width, source_width, tap_bytes);
  const int64_t rows_per_image = target_space[0] * target_space[1];
  const int64_t rows_per_piece =
      RowsPerPiece(rows_per_image, p.batch, row_width * target_channels * entries.sum_bytes,
                   source_width * channels * nonzero_share * (entries.sum_bytes + 4), pool);
  const int64_t pieces_per_image = CeilDiv(rows_per_image, rows_per_piece);
  return ParallelFor(pool, p.batch * pieces_per_image, [&](int64_t piece) {
    const int64_t image = piece / pieces_per_image;
    const int64_t begin = piece % pieces_per_image * rows_per_piece;
    const int64_t end = std::min(rows_per_image, begin + rows_per_piece);
    // The rows of the source that some target sees: first every one, then where its lists are.
    std::vector<int32_t> slot(source_space[0] * source_space[1], -1);
    std::vector<int64_t> seen(tap_rows * (end - begin), -1);
    std::vector<int64_t> row_of;
    for (int64_t row = begin; row < end; ++row)
      for (int64_t tap_row = 0; tap_row < tap_rows; ++tap_row) {
        const Space at = map.Tap(tap_row * row_taps);
        const int64_t source_row = map.SourceRow(at, row);
        if (source_row < 0) continue;
        int32_t& its = slot[source_row];
        if (its < 0) {
          its = static_cast<int32_t>(row_of.size());
          row_of.push_back(source_row);
        }
        seen[(row - begin) * tap_rows + tap_row] = its;
      }

    const int32_t* nonzeros =
        source.counts + image * source_space[0] * source_space[1] * source_width;
    // Room for every channel of an active place: a tangent has other zeros than the input whose
    // nonzeros are counted.
    int64_t room = kEntriesBeyond;
    for (const int64_t row : row_of)
      for (int64_t i = 0; i < source_width; ++i)
        room += nonzeros[row * source_width + i] > 0 ? channels : 0;
    // Ranges [row][block of channels][range], and what they are of.
    const auto num_ranges = static_cast<int64_t>(windows.windows.size());
    const int64_t num_lists = static_cast<int64_t>(row_of.size()) * blocks;
    const int64_t range_bytes = num_ranges * static_cast<int64_t>(sizeof(EntryRange));
    const int64_t begin_bytes = (source_width + 1) * static_cast<int64_t>(sizeof(int64_t));
    const int64_t entry_bytes = entries.sum_bytes + static_cast<int64_t>(sizeof(int32_t));
    auto* ranges = static_cast<EntryRange*>(Scratch(
        ScratchUse::kPieceWeights, num_lists * range_bytes + begin_bytes + room * entry_bytes));
    EntryStore lists;
    lists.begins = reinterpret_cast<int64_t*>(ranges + num_lists * num_ranges);
    lists.values = lists.begins + source_width + 1;
    lists.offsets =
        reinterpret_cast<int32_t*>(static_cast<char*>(lists.values) + room * entries.sum_bytes);
    lists.begins[0] = 0;
    for (int64_t its = 0; its < num_lists; ++its) {
      const int64_t place = row_of[its / blocks] * source_width;
      const int64_t first = image * source_space[0] * source_space[1] * source_width + place;
      const int64_t channel = its % blocks * pass.channels;
      EntryLists list = {};
      list.source = source.data + (first * channels + channel) * tiles.item_bytes;
      list.source_stride = channels;
      list.nonzeros = nonzeros + place;
      list.places = source_width;
      list.channels = std::min(pass.channels, channels - channel);
      list.first_bytes = windows.first_bytes;
      list.channel_bytes = weight_bytes;
      list.place_bytes = windows.place_bytes;
      list.lists = lists;
      entries.list(list);
      windows.Ranges(lists.begins, ranges + its * num_ranges);
      lists.begins[0] = lists.begins[source_width];
    }

    std::vector<EntrySegment> segments(pass.tap_rows);
    char* result =
        target + (image * rows_per_image + begin) * row_width * target_channels * tiles.item_bytes;
    char* sums = result;
    if (!tiles.sums_are_stored)
      sums = static_cast<char*>(
          Scratch(ScratchUse::kPieceSums,
                  (end - begin) * row_width * target_channels * entries.sum_bytes + 64));
    for (int64_t b = 0; b < blocks; ++b)
      for (int64_t strip = 0; strip < weights.strips; strip += pass.strips)
        for (int64_t tap_row = 0; tap_row < tap_rows; tap_row += pass.tap_rows)
          for (int64_t row = begin; row < end; ++row) {
            EntryRow product = {};
            product.values = lists.values;
            product.offsets = lists.offsets;
            product.accumulate = b > 0 || tap_row > 0;
            for (int64_t r = tap_row; r < tap_row + pass.tap_rows; ++r) {
              const int64_t its = seen[(row - begin) * tap_rows + r];
              if (its >= 0)
                segments[product.num_segments++] = {ranges + (its * blocks + b) * num_ranges,
                                                    r * row_taps * tap_bytes};
            }
            if (product.num_segments == 0 && product.accumulate) continue;
            product.segments = segments.data();
            product.num_ranges = windows.per_target;
            product.targets = row_width;
            product.weights = weights.At(0, strip, 0, b * pass.channels);
            product.strips = pass.strips;
            product.strip_bytes = weights.strip_bytes();
            product.vectors = pass.vectors;
            product.cols = target_channels - strip * width;
            product.sums = sums + ((row - begin) * row_width * target_channels + strip * width) *
                                      entries.sum_bytes;
            product.sums_stride = target_channels;
            entries.row(product);
          }
    if (!tiles.sums_are_stored)
      tiles.store({sums, target_channels, (end - begin) * row_width, target_channels, result,
                   target_channels});
  });
}

}  // namespace jaxsparse::cpu
