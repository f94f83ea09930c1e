#include "cpu/strips.h"

#include <algorithm>

namespace jaxsparse::cpu {

int64_t Strips::cols(int64_t strip) const {
  const int64_t in_block = std::min(items, block_width - offset(strip));
  return std::clamp<int64_t>(width - begin(strip), 0, in_block);
}

std::vector<int64_t> ChunkStrips(const Strips& strips, const BlockOrder& order,
                                 int64_t strip_block_bytes, int64_t chunk_bytes,
                                 int64_t chunk_strips) {
  std::vector<int64_t> bounds = {0};
  int64_t bytes = 0;
  for (int64_t strip = 0; strip < strips.count; ++strip) {
    const int64_t line = strips.line(strip);
    const int64_t more = (order.starts[line + 1] - order.starts[line]) * strip_block_bytes;
    const bool full = bytes + more > chunk_bytes || strip - bounds.back() >= chunk_strips;
    if (full && strip > bounds.back()) {
      bounds.push_back(strip);
      bytes = 0;
    }
    bytes += more;
  }
  bounds.push_back(strips.count);
  return bounds;
}

}  // namespace jaxsparse::cpu
