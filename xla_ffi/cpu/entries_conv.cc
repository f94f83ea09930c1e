#include "cpu/entries_conv.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "cpu/ceil_div.h"
#include "cpu/parallel_for.h"
#include "cpu/scratch.h"

namespace jaxsparse::cpu {
namespace {

// What is multiplied in one pass over a row: some taps, some channels and some strips of results,
// of so many vectors.
struct Pass {
  int64_t vectors, tap_rows, channels, strips;
};

// The lists of a row of places, and the joined ones of all rows.
struct Memory {
  EntryStore joined, lists;

  Memory(int64_t joined_begins, int64_t joined_room, int64_t begins, int64_t room,
         int64_t sum_bytes) {
    const int64_t bytes =
        (joined_begins + begins) * static_cast<int64_t>(sizeof(int64_t)) +
        (joined_room + room) * (sum_bytes + static_cast<int64_t>(sizeof(int32_t)));
    char* memory = static_cast<char*>(Scratch(ScratchUse::kPieceWeights, bytes));
    joined.begins = reinterpret_cast<int64_t*>(memory);
    lists.begins = joined.begins + joined_begins;
    joined.values = lists.begins + begins;
    lists.values = static_cast<char*>(joined.values) + joined_room * sum_bytes;
    joined.offsets =
        reinterpret_cast<int32_t*>(static_cast<char*>(lists.values) + room * sum_bytes);
    lists.offsets = joined.offsets + joined_room;
  }
};

// The weights of a pass stay in L1 beside the lists, or in L2.
constexpr int64_t kWeightsInL1 = 36 << 10, kWeightsInL2 = 640 << 10;
// Targets of a piece: their sums and the lists of their sources stay in L2.
constexpr int64_t kPlacesPerPiece = 512;

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

// Longer passes load and store sums less often, and end fewer lists; weights come faster from L1,
// about one vector a cycle and a half, than from L2. In L1, narrow strips leave room for channels.
Pass PassFor(const PlacesConv& p, double nonzero_share, int64_t channels, int64_t target_channels,
             const EntryTiles& entries) {
  const Pass in_l1 = Fitting(p, kWeightsInL1, true, 4, channels, target_channels, entries);
  const Pass in_l2 = Fitting(p, kWeightsInL2, false, 8, channels, target_channels, entries);
  // Measured with 64 and 128 channels: L2 is faster at 14 entries, L1 at 24.
  return nonzero_share * in_l1.channels * p.kernel[2] < 20 ? in_l2 : in_l1;
}

}  // namespace

bool EntriesPay(int64_t nonzeros, int64_t active_places, int64_t places, int64_t source_channels,
                int64_t target_channels, int64_t row_taps, const EntryTiles& tiles) {
  // Rows of channels run at 75 % of peak and long lists at 40 %; to make and to end a list costs as
  // much as some five entries: measured with 16 to 256 channels.
  if (target_channels < 2 * tiles.lanes || source_channels < 16) return false;
  // Offsets of 32 bits reach the weights of a row of taps.
  const int64_t widest = 8 * tiles.lanes * tiles.sum_bytes;
  if (row_taps > INT32_MAX / (source_channels + 1) / widest) return false;
  return 1.7 * (nonzeros + 5.0 * places) < 1.0 * active_places * source_channels;
}

Status EntriesProduct(const EntriesProblem& given, const PlaceMap& map, const Tiles& tiles,
                      const EntryTiles& entries, TaskPool& pool) {
  const PlacesConv& p = given.problem;
  const Space& source_space = given.from_x ? p.x_space : p.y_space;
  const Space& target_space = given.from_x ? p.y_space : p.x_space;
  const int64_t channels = given.from_x ? p.in : p.out;
  const int64_t target_channels = given.from_x ? p.out : p.in;
  const int64_t taps = p.num_taps(), row_taps = p.kernel[2], tap_rows = taps / row_taps;
  const double numbers = static_cast<double>(p.batch * NumPlaces(source_space) * channels);
  const Pass pass =
      PassFor(p, given.nonzeros / std::max(1.0, numbers), channels, target_channels, entries);
  const int64_t width = pass.vectors * entries.lanes, strips = CeilDiv(target_channels, width);
  const int64_t weight_bytes = width * entries.sum_bytes;
  const int64_t blocks = CeilDiv(channels, pass.channels);

  // panel [strip][row of taps][tap of the row][channel][width], and [width] zeros after each row
  const int64_t tap_bytes = channels * weight_bytes;
  const int64_t row_bytes = row_taps * tap_bytes + weight_bytes, strip_bytes = tap_rows * row_bytes;
  char* panel = static_cast<char*>(Scratch(ScratchUse::kPanel, strips * strip_bytes));
  for (int64_t row = 1; row <= strips * tap_rows; ++row)
    std::memset(panel + row * row_bytes - weight_bytes, 0, weight_bytes);
  const bool is_transposed = given.from_x == p.mirrored;
  const char* w = static_cast<const char*>(p.w) +
                  p.w_group[given.group] * taps * p.depth() * p.channels() * tiles.item_bytes;
  Status status =
      ParallelFor(PoolForWork(pool, 0, 2.0 * strips * strip_bytes), taps, [&](int64_t tap) {
        const int64_t stored_tap = p.mirrored ? taps - 1 - tap : tap;
        ColumnPanel from = {};
        from.source_stride = p.channels();
        from.depth = channels;
        from.width = width;
        char* to = panel + tap / row_taps * row_bytes + tap % row_taps * tap_bytes;
        const char* tap_weights = w + stored_tap * p.depth() * p.channels() * tiles.item_bytes;
        if (!is_transposed) {
          from.source = tap_weights;
          from.cols = target_channels;
          from.parts = strips;
          from.part_stride = strip_bytes / entries.sum_bytes;
          from.panel = to;
          entries.pack_columns(from);
          return;
        }
        for (int64_t strip = 0; strip < strips; ++strip) {
          from.source = tap_weights + strip * width * p.channels() * tiles.item_bytes;
          from.cols = std::min(width, target_channels - strip * width);
          from.panel = to + strip * strip_bytes;
          entries.pack_transposed(from);
        }
      });
  if (!status.ok()) return status;

  const int64_t row_width = target_space[2], source_width = source_space[2];
  const int64_t rows_per_image = target_space[0] * target_space[1];
  const int64_t rows_per_piece = std::clamp<int64_t>(
      kPlacesPerPiece / std::max<int64_t>(1, row_width), 1, std::max<int64_t>(1, rows_per_image));
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
        const int64_t z = map.SourceOf(0, at[0], row / target_space[1]);
        const int64_t y = map.SourceOf(1, at[1], row % target_space[1]);
        if (z < 0 || y < 0) continue;
        int32_t& its = slot[z * source_space[1] + y];
        if (its < 0) {
          its = static_cast<int32_t>(row_of.size());
          row_of.push_back(z * source_space[1] + y);
        }
        seen[(row - begin) * tap_rows + tap_row] = its;
      }

    const int32_t* nonzeros =
        given.counts + image * source_space[0] * source_space[1] * source_width;
    // Room for every channel of an active place: a tangent has other zeros than the input whose
    // nonzeros are counted.
    int64_t room = kEntriesBeyond;
    for (const int64_t row : row_of)
      for (int64_t i = 0; i < source_width; ++i) room += nonzeros[row * source_width + i] > 0;
    const int64_t joined_room = room * (pass.channels + 1) * row_taps;
    const int64_t num_rows = static_cast<int64_t>(row_of.size());
    Memory memory(num_rows * (row_width + 1), joined_room, source_width + 1,
                  source_width * pass.channels + kEntriesBeyond, entries.sum_bytes);
    std::vector<EntrySegment> segments(pass.tap_rows);

    char* result = given.target + (image * rows_per_image + begin) * row_width * target_channels *
                                      tiles.item_bytes;
    char* sums = result;
    if (!tiles.sums_are_stored)
      sums = static_cast<char*>(
          Scratch(ScratchUse::kPieceSums,
                  (end - begin) * row_width * target_channels * entries.sum_bytes + 64));
    for (int64_t b = 0; b < blocks; ++b) {
      EntryLists list = {};
      list.source_stride = channels;
      list.places = source_width;
      list.channels = std::min(pass.channels, channels - b * pass.channels);
      list.weight_bytes = weight_bytes;
      list.lists = memory.lists;
      EntryJoin join = {memory.lists, map.SourcesOfRow(),
                        row_taps,     row_width,
                        tap_bytes,    row_taps * tap_bytes - b * pass.channels * weight_bytes,
                        memory.joined};
      join.joined.begins[0] = 0;
      for (int64_t its = 0; its < num_rows; ++its) {
        const int64_t place = row_of[its] * source_width;
        const int64_t first = (image * source_space[0] * source_space[1] * source_width + place);
        list.source = given.source + (first * channels + b * pass.channels) * tiles.item_bytes;
        list.nonzeros = nonzeros + place;
        list.lists.begins[0] = 0;
        entries.list(list);
        entries.join(join);
        const int64_t end = join.joined.begins[row_width];
        join.joined.begins += row_width + 1;
        if (its + 1 < num_rows) join.joined.begins[0] = end;
      }
      for (int64_t strip = 0; strip < strips; strip += pass.strips)
        for (int64_t tap_row = 0; tap_row < tap_rows; tap_row += pass.tap_rows)
          for (int64_t row = begin; row < end; ++row) {
            EntryRow product = {};
            product.values = memory.joined.values;
            product.offsets = memory.joined.offsets;
            product.accumulate = b > 0 || tap_row > 0;
            for (int64_t r = tap_row; r < tap_row + pass.tap_rows; ++r) {
              const int64_t its = seen[(row - begin) * tap_rows + r];
              if (its >= 0)
                segments[product.num_segments++] = {memory.joined.begins + its * (row_width + 1),
                                                    r * row_bytes};
            }
            if (product.num_segments == 0 && product.accumulate) continue;
            product.segments = segments.data();
            product.targets = row_width;
            product.weights = panel + strip * strip_bytes + b * pass.channels * weight_bytes;
            product.strips = pass.strips;
            product.strip_bytes = strip_bytes;
            product.vectors = pass.vectors;
            product.cols = target_channels - strip * width;
            product.sums = sums + ((row - begin) * row_width * target_channels + strip * width) *
                                      entries.sum_bytes;
            product.sums_stride = target_channels;
            entries.row(product);
          }
    }
    if (!tiles.sums_are_stored)
      tiles.store({sums, target_channels, (end - begin) * row_width, target_channels, result,
                   target_channels});
  });
}

}  // namespace jaxsparse::cpu
