#include <doctest/doctest.h>

#include <limits>
#include <vector>

#include "cpu/block_copy.h"
#include "cpu/kernel_table.h"
#include "cpu/parallel_for.h"
#include "problems.h"

namespace jaxsparse::testing {
namespace {

struct Place {
  int32_t row, col;
};

// A weight of 2 x 3 blocks of 16 x 32, whose last row and column reach over the edge.
const Shape kShape = {5, 30, 90, 16, 32, 1.0};

// What every kernel says of a pattern; one answer, or the answers joined.
std::string Answer(const std::vector<Place>& places) {
  std::string answer = "none";
  const auto collect = [&](const Status& status) {
    const std::string one = status.ok() ? "ok" : status.message;
    if (status.code == StatusCode::kOutOfMemory) answer += " (out of memory)";
    if (answer == "none") answer = one;
    if (answer != one) answer += " | " + one;
  };
  for (const Role role : kRoles) {
    for (const std::string& isa : cpu::RunnableIsas()) {
      Problem problem(kShape, role, DType::kF32, SmallIntegers(1));
      std::vector<int32_t> rows, cols;
      for (const Place& place : places) {
        rows.push_back(place.row);
        cols.push_back(place.col);
      }
      problem.args.rows = rows.data();
      problem.args.cols = cols.data();
      problem.args.capacity = static_cast<int64_t>(places.size());
      collect(problem.Run(*cpu::KernelsFor(isa), cpu::CallerOnly()));
      Array dense(DType::kF32, kShape.in * kShape.out);
      problem.args.x = dense.data();
      collect(cpu::GatherBlocks(problem.args, 4, cpu::CallerOnly()));
      collect(cpu::ScatterBlocks(problem.args, 4, cpu::CallerOnly()));
    }
  }
  return answer;
}

TEST_CASE("patterns in order are accepted, whatever unused places hold") {
  CHECK(Answer({}) == "ok");
  CHECK(Answer({{0, 0}}) == "ok");
  CHECK(Answer({{1, 2}, {-5, 3}}) == "ok");
  CHECK(Answer({{1, 0}, {0, 1}, {1, 1}, {0, 2}, {99, 3}, {0, 3}}) == "ok");
  CHECK(Answer({{7, 3}, {7, 3}}) == "ok");
}

TEST_CASE("blocks outside the grid are refused, and named") {
  constexpr int32_t kMin = std::numeric_limits<int32_t>::min();
  constexpr int32_t kMax = std::numeric_limits<int32_t>::max();
  const std::string grid = " lies outside the grid of 2 x 3 blocks";
  CHECK(Answer({{2, 0}}) == "block 0 at (row 2, column 0)" + grid);
  CHECK(Answer({{-1, 0}}) == "block 0 at (row -1, column 0)" + grid);
  CHECK(Answer({{0, -1}}) == "block 0 at (row 0, column -1)" + grid);
  CHECK(Answer({{0, 0}, {1, 4}}) == "block 1 at (row 1, column 4)" + grid);
  CHECK(Answer({{kMax, 1}}) == "block 0 at (row 2147483647, column 1)" + grid);
  CHECK(Answer({{kMin, 1}}) == "block 0 at (row -2147483648, column 1)" + grid);
  CHECK(Answer({{0, kMax}}) == "block 0 at (row 0, column 2147483647)" + grid);
  // What a pattern made in jit is marked with when its capacity was too small.
  CHECK(Answer({{kMin, kMin}}).find("the pattern lost blocks when it was made") == 0);
}

TEST_CASE("blocks out of order and repeated blocks are refused, and named") {
  const std::string rule = "blocks must be in order of column, then row, without repeats; ";
  CHECK(Answer({{0, 0}, {0, 0}}) ==
        rule + "block 1 at (row 0, column 0) comes after block 0 at (row 0, column 0)");
  CHECK(Answer({{1, 1}, {0, 1}}) ==
        rule + "block 1 at (row 0, column 1) comes after block 0 at (row 1, column 1)");
  CHECK(Answer({{0, 1}, {1, 0}}) ==
        rule + "block 1 at (row 1, column 0) comes after block 0 at (row 0, column 1)");
  CHECK(Answer({{0, 3}, {0, 0}}) ==
        rule + "block 1 at (row 0, column 0) comes after an unused place");
}

TEST_CASE("a pattern is refused in any group") {
  Shape shape = kShape;
  shape.groups = 3;
  for (const Role role : kRoles) {
    Problem problem(shape, role, DType::kF32, SmallIntegers(1));
    problem.rows.back() = 17;
    for (const std::string& isa : cpu::RunnableIsas()) {
      const Status status = problem.Run(*cpu::KernelsFor(isa), cpu::CallerOnly());
      CHECK(status.code == StatusCode::kInvalidArgument);
      CHECK(status.message ==
            "block 5 at (row 17, column 2) lies outside the grid of 2 x 3 blocks");
    }
  }
}

TEST_CASE("empty blocks are refused") {
  Problem problem(kShape, Role::kForward, DType::kF32, SmallIntegers(1));
  problem.args.block_in = 0;
  const Status status =
      problem.Run(*cpu::KernelsFor(cpu::RunnableIsas().back()), cpu::CallerOnly());
  CHECK(status.message == "blocks must not be empty, got blocks of 0 x 32");
}

}  // namespace
}  // namespace jaxsparse::testing
