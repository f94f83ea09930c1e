#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "conv_problems.h"
#include "cpu/column_pattern.h"
#include "cpu/parallel_for.h"
#include "test_pool.h"

namespace jaxsparse::testing {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

// Names of everything that a failure needs to be repeated.
std::string CaseName(const cpu::KernelTable& table, const ConvProblem& problem) {
  return std::string(table.isa) + " " + Name(problem.role) + " " + Name(problem.dtype) + " " +
         Name(problem.shape);
}

// The first number of the result that is not the rounded sum, as a sentence; empty if none is.
std::string FirstDifference(ConvProblem& problem, const std::vector<Problem::Sum>& expected) {
  for (int64_t i = 0; i < problem.result().size(); ++i) {
    const double want = Rounded(problem.dtype, expected[i].value), got = problem.result()[i];
    if (got == want || (std::isnan(got) && std::isnan(want))) continue;
    return "result[" + std::to_string(i) + "] is " + std::to_string(got) + ", not " +
           std::to_string(want);
  }
  return "";
}

// Every instruction set, on integers whose sums are exact.
void CheckExact(const ConvShape& shape, Role role, DType dtype, TaskPool& pool) {
  ConvProblem problem(shape, role, dtype, SmallIntegers(17));
  const std::vector<Problem::Sum> expected = problem.Expected();
  for (const cpu::KernelTable* table : Tables()) {
    problem.result().Fill([] { return kNaN; });
    const Status status = problem.Run(*table, pool);
    INFO(CaseName(*table, problem));
    CHECK(status.message == "");
    CHECK(FirstDifference(problem, expected) == "");
  }
}

void CheckRoles(const ConvShape& shape, DType dtype, TaskPool& pool) {
  for (const Role role : kRoles) CheckExact(shape, role, dtype, pool);
}

// The same convolution with its weight in every format: widths with and without lanes to spare.
std::vector<ConvShape> Formats(const ConvShape& shape) {
  std::vector<ConvShape> formats;
  for (const int64_t width : {0, 1, 2, 3, 4, 8, 16}) formats.push_back(shape.Stored(width));
  formats.push_back(shape.Blocks(2, 4));
  formats.push_back(shape.Blocks(3, 5));
  formats.push_back(shape.Blocks(8, 8));
  return formats;
}

TEST_CASE("convolutions equal the definition on integers, for every window and format") {
  for (const DType dtype : kDTypes) {
    for (const ConvShape& shape : SomeConvs()) {
      for (const ConvShape& stored : Formats(shape)) {
        CheckRoles(stored, dtype, cpu::CallerOnly());
      }
    }
  }
}

TEST_CASE("convolutions equal the definition on integers, for every density") {
  for (const DType dtype : kDTypes) {
    for (const double density : {0.0, 0.02, 0.1, 0.7, 1.0}) {
      for (ConvShape shape : {Conv2d(2, 10, 20, 19, 3), Product(50, 33, 40)}) {
        shape.density = density;
        CheckRoles(shape, dtype, cpu::CallerOnly());
        CheckRoles(shape.Stored(4), dtype, cpu::CallerOnly());
        CheckRoles(shape.Blocks(4, 8), dtype, cpu::CallerOnly());
      }
    }
  }
}

// Tiles are multiples of register tiles, and lanes are tiles of any image.
TEST_CASE("convolutions equal the definition on integers, around every size of image") {
  for (const DType dtype : {DType::kF32, DType::kF64}) {
    for (int64_t size = 1; size <= 20; ++size) {
      for (const int64_t batch : {1, 3, 8})
        CheckRoles(Conv2d(batch, size, 2, 3, 3), dtype, cpu::CallerOnly());
    }
    for (int64_t rows = 1; rows <= 70; ++rows) {
      CheckRoles(Product(rows, 3, 9), dtype, cpu::CallerOnly());
    }
  }
}

TEST_CASE("convolutions equal the definition on integers, over blocks of channels and parts") {
  ThreadPool pool(2);
  for (const DType dtype : kDTypes) {
    ConvShape shape = Conv2d(8, 14, 96, 70, 3);
    shape.density = 0.05;
    CheckRoles(shape, dtype, pool);
    CheckRoles(shape.Stored(4), dtype, pool);
    shape = Product(300, 700, 300);
    shape.density = 0.02;
    CheckRoles(shape, dtype, pool);
    CheckRoles(shape.Blocks(16, 16), dtype, pool);
  }
}

TEST_CASE("convolutions equal the definition on integers, with groups") {
  ThreadPool pool(3);
  for (const int64_t groups : {2, 30}) {
    for (const bool shared_pattern : {false, true}) {
      ConvShape shape = Conv2d(2, 5, 6, 7, 3);
      shape.groups = groups;
      shape.shared_pattern = shared_pattern;
      for (const ConvShape& stored : Formats(shape)) CheckRoles(stored, DType::kF32, pool);
    }
  }
}

TEST_CASE("convolutions round like a sum of products") {
  for (const DType dtype : kDTypes) {
    for (const Role role : kRoles) {
      for (const int64_t width : {0, 4}) {
        ConvShape shape = Conv2d(4, 15, 40, 30, 3).Stored(width);
        ConvProblem problem(shape, role, dtype, RealNumbers(3));
        const std::vector<Problem::Sum> expected = problem.Expected();
        for (const cpu::KernelTable* table : Tables()) {
          REQUIRE(problem.Run(*table, cpu::CallerOnly()).ok());
          int64_t wrong = 0;
          for (int64_t i = 0; i < problem.result().size(); ++i) {
            // The sum is off by at most 8 units of its terms, then it is rounded once.
            const double slack = 8 * SumUnit(dtype) * expected[i].magnitude +
                                 (Unit(dtype) == SumUnit(dtype)
                                      ? 0
                                      : 1.01 * Unit(dtype) * std::fabs(expected[i].value)) +
                                 (dtype == DType::kF16 ? 0x1p-25 : 0);  // subnormal results
            wrong += !(std::fabs(problem.result()[i] - expected[i].value) <= slack);
          }
          INFO(CaseName(*table, problem));
          CHECK(wrong == 0);
        }
      }
    }
  }
}

// Of every instruction set, on one thread and on several that do take part.
void CheckSameBits(ConvProblem& problem) {
  ThreadPool two(2), five(5);
  for (const cpu::KernelTable* table : Tables()) {
    REQUIRE(problem.Run(*table, cpu::CallerOnly()).ok());
    const Array::Bytes alone = problem.result().bytes();
    for (ThreadPool* pool : {&two, &five}) {
      problem.result().Fill([] { return 0.0; });
      const int64_t scheduled = pool->num_scheduled();
      REQUIRE(problem.Run(*table, *pool).ok());
      INFO(CaseName(*table, problem));
      CHECK(pool->num_scheduled() > scheduled);
      CHECK((problem.result().bytes() == alone));
    }
  }
}

TEST_CASE("convolutions give the same bits for any number of threads") {
  for (const DType dtype : kDTypes) {
    for (const Role role : kRoles) {
      ConvShape shape = Conv2d(8, 28, 64, 64, 3);
      shape.density = 0.1;
      ConvProblem problem(shape, role, dtype, RealNumbers(5));
      CheckSameBits(problem);
    }
  }
}

// Up to two vectors of rows go without a plan, and in pieces of columns.
TEST_CASE("products of few rows equal the definition on integers") {
  ThreadPool pool(3);
  for (const DType dtype : kDTypes) {
    for (const int64_t rows : {1, 2, 5, 8, 9, 16, 17, 32, 33}) {
      for (const double density : {0.0, 0.03, 0.5, 1.0}) {
        ConvShape shape = Product(rows, 61, 77);
        shape.density = density;
        CheckExact(shape, Role::kForward, dtype, cpu::CallerOnly());
      }
      ConvShape wide = Product(rows, 90, 1500);
      wide.density = 0.9;
      CheckExact(wide, Role::kForward, dtype, pool);
      ConvShape grouped = Product(rows, 9, 5);
      grouped.groups = 3;
      CheckExact(grouped, Role::kForward, dtype, pool);
    }
  }
}

TEST_CASE("products of few rows give the same bits for any number of threads") {
  for (const DType dtype : kDTypes) {
    for (const int64_t rows : {1, 3}) {
      ConvShape shape = Product(rows, 700, 1500);
      shape.density = 0.6;
      ConvProblem problem(shape, Role::kForward, dtype, RealNumbers(5));
      CheckSameBits(problem);
    }
  }
}

// They check places piece by piece, and say what CheckPlaces says of all.
TEST_CASE("products of few rows refuse places wherever they are wrong") {
  std::mt19937 random(3);
  for (const int64_t rows : {1, 2}) {
    ConvShape shape = Product(rows, 40, 900);
    shape.density = 0.7;
    ConvProblem problem(shape, Role::kForward, DType::kF32, SmallIntegers(17));
    const std::vector<int32_t> good = problem.places;
    const auto capacity = static_cast<int64_t>(good.size());
    for (int trial = 0; trial < 600; ++trial) {
      // Every other one among the last places, of which some are unused.
      const auto back = static_cast<int64_t>(random() % (trial % 2 == 0 ? capacity : 8));
      const int64_t k = capacity - 1 - back;
      const int32_t unused = 40 * 900;
      const int32_t wrong[] = {-1,
                               INT32_MIN,
                               INT32_MAX,
                               unused,
                               unused + 1,
                               0,
                               good[random() % capacity],
                               static_cast<int32_t>(random() % unused)};
      problem.places = good;
      problem.places[k] = wrong[trial % 8];
      if (trial % 3 == 0) std::reverse(problem.places.begin() + k, problem.places.end());
      int64_t used = 0;
      const std::string expected =
          cpu::CheckPlaces(problem.places.data(), capacity, 900, 40, &used).message;
      for (const cpu::KernelTable* table : Tables()) {
        CHECK(problem.Run(*table, cpu::CallerOnly()).message == expected);
      }
    }
  }
}

TEST_CASE("an infinity or NaN reaches the results of its products and nothing else") {
  const double inf = std::numeric_limits<double>::infinity();
  std::vector<ConvShape> shapes = SomeConvs();
  shapes.push_back(Conv2d(3, 9, 4, 5, 3));
  shapes.push_back(Conv2d(8, 7, 20, 30, 3));
  for (const int64_t rows : {1, 3, 20}) shapes.push_back(Product(rows, 20, 30));
  for (const DType dtype : kDTypes) {
    for (const Role role : kRoles) {
      for (const ConvShape& shape : shapes) {
        for (const ConvShape& stored : {shape, shape.Stored(4), shape.Blocks(2, 4)}) {
          ConvProblem problem(stored, role, dtype, SmallIntegers(9));
          for (Array* operand : {&problem.x, &problem.y}) {
            if (operand == &problem.result() || operand->size() < 8) continue;
            if (role == Role::kWeightGrad && operand == &problem.y) continue;
            operand->Set(5, inf);
            operand->Set(operand->size() / 2, kNaN);
            operand->Set(operand->size() - 1, -inf);
          }
          const std::vector<Problem::Sum> expected = problem.Expected();
          for (const cpu::KernelTable* table : Tables()) {
            REQUIRE(problem.Run(*table, cpu::CallerOnly()).ok());
            INFO(CaseName(*table, problem));
            CHECK(FirstDifference(problem, expected) == "");
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace jaxsparse::testing
