#include "cpu/joined_blocks.h"

#include <doctest/doctest.h>

#include <vector>

namespace jaxsparse::testing {
namespace {

constexpr int64_t kLanes = 16;

// Lines of blocks, each with those of its `inner` that are listed.
struct Lines {
  explicit Lines(const std::vector<std::vector<int32_t>>& lines) {
    order.starts = {0};
    for (const std::vector<int32_t>& line : lines) {
      inner.insert(inner.end(), line.begin(), line.end());
      order.starts.push_back(static_cast<int64_t>(inner.size()));
    }
    order.inner = inner.data();
    order.positions = nullptr;
  }
  std::vector<int32_t> inner;
  cpu::BlockOrder order;
};

TEST_CASE("pairs of columns of 16 are joined to blocks of two vectors, missing ones marked") {
  const Lines lines({{0, 1, 2, 3}, {0, 2, 3}, {0, 1, 2, 3}, {0, 1, 2, 3}});
  const auto joined = cpu::JoinBlocks(lines.order, 4, 16, 16, 512, kLanes);
  REQUIRE(joined);
  CHECK(joined->line_parts == 2);
  CHECK(joined->inner_parts == 1);
  CHECK(joined->order.starts == std::vector<int64_t>{0, 4, 8});
  CHECK(joined->inner == std::vector<int32_t>{0, 1, 2, 3, 0, 1, 2, 3});
  CHECK(joined->positions ==
        std::vector<int64_t>{0, 4, 1, -1, 2, 5, 3, 6, 7, 11, 8, 12, 9, 13, 10, 14});
}

TEST_CASE("shallow blocks are joined along both axes") {
  const Lines lines({{0, 1, 2}, {0, 1, 2}, {0, 1, 2}, {0, 1, 2}});
  const auto joined = cpu::JoinBlocks(lines.order, 3, 8, 8, 512, kLanes);
  REQUIRE(joined);
  CHECK(joined->line_parts == 4);
  CHECK(joined->inner_parts == 2);
  CHECK(joined->inner == std::vector<int32_t>{0, 1});
  CHECK(joined->positions ==
        std::vector<int64_t>{0, 1, 3, 4, 6, 7, 9, 10, 2, -1, 5, -1, 8, -1, 11, -1});
}

TEST_CASE("positions of the blocks are kept") {
  Lines lines({{0, 1}, {0, 1}});
  const std::vector<int64_t> positions = {7, 5, 6, 4};
  lines.order.positions = positions.data();
  const auto joined = cpu::JoinBlocks(lines.order, 2, 16, 16, 512, kLanes);
  REQUIRE(joined);
  CHECK(joined->positions == std::vector<int64_t>{7, 6, 5, 4});
}

TEST_CASE("blocks are not joined where that would cost more") {
  const Lines full({{0, 1}, {0, 1}}), sparse({{0}, {1}, {2}, {3}}), empty({{}, {}});
  CHECK(cpu::JoinBlocks(full.order, 2, 16, 16, 512, kLanes));
  CHECK_FALSE(cpu::JoinBlocks(full.order, 2, 16, 16, 16, kLanes));   // few rows
  CHECK_FALSE(cpu::JoinBlocks(full.order, 2, 32, 16, 512, kLanes));  // wide enough
  CHECK_FALSE(cpu::JoinBlocks(full.order, 2, 12, 16, 512, kLanes));  // does not divide
  CHECK_FALSE(cpu::JoinBlocks(sparse.order, 4, 16, 16, 512, kLanes));
  CHECK_FALSE(cpu::JoinBlocks(empty.order, 4, 16, 16, 512, kLanes));
}

}  // namespace
}  // namespace jaxsparse::testing
