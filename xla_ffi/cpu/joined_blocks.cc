#include "cpu/joined_blocks.h"

#include <algorithm>

#include "cpu/strips.h"

namespace jaxsparse::cpu {
namespace {

// Blocks less deep than this also spend their time on starting: 8 x 8 took 1.4 times as long as its
// width explains. In items.
constexpr int64_t kDeepEnough = 16;
// What a strip of one vector takes over half of what one of two takes, in eighths: 28 rows by one
// vector reach 87 % of the speed of 14 by two.
constexpr int64_t kNarrowEighths = 9;
constexpr int64_t kNarrowAndShallowEighths = 14;
// With fewer rows, joining the blocks costs more than it gains: of blocks of one vector, and of
// those narrower still.
constexpr int64_t kMinRows = 128, kMinRowsOfNarrow = 32;

}  // namespace

std::optional<JoinedBlocks> JoinBlocks(const BlockOrder& order, int64_t num_inner,
                                       int64_t line_width, int64_t inner_depth, int64_t batch,
                                       int64_t lanes) {
  constexpr int64_t kVectors = 2;
  if (line_width > lanes || kVectors * lanes % line_width != 0) return std::nullopt;
  if (batch < (line_width < lanes ? kMinRowsOfNarrow : kMinRows)) return std::nullopt;
  // Joined at random, fewer than these never fill enough of a block.
  if (4 * order.num_blocks() < order.num_lines() * num_inner) return std::nullopt;

  JoinedBlocks joined;
  joined.line_parts = kVectors * lanes / line_width;
  joined.inner_parts =
      inner_depth < kDeepEnough && kDeepEnough % inner_depth == 0 ? kDeepEnough / inner_depth : 1;
  const int64_t parts = joined.line_parts * joined.inner_parts;
  const int64_t num_lines = CeilDiv(order.num_lines(), joined.line_parts);
  const int64_t joined_inner = CeilDiv(num_inner, joined.inner_parts);
  // In depths of a block times vectors.
  const int64_t eighths = joined.inner_parts > 1 ? kNarrowAndShallowEighths : kNarrowEighths;
  const int64_t most = order.num_blocks() * eighths / (8 * joined.inner_parts * kVectors);

  joined.order.starts.assign(num_lines + 1, 0);
  std::vector<int64_t> place(joined_inner);  // of each joined block of a line, or -1
  for (int64_t line = 0; line < num_lines; ++line) {
    const int64_t first = line * joined.line_parts;
    const int64_t last = std::min(first + joined.line_parts, order.num_lines());
    std::fill(place.begin(), place.end(), -1);
    for (int64_t k = order.starts[first]; k < order.starts[last]; ++k) {
      place[order.inner[k] / joined.inner_parts] = 0;
    }
    for (int64_t inner = 0; inner < joined_inner; ++inner) {
      if (place[inner] < 0) continue;
      place[inner] = static_cast<int64_t>(joined.inner.size());
      joined.inner.push_back(static_cast<int32_t>(inner));
    }
    const int64_t count = static_cast<int64_t>(joined.inner.size());
    if (count > most) return std::nullopt;
    joined.order.starts[line + 1] = count;
    joined.positions.resize(count * parts, -1);
    for (int64_t part = first; part < last; ++part) {
      for (int64_t k = order.starts[part]; k < order.starts[part + 1]; ++k) {
        const int64_t inner = order.inner[k];
        const int64_t at = place[inner / joined.inner_parts] * parts +
                           (part - first) * joined.inner_parts + inner % joined.inner_parts;
        joined.positions[at] = order.positions == nullptr ? k : order.positions[k];
      }
    }
  }
  joined.order.inner = joined.inner.data();
  joined.order.positions = nullptr;
  return joined;
}

}  // namespace jaxsparse::cpu
