// The places of the stored blocks, checked.
#pragma once
#include <cstdint>
#include <vector>

#include "core/block_matmul.h"
#include "core/status.h"

namespace jaxsparse::cpu {

// Stored blocks by block column, or by block row, of the weight.
struct BlockOrder {
  std::vector<int64_t> starts;  // [lines + 1]: the first block of each line
  const int32_t* inner;         // [blocks]: the row in a column's order, the column in a row's
  const int64_t* positions;     // [blocks]: where the values are; null where that is the index

  int64_t num_lines() const { return static_cast<int64_t>(starts.size()) - 1; }
  int64_t num_blocks() const { return starts.back(); }
};

// One pattern of a problem. Its rows and columns are unread data until Check has succeeded.
class BlockPattern {
 public:
  // Every block inside the grid, in order of (column, row) without repeats, unused places last.
  Status Check(const BlockMatmul& problem, int64_t pattern_group);

  // The order in which blocks are stored. Unused places are not in it.
  const BlockOrder& by_column() const { return by_column_; }
  // By row, built on the first call; not thread-safe.
  const BlockOrder& by_row();

 private:
  int64_t grid_rows_ = 0;
  const int32_t* cols_ = nullptr;
  BlockOrder by_column_;
  BlockOrder by_row_;
  std::vector<int32_t> row_inner_;
  std::vector<int64_t> row_positions_;
};

// The checked patterns of all groups of a problem, at the index of their pattern group. Also checks
// the problem's sizes. May throw std::bad_alloc.
Status CheckPatterns(const BlockMatmul& problem, std::vector<BlockPattern>* patterns);

}  // namespace jaxsparse::cpu
