// The three roles of a block-sparse product, for any instruction set and dtype: patterns, panels,
// threads and memory. The arithmetic is in the tiles.
#pragma once
#include "core/block_matmul.h"
#include "core/status.h"
#include "core/task_pool.h"
#include "cpu/tiles.h"

namespace jaxsparse::cpu {

Status BlockForward(const BlockMatmul& problem, const TilesByWidth& tiles, TaskPool& pool);
Status BlockInputGrad(const BlockMatmul& problem, const TilesByWidth& tiles, TaskPool& pool);
Status BlockWeightGrad(const BlockMatmul& problem, const TilesByWidth& tiles, TaskPool& pool);

}  // namespace jaxsparse::cpu
