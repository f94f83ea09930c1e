#include "cpu/parallel_for.h"

#include <doctest/doctest.h>

#include <atomic>
#include <new>
#include <stdexcept>
#include <vector>

#include "test_pool.h"

namespace jaxsparse::testing {
namespace {

// How often each piece ran.
std::vector<int> Counts(TaskPool& pool, int64_t pieces) {
  std::vector<std::atomic<int>> counts(pieces);
  REQUIRE(cpu::ParallelFor(pool, pieces, [&](int64_t piece) { ++counts[piece]; }).ok());
  return std::vector<int>(counts.begin(), counts.end());
}

TEST_CASE("every piece runs once") {
  ThreadPool one(1), four(4);
  ImmediatePool immediate;
  for (TaskPool* pool : {static_cast<TaskPool*>(&one), static_cast<TaskPool*>(&four),
                         static_cast<TaskPool*>(&immediate), &cpu::CallerOnly()}) {
    for (const int64_t pieces : {0, 1, 2, 5, 1000}) {
      CHECK((Counts(*pool, pieces) == std::vector<int>(pieces, 1)));
    }
  }
}

TEST_CASE("the loop ends although the pool runs no task, and late tasks do nothing") {
  BusyPool pool;
  CHECK((Counts(pool, 100) == std::vector<int>(100, 1)));
  CHECK(pool.size() == 3);
  pool.RunAll();  // their loop, and its body, are gone
}

TEST_CASE("loops inside tasks of a pool of one thread end") {
  ThreadPool pool(1);
  std::atomic<int> total{0};
  REQUIRE(cpu::ParallelFor(pool, 8, [&](int64_t) {
            REQUIRE(cpu::ParallelFor(pool, 8, [&](int64_t) { ++total; }).ok());
          }).ok());
  CHECK(total == 64);
}

TEST_CASE("loops inside tasks of a pool of several threads end") {
  ThreadPool pool(3);
  std::atomic<int> total{0};
  const Status status = cpu::ParallelFor(pool, 20, [&](int64_t) {
    if (!cpu::ParallelFor(pool, 20, [&](int64_t) { ++total; }).ok()) total = -1000000;
  });
  CHECK(status.ok());
  CHECK(total == 400);
}

TEST_CASE("what a piece throws becomes a status, and the other pieces run") {
  ThreadPool pool(4);
  BusyPool busy;
  for (TaskPool* each :
       {static_cast<TaskPool*>(&pool), static_cast<TaskPool*>(&busy), &cpu::CallerOnly()}) {
    std::atomic<int> ran{0};
    const Status status = cpu::ParallelFor(*each, 50, [&](int64_t piece) {
      ++ran;
      if (piece % 10 == 3) throw std::bad_alloc();
    });
    CHECK(status.code == StatusCode::kOutOfMemory);
    CHECK(ran == 50);
  }
}

TEST_CASE("a pool that cannot schedule leaves the work to the caller") {
  class FullPool final : public TaskPool {
   public:
    int64_t num_threads() const override { return 8; }
    void Schedule(std::function<void()>) override { throw std::runtime_error("full"); }
  };
  FullPool pool;
  CHECK((Counts(pool, 30) == std::vector<int>(30, 1)));
}

TEST_CASE("small work stays on the caller") {
  ThreadPool pool(2);
  CHECK(&cpu::PoolForWork(pool, 1e5, 1e4) == &cpu::CallerOnly());
  CHECK(&cpu::PoolForWork(pool, 1e9, 0) == &pool);
  CHECK(&cpu::PoolForWork(pool, 0, 1e8) == &pool);
}

}  // namespace
}  // namespace jaxsparse::testing
