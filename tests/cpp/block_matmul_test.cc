#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "cpu/parallel_for.h"
#include "problems.h"
#include "test_pool.h"

namespace jaxsparse::testing {
namespace {

// Names of everything that a failure needs to be repeated.
std::string CaseName(const cpu::KernelTable& table, const Problem& problem) {
  return std::string(table.isa) + " " + Name(problem.role_) + " " + Name(problem.dtype_) + " " +
         Name(problem.shape);
}

// The first number of the result that is not the rounded sum, as a sentence; empty if none is.
std::string FirstDifference(Problem& problem, const std::vector<Problem::Sum>& expected) {
  for (int64_t i = 0; i < problem.result().size(); ++i) {
    const double want = Rounded(problem.dtype_, expected[i].value), got = problem.result()[i];
    if (got != want) {
      return "result[" + std::to_string(i) + "] is " + std::to_string(got) + ", not " +
             std::to_string(want);
    }
  }
  return "";
}

void CheckExact(const Shape& shape, DType dtype, TaskPool& pool) {
  for (const Role role : kRoles) {
    Problem problem(shape, role, dtype, SmallIntegers(17));
    const std::vector<Problem::Sum> expected = problem.Expected();
    for (const cpu::KernelTable* table : Tables()) {
      problem.result().Fill([] { return std::numeric_limits<double>::quiet_NaN(); });
      const Status status = problem.Run(*table, pool);
      INFO(CaseName(*table, problem));
      CHECK(status.message == "");
      CHECK(FirstDifference(problem, expected) == "");
    }
  }
}

// Around the tiles: 28 x 1 and 14 x 2 vectors of 16 or 8, 12 x 1 and 6 x 2 of 8 or 4.
TEST_CASE("products equal the definition on integers, around every number of rows") {
  for (const DType dtype : kDTypes) {
    for (int64_t batch = 0; batch <= 31; ++batch) {
      CheckExact({batch, 70, 90, 32, 32}, dtype, cpu::CallerOnly());
      CheckExact({batch, 40, 50, 16, 16}, dtype, cpu::CallerOnly());
    }
    for (const int64_t batch : {41, 56, 57, 85, 130, 259}) {
      CheckExact({batch, 70, 90, 32, 32}, dtype, cpu::CallerOnly());
    }
  }
}

TEST_CASE("products equal the definition on integers, for every block shape") {
  const int64_t sizes[] = {1, 3, 8, 12, 16, 17, 32, 48, 64, 128};
  for (const DType dtype : kDTypes) {
    for (const int64_t block_in : sizes) {
      for (const int64_t block_out : sizes) {
        for (const int64_t batch : {1, 6, 29}) {
          CheckExact({batch, 67, 83, block_in, block_out, 0.6}, dtype, cpu::CallerOnly());
        }
      }
    }
  }
}

TEST_CASE("products equal the definition on integers, for every weight shape and density") {
  for (const DType dtype : kDTypes) {
    for (const int64_t in : {0, 1, 15, 16, 64, 65}) {
      for (const int64_t out : {0, 1, 17, 32, 96, 97}) {
        for (const double density : {0.0, 0.1, 0.5, 1.0}) {
          for (const int64_t batch : {2, 30}) {
            CheckExact({batch, in, out, 16, 32, density}, dtype, cpu::CallerOnly());
          }
        }
      }
    }
  }
}

TEST_CASE("products equal the definition on integers, with groups") {
  ThreadPool pool(3);
  for (const DType dtype : kDTypes) {
    for (const int64_t groups : {2, 5, 40}) {
      for (const bool shared_pattern : {false, true}) {
        for (const bool shared_operands : {false, true}) {
          CheckExact({9, 50, 70, 16, 16, 0.4, groups, shared_pattern, shared_operands}, dtype,
                     pool);
        }
      }
    }
  }
}

TEST_CASE("products equal the definition on integers, where small blocks are joined") {
  const int64_t shapes[][2] = {{4, 4}, {8, 8}, {16, 16}, {8, 16}, {16, 8}, {2, 16}, {32, 8}};
  for (const DType dtype : kDTypes) {
    for (const auto& [block_in, block_out] : shapes) {
      for (const double density : {0.4, 0.93, 1.0}) {
        CheckExact({131, 67, 83, block_in, block_out, density}, dtype, cpu::CallerOnly());
        CheckExact({33, 96, 64, block_in, block_out, density}, dtype, cpu::CallerOnly());
      }
    }
  }
}

// Panels of packed rows hold 4 MiB, chunks of weights 256 KiB; these problems have several.
TEST_CASE("products equal the definition on integers, over several panels and chunks") {
  ThreadPool pool(2);
  for (const DType dtype : kDTypes) {
    CheckExact({700, 2050, 40, 64, 32, 0.1}, dtype, pool);
    CheckExact({300, 40, 4100, 32, 64, 0.1}, dtype, pool);
    CheckExact({40, 2048, 160, 128, 128, 0.4}, dtype, pool);
    CheckExact({700, 2050, 40, 16, 16, 1.0}, dtype, pool);
    CheckExact({300, 40, 4100, 8, 8, 1.0}, dtype, pool);
  }
}

TEST_CASE("forward products of short floats can leave their result in float32") {
  for (const DType dtype : {DType::kBF16, DType::kF16}) {
    for (const int64_t batch : {1, 30, 131}) {
      for (const int64_t block : {8, 12, 16, 32}) {
        for (const int64_t groups : {1, 3}) {
          const Shape shape = {batch, 67, 83, block, block, 0.8, groups};
          Problem problem(shape, Role::kForward, dtype, SmallIntegers(17));
          const std::vector<Problem::Sum> expected = problem.Expected();
          std::vector<float> y(expected.size());
          problem.args.y_is_float32 = true;
          problem.args.y = y.data();
          for (const cpu::KernelTable* table : Tables()) {
            std::fill(y.begin(), y.end(), std::numeric_limits<float>::quiet_NaN());
            REQUIRE(problem.Run(*table, cpu::CallerOnly()).ok());
            int64_t wrong = 0;
            for (size_t i = 0; i < y.size(); ++i) wrong += y[i] != expected[i].value;
            INFO(CaseName(*table, problem));
            CHECK(wrong == 0);
          }
        }
      }
    }
  }
}

TEST_CASE("products round like a sum of products") {
  for (const DType dtype : kDTypes) {
    for (const Role role : kRoles) {
      for (const int64_t batch : {1, 16, 200}) {
        Problem problem({batch, 333, 270, 32, 32, 0.7}, role, dtype, RealNumbers(3));
        const std::vector<Problem::Sum> expected = problem.Expected();
        for (const cpu::KernelTable* table : Tables()) {
          REQUIRE(problem.Run(*table, cpu::CallerOnly()).ok());
          double worst = 0;
          for (int64_t i = 0; i < problem.result().size(); ++i) {
            // The sum is off by at most 8 units of its terms, then it is rounded once.
            const double slack = 8 * SumUnit(dtype) * expected[i].magnitude +
                                 (Unit(dtype) == SumUnit(dtype)
                                      ? 0
                                      : 1.01 * Unit(dtype) * std::fabs(expected[i].value)) +
                                 (dtype == DType::kF16 ? 0x1p-25 : 0);  // subnormal results
            const double error = std::fabs(problem.result()[i] - expected[i].value);
            if (!(error <= slack)) worst = std::fmax(worst, std::isnan(error) ? 1e9 : error);
          }
          INFO(CaseName(*table, problem));
          CHECK(worst == 0);
        }
      }
    }
  }
}

TEST_CASE("results are the same bits for any number of threads") {
  ThreadPool two(2), five(5);
  // Large enough to be worth threads, in every dtype.
  const Shape shapes[] = {{3, 1600, 1500, 32, 32, 0.6}, {150, 600, 500, 32, 32, 0.6}};
  for (const DType dtype : kDTypes) {
    for (const Role role : kRoles) {
      for (const Shape& shape : shapes) {
        Problem problem(shape, role, dtype, RealNumbers(5));
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
    }
  }
}

// Like `want`: the same number, or also a NaN.
bool Alike(double got, double want) { return std::isnan(want) ? std::isnan(got) : got == want; }

TEST_CASE("an infinity or NaN spreads over its stored blocks and nowhere else") {
  const double inf = std::numeric_limits<double>::infinity();
  const double nan = std::numeric_limits<double>::quiet_NaN();
  for (const DType dtype : kDTypes) {
    for (const Role role : kRoles) {
      for (const int64_t batch : {2, 40}) {
        for (const int64_t block : {3, 16, 32}) {
          Problem problem({batch, 70, 75, block, block, 0.4}, role, dtype, SmallIntegers(9));
          Array& operand = role == Role::kInputGrad ? problem.y : problem.x;
          operand.Set(5, inf);
          operand.Set(operand.size() / 2, nan);
          operand.Set(operand.size() - 1, -inf);
          if (role != Role::kWeightGrad) problem.w.Set(0, 0.0);
          const std::vector<Problem::Sum> expected = problem.Expected();
          for (const cpu::KernelTable* table : Tables()) {
            REQUIRE(problem.Run(*table, cpu::CallerOnly()).ok());
            int64_t wrong = 0;
            for (int64_t i = 0; i < problem.result().size(); ++i) {
              wrong += !Alike(problem.result()[i], expected[i].value);
            }
            INFO(CaseName(*table, problem));
            CHECK(wrong == 0);
          }
        }
      }
    }
  }
}

// One product per result: what is stored is that product, rounded once.
TEST_CASE("every product is rounded to the nearest, ties to even") {
  for (const DType dtype : {DType::kBF16, DType::kF16}) {
    // Inputs of three bits and more make ties; powers of two reach subnormals and infinity.
    const int64_t size = 64;
    Problem problem({size, 1, size, 1, size, 1.0}, Role::kForward, dtype, SmallIntegers(1));
    const int low = dtype == DType::kF16 ? -14 : -60, high = dtype == DType::kF16 ? 10 : 66;
    for (int64_t i = 0; i < size; ++i) {
      const int exponent = low + static_cast<int>((high - low) * i / size);
      problem.x.Set(i, std::ldexp(1 + (i % 7) / 8.0, exponent));
      problem.w.Set(i, std::ldexp(1 + (2 * i + 1) / 128.0, i % 9 - 4) * (i % 2 == 0 ? 1 : -1));
    }
    const std::vector<Problem::Sum> expected = problem.Expected();
    for (const cpu::KernelTable* table : Tables()) {
      REQUIRE(problem.Run(*table, cpu::CallerOnly()).ok());
      INFO(CaseName(*table, problem));
      CHECK(FirstDifference(problem, expected) == "");
    }
  }
}

}  // namespace
}  // namespace jaxsparse::testing
