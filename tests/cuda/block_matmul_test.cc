#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "cuda/block/arithmetic.h"
#include "cuda/block/kernels.h"
#include "run_emulated.h"

namespace jaxsparse::testing {
namespace {

using cuda::ArithmeticKind;
using cuda::Precision;
using cuda::Variant;

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

std::string CaseName(const Problem& problem, cuda::Timing timing) {
  return Name(timing) + " " + Name(problem.role_) + " " + Name(problem.dtype_) + " " +
         Name(problem.shape);
}

// Runs the pass with every timing and compares with the definition, on integers.
std::vector<Variant> CheckExact(const Shape& shape, Role role, DType dtype,
                                Precision precision = Precision::kDefault) {
  Problem problem(shape, role, dtype, SmallIntegers(17));
  const std::vector<Problem::Sum> expected = problem.Expected();
  std::vector<Variant> ran;
  for (const cuda::Timing timing : kTimings) {
    problem.result().Fill([] { return kNaN; });
    // Tiles in both orders.
    const cuda::Device device = timing == cuda::Timing::kEager ? WithSmallCache(kAmpere) : kAmpere;
    const Emulation emulation = Emulate(problem, precision, timing, 1, device);
    INFO(CaseName(problem, timing));
    CHECK(emulation.failure == "");
    CHECK(emulation.bank_conflicts == 0);
    CHECK(FirstDifference(problem, expected) == "");
    ran.push_back(emulation.variant);
  }
  return ran;
}

struct Numbers {
  DType dtype;
  Precision precision;
};
constexpr Numbers kNumbers[] = {{DType::kBF16, Precision::kDefault},
                                {DType::kF16, Precision::kDefault},
                                {DType::kF32, Precision::kDefault},
                                {DType::kF32, Precision::kHighest},
                                {DType::kF64, Precision::kDefault}};

std::vector<Variant> ListedProducts() {
  return {
#define JAXSPARSE_PRODUCT(ARITHMETIC, TILE, STEP, IS_ALIGNED) \
  {ArithmeticKind::k##ARITHMETIC, TILE, STEP, IS_ALIGNED},
#include "cuda/block/product_list.inc"
#undef JAXSPARSE_PRODUCT
  };
}

std::vector<Variant> ListedWeightGrads() {
  return {
#define JAXSPARSE_WEIGHT_GRAD(ARITHMETIC, TILE, IS_ALIGNED) \
  {ArithmeticKind::k##ARITHMETIC, TILE, 0, IS_ALIGNED},
#include "cuda/block/weight_grad_list.inc"
#undef JAXSPARSE_WEIGHT_GRAD
  };
}

// Every kernel in the lists: two or three blocks along each axis, the last over the edge; more
// steps than the ring has stages; a ragged batch. Then one for arrays that are not aligned.
TEST_CASE("every kernel equals the definition on integers") {
  for (const Role role : kRoles) {
    std::vector<Variant> listed =
        role == Role::kWeightGrad ? ListedWeightGrads() : ListedProducts();
    for (const auto& [dtype, precision] : kNumbers) {
      for (const int64_t width : {16, 32, 64, 128}) {
        for (const int64_t depth : {16, 32}) {
          Shape shape{130, 5 * depth - 8, 2 * width - 8, depth, width, 0.6};
          if (role == Role::kInputGrad)
            shape = {130, 2 * width - 8, 5 * depth - 8, width, depth, 0.6};
          for (const Variant& ran : CheckExact(shape, role, dtype, precision))
            listed.erase(std::remove(listed.begin(), listed.end(), ran), listed.end());
        }
      }
      for (const Variant& ran : CheckExact({35, 77, 45, 25, 19, 0.6}, role, dtype, precision))
        listed.erase(std::remove(listed.begin(), listed.end(), ran), listed.end());
    }
    for (const Variant& variant : listed) {
      INFO(Name(role) << ": arithmetic " << static_cast<int>(variant.arithmetic) << ", tile "
                      << variant.tile << ", step " << variant.step << ", aligned "
                      << variant.is_aligned);
      CHECK("this kernel is in the list but was not run" == "");
    }
  }
}

// Some of the shapes below take a kernel each of short floats, TF32 and exact numbers.
constexpr Numbers kSomeNumbers[] = {{DType::kBF16, Precision::kDefault},
                                    {DType::kF32, Precision::kDefault},
                                    {DType::kF32, Precision::kHighest}};

void CheckExactInAllPasses(const Shape& shape) {
  for (const auto& [dtype, precision] : kSomeNumbers) {
    for (const Role role : kRoles) CheckExact(shape, role, dtype, precision);
  }
}

TEST_CASE("passes equal the definition around every number of rows that ends a tile") {
  for (const int64_t batch : {1, 2, 17, 63, 64, 65, 127, 128, 129})
    CheckExactInAllPasses({batch, 32, 16, 16, 16, 1.0});
}

TEST_CASE("passes equal the definition for nothing at all and for everything") {
  for (const double density : {0.0, 1.0}) CheckExactInAllPasses({40, 64, 96, 32, 32, density});
  CheckExactInAllPasses({0, 64, 96, 32, 32, 0.5});
  CheckExactInAllPasses({5, 0, 32, 16, 16, 0});
  CheckExactInAllPasses({5, 32, 0, 16, 16, 0});
}

TEST_CASE("rows and columns without blocks are zero") {
  // A column in nine and a row in eight have a block.
  CheckExactInAllPasses({20, 8 * 16, 9 * 16, 16, 16, 0.02});
}

TEST_CASE("passes equal the definition for blocks that no tile fits") {
  CheckExactInAllPasses({33, 120, 168, 48, 96, 0.5});
  CheckExactInAllPasses({33, 40, 24, 8, 8, 0.5});
  CheckExactInAllPasses({33, 200, 24, 192, 16, 0.5});
  CheckExactInAllPasses({33, 200, 40, 160, 24, 0.5});
  CheckExactInAllPasses({33, 24, 264, 16, 256, 0.5});
  CheckExactInAllPasses({33, 5, 6, 1, 1, 0.5});
  CheckExactInAllPasses({33, 7, 200, 3, 130, 0.5});
}

TEST_CASE("grids of more rows and columns than the threads that count them") {
  CheckExact({1, 1100, 2, 1, 2, 0.5}, Role::kInputGrad, DType::kBF16);
  CheckExact({1, 2, 1100, 2, 1, 0.5}, Role::kWeightGrad, DType::kBF16);
  CheckExact({1, 100, 100, 1, 1, 0.5}, Role::kInputGrad,
             DType::kBF16);  // and blocks than it takes at once
}

TEST_CASE("the same inputs give the same bits in whatever order threads run") {
  for (const Role role : kRoles) {
    for (const int64_t batch : {20, 1100}) {  // whole, and split where the weight gradient is
      Problem problem({batch, 96, 40, 16, 16, 0.6}, role, DType::kF32, RealNumbers(7));
      Array::Bytes bits;
      for (uint32_t seed = 1; seed <= 3; ++seed) {
        problem.result().Fill([] { return kNaN; });
        Emulate(problem, Precision::kHighest, cuda::Timing::kMixed, seed);
        if (seed > 1) CHECK((bits == problem.result().bytes()));
        bits = problem.result().bytes();
      }
    }
  }
}

TEST_CASE("a column longer than the ring, and one shorter, of blocks deeper than a step") {
  for (const int64_t blocks : {1, 2, 3, 4, 9})
    CheckExactInAllPasses({7, blocks * 64, 16, 64, 16, 1.0});
}

TEST_CASE("groups have arrays of their own, or share them") {
  for (const bool shared_pattern : {false, true}) {
    for (const bool shared_operands : {false, true}) {
      Shape shape{20, 64, 48, 16, 16, 0.5, 3};
      shape.shared_pattern = shared_pattern;
      shape.shared_operands = shared_operands;
      CheckExactInAllPasses(shape);
    }
  }
}

TEST_CASE("groups in any order take several launches") {
  Problem problem({9, 32, 32, 16, 16, 0.5, 4}, Role::kForward, DType::kF32, SmallIntegers(5));
  problem.args.x_group = {0, 0, 2, 1};  // as broadcasting two axes makes them
  problem.args.w_group = {0, 1, 0, 1};
  problem.args.pattern_group = {0, 1, 0, 1};
  const std::vector<Problem::Sum> expected = problem.Expected();
  CHECK(Emulate(problem, Precision::kDefault, cuda::Timing::kMixed).failure == "");
  CHECK(FirstDifference(problem, expected) == "");
}

TEST_CASE("a weight gradient of few blocks splits the batch and equals the definition") {
  for (const auto& [dtype, precision] : kNumbers) {
    Problem problem({1100, 32, 32, 32, 32, 0.5}, Role::kWeightGrad, dtype, SmallIntegers(3));
    const Emulation emulation = Emulate(problem, precision, cuda::Timing::kMixed);
    CHECK(emulation.failure == "");
    CHECK(emulation.is_split);
    CHECK(FirstDifference(problem, problem.Expected()) == "");
  }
}

TEST_CASE("a forward product of short floats may be left in float32") {
  for (const DType dtype : {DType::kBF16, DType::kF16}) {
    for (const int64_t out : {64, 45}) {  // aligned, and not
      Problem problem({70, 64, out, 32, 32, 0.5}, Role::kForward, dtype, SmallIntegers(3));
      Array y(DType::kF32, problem.y.size());
      y.Fill([] { return kNaN; });
      const std::vector<Problem::Sum> expected = problem.Expected();
      problem.y = y;
      problem.args.y = problem.y.data();
      problem.args.y_is_float32 = true;
      CHECK(Emulate(problem, Precision::kDefault, cuda::Timing::kMixed).failure == "");
      for (int64_t i = 0; i < problem.y.size(); ++i) CHECK(problem.y[i] == expected[i].value);
    }
  }
}

// Of TF32, the products' own rounding counts.
double UnitOf(const Numbers& numbers) {
  const bool is_tf32 = numbers.dtype == DType::kF32 && numbers.precision == Precision::kDefault;
  return is_tf32 ? std::ldexp(1.0, -11) : Unit(numbers.dtype);
}

TEST_CASE("passes round like a dot product") {
  for (const Numbers& numbers : kNumbers) {
    for (const Role role : kRoles) {
      Problem problem({90, 128, 64, 32, 32, 0.6}, role, numbers.dtype, RealNumbers(7));
      const std::vector<Problem::Sum> expected = problem.Expected();
      CHECK(Emulate(problem, numbers.precision, cuda::Timing::kMixed).failure == "");
      for (int64_t i = 0; i < problem.result().size(); ++i) {
        const double error = std::fabs(problem.result()[i] - expected[i].value);
        CHECK(error <= 8 * UnitOf(numbers) * expected[i].magnitude);
      }
    }
  }
}

// What `indices` become must not be used: all results are NaN, and the emulation sees no access
// out of bounds.
void CheckInvalid(const char* what, const std::function<void(Problem&)>& spoil) {
  for (const auto& [dtype, precision] : kSomeNumbers) {
    for (const Role role : kRoles) {
      Problem problem({9, 80, 64, 16, 16, 0.5}, role, dtype, SmallIntegers(3));
      spoil(problem);
      const Emulation emulation = Emulate(problem, precision, cuda::Timing::kMixed);
      INFO(what << ", " << Name(role));
      CHECK(emulation.failure == "");
      int64_t not_nan = 0;
      for (int64_t i = 0; i < problem.result().size(); ++i)
        not_nan += !std::isnan(problem.result()[i]);
      CHECK(not_nan == 0);
    }
  }
}

TEST_CASE("a pattern that is not valid gives NaN and touches nothing out of bounds") {
  constexpr int32_t kMost = std::numeric_limits<int32_t>::max();
  constexpr int32_t kLeast = std::numeric_limits<int32_t>::min();
  for (const int32_t wrong : {-1, 5, kMost, kLeast})
    CheckInvalid("a row", [=](Problem& p) { p.rows[3] = wrong; });
  for (const int32_t wrong : {-1, 5, kMost, kLeast})
    CheckInvalid("a column", [=](Problem& p) { p.cols[3] = wrong; });
  CheckInvalid("a repeated block", [](Problem& p) {
    p.rows[4] = p.rows[3];
    p.cols[4] = p.cols[3];
  });
  CheckInvalid("blocks out of order", [](Problem& p) {
    std::swap(p.rows[0], p.rows[9]);
    std::swap(p.cols[0], p.cols[9]);
  });
  CheckInvalid("an unused place before a used one", [](Problem& p) { p.cols[2] = 4; });
  CheckInvalid("lost blocks", [=](Problem& p) {
    std::fill(p.rows.begin(), p.rows.end(), kLeast);
    std::fill(p.cols.begin(), p.cols.end(), kLeast);
  });
}

TEST_CASE("one invalid pattern of several spoils its own groups only") {
  Problem problem({9, 48, 48, 16, 16, 0.5, 3}, Role::kForward, DType::kF32, SmallIntegers(3));
  const std::vector<Problem::Sum> expected = problem.Expected();
  problem.rows[problem.args.capacity] = -1;  // of the second
  CHECK(Emulate(problem, Precision::kDefault, cuda::Timing::kMixed).failure == "");
  const int64_t size = 9 * 48;
  for (int64_t i = 0; i < 3 * size; ++i) {
    if (i / size == 1) {
      CHECK(std::isnan(problem.y[i]));
    } else {
      CHECK(problem.y[i] == expected[i].value);
    }
  }
}

constexpr double kInfinity = std::numeric_limits<double>::infinity();

TEST_CASE("an infinity of x shows in the products of stored blocks only") {
  for (const DType dtype : {DType::kBF16, DType::kF32}) {
    Problem problem({6, 40, 40, 16, 16, 0.4}, Role::kForward, dtype, SmallIntegers(3));
    for (int64_t i = 0; i < 16; ++i) problem.x.Set(i, kInfinity);  // row 0, block row 0
    CHECK(Emulate(problem, Precision::kDefault, cuda::Timing::kMixed).failure == "");
    for (int64_t i = 0; i < problem.y.size(); ++i) {
      bool meets = false;
      for (size_t k = 0; k < problem.rows.size(); ++k)
        meets |= problem.rows[k] == 0 && problem.cols[k] == i % 40 / 16;
      CHECK(std::isfinite(problem.y[i]) == !(meets && i < 40));
    }
  }
}

TEST_CASE("the weight gradient is zero over the edge and in unused places whatever x and dy are") {
  for (const DType dtype : {DType::kBF16, DType::kF32}) {
    for (const int64_t batch : {6, 1100}) {  // whole, and split
      Problem problem({batch, 40, 40, 16, 16, 0.4}, Role::kWeightGrad, dtype, SmallIntegers(3));
      problem.x.Fill([] { return kInfinity; });
      problem.y.Fill([] { return kInfinity; });
      CHECK(Emulate(problem, Precision::kDefault, cuda::Timing::kMixed).failure == "");
      for (int64_t i = 0; i < problem.w.size(); ++i) {
        const int64_t k = i / 256, row = problem.rows[k] * 16 + i % 256 / 16;
        const int64_t col = problem.cols[k] * 16 + i % 16;
        CHECK(problem.w[i] == (problem.cols[k] < 3 && row < 40 && col < 40 ? kInfinity : 0));
      }
    }
  }
}

// Launches nothing, and remembers what it was asked for.
class NoKernels final : public cuda::BlockKernels {
 public:
  const cuda::Device& device() const override { return device_; }
  Status Pattern(cuda::PatternStep, const cuda::PatternArrays&, const cuda::GridSize&) override {
    return {};
  }
  Status Forward(const Variant&, const cuda::ProductArgs& args,
                 const cuda::GridSize& size) override {
    product = args;
    grid = size;
    return {};
  }
  Status InputGrad(const Variant& variant, const cuda::ProductArgs& args,
                   const cuda::GridSize& size) override {
    return Forward(variant, args, size);
  }
  Status WeightGrad(const Variant&, const cuda::WeightGradArgs&, const cuda::GridSize&) override {
    return {};
  }
  Status Splits(ArithmeticKind, const cuda::AddSplitsArgs&, const cuda::GridSize&) override {
    return {};
  }
  cuda::ProductArgs product{};
  cuda::GridSize grid;

 private:
  const cuda::Device device_;
};

Status RunWithout(const BlockMatmul& problem, size_t scratch_bytes, NoKernels* kernels) {
  alignas(128) static char scratch[4224];
  return cuda::RunBlockMatmul(cuda::Pass::kForward, problem, DType::kF32, Precision::kDefault,
                              {scratch, scratch_bytes}, *kernels);
}

BlockMatmul ProblemOfSizes(int64_t batch, int64_t in, int64_t out, int64_t block) {
  BlockMatmul problem;
  problem.batch = batch;
  problem.in = in;
  problem.out = out;
  problem.block_in = problem.block_out = block;
  problem.x_group = problem.w_group = problem.y_group = problem.pattern_group = {0};
  return problem;
}

size_t ForwardScratch(const BlockMatmul& problem) {
  return cuda::ScratchBytes(cuda::Pass::kForward, problem, DType::kF32, Precision::kDefault);
}

TEST_CASE("scratch that is too small is refused") {
  NoKernels kernels;
  const BlockMatmul problem = ProblemOfSizes(9, 48, 48, 16);
  const size_t bytes = ForwardScratch(problem);
  CHECK(bytes == 4224);
  CHECK(RunWithout(problem, bytes, &kernels).ok());
  CHECK(RunWithout(problem, bytes - 1, &kernels).message ==
        "the scratch needs 4224 bytes, got 4223");
}

TEST_CASE("sizes that the kernels cannot count are refused") {
  NoKernels kernels;
  BlockMatmul problem = ProblemOfSizes(9, (int64_t{1} << 30) + 1, 48, 16);
  CHECK(RunWithout(problem, SIZE_MAX, &kernels).message ==
        "CUDA kernels take sizes up to 2^30, got in=1073741825. Use implementation=\"xla\"");
  problem = ProblemOfSizes(9, 48, 48, 0);
  CHECK(RunWithout(problem, SIZE_MAX, &kernels).message ==
        "blocks must not be empty, got blocks of 0 x 0");
  problem = ProblemOfSizes(128 * 64 + 1, 48, int64_t{1} << 25, 1);
  CHECK(RunWithout(problem, SIZE_MAX, &kernels).message ==
        "a launch has up to 2^31 - 1 tiles, got 2181038080. Split the batch");
}

TEST_CASE("arrays of more than 2^31 numbers are counted in 64 bits") {
  NoKernels kernels;
  const BlockMatmul problem = ProblemOfSizes(int64_t{1} << 26, 1024, 1024, 128);
  CHECK(RunWithout(problem, ForwardScratch(problem), &kernels).ok());
  CHECK(kernels.grid.x == (int64_t{1} << 26) / 128 * 8);
  CHECK(kernels.product.m == int64_t{1} << 26);
}

TEST_CASE("the scratch does not depend on anything but sizes") {
  BlockMatmul problem = ProblemOfSizes(4096, 1024, 1024, 64);
  problem.capacity = 25;
  for (const cuda::Pass pass :
       {cuda::Pass::kForward, cuda::Pass::kInputGrad, cuda::Pass::kWeightGrad}) {
    BlockMatmul misaligned = problem;
    misaligned.x = misaligned.w = misaligned.y = reinterpret_cast<void*>(2);
    CHECK(cuda::ScratchBytes(pass, problem, DType::kBF16, Precision::kDefault) ==
          cuda::ScratchBytes(pass, misaligned, DType::kBF16, Precision::kDefault));
  }
}

}  // namespace
}  // namespace jaxsparse::testing
