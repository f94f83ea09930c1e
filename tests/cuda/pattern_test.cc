// What kernels derive from a pattern for the products: lines from the longest on, blocks by row.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <random>
#include <vector>

#include "cuda/block/pattern-inl.h"

namespace jaxsparse::cuda {
namespace {

struct Derived {
  std::vector<int32_t> start, heaviest, by_row;
};

// Blocks at random places of a grid, more of them in some lines than in others; three places
// unused.
struct Grid {
  int rows, cols;
  std::vector<int32_t> block_rows, block_cols;

  Grid(int rows, int cols) : rows(rows), cols(cols) {
    std::mt19937 random(3);
    for (int j = 0; j < cols; ++j) {
      for (int i = 0; i < rows; ++i) {
        if (static_cast<int>(random() % 64) >= i % 8 * (j % 5)) continue;
        block_rows.push_back(i);
        block_cols.push_back(j);
      }
    }
    for (int k = 0; k < 3; ++k) block_rows.push_back(0), block_cols.push_back(cols);
  }

  // By the kernels that a pass launches: in one for the input gradient, where `at_once`.
  Derived Derive(bool is_input_grad, bool at_once, uint32_t seed) const {
    PatternArrays args{};
    args.rows = block_rows.data();
    args.cols = block_cols.data();
    args.capacity = static_cast<int32_t>(block_rows.size());
    args.grid_rows = rows;
    args.grid_cols = cols;
    int64_t words = 1;
    for (const auto& [first, size] : {std::pair{&args.column_start, cols + 2},
                                      {&args.row_start, rows + 1},
                                      {&args.by_row, args.capacity},
                                      {&args.arrival, args.capacity},
                                      {&args.slot, args.capacity},
                                      {&args.bucket, kBuckets + 1},
                                      {&args.heaviest, std::max(rows, cols)}}) {
      *first = words;
      words += size;
    }
    std::vector<int32_t> scratch(words, -1);
    args.words = scratch.data();
    args.words_per_pattern = words;
    const int64_t row_start = args.row_start;
    if (!is_input_grad) args.row_start = 0;

    Machine machine(Timing::kLazy, seed);
    const size_t bytes = block_rows.size() * sizeof(int32_t);
    machine.Allow(block_rows.data(), bytes, Machine::Access::kRead);
    machine.Allow(block_cols.data(), bytes, Machine::Access::kRead);
    machine.Allow(scratch.data(), words * sizeof(int32_t), Machine::Access::kWrite);
    const GridSize per_block{(args.capacity + 255) / 256, 1, 1};
    if (at_once) {
      machine.Run<PreparePattern>(args, {});
    } else {
      machine.Run<CheckPattern>(args, {});
    }
    if (is_input_grad && !at_once) {
      machine.Run<CountRows>(args, per_block);
      machine.Run<SumCounts>(args, {});
      machine.Run<ListArrivals>(args, per_block);
      machine.Run<OrderArrivals>(args, per_block);
    }
    const auto take = [&](int64_t first, int64_t size) {
      return std::vector<int32_t>(scratch.begin() + first, scratch.begin() + first + size);
    };
    const int lines = is_input_grad ? rows : cols;
    return {take(is_input_grad ? row_start : args.column_start, lines + 1),
            take(args.heaviest, lines), take(args.by_row, args.capacity - 3)};
  }
};

TEST_CASE("lines come from the longest on, each once") {
  for (const auto& [rows, cols] : {std::pair{40, 30}, {3, 1100}, {1100, 3}, {1, 1}}) {
    const Grid grid(rows, cols);
    for (const bool is_input_grad : {false, true}) {
      for (const bool at_once : {false, true}) {
        if (at_once && !is_input_grad) continue;
        const Derived derived = grid.Derive(is_input_grad, at_once, 1);
        std::vector<int32_t> lines = derived.heaviest;
        for (size_t i = 1; i < lines.size(); ++i) {
          const auto length = [&](int line) {
            return derived.start[line + 1] - derived.start[line];
          };
          CHECK(length(lines[i - 1]) >= length(lines[i]));
        }
        std::sort(lines.begin(), lines.end());
        for (size_t i = 0; i < lines.size(); ++i) CHECK(lines[i] == static_cast<int>(i));
      }
    }
  }
}

TEST_CASE("blocks by row are the same in one launch and in several, in any order of threads") {
  const Grid grid(70, 90);
  const Derived once = grid.Derive(true, true, 1);
  for (uint32_t seed = 1; seed <= 3; ++seed) {
    for (const bool at_once : {false, true}) {
      const Derived other = grid.Derive(true, at_once, seed);
      CHECK(other.start == once.start);
      CHECK(other.by_row == once.by_row);
    }
  }
  for (size_t i = 1; i < once.by_row.size(); ++i) {
    const auto place = [&](size_t k) {
      return std::pair(grid.block_rows[once.by_row[k]], grid.block_cols[once.by_row[k]]);
    };
    CHECK(place(i - 1) < place(i));
  }
}

}  // namespace
}  // namespace jaxsparse::cuda
