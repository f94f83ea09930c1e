#include "cpu/entries_conv.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "cpu/ceil_div.h"
#include "cpu/parallel_for.h"
#include "cpu/scratch.h"

namespace jaxsparse::cpu {
namespace {

// The weights of a block of channels for the taps of a row stay in L1 beside the lists.
constexpr int64_t kWeightsInL1 = 36 << 10;
// Targets of a piece: their sums and the lists of their sources stay in L2.
constexpr int64_t kPlacesPerPiece = 512;

int64_t VectorsFor(int64_t channels, int64_t lanes) {
  const int64_t vectors = CeilDiv(channels, lanes);
  if (vectors % 8 == 0) return 8;
  return vectors > 2 ? 4 : vectors;
}

}  // namespace

bool EntriesPay(int64_t nonzeros, int64_t active_places, int64_t places, int64_t source_channels,
                int64_t target_channels, const EntryTiles& tiles) {
  // Rows of channels run at 65 % of peak and lists at 45 %, and a list costs a missed branch, some
  // six multiplications: measured with 64 to 256 channels.
  if (target_channels < 2 * tiles.lanes || source_channels < 16) return false;
  return 1.5 * (nonzeros + 6.0 * places) < 1.0 * active_places * source_channels;
}

Status EntriesProduct(const EntriesProblem& given, const PlaceMap& map, const Tiles& tiles,
                      const EntryTiles& entries, TaskPool& pool) {
  const PlacesConv& p = given.problem;
  const Space& source_space = given.from_x ? p.x_space : p.y_space;
  const Space& target_space = given.from_x ? p.y_space : p.x_space;
  const int64_t channels = given.from_x ? p.in : p.out;
  const int64_t target_channels = given.from_x ? p.out : p.in;
  const int64_t taps = p.num_taps(), row_taps = p.kernel[2], tap_rows = taps / row_taps;
  const int64_t vectors = VectorsFor(target_channels, entries.lanes);
  const int64_t width = vectors * entries.lanes, strips = CeilDiv(target_channels, width);
  const int64_t weight_bytes = width * entries.sum_bytes;
  const int64_t fits = kWeightsInL1 / (row_taps * weight_bytes) / 16 * 16;
  const int64_t block = std::min(channels, std::max<int64_t>(16, fits));
  const int64_t blocks = CeilDiv(channels, block);

  // panel [strip][tap][channel][width]
  const int64_t tap_bytes = channels * weight_bytes;
  char* panel = static_cast<char*>(Scratch(ScratchUse::kPanel, strips * taps * tap_bytes));
  const bool is_transposed = given.from_x == p.mirrored;
  const char* w = static_cast<const char*>(p.w) +
                  p.w_group[given.group] * taps * p.depth() * p.channels() * tiles.item_bytes;
  Status status =
      ParallelFor(PoolForWork(pool, 0, 2.0 * strips * taps * tap_bytes), taps, [&](int64_t tap) {
        const int64_t stored_tap = p.mirrored ? taps - 1 - tap : tap;
        ColumnPanel from = {};
        from.source_stride = p.channels();
        from.depth = channels;
        from.width = width;
        const char* tap_weights = w + stored_tap * p.depth() * p.channels() * tiles.item_bytes;
        if (!is_transposed) {
          from.source = tap_weights;
          from.cols = target_channels;
          from.parts = strips;
          from.part_stride = taps * tap_bytes / entries.sum_bytes;
          from.panel = panel + tap * tap_bytes;
          entries.pack_columns(from);
          return;
        }
        for (int64_t strip = 0; strip < strips; ++strip) {
          from.source = tap_weights + strip * width * p.channels() * tiles.item_bytes;
          from.cols = std::min(width, target_channels - strip * width);
          from.panel = panel + (strip * taps + tap) * tap_bytes;
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
    int64_t num_rows = 0;
    for (int64_t row = begin; row < end; ++row)
      for (int64_t tap_row = 0; tap_row < tap_rows; ++tap_row) {
        const Space at = map.Tap(tap_row * row_taps);
        const int64_t z = map.SourceOf(0, at[0], row / target_space[1]);
        const int64_t y = map.SourceOf(1, at[1], row % target_space[1]);
        if (z < 0 || y < 0) continue;
        int32_t& its = slot[z * source_space[1] + y];
        if (its < 0) its = static_cast<int32_t>(num_rows++);
        seen[(row - begin) * tap_rows + tap_row] = its;
      }

    const int64_t lists = num_rows * source_width, stride = block + kEntriesBeyond;
    const int64_t list_bytes = stride * (entries.sum_bytes + 4) + 4;
    char* memory = static_cast<char*>(
        Scratch(ScratchUse::kPieceWeights, std::max<int64_t>(1, lists) * list_bytes + 64));
    char* values = memory;
    auto* offsets = reinterpret_cast<int32_t*>(memory + lists * stride * entries.sum_bytes);
    int32_t* counts = offsets + lists * stride;

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
      list.channels = std::min(block, channels - b * block);
      list.weight_bytes = weight_bytes;
      list.list_stride = stride;
      for (size_t row = 0; row < slot.size(); ++row) {
        if (slot[row] < 0) continue;
        const int64_t first = slot[row] * source_width;
        list.source = given.source +
                      (((image * source_space[0] * source_space[1] + static_cast<int64_t>(row)) *
                        source_width * channels) +
                       b * block) *
                          tiles.item_bytes;
        list.nonzeros =
            given.counts +
            (image * source_space[0] * source_space[1] + static_cast<int64_t>(row)) * source_width;
        list.values = values + first * stride * entries.sum_bytes;
        list.offsets = offsets + first * stride;
        list.counts = counts + first;
        entries.list(list);
      }
      for (int64_t strip = 0; strip < strips; ++strip)
        for (int64_t tap_row = 0; tap_row < tap_rows; ++tap_row)
          for (int64_t row = begin; row < end; ++row) {
            const int64_t its = seen[(row - begin) * tap_rows + tap_row];
            const bool is_first = b == 0 && tap_row == 0;
            if (its < 0 && !is_first) continue;
            const int64_t first = std::max<int64_t>(0, its) * source_width;
            EntryRow product = {};
            product.values = values + first * stride * entries.sum_bytes;
            product.offsets = offsets + first * stride;
            product.counts = counts + first;
            product.list_stride = stride;
            product.source_of = map.SourcesOfRow();
            product.source_stride = row_width;
            product.targets = row_width;
            product.taps = its < 0 ? 0 : row_taps;
            product.weights =
                panel + (strip * taps + tap_row * row_taps) * tap_bytes + b * block * weight_bytes;
            product.weights_tap_bytes = tap_bytes;
            product.vectors = vectors;
            product.cols = std::min(width, target_channels - strip * width);
            product.sums = sums + ((row - begin) * row_width * target_channels + strip * width) *
                                      entries.sum_bytes;
            product.sums_stride = target_channels;
            product.accumulate = !is_first;
            entries.row(product);
          }
    }
    if (!tiles.sums_are_stored)
      tiles.store({sums, target_channels, (end - begin) * row_width, target_channels, result,
                   target_channels});
  });
}

}  // namespace jaxsparse::cpu
