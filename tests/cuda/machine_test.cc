// The emulation, tested: each rule that a kernel can break, broken by a small kernel.
#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "cuda/primitives/primitives.h"
#include "numbers.h"

namespace jaxsparse::cuda {
namespace {

using Access = Machine::Access;

// A kernel of any code, which the emulation can take as an argument.
struct Code {
  using Args = std::function<void()>;
  static constexpr int kThreads = 64;
  static constexpr size_t kSharedBytes = 4096;
  static void Run(const Args& code) { code(); }
};

// What the emulation says of the code; empty if nothing.
std::string Complaint(Machine& machine, const std::function<void()>& code) {
  try {
    machine.Run<Code>(code, {});
  } catch (const EmulationError& error) {
    const std::string what = error.what();
    return what.substr(what.find(": ") + 2);
  }
  return "";
}

std::string Complaint(const std::function<void()>& code, Timing timing = Timing::kLazy) {
  Machine machine(timing, 1);
  return Complaint(machine, code);
}

TEST_CASE("global memory is checked for bounds, alignment and what is written") {
  alignas(16) float data[8] = {};
  Machine machine(Timing::kLazy, 1);
  machine.Allow(data, 4 * sizeof(float), Access::kRead);
  machine.Allow(data + 4, 4 * sizeof(float), Access::kWriteOnce);
  const auto once = [](const std::function<void()>& code) {
    return [=] {
      if (ThreadIndex() == 0) code();
    };
  };
  CHECK(Complaint(machine, once([&] { LoadConstant(data + 3); })) == "");
  CHECK(Complaint(machine, once([&] { LoadConstant(data + 8); })) ==
        "global memory: out of bounds");
  CHECK(Complaint(machine, once([&] { LoadConstant(data - 1); })) ==
        "global memory: out of bounds");
  CHECK(Complaint(machine, once([&] { LoadConstant(reinterpret_cast<double*>(data + 1)); })) ==
        "global memory: misaligned");
  CHECK(Complaint(machine, once([&] { StoreGlobal(data, 1.0f); })) ==
        "global memory: write to an operand");
  CHECK(Complaint(machine, once([&] { StorePair(data + 5, 1.0f, 2.0f); })) ==
        "global memory: misaligned pair");
  CHECK(Complaint(machine, once([&] { StorePair(data + 4, 1.0f, 2.0f); })) == "");
  CHECK(data[5] == 2);
  CHECK(Complaint(machine, once([&] { StoreRounded(data + 5, 1.0f); })) ==
        "global memory: a result is written twice");
  CHECK(Complaint(machine, once([&] { CopyAsync16(SharedArray<float>(0), data + 1, true); })) ==
        "global memory: misaligned");
}

TEST_CASE("shared memory is checked for bounds, alignment and having been written") {
  CHECK(Complaint([] { LoadShared(SharedArray<float>(4096)); }) == "shared memory: out of bounds");
  CHECK(Complaint([] { LoadShared(SharedArray<float>(-4)); }) == "shared memory: out of bounds");
  CHECK(Complaint([] { LoadShared(SharedArray<float>(2)); }) == "shared memory: misaligned");
  CHECK(Complaint([] { LoadShared(SharedArray<float>(0)); }) ==
        "shared memory: read, but never written");
  CHECK(Complaint([] { StoreShared(SharedArray<float>(0) + ThreadIndex(), 1.0f); }) == "");
}

TEST_CASE("two threads at one place of shared memory need a barrier between") {
  const auto store = [] { StoreShared(SharedArray<float>(0) + ThreadIndex(), 1.0f); };
  const auto load_next = [] { LoadShared(SharedArray<float>(0) + (ThreadIndex() + 1) % 64); };
  CHECK(Complaint([=] {
          store();
          SyncThreads();
          load_next();
          SyncThreads();
          store();
        }) == "");
  // In which words it is said depends on the thread that comes first.
  const auto is_race = [](const std::string& complaint) {
    return complaint.find("with no barrier after another thread's") != std::string::npos ||
           complaint == "shared memory: read, but never written";
  };
  CHECK(is_race(Complaint([=] {
    store();
    load_next();
  })));
  CHECK(is_race(Complaint([=] {
    store();
    SyncThreads();
    load_next();
    store();
  })));
  CHECK(Complaint([] { StoreShared(SharedArray<float>(0), 1.0f); }) ==
        "shared memory: written with no barrier after another thread's write");
  CHECK(Complaint([=] {
          store();
          SyncThreads();
          if (ThreadIndex() < 32) load_next();
          LoadShared(SharedArray<float>(0) + ThreadIndex());
        }) == "");
}

TEST_CASE("asynchronous copies land late, at once, or either") {
  alignas(16) float data[4] = {1, 2, 3, 4};
  const auto copy = [&](bool waits, bool commits = true) {
    return [&data, waits, commits] {
      if (ThreadIndex() != 0) return;
      CopyAsync16(SharedArray<float>(0), data, true);
      if (commits) CommitCopies();
      if (waits) WaitForCopies<0>();
      LoadShared(SharedArray<float>(0));
    };
  };
  const auto complaint = [&](Timing timing, const std::function<void()>& code, uint32_t seed) {
    Machine machine(timing, seed);
    machine.Allow(data, sizeof data, Access::kRead);
    return Complaint(machine, code);
  };
  CHECK(complaint(Timing::kLazy, copy(true), 1) == "");
  CHECK(complaint(Timing::kEager, copy(true), 1) == "");
  const std::string unread = "shared memory: read, but never written";
  CHECK(complaint(Timing::kLazy, copy(false), 1) == unread);
  CHECK(complaint(Timing::kEager, copy(false), 1) == "");
  CHECK(complaint(Timing::kLazy, copy(true, false), 1) == unread);  // not in any group
  int found = 0;
  for (uint32_t seed = 0; seed < 20; ++seed)
    found += complaint(Timing::kMixed, copy(false), seed) == unread;
  CHECK(found > 0);
  CHECK(found < 20);
}

TEST_CASE("copies in flight at the end are found") {
  alignas(16) float data[4] = {};
  Machine machine(Timing::kLazy, 1);
  machine.Allow(data, sizeof data, Access::kRead);
  CHECK(Complaint(machine, [&] {
          CopyAsync16(SharedArray<float>(0) + 4 * ThreadIndex(), data, true);
          CommitCopies();
        }) == "a thread ended with copies in flight");
}

TEST_CASE("a copy of nothing writes zeros and reads nothing") {
  CHECK(Complaint([] {
          float* mine = SharedArray<float>(0) + 4 * ThreadIndex();
          CopyAsync16(mine, nullptr, false);
          CommitCopies();
          WaitForCopies<0>();
          if (LoadShared(mine + 3) != 0) Machine::Fail("not zero");
        }) == "");
}

TEST_CASE("threads that wait for each other forever are found") {
  CHECK(Complaint([] {
          if (ThreadIndex() < 63) SyncThreads();
        }) == "deadlock: 63 threads wait, some at a barrier that others never reach");
  CHECK(Complaint([] {
          if (ThreadIndex() % 32 < 31) ShuffleUp(1, 1);
        }) == "deadlock: 62 threads wait, some at a barrier that others never reach");
  CHECK(Complaint([] {
          uint32_t out[4];
          if (ThreadIndex() % 2 == 0) {
            ShuffleUp(1, 1);
          } else {
            LoadMatrices(out, SharedArray<float>(0));
          }
        }) == "lanes of a warp are at different functions");
}

TEST_CASE("a barrier brings together what any thread knows") {
  CHECK(Complaint([] {
          if (!SyncThreadsOr(ThreadIndex() == 17)) Machine::Fail("lost a true");
          if (SyncThreadsOr(false)) Machine::Fail("found a true");
        }) == "");
}

TEST_CASE("values move up the lanes of their warp") {
  CHECK(Complaint([] {
          const int lane = ThreadIndex() % 32;
          if (ShuffleUp(ThreadIndex(), 4) != (lane < 4 ? ThreadIndex() : ThreadIndex() - 4))
            Machine::Fail("not what the lane below has");
        }) == "");
}

TEST_CASE("rows of matrices in one bank are counted") {
  const auto conflicts = [](int stride) {
    Machine machine(Timing::kLazy, 1);
    CHECK(Complaint(machine, [=] {
            for (int i = ThreadIndex(); i < 1024; i += 64)
              StoreShared(SharedArray<float>(0) + i, 0.f);
            SyncThreads();
            uint32_t out[4];
            LoadMatrices(out, SharedArray<float>(0) + ThreadIndex() % 8 * stride);
          }) == "");
    return machine.bank_conflicts();
  };
  CHECK(conflicts(4) == 0);
  CHECK(conflicts(20) == 0);
  CHECK(conflicts(32) == 8);  // 2 warps, 4 matrices each
}

TEST_CASE("numbers are rounded as the definition says") {
  std::vector<float> values = {0.0f,  -0.0f, 1.0f,  65504.0f, 65519.99f, 65520.0f, 1e30f,
                               3e38f, 1e-8f, 6e-8f, 5.96e-8f, 2.98e-8f,  6.1e-5f,  INFINITY};
  for (uint32_t bits = 1; bits < 0x7F800000; bits += 0x12345) values.push_back(FloatOf(bits));
  for (const float value : values) {
    for (const float x : {value, -value}) {
      uint16_t want;
      testing::Store(DType::kBF16, &want, 0, x);
      CHECK(RoundToBF16(x).bits == want);
      CHECK(ToFloat(BF16{want}) == testing::Load(DType::kBF16, &want, 0));
      testing::Store(DType::kF16, &want, 0, x);
      CHECK(RoundToF16(x).bits == want);
      CHECK(ToFloat(F16{want}) == testing::Load(DType::kF16, &want, 0));
    }
  }
  CHECK(std::isnan(ToFloat(RoundToBF16(NAN))));
  CHECK(std::isnan(ToFloat(RoundToF16(NAN))));
}

TEST_CASE("TF32 keeps ten bits, ties away from zero") {
  CHECK(FloatOf(RoundToTF32(BitsOf(1 + 0x1p-11f))) == 1 + 0x1p-10f);
  CHECK(FloatOf(RoundToTF32(BitsOf(-1 - 0x1p-11f))) == -1 - 0x1p-10f);
  CHECK(FloatOf(RoundToTF32(BitsOf(1 + 0x1p-12f))) == 1);
  CHECK(std::isinf(FloatOf(RoundToTF32(BitsOf(INFINITY)))));
}

}  // namespace
}  // namespace jaxsparse::cuda
