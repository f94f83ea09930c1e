#include "cpu/plan_memo.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "conv_problems.h"
#include "cpu/parallel_for.h"

namespace jaxsparse::testing {
namespace {

const cpu::KernelTable& BestTable() { return *cpu::KernelsFor(cpu::RunnableIsas().back()); }

Status Run(ConvProblem& problem) { return problem.Run(BestTable(), cpu::CallerOnly()); }

bool IsExact(ConvProblem& problem) {
  const std::vector<Problem::Sum> expected = problem.Expected();
  for (int64_t i = 0; i < problem.result().size(); ++i) {
    if (problem.result()[i] != expected[i].value) return false;
  }
  return true;
}

// Some 2,000 places, of which the hash reads every 16th or so.
ConvProblem SomeProblem(Role role = Role::kForward) {
  ConvShape shape = Conv2d(1, 5, 30, 20, 3);
  return ConvProblem(shape, role, DType::kF32, SmallIntegers(23));
}

// Moves the k-th of the places that the hash does not read, if it can move.
bool MoveUnhashed(std::vector<int32_t>& places, int64_t k) {
  const int64_t step = static_cast<int64_t>(places.size()) / 128 + 1, i = k * step + 1;
  REQUIRE(step > 2);
  if (places[i] + 1 == places[i + 1]) return false;
  ++places[i];
  return true;
}

TEST_CASE("a plan is made once, for each role and each size of batch") {
  cpu::ClearPlanMemo();
  int64_t misses = 0;
  for (const int64_t batch : {1, 2}) {
    for (const Role role : kRoles) {
      ConvShape shape = Conv2d(batch, 5, 6, 7, 3);
      ConvProblem problem(shape, role, DType::kF32, SmallIntegers(23));
      for (int i = 0; i < 3; ++i) REQUIRE(Run(problem).ok());
      CHECK(cpu::ReadPlanMemo().misses == ++misses);
    }
  }
  CHECK(cpu::ReadPlanMemo().hits == 2 * misses);
  CHECK(cpu::ReadPlanMemo().plans == misses);
}

TEST_CASE("a pattern that changes in a place that is not hashed gets its own plan") {
  for (const Role role : kRoles) {
    cpu::ClearPlanMemo();
    ConvProblem problem = SomeProblem(role);
    REQUIRE(Run(problem).ok());
    CHECK(IsExact(problem));
    int64_t moved = 0;
    for (int64_t k = 0; k < 40; ++k) {
      if (!MoveUnhashed(problem.places, k)) continue;
      ++moved;
      REQUIRE(Run(problem).ok());
      CHECK(IsExact(problem));
      CHECK(cpu::ReadPlanMemo().misses == 1 + moved);
    }
    CHECK(moved > 10);
    CHECK(cpu::ReadPlanMemo().plans <= 4);  // those whose hash is the same leave no trail
  }
}

TEST_CASE("the memo forgets the plan that was not used for longest") {
  cpu::ClearPlanMemo();
  ConvShape shape = Product(1, 1500, 2000);  // plans of some 24 MB
  shape.density = 1;
  std::vector<std::unique_ptr<ConvProblem>> problems;
  for (int64_t rows = 1; rows <= 2; ++rows) {
    shape.batch = rows;
    problems.push_back(
        std::make_unique<ConvProblem>(shape, Role::kInputGrad, DType::kF32, SmallIntegers(1)));
    REQUIRE(Run(*problems.back()).ok());
  }
  int64_t most = 0;
  for (int64_t rows = 3; rows <= 16; ++rows) {
    shape.batch = rows;
    ConvProblem problem(shape, Role::kInputGrad, DType::kF32, SmallIntegers(1));
    REQUIRE(Run(problem).ok());
    REQUIRE(Run(*problems[0]).ok());  // stays in use
    CHECK(cpu::ReadPlanMemo().bytes <= cpu::kPlanMemoBytes);
    most = std::max(most, cpu::ReadPlanMemo().plans);
  }
  CHECK(cpu::ReadPlanMemo().plans < 16);
  CHECK(most > 4);
  const int64_t misses = cpu::ReadPlanMemo().misses;
  CHECK(misses == 16);
  REQUIRE(Run(*problems[0]).ok());
  CHECK(cpu::ReadPlanMemo().misses == misses);
  REQUIRE(Run(*problems[1]).ok());
  CHECK(cpu::ReadPlanMemo().misses == misses + 1);
  cpu::ClearPlanMemo();
}

// Each is tried after the pattern that it was made from, whose plan is kept.
TEST_CASE("indices that are not valid are refused, before anything is written") {
  for (const Role role : kRoles) {
    const auto refused = [&](const ConvShape& shape, auto change) {
      ConvProblem problem(shape, role, DType::kF32, SmallIntegers(23));
      REQUIRE(Run(problem).ok());
      const Array::Bytes before = problem.result().bytes();
      change(problem);
      const Status status = Run(problem);
      CHECK(!status.ok());
      CHECK((problem.result().bytes() == before));
      return status.message;
    };
    const ConvShape single = Conv2d(2, 5, 6, 7, 3);
    const int32_t unused = 7 * 6 * 9;
    const auto set = [](int64_t i, int32_t value) {
      return [=](ConvProblem& problem) { problem.places[i] = value; };
    };
    CHECK(refused(single, set(0, -1)).find("place -1 of weight 0 lies outside") == 0);
    CHECK(refused(single, set(3, unused + 1)).find("lies outside") != std::string::npos);
    CHECK(refused(single, set(3, INT32_MAX)).find("lies outside") != std::string::npos);
    CHECK(refused(single, set(3, INT32_MIN)).find("lost weights") != std::string::npos);
    CHECK(refused(single, set(3, unused)).find("an unused place") != std::string::npos);
    CHECK(refused(single, [](ConvProblem& problem) {
            problem.places[4] = problem.places[3];
          }).find("strictly ascending") != std::string::npos);
    CHECK(refused(single, [](ConvProblem& problem) {
            std::swap(problem.places[4], problem.places[5]);
          }).find("strictly ascending") != std::string::npos);

    const ConvShape grouped = single.Stored(4);
    const auto order = [](int64_t slot, int32_t value) {
      return [=](ConvProblem& problem) { problem.order[slot] = value; };
    };
    CHECK(refused(grouped, order(2, -1)).find("from 0 to 7") != std::string::npos);
    CHECK(refused(grouped, order(2, 8)).find("from 0 to 7") != std::string::npos);
    CHECK(refused(grouped, [](ConvProblem& problem) {
            problem.order[0] = problem.order[1] = 3;
          }).find("once") != std::string::npos);

    const ConvShape blocks = single.Blocks(2, 4);
    refused(blocks, set(0, -1));
    refused(blocks, set(0, 1 << 20));
    refused(blocks, order(0, -1));
    refused(blocks, order(0, 1 << 20));
    refused(blocks, [](ConvProblem& problem) {
      problem.places[1] = problem.places[0];
      problem.order[1] = problem.order[0];
    });
  }
}

TEST_CASE("threads share plans, and drop those that others run") {
  cpu::ClearPlanMemo();
  std::atomic<int64_t> wrong = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < 6; ++t) {
    threads.emplace_back([&wrong, t] {
      ConvProblem problem = SomeProblem(kRoles[t % 3]);
      for (int64_t k = 0; k < 60; ++k) {
        if (k % 2 == 1) MoveUnhashed(problem.places, k);
        if (t == 0 && k % 10 == 0) cpu::ClearPlanMemo();
        if (!Run(problem).ok() || !IsExact(problem)) ++wrong;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(wrong == 0);
}

}  // namespace
}  // namespace jaxsparse::testing
