// How a convolution is cut into lanes, tiles and blocks of channels: a pure function of sizes.
#pragma once
#include <cstdint>
#include <vector>

#include "core/sparse_conv.h"
#include "cpu/lane_tiles.h"

namespace jaxsparse::cpu {

struct LaneGeometry {
  Space tile = {1, 1, 1};            // a multiple of the register tile
  const LaneShape* shape = nullptr;  // the register tile: rows x cols of the last two axes
  int64_t block_channels = 1;        // source channels per segment
  int64_t part_columns = 1;          // of `shape->values` rows each, per part
};

// What the choice depends on.
struct GeometrySizes {
  int64_t images = 1;       // and classes of dilation, in which lanes may lie
  Space space = {1, 1, 1};  // places of a result plane
  std::vector<Space>
      spans;  // of every plane of the source: places that a tile reads beyond its own
  int64_t source_channels = 1;
  int64_t group_channels = 1;  // those that one result reads
  int64_t columns = 1;         // of all result phases
  int64_t entries = 1;         // at most, of all columns
  int64_t values = 1;          // per entry
  int64_t lanes = 1, sum_bytes = 4;
  int64_t num_threads = 1;
  bool dots = false;  // a weight gradient: entries are results, not operands
};

LaneGeometry ChooseGeometry(const GeometrySizes& sizes, const LaneShape* shapes,
                            int64_t num_shapes);

}  // namespace jaxsparse::cpu
