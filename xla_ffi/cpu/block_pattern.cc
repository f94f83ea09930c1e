#include "cpu/block_pattern.h"

#include <algorithm>
#include <cstdint>
#include <string>

namespace jaxsparse::cpu {
namespace {

// What jaxsparse/patterns/make.py puts into a pattern made in jit that has not room enough.
constexpr int64_t kLostBlocks = INT32_MIN;

std::string Place(int64_t block, int32_t row, int32_t col) {
  return "block " + std::to_string(block) + " at (row " + std::to_string(row) + ", column " +
         std::to_string(col) + ")";
}

// Whether `count` used places are in the grid and strictly in order, and the others are unused. No
// branches in the loop: it is what every call pays.
bool IsValid(const int32_t* rows, const int32_t* cols, int64_t count, int64_t capacity,
             int32_t grid_rows, int32_t grid_cols) {
  int32_t wrong = count > 0 && ((rows[0] < 0) | (rows[0] >= grid_rows) | (cols[0] < 0));
  for (int64_t k = 1; k < count; ++k) {
    const int32_t row = rows[k], col = cols[k], last_row = rows[k - 1], last_col = cols[k - 1];
    wrong |= (row < 0) | (row >= grid_rows) | (col >= grid_cols) | (col < last_col) |
             ((col == last_col) & (row <= last_row));
  }
  for (int64_t k = count; k < capacity; ++k) wrong |= cols[k] != grid_cols;
  return wrong == 0;
}

// What is wrong with a pattern that is not valid.
Status FirstMistake(const int32_t* rows, const int32_t* cols, int64_t capacity, int64_t grid_rows,
                    int64_t grid_cols) {
  int64_t last_row = -1, last_col = -1;
  for (int64_t k = 0; k < capacity; ++k) {
    const int64_t row = rows[k], col = cols[k];
    const bool unused = col == grid_cols;
    if (col == kLostBlocks) {
      return Status::InvalidArgument(
          "the pattern lost blocks when it was made, for its capacity was too small; make it with "
          "a larger capacity");
    }
    if (!unused && (col < 0 || col > grid_cols || row < 0 || row >= grid_rows)) {
      return Status::InvalidArgument(Place(k, rows[k], cols[k]) + " lies outside the grid of " +
                                     std::to_string(grid_rows) + " x " + std::to_string(grid_cols) +
                                     " blocks");
    }
    if (col < last_col || (col == last_col && row <= last_row && !unused)) {
      return Status::InvalidArgument(
          "blocks must be in order of column, then row, without repeats; " +
          Place(k, rows[k], cols[k]) + " comes after " +
          (last_col == grid_cols ? "an unused place" : Place(k - 1, rows[k - 1], cols[k - 1])));
    }
    last_row = row;
    last_col = col;
  }
  return Status::InvalidArgument("its grid has more rows or columns than an index can count");
}

}  // namespace

Status BlockPattern::Check(const BlockMatmul& problem, int64_t pattern_group) {
  const int32_t* rows = problem.rows + pattern_group * problem.capacity;
  const int32_t* cols = problem.cols + pattern_group * problem.capacity;
  const int64_t grid_rows = problem.grid_rows(), grid_cols = problem.grid_cols();
  // In a valid pattern, columns ascend; in any other, this is some number that fits.
  const int64_t count = std::lower_bound(cols, cols + problem.capacity, grid_cols) - cols;
  const auto fits = [](int64_t size) {  // no index is larger
    return static_cast<int32_t>(std::min<int64_t>(size, INT32_MAX));
  };
  if (!IsValid(rows, cols, count, problem.capacity, fits(grid_rows), fits(grid_cols))) {
    return FirstMistake(rows, cols, problem.capacity, grid_rows, grid_cols);
  }
  std::vector<int64_t>& starts = by_column_.starts;
  starts.resize(grid_cols + 1);
  int64_t k = 0;
  for (int64_t col = 0; col < grid_cols; ++col) {
    starts[col] = k;
    while (k < count && cols[k] == col) ++k;
  }
  starts[grid_cols] = k;
  by_column_.inner = rows;
  by_column_.positions = nullptr;
  grid_rows_ = grid_rows;
  cols_ = cols;
  return {};
}

const BlockOrder& BlockPattern::by_row() {
  if (!by_row_.starts.empty()) return by_row_;
  const int64_t num_blocks = by_column_.num_blocks();
  const int32_t* rows = by_column_.inner;
  std::vector<int64_t> starts(grid_rows_ + 1, 0);
  row_inner_.resize(num_blocks);
  row_positions_.resize(num_blocks);
  // Counting sort: columns stay in order within a row.
  for (int64_t k = 0; k < num_blocks; ++k) ++starts[rows[k] + 1];
  for (int64_t row = 0; row < grid_rows_; ++row) starts[row + 1] += starts[row];
  std::vector<int64_t> next(starts.begin(), starts.end() - 1);
  for (int64_t k = 0; k < num_blocks; ++k) {
    const int64_t at = next[rows[k]]++;
    row_inner_[at] = cols_[k];
    row_positions_[at] = k;
  }
  by_row_.inner = row_inner_.data();
  by_row_.positions = row_positions_.data();
  by_row_.starts = std::move(starts);
  return by_row_;
}

Status CheckPatterns(const BlockMatmul& problem, std::vector<BlockPattern>* patterns) {
  if (problem.block_in <= 0 || problem.block_out <= 0) {
    return Status::InvalidArgument("blocks must not be empty, got blocks of " +
                                   std::to_string(problem.block_in) + " x " +
                                   std::to_string(problem.block_out));
  }
  int64_t num_patterns = 0;
  for (const int64_t group : problem.pattern_group) {
    num_patterns = std::max(num_patterns, group + 1);
  }
  patterns->resize(num_patterns);
  std::vector<bool> checked(num_patterns, false);
  for (const int64_t group : problem.pattern_group) {
    if (checked[group]) continue;
    checked[group] = true;
    Status status = (*patterns)[group].Check(problem, group);
    if (!status.ok()) return status;
  }
  return {};
}

}  // namespace jaxsparse::cpu
