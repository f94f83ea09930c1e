#include "cpu/strip_panel.h"

#include <algorithm>

#include "cpu/ceil_div.h"
#include "cpu/parallel_for.h"
#include "cpu/scratch.h"

namespace jaxsparse::cpu {

Status PackStrips(const PlacesConv& p, int64_t group, bool from_x, int64_t width,
                  const StripPacking& packing, TaskPool& pool, StripPanel* result) {
  StripPanel& panel = *result;
  panel.feature_groups = p.feature_groups;
  panel.taps = p.num_taps();
  panel.source_channels = (from_x ? p.in : p.out) / p.feature_groups;
  panel.target_channels = (from_x ? p.out : p.in) / p.feature_groups;
  panel.width = width;
  panel.strips = CeilDiv(panel.target_channels, width);
  panel.words = CeilDiv(panel.source_channels, packing.items_per_word);
  panel.word_bytes = packing.word_bytes;
  const int64_t bytes = panel.feature_groups * panel.strips * panel.strip_bytes();
  panel.data = static_cast<char*>(Scratch(ScratchUse::kPanel, std::max(packing.word_bytes, bytes)));
  // The depth of a stored weight is the side that it reads: x's, or y's where it is mirrored.
  const bool is_transposed = from_x == p.mirrored;
  const int64_t per_group = p.channels() / p.feature_groups;
  const char* w = static_cast<const char*>(p.w) +
                  p.w_group[group] * panel.taps * p.depth() * p.channels() * packing.item_bytes;
  TaskPool& worth = PoolForWork(pool, 0, 2.0 * bytes);
  return ParallelFor(worth, panel.feature_groups * panel.taps, [&](int64_t piece) {
    const int64_t feature_group = piece / panel.taps, tap = piece % panel.taps;
    const int64_t stored_tap = p.stored_tap(tap);
    ColumnPanel from = {};
    from.source_stride = p.channels();
    from.depth = panel.source_channels;
    from.width = width;
    const char* tap_weights =
        w +
        (stored_tap * p.depth() * p.channels() + feature_group * per_group) * packing.item_bytes;
    if (!is_transposed) {
      from.source = tap_weights;
      from.cols = panel.target_channels;
      from.parts = panel.strips;
      from.part_stride = panel.taps * panel.tap_words();
      from.panel = panel.At(feature_group, 0, tap);
      packing.columns(from);
      return;
    }
    for (int64_t strip = 0; strip < panel.strips; ++strip) {
      from.source = tap_weights + strip * width * p.channels() * packing.item_bytes;
      from.cols = std::min(width, panel.target_channels - strip * width);
      from.panel = panel.At(feature_group, strip, tap);
      packing.transposed(from);
    }
  });
}

}  // namespace jaxsparse::cpu
