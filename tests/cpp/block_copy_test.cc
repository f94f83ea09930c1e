#include "cpu/block_copy.h"

#include <doctest/doctest.h>

#include "cpu/parallel_for.h"
#include "problems.h"
#include "test_pool.h"

namespace jaxsparse::testing {
namespace {

const Shape kShapes[] = {
    {0, 64, 96, 16, 32, 0.5},        {0, 67, 83, 16, 32, 0.5},
    {0, 67, 83, 3, 5, 0.5},          {0, 40, 30, 128, 64, 1.0},
    {0, 33, 17, 1, 1, 0.3},          {0, 33, 17, 8, 8, 0.0},
    {0, 0, 17, 8, 8, 0.0},           {0, 17, 0, 8, 8, 0.0},
    {0, 70, 90, 16, 16, 0.4, 3},     {0, 70, 90, 16, 16, 0.4, 3, true},
    {0, 1000, 1100, 32, 16, 0.6, 2},  // several pieces of work
};

// The problem's arrays as the copies see them: x is the dense weight of each group.
struct Copies {
  Copies(const Shape& shape, DType dtype)
      : problem(shape, Role::kForward, dtype, SmallIntegers(3)),
        dense(dtype, shape.groups * shape.in * shape.out) {
    problem.args.x = dense.data();
  }
  // Calls visit(dense index or -1 over the edge, values index, whether the place is used).
  template <class Visit>
  void ForEachValue(Visit visit) {
    const Shape& s = problem.shape;
    const int64_t capacity = problem.args.capacity;
    for (int64_t g = 0; g < s.groups; ++g) {
      for (int64_t k = 0; k < capacity; ++k) {
        const int64_t p = problem.args.pattern_group[g] * capacity + k;
        for (int64_t i = 0; i < s.block_in * s.block_out; ++i) {
          const int64_t row = problem.rows[p] * s.block_in + i / s.block_out;
          const int64_t col = problem.cols[p] * s.block_out + i % s.block_out;
          const bool used = problem.cols[p] < problem.args.grid_cols();
          const bool inside = used && row < s.in && col < s.out;
          visit(inside ? (g * s.in + row) * s.out + col : -1,
                (g * capacity + k) * s.block_in * s.block_out + i);
        }
      }
    }
  }
  Problem problem;
  Array dense;
};

TEST_CASE("gathered blocks hold the matrix, and zero over its edge and at unused places") {
  ThreadPool pool(2);
  for (const DType dtype : kDTypes) {
    for (const Shape& shape : kShapes) {
      Copies copies(shape, dtype);
      copies.dense.Fill(SmallIntegers(8));
      copies.problem.w.Fill([] { return 7.0; });
      INFO(Name(shape));
      REQUIRE(cpu::GatherBlocks(copies.problem.args, ItemBytes(dtype), pool).ok());
      int64_t wrong = 0;
      copies.ForEachValue([&](int64_t at, int64_t value) {
        wrong += copies.problem.w[value] != (at < 0 ? 0 : copies.dense[at]);
      });
      CHECK(wrong == 0);
    }
  }
}

TEST_CASE("scattered blocks make the matrix, zero elsewhere") {
  ThreadPool pool(2);
  for (const DType dtype : kDTypes) {
    for (const Shape& shape : kShapes) {
      Copies copies(shape, dtype);
      copies.dense.Fill([] { return 7.0; });
      INFO(Name(shape));
      REQUIRE(cpu::ScatterBlocks(copies.problem.args, ItemBytes(dtype), pool).ok());
      std::vector<double> expected(copies.dense.size(), 0.0);
      copies.ForEachValue([&](int64_t at, int64_t value) {
        if (at >= 0) expected[at] = copies.problem.w[value];
      });
      int64_t wrong = 0;
      for (int64_t i = 0; i < copies.dense.size(); ++i) wrong += copies.dense[i] != expected[i];
      CHECK(wrong == 0);
    }
  }
}

}  // namespace
}  // namespace jaxsparse::testing
