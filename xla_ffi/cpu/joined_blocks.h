// Small blocks, joined to larger ones. A block narrower than two vectors leaves registers or lanes
// idle; where nearly all blocks are stored, multiplying the few that are not, as zeros, costs less.
#pragma once
#include <cstdint>
#include <optional>
#include <vector>

#include "cpu/block_pattern.h"

namespace jaxsparse::cpu {

struct JoinedBlocks {
  int64_t line_parts, inner_parts;  // blocks of a joined one, along the lines and across them
  BlockOrder order;                 // of the joined blocks; its `positions` is null
  // [joined blocks][line_parts][inner_parts]: where the values of each part are, or -1.
  std::vector<int64_t> positions;
  std::vector<int32_t> inner;

  const int64_t* parts(int64_t joined) const {
    return positions.data() + joined * line_parts * inner_parts;
  }
};

// `order`, of blocks of `line_width` results and `inner_depth` of the other axis in a grid of
// `num_inner` across, joined to blocks of two vectors for a product of `batch` rows; nothing where
// that costs more than it gains.
std::optional<JoinedBlocks> JoinBlocks(const BlockOrder& order, int64_t num_inner,
                                       int64_t line_width, int64_t inner_depth, int64_t batch,
                                       int64_t lanes);

}  // namespace jaxsparse::cpu
