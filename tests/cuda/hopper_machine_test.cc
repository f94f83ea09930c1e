// What sm_90a adds to the emulation, tested: each rule, broken by a small kernel.
#include <doctest/doctest.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "cuda/primitives/hopper.h"
#include "cuda/primitives/primitives.h"

namespace jaxsparse::cuda {
namespace {

using Access = Machine::Access;

constexpr int kBarriers = 48 << 10;  // where barriers lie, behind boxes

struct Code {
  using Args = std::function<void()>;
  static constexpr int kThreads = 128;
  static constexpr size_t kSharedBytes = kBarriers + 64;
  static void Run(const Args& code) { code(); }
};

uint64_t* BarrierAt(int i) { return SharedArray<uint64_t>(kBarriers) + i; }

// What the emulation says of the code; empty if nothing.
std::string Complaint(const std::function<void()>& code, Timing timing = Timing::kLazy,
                      const std::function<void(Machine&)>& allow = {}) {
  Machine machine(timing, 1);
  if (allow) allow(machine);
  try {
    machine.Run<Code>(code, {});
  } catch (const EmulationError& error) {
    const std::string what = error.what();
    return what.substr(what.find(": ") + 2);
  }
  return "";
}

// An array [3, 5, 72] of short floats, numbered, with boxes of 8 rows.
struct Numbered {
  alignas(16) uint16_t data[3 * 5 * 72];
  TensorMap map{data, 3, 5, 72, 8};
  Numbered() {
    for (int i = 0; i < 3 * 5 * 72; ++i) data[i] = static_cast<uint16_t>(i + 1);
  }
  std::function<void(Machine&)> Allowed(Access access) {
    return [this, access](Machine& machine) { machine.Allow(data, sizeof data, access); };
  }
};
constexpr int kBoxBytes = 8 * 128;

void Start(int arrivals) {
  if (ThreadIndex() == 0) {
    InitBarrier(BarrierAt(0), arrivals);
    FenceBarriers();
  }
  SyncThreads();
}

TEST_CASE("a barrier ends a phase when all have arrived, and only then") {
  for (const Timing timing : {Timing::kLazy, Timing::kEager, Timing::kMixed}) {
    CHECK(Complaint(
              [] {
                Start(127);
                for (int phase = 0; phase < 3; ++phase) {
                  if (ThreadIndex() == 0) {
                    WaitForPhase(BarrierAt(0), phase % 2);
                  } else {
                    Arrive(BarrierAt(0));
                    WaitForPhase(BarrierAt(0), phase % 2);
                  }
                }
              },
              timing) == "");
  }
  CHECK(Complaint([] {
          Start(128);
          if (ThreadIndex() > 0) Arrive(BarrierAt(0));
          WaitForPhase(BarrierAt(0), 0);
        }) == "deadlock: 128 threads wait, some at a barrier that others never reach");
  CHECK(Complaint([] {
          Start(2);
          WaitForPhase(BarrierAt(0), 1);  // counts as ended
        }) == "");
  CHECK(Complaint([] { Arrive(BarrierAt(1)); }) == "barrier: not initialised");
}

TEST_CASE("boxes are fetched with zeros outside of the array, in swizzled pieces") {
  Numbered array;
  const auto code = [&] {
    Start(1);
    if (ThreadIndex() == 0) {
      ArriveExpecting(BarrierAt(0), kBoxBytes);
      FetchBox(SharedArray<uint8_t>(1024), &array.map, 16, 1, 2, BarrierAt(0));
    }
    WaitForPhase(BarrierAt(0), 0);
    if (ThreadIndex() != 0) return;
    for (int row = 0; row < 8; ++row) {
      for (int column = 0; column < 64; ++column) {
        const int at = 1024 + Swizzled(row * 128 + column * 2);
        const bool is_there = row + 1 < 5 && column + 16 < 72;
        const int want = is_there ? (2 * 5 + row + 1) * 72 + column + 16 + 1 : 0;
        if (Machine::Now().ReadSharedAsync(at) != want) Machine::Fail("another element");
      }
    }
  };
  for (const Timing timing : {Timing::kLazy, Timing::kEager, Timing::kMixed})
    CHECK(Complaint(code, timing, array.Allowed(Access::kRead)) == "");
  CHECK(Swizzled(0) == 0);
  CHECK(Swizzled(128) == 128 + 16);
  CHECK(Swizzled(7 * 128 + 112 + 6) == 7 * 128 + 6);
  CHECK(Swizzled(8 * 128 + 16) == 8 * 128 + 16);
}

TEST_CASE(
    "a fetch needs a barrier that is fenced, the bytes that land, and a place that is aligned") {
  Numbered array;
  const auto fetch = [&](int bytes, int place, bool is_fenced) {
    return [&array, bytes, place, is_fenced] {
      if (ThreadIndex() != 0) return;
      InitBarrier(BarrierAt(0), 1);
      if (is_fenced) FenceBarriers();
      ArriveExpecting(BarrierAt(0), bytes);
      FetchBox(SharedArray<uint8_t>(place), &array.map, 0, 0, 0, BarrierAt(0));
      WaitForPhase(BarrierAt(0), 0);
      Machine::Now().ReadSharedAsync(place);
    };
  };
  const auto complaint = [&](const std::function<void()>& code) {
    return Complaint(code, Timing::kLazy, array.Allowed(Access::kRead));
  };
  CHECK(complaint(fetch(kBoxBytes, 0, true)) == "");
  CHECK(complaint(fetch(kBoxBytes, 0, false)) == "barrier: no fence between its start and a copy");
  CHECK(complaint(fetch(kBoxBytes, 512, true)) == "box: misaligned");
  for (const int bytes : {kBoxBytes - 128, kBoxBytes + 128})
    CHECK(complaint(fetch(bytes, 0, true)).substr(0, 8) == "deadlock");
  CHECK(complaint(fetch(0, 0, true)) == "shared memory: read, but never written");
}

// Thread 0 stores a box that every thread has written a part of.
std::function<void()> StoreTwoBoxes(Numbered& array, bool is_fenced, bool waits) {
  return [&array, is_fenced, waits] {
    for (int layer = 0; layer < 2; ++layer) {
      if (ThreadIndex() == 0 && waits) WaitForBoxesRead();
      SyncWarpgroup(1);
      for (int i = 0; i < 4; ++i) {
        const int element = ThreadIndex() * 4 + i;
        StoreShared(SharedArray<uint16_t>(Swizzled(element * 2)),
                    static_cast<uint16_t>(7000 + 1000 * layer + element));
      }
      if (is_fenced) FenceShared();
      SyncWarpgroup(1);
      if (ThreadIndex() != 0) continue;
      StoreBox(&array.map, 16, 1, layer, SharedArray<uint8_t>(0));
      CommitBoxes();
    }
    if (ThreadIndex() == 0) WaitForBoxesRead();
  };
}

TEST_CASE("boxes are stored where they lie inside of the array") {
  for (const Timing timing : {Timing::kLazy, Timing::kEager, Timing::kMixed}) {
    Numbered array;
    CHECK(Complaint(StoreTwoBoxes(array, true, true), timing, array.Allowed(Access::kWriteOnce)) ==
          "");
    for (int i = 0; i < 3 * 5 * 72; ++i) {
      const int layer = i / 72 / 5, row = i / 72 % 5 - 1, column = i % 72 - 16;
      const bool is_in = layer < 2 && row >= 0 && column >= 0;
      CHECK(array.data[i] == (is_in ? 7000 + 1000 * layer + row * 64 + column : i + 1));
    }
  }
}

TEST_CASE("what threads wrote is not stored without a fence, nor after it is written over") {
  Numbered array;
  for (const Timing timing : {Timing::kLazy, Timing::kEager}) {
    CHECK(Complaint(StoreTwoBoxes(array, false, true), timing, array.Allowed(Access::kWriteOnce)) ==
          "shared memory: an asynchronous read of what a thread wrote, with no fence between");
  }
  CHECK(Complaint(StoreTwoBoxes(array, true, false), Timing::kLazy,
                  array.Allowed(Access::kWriteOnce)) == "");
  CHECK(array.data[72 + 16] == 8000);  // the first box's place has the second box's numbers
  CHECK(Complaint(
            [&] {
              StoreShared(SharedArray<uint16_t>(0), uint16_t{1});
              FenceShared();
              if (ThreadIndex() != 0) return;
              StoreBox(&array.map, 0, 0, 0, SharedArray<uint8_t>(0));
            },
            Timing::kLazy, array.Allowed(Access::kWrite)) != "");
}

// Operands written by threads: element (row, column) of both is row + column / 16.
void WriteOperand(int first_byte, int rows) {
  for (int i = ThreadIndex(); i < rows * 64; i += 128) {
    const float value = static_cast<float>(i / 64 % 8) + static_cast<float>(i % 64) / 16;
    StoreShared(SharedArray<uint16_t>(first_byte + Swizzled(i * 2)), RoundToBF16(value).bits);
  }
}

struct ProductCode {
  bool fences_shared = true, fences_products = true, waits = true;
  uint64_t spoil = 0;  // is added to a descriptor
  std::string operator()(Timing timing = Timing::kLazy) const {
    return Complaint(
        [this] {
          WriteOperand(0, 64);
          WriteOperand(8192, 128);
          if (fences_shared) FenceShared();
          SyncThreads();
          float sums[64] = {};
          if (fences_products) FenceProducts();
          StartProduct<false>(sums, Descriptor(SharedArray<uint8_t>(32), 16, 1024) + spoil,
                              Descriptor(SharedArray<uint8_t>(8192 + 32), 16, 1024), BF16());
          CommitProducts();
          if (waits) WaitForProducts<0>();
          for (int e = 0; e < 64; ++e) {
            const int t = ThreadIndex();
            const int row = t / 32 * 16 + e / 2 % 2 * 8 + t % 32 / 4;
            const int column = e / 4 * 8 + t % 4 * 2 + e % 2;
            float want = 0;
            for (int k = 16; k < 32; ++k)
              want += (static_cast<float>(row % 8) + static_cast<float>(k) / 16) *
                      (static_cast<float>(column % 8) + static_cast<float>(k) / 16);
            if (sums[e] != want) Machine::Fail("another sum");
          }
          WaitForProducts<0>();
        },
        timing);
  }
};

TEST_CASE("an asynchronous product equals the definition") {
  for (const Timing timing : {Timing::kLazy, Timing::kEager}) CHECK(ProductCode()(timing) == "");
}

TEST_CASE("a product needs its operands fenced, its registers fenced, and a wait") {
  ProductCode code;
  code.fences_shared = false;
  CHECK(code() ==
        "shared memory: an asynchronous read of what a thread wrote, with no fence between");
  code = {};
  code.fences_products = false;
  CHECK(code() == "a product with no fence after its registers were used");
  code = {};
  code.waits = false;
  CHECK(code(Timing::kLazy) == "another sum");
  CHECK(code(Timing::kEager) == "");
  code = {};
  code.spoil = 2;  // 32 bytes on
  CHECK(code() == "another sum");
  code.spoil = 1ull << 63;  // another swizzle
  CHECK(code() == "an operand is not described as swizzled by 128 bytes");
}

TEST_CASE(
    "products in flight at the end, and threads that multiply different operands, are found") {
  const auto start = [](int difference) {
    return [difference] {
      WriteOperand(0, 64);
      FenceShared();
      SyncThreads();
      float sums[32] = {};
      FenceProducts();
      const uint64_t place = Descriptor(SharedArray<uint8_t>(0), 16, 1024);
      StartProduct<false>(sums, place + (ThreadIndex() == 5 ? difference : 0), place, BF16());
      CommitProducts();
    };
  };
  CHECK(Complaint(start(0)).find("products in flight") != std::string::npos);
  CHECK(Complaint(start(2)) == "threads of a warpgroup multiply different operands");
}

struct ThreeWarpgroups {
  using Args = std::function<void()>;
  static constexpr int kThreads = 384;  // 168 registers each
  static constexpr size_t kSharedBytes = 64;
  static void Run(const Args& code) { code(); }
};

TEST_CASE("registers are taken from those that others gave up") {
  const auto complaint = [](const std::function<void()>& code) -> std::string {
    Machine machine(Timing::kLazy, 1);
    try {
      machine.Run<ThreeWarpgroups>(code, {});
    } catch (const EmulationError& error) {
      return error.what();
    }
    return "";
  };
  CHECK(complaint([] {
          if (ThreadIndex() < 128) {
            GiveRegisters<24>();
          } else {
            TakeRegisters<240>();
          }
        }) == "");
  CHECK(complaint([] {
          if (ThreadIndex() < 128) {
            GiveRegisters<32>();  // eight short for each of the others
          } else {
            TakeRegisters<240>();
          }
        }).find("deadlock") != std::string::npos);
}

}  // namespace
}  // namespace jaxsparse::cuda
