// How a result is cut for the tiles: strips of vectors inside its block columns, chunks of strips
// whose weights fit the cache, and panels of rows.
#pragma once
#include <cstdint>
#include <vector>

#include "cpu/block_pattern.h"
#include "cpu/ceil_div.h"
#include "cpu/tiles.h"

namespace jaxsparse::cpu {

// The strips of `lines` blocks of `block_width` results each, `width` results in all.
struct Strips {
  Strips(int64_t lanes, int64_t block_width, int64_t width)
      : block_width(block_width),
        width(width),
        // Two vectors per strip load less than one, but the last strip of a block of an odd number
        // of vectors would be half empty.
        vectors(CeilDiv(block_width, lanes) % 2 == 0 ? 2 : 1),
        items(vectors * lanes),
        per_block(CeilDiv(block_width, items)),
        count(CeilDiv(width, block_width) * per_block) {}

  int64_t block_width, width;
  int64_t vectors, items;  // of a strip
  int64_t per_block, count;

  int64_t line(int64_t strip) const { return strip / per_block; }
  int64_t offset(int64_t strip) const { return strip % per_block * items; }  // in the block
  int64_t begin(int64_t strip) const { return line(strip) * block_width + offset(strip); }
  // Results of the strip that exist; none where the strip lies over the edge.
  int64_t cols(int64_t strip) const;
};

// Cuts [0, strips.count) where a chunk would exceed `chunk_bytes` of `strip_block_bytes` per block
// and strip, or `chunk_strips`. The result has one number more than there are chunks.
std::vector<int64_t> ChunkStrips(const Strips& strips, const BlockOrder& order,
                                 int64_t strip_block_bytes, int64_t chunk_bytes,
                                 int64_t chunk_strips);

// `rows` in tiles of nearly equal size, at most `max_rows`.
struct RowTiles {
  RowTiles(int64_t rows, int64_t max_rows) : rows(rows), count(CeilDiv(rows, max_rows)) {}

  int64_t rows, count;

  int64_t begin(int64_t tile) const { return tile * rows / count; }
  int64_t size(int64_t tile) const { return begin(tile + 1) - begin(tile); }
};

}  // namespace jaxsparse::cpu
