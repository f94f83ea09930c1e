// The products of sm_90a in the emulation, against the definition.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "run_emulated.h"

namespace jaxsparse::testing {
namespace {

using cuda::ArithmeticKind;
using cuda::Precision;
using cuda::Variant;

constexpr Role kProducts[] = {Role::kForward, Role::kInputGrad};

double NaN() { return std::numeric_limits<double>::quiet_NaN(); }

// For the input gradient in and out change places, so that the same products are made.
Shape ShapeFor(Role role, Shape shape) {
  if (role == Role::kInputGrad) {
    std::swap(shape.in, shape.out);
    std::swap(shape.block_in, shape.block_out);
  }
  return shape;
}

Emulation EmulateHopper(Problem& problem, cuda::Timing timing, uint32_t seed = 1) {
  problem.result().Fill(NaN);
  // Tiles in both orders.
  const cuda::Device device = timing == cuda::Timing::kEager ? WithSmallCache(kHopper) : kHopper;
  return Emulate(problem, Precision::kDefault, timing, seed, device);
}

Variant CheckExact(const Shape& shape, Role role, DType dtype) {
  Problem problem(ShapeFor(role, shape), role, dtype, SmallIntegers(17));
  const std::vector<Problem::Sum> expected = problem.Expected();
  Variant ran{};
  for (const cuda::Timing timing : kTimings) {
    const Emulation emulation = EmulateHopper(problem, timing);
    INFO(Name(timing) << " " << Name(role) << " " << Name(dtype) << " " << Name(problem.shape));
    CHECK(IsHopper(emulation.variant));
    CHECK(emulation.failure == "");
    CHECK(FirstDifference(problem, expected) == "");
    ran = emulation.variant;
  }
  return ran;
}

void CheckBothProducts(const Shape& shape) {
  for (const Role role : kProducts) CheckExact(shape, role, DType::kBF16);
}

// More tiles than multiprocessors, lists longer than the ring and shorter, a ragged batch.
TEST_CASE("every kernel for sm_90a equals the definition on integers") {
  const std::vector<Variant> all = {
#define JAXSPARSE_HOPPER_PRODUCT(ELEMENT, TILE) {ArithmeticKind::kHopper##ELEMENT, TILE, 64, true},
#include "cuda/block/hopper_list.inc"
#undef JAXSPARSE_HOPPER_PRODUCT
  };
  for (const Role role : kProducts) {
    std::vector<Variant> missing = all;
    for (const DType dtype : {DType::kBF16, DType::kF16}) {
      for (const int64_t side : {64, 128}) {
        const Variant ran = CheckExact({300, 6 * 64, 3 * side, 64, side, 0.6}, role, dtype);
        missing.erase(std::remove(missing.begin(), missing.end(), ran), missing.end());
      }
    }
    CHECK(missing.size() == 0);
  }
}

TEST_CASE("products of sm_90a equal the definition around the rows that end a tile") {
  for (const int64_t batch : {1, 63, 64, 65, 128, 129, 255, 256, 257})
    CheckBothProducts({batch, 128, 64, 64, 64, 1.0});
}

TEST_CASE("products of sm_90a have zeros where there are no blocks") {
  CheckBothProducts({70, 8 * 64, 9 * 64, 64, 64, 0.02});
}

TEST_CASE("products of sm_90a take blocks of several steps, of several tiles, over the edge") {
  CheckBothProducts({70, 256, 256, 128, 128, 0.8});
  CheckBothProducts({70, 384, 192, 192, 192, 1.0});  // three tiles of 64
  CheckBothProducts({70, 256, 256, 64, 256, 1.0});   // two of 128
  CheckBothProducts({70, 128, 200, 64, 128, 1.0});   // half a block of the last column is there
  CheckBothProducts({70, 128, 136, 64, 128, 1.0});   // less than a box of it
}

TEST_CASE("groups of products of sm_90a have arrays of their own, or share them") {
  for (const bool shared_pattern : {false, true}) {
    for (const bool shared_operands : {false, true}) {
      Shape shape{70, 128, 192, 64, 64, 0.5, 3};
      shape.shared_pattern = shared_pattern;
      shape.shared_operands = shared_operands;
      CheckBothProducts(shape);
    }
  }
}

TEST_CASE("products of sm_90a give the same bits in whatever order threads run") {
  for (const Role role : kProducts) {
    Problem problem({150, 256, 256, 64, 64, 0.6}, role, DType::kF16, RealNumbers(7));
    Array::Bytes bits;
    for (uint32_t seed = 1; seed <= 4; ++seed) {
      CHECK(EmulateHopper(problem, cuda::Timing::kMixed, seed).failure == "");
      if (seed > 1) CHECK((bits == problem.result().bytes()));
      bits = problem.result().bytes();
    }
  }
}

TEST_CASE("products of sm_90a round like a dot product") {
  for (const DType dtype : {DType::kBF16, DType::kF16}) {
    for (const Role role : kProducts) {
      Problem problem({90, 256, 192, 64, 64, 0.6}, role, dtype, RealNumbers(7));
      const std::vector<Problem::Sum> expected = problem.Expected();
      CHECK(EmulateHopper(problem, cuda::Timing::kMixed).failure == "");
      for (int64_t i = 0; i < problem.result().size(); ++i) {
        const double error = std::fabs(problem.result()[i] - expected[i].value);
        CHECK(error <= 8 * Unit(dtype) * expected[i].magnitude);
      }
    }
  }
}

TEST_CASE("a forward product of sm_90a may be left in float32") {
  for (const int64_t out : {128, 72}) {
    Problem problem({70, 128, out, 64, 64, 0.5}, Role::kForward, DType::kBF16, SmallIntegers(3));
    Array y(DType::kF32, problem.y.size());
    y.Fill(NaN);
    const std::vector<Problem::Sum> expected = problem.Expected();
    problem.y = y;
    problem.args.y = problem.y.data();
    problem.args.y_is_float32 = true;
    const Emulation emulation =
        Emulate(problem, Precision::kDefault, cuda::Timing::kMixed, 1, kHopper);
    CHECK(emulation.failure == "");
    CHECK(IsHopper(emulation.variant));
    for (int64_t i = 0; i < problem.y.size(); ++i) CHECK(problem.y[i] == expected[i].value);
  }
}

TEST_CASE("a pattern that is not valid gives NaN on sm_90a and touches nothing out of bounds") {
  constexpr int32_t kMost = std::numeric_limits<int32_t>::max();
  for (const Role role : kProducts) {
    for (const int32_t wrong : {-1, 4, kMost}) {
      for (const bool is_row : {false, true}) {
        Problem problem({70, 256, 256, 64, 64, 0.5}, role, DType::kBF16, SmallIntegers(3));
        (is_row ? problem.rows : problem.cols)[2] = wrong;
        CHECK(EmulateHopper(problem, cuda::Timing::kMixed).failure == "");
        int64_t not_nan = 0;
        for (int64_t i = 0; i < problem.result().size(); ++i)
          not_nan += !std::isnan(problem.result()[i]);
        CHECK(not_nan == 0);
      }
    }
  }
}

}  // namespace
}  // namespace jaxsparse::testing
