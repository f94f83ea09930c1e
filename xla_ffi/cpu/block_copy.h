// Blocks of a dense matrix to and from their packed form. Plain copies, any element size.
//   gather    values[k] = dense[block k], entries over the edge of the matrix are zero
//   scatter   dense = zero, but for the blocks
#pragma once
#include <cstddef>

#include "core/block_matmul.h"
#include "core/status.h"
#include "core/task_pool.h"

namespace jaxsparse::cpu {

// Of `problem`, reads in, out, capacity, block sizes, rows, cols and, for the groups of the
// result, x_group (dense), w_group (values) and pattern_group; `x` is dense, `w` the values.
Status GatherBlocks(const BlockMatmul& problem, size_t item_bytes, TaskPool& pool);
Status ScatterBlocks(const BlockMatmul& problem, size_t item_bytes, TaskPool& pool);

}  // namespace jaxsparse::cpu
