#include "cuda/block/variant.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

namespace jaxsparse::cuda {
namespace {

BlockMatmul WithBlocks(int64_t block_in, int64_t block_out) {
  BlockMatmul problem;
  problem.batch = 1000;
  problem.in = problem.out = 4096;
  problem.block_in = block_in;
  problem.block_out = block_out;
  return problem;
}

Variant SelectBF16(Pass pass, const BlockMatmul& problem, const Device& device = {}) {
  return Select(pass, problem, DType::kBF16, Precision::kDefault, device);
}

TEST_CASE("the precision chooses the arithmetic of float32 and of nothing else") {
  const BlockMatmul problem = WithBlocks(32, 32);
  const auto arithmetic = [&](DType dtype, Precision precision) {
    return Select(Pass::kForward, problem, dtype, precision, {}).arithmetic;
  };
  CHECK(arithmetic(DType::kF32, Precision::kDefault) == ArithmeticKind::kTensorTF32);
  CHECK(arithmetic(DType::kF32, Precision::kHighest) == ArithmeticKind::kExactF32);
  for (const Precision precision : {Precision::kDefault, Precision::kHighest}) {
    CHECK(arithmetic(DType::kBF16, precision) == ArithmeticKind::kTensorBF16);
    CHECK(arithmetic(DType::kF16, precision) == ArithmeticKind::kTensorF16);
    CHECK(arithmetic(DType::kF64, precision) == ArithmeticKind::kExactF64);
  }
}

TEST_CASE("tiles are as wide as blocks are, along the axis of the result") {
  for (const int side : {16, 32, 64, 128}) {
    CHECK(SelectBF16(Pass::kForward, WithBlocks(32, side)).tile == side);
    CHECK(SelectBF16(Pass::kInputGrad, WithBlocks(side, 32)).tile == side);
    CHECK(SelectBF16(Pass::kWeightGrad, WithBlocks(32, side)).tile == side);
  }
  CHECK(SelectBF16(Pass::kForward, WithBlocks(32, 48)).tile == 64);
  CHECK(SelectBF16(Pass::kForward, WithBlocks(32, 160)).tile == 64);
  CHECK(SelectBF16(Pass::kForward, WithBlocks(32, 256)).tile == 128);
}

TEST_CASE("a block wider than the weight takes a tile for what there is") {
  BlockMatmul problem = WithBlocks(32, 128);
  problem.out = 16;
  CHECK(SelectBF16(Pass::kForward, problem).tile == 16);
}

TEST_CASE("steps are as deep as fits the block") {
  CHECK(SelectBF16(Pass::kForward, WithBlocks(16, 32)).step == 16);
  CHECK(SelectBF16(Pass::kForward, WithBlocks(48, 32)).step == 16);
  CHECK(SelectBF16(Pass::kForward, WithBlocks(24, 32)).step == 32);
  CHECK(SelectBF16(Pass::kForward, WithBlocks(64, 16)).step == 32);
  CHECK(SelectBF16(Pass::kInputGrad, WithBlocks(64, 16)).step == 16);
}

TEST_CASE("one length or address that is no multiple of 16 bytes takes the copies by element") {
  CHECK(SelectBF16(Pass::kForward, WithBlocks(32, 32)).is_aligned);
  for (int64_t BlockMatmul::* length :
       {&BlockMatmul::in, &BlockMatmul::out, &BlockMatmul::block_in, &BlockMatmul::block_out}) {
    BlockMatmul problem = WithBlocks(32, 32);
    problem.*length += 4;  // 8 bytes of bfloat16, 16 of float32
    CHECK(!SelectBF16(Pass::kForward, problem).is_aligned);
    CHECK(Select(Pass::kForward, problem, DType::kF32, Precision::kDefault, {}).is_aligned);
  }
  for (void* BlockMatmul::* array : {&BlockMatmul::x, &BlockMatmul::w, &BlockMatmul::y}) {
    BlockMatmul problem = WithBlocks(32, 32);
    problem.*array = reinterpret_cast<void*>(8);
    CHECK(!SelectBF16(Pass::kForward, problem).is_aligned);
  }
}

constexpr Device kHopper{132, 129};

bool TakesHopper(Pass pass, const BlockMatmul& problem, const Device& device = kHopper) {
  return IsHopper(SelectBF16(pass, problem, device));
}

BlockMatmul ForHopper(int64_t block_in, int64_t block_out) {
  BlockMatmul problem = WithBlocks(block_in, block_out);
  problem.capacity = 100;
  problem.x_group = problem.w_group = problem.y_group = problem.pattern_group = {0};
  return problem;
}

TEST_CASE(
    "short floats in blocks of multiples of 64 take the products of sm_90a, in tiles as wide") {
  for (const Pass pass : {Pass::kForward, Pass::kInputGrad}) {
    for (const auto& [block_in, block_out, tile] :
         {std::array{64, 64, 64}, {128, 128, 128}, {192, 192, 64}, {256, 256, 128}}) {
      BlockMatmul problem = ForHopper(block_in, block_out);
      problem.in = problem.out = 768;
      for (const DType dtype : {DType::kBF16, DType::kF16}) {
        const Variant variant = Select(pass, problem, dtype, Precision::kHighest, kHopper);
        CHECK(IsHopper(variant));
        CHECK(variant.tile == tile);
        CHECK(variant.step == 64);
      }
    }
  }
  CHECK(SelectBF16(Pass::kForward, ForHopper(64, 128), kHopper).tile == 128);
  CHECK(SelectBF16(Pass::kInputGrad, ForHopper(64, 128), kHopper).tile == 64);
}

TEST_CASE("what the products of sm_90a do not take goes to mma.sync") {
  const BlockMatmul problem = ForHopper(64, 64);
  REQUIRE(TakesHopper(Pass::kForward, problem));
  CHECK(!TakesHopper(Pass::kForward, problem, {}));
  CHECK(!TakesHopper(Pass::kWeightGrad, problem));
  CHECK(!IsHopper(Select(Pass::kForward, problem, DType::kF32, Precision::kDefault, kHopper)));
  const auto without = [&](const char* what, auto change) {
    BlockMatmul other = problem;
    change(other);
    INFO(what);
    CHECK(!TakesHopper(Pass::kForward, other));
  };
  without("129 rows", [](BlockMatmul& p) { p.batch = 128; });
  without("blocks of whole boxes", [](BlockMatmul& p) { p.block_in = 32; });
  without("columns of whole boxes", [](BlockMatmul& p) { p.block_out = 96; });
  without("blocks that divide the depth", [](BlockMatmul& p) { p.in -= 32; });
  without("blocks", [](BlockMatmul& p) { p.capacity = 0; });
  without("aligned rows", [](BlockMatmul& p) { p.out += 4; });
  without("an aligned array", [](BlockMatmul& p) { p.x = reinterpret_cast<void*>(8); });
  without("rows that 32 bits count", [](BlockMatmul& p) { p.batch = int64_t{1} << 31; });
  without("tiles that 32 bits count", [](BlockMatmul& p) {
    p.batch = int64_t{1} << 30;
    p.out = int64_t{1} << 20;
  });
  BlockMatmul over_the_edge = problem;
  over_the_edge.out -= 32;
  CHECK(TakesHopper(Pass::kForward, over_the_edge));
  CHECK(!TakesHopper(Pass::kInputGrad, over_the_edge));
}

TEST_CASE("every choice for any block is a kernel that is compiled") {
  const std::vector<Variant> products = {
#define JAXSPARSE_PRODUCT(ARITHMETIC, TILE, STEP, IS_ALIGNED) \
  {ArithmeticKind::k##ARITHMETIC, TILE, STEP, IS_ALIGNED},
#include "cuda/block/product_list.inc"
#undef JAXSPARSE_PRODUCT
  };
  const std::vector<Variant> weight_grads = {
#define JAXSPARSE_WEIGHT_GRAD(ARITHMETIC, TILE, IS_ALIGNED) \
  {ArithmeticKind::k##ARITHMETIC, TILE, 0, IS_ALIGNED},
#include "cuda/block/weight_grad_list.inc"
#undef JAXSPARSE_WEIGHT_GRAD
  };
  int missing = 0;
  for (const Pass pass : {Pass::kForward, Pass::kInputGrad, Pass::kWeightGrad}) {
    const std::vector<Variant>& listed = pass == Pass::kWeightGrad ? weight_grads : products;
    for (const DType dtype : {DType::kF32, DType::kF64, DType::kBF16, DType::kF16}) {
      for (const Precision precision : {Precision::kDefault, Precision::kHighest}) {
        for (int64_t block_in = 1; block_in < 300; ++block_in) {
          for (const int64_t block_out : {1, 8, 16, 24, 40, 64, 100, 128, 130, 256, 1000}) {
            const Variant variant =
                Select(pass, WithBlocks(block_in, block_out), dtype, precision, {});
            missing += std::count(listed.begin(), listed.end(), variant) != 1;
          }
        }
      }
    }
  }
  CHECK(missing == 0);
}

}  // namespace
}  // namespace jaxsparse::cuda
