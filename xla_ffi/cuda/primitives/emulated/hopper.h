// What sm_90a adds, emulated. What each function means: ptx/hopper.h.
#pragma once
#include <cstring>
#include <vector>

#include "cuda/primitives/emulated/matrix.h"

namespace jaxsparse::cuda {

inline void InitBarrier(uint64_t* barrier, int arrivals) {
  Machine::Now().InitBarrier(barrier, arrivals);
}
inline void FenceBarriers() { Machine::Now().FenceBarriers(); }
inline void Arrive(uint64_t* barrier) { Machine::Now().Arrive(barrier, 0); }
inline void ArriveExpecting(uint64_t* barrier, int bytes) { Machine::Now().Arrive(barrier, bytes); }
inline void WaitForPhase(uint64_t* barrier, int parity) {
  Machine::Now().WaitForPhase(barrier, parity);
}
inline void SyncWarpgroup(int number) {
  if (number < 1 || number > 15) Machine::Fail("a barrier of a warpgroup has a number up to 15");
  Machine::Now().Warpgroup([](void* const*) {}, nullptr);
}

// Stands in for what the driver makes.
struct TensorMap {
  const void* data;
  int64_t layers, rows, columns;
  int box_rows;
};

inline int Swizzled(int offset) { return offset ^ (offset >> 7 & 7) << 4; }

namespace emulated {

constexpr int kBoxColumns = 64, kBoxRowBytes = 128;

// Calls use(byte of the box, element of the array or null) for each element of a box.
template <class Use>
void ForEachOfBox(const TensorMap& map, int column, int row, int layer, bool is_write,
                  const Use& use) {
  for (int r = 0; r < map.box_rows; ++r) {
    const int64_t i = row + r;
    const bool is_there = layer >= 0 && layer < map.layers && i >= 0 && i < map.rows;
    for (int c = 0; c < kBoxColumns; ++c) {
      const int64_t j = column + c;
      const uint16_t* element = nullptr;
      if (is_there && j >= 0 && j < map.columns) {
        element = static_cast<const uint16_t*>(map.data) + (layer * map.rows + i) * map.columns + j;
        Machine::Now().CheckGlobal(element, 2, 2, is_write);
      }
      use(r * kBoxRowBytes + c * 2, element);
    }
  }
}

inline int OffsetOfBox(const void* shared) {
  const ptrdiff_t offset = static_cast<const uint8_t*>(shared) - Machine::Now().shared();
  if (offset % 1024 != 0) Machine::Fail("box: misaligned");
  return static_cast<int>(offset);
}

}  // namespace emulated

inline void FetchBox(void* shared, const TensorMap* map, int column, int row, int layer,
                     uint64_t* barrier) {
  Machine& machine = Machine::Now();
  machine.CheckBarrier(barrier);
  const int offset = emulated::OffsetOfBox(shared);
  machine.Deliver([=, &machine, from = *map] {
    emulated::ForEachOfBox(from, column, row, layer, false, [&](int at, const uint16_t* element) {
      machine.WriteSharedAsync(offset + Swizzled(at), element == nullptr ? 0 : *element);
    });
    machine.BytesLanded(barrier, from.box_rows * emulated::kBoxRowBytes);
  });
}

inline void StoreBox(const TensorMap* map, int column, int row, int layer, const void* shared) {
  Machine& machine = Machine::Now();
  const int offset = emulated::OffsetOfBox(shared);
  machine.AddBox([=, &machine, to = *map] {
    emulated::ForEachOfBox(to, column, row, layer, true, [&](int at, const uint16_t* element) {
      if (element == nullptr) return;
      *const_cast<uint16_t*>(element) = machine.ReadSharedAsync(offset + Swizzled(at));
    });
  });
}
inline void CommitBoxes() { Machine::Now().CommitBoxes(); }
inline void WaitForBoxesRead() { Machine::Now().WaitForBoxes(0); }
inline void FenceShared() { Machine::Now().FenceShared(); }

inline uint64_t Descriptor(const void* shared, int next_64, int next_8_rows) {
  const uint64_t offset = static_cast<const uint8_t*>(shared) - Machine::Now().shared();
  return (offset & 0x3FFFF) >> 4 | static_cast<uint64_t>(next_64 >> 4) << 16 |
         static_cast<uint64_t>(next_8_rows >> 4) << 32 | 1ull << 62;
}

namespace emulated {

struct AsyncProduct {
  float* sums;
  uint64_t a, b;
};

// Reads and sums together, at the start or at the end: a stage given back too early shows in one, a
// stage not waited for in the other.
template <bool kResultAlongRowsOfB, int kColumns, class T>
void AddAsyncProduct(const AsyncProduct& first, const std::vector<float*>& sums) {
  const auto field = [](uint64_t descriptor, int shift) {
    return static_cast<int>(descriptor >> shift & 0x3FFF) << 4;
  };
  const auto load = [](int offset) {
    return ToFloat(T{Machine::Now().ReadSharedAsync(Swizzled(offset))});
  };
  for (const uint64_t descriptor : {first.a, first.b}) {
    if (descriptor >> 62 != 1)
      Machine::Fail("an operand is not described as swizzled by 128 bytes");
  }
  const int a0 = field(first.a, 0), a_rows = field(first.a, 32);
  const int b0 = field(first.b, 0), b_next = field(first.b, 16), b_rows = field(first.b, 32);
  float a[64][16], b[16][kColumns];
  for (int i = 0; i < 64; ++i)
    for (int k = 0; k < 16; ++k) a[i][k] = load(a0 + i / 8 * a_rows + i % 8 * kBoxRowBytes + k * 2);
  for (int k = 0; k < 16; ++k) {
    for (int j = 0; j < kColumns; ++j) {
      b[k][j] = load(kResultAlongRowsOfB
                         ? b0 + j / 64 * b_next + k / 8 * b_rows + k % 8 * kBoxRowBytes + j % 64 * 2
                         : b0 + j / 8 * b_rows + j % 8 * kBoxRowBytes + k * 2);
    }
  }
  for (int t = 0; t < 128; ++t) {
    for (int e = 0; e < kColumns / 2; ++e) {
      const int row = t / 32 * 16 + t % 32 / 4 + 8 * (e / 2 % 2);
      const int col = e / 4 * 8 + t % 4 * 2 + e % 2;
      for (int k = 0; k < 16; ++k) sums[t][e] += a[row][k] * b[k][col];
    }
  }
}

template <bool kResultAlongRowsOfB, int kColumns, class T>
void StartProductOfAll(void* const* threads) {
  const AsyncProduct first = *static_cast<AsyncProduct*>(threads[0]);
  std::vector<float*> sums(128);
  for (int t = 0; t < 128; ++t) {
    const AsyncProduct& mine = *static_cast<AsyncProduct*>(threads[t]);
    if (mine.a != first.a || mine.b != first.b)
      Machine::Fail("threads of a warpgroup multiply different operands");
    sums[t] = mine.sums;
  }
  Machine::Now().AddProduct(
      [=] { AddAsyncProduct<kResultAlongRowsOfB, kColumns, T>(first, sums); });
}

}  // namespace emulated

inline void FenceProducts() {
  Machine::Now().Warpgroup([](void* const*) { Machine::Now().FenceProducts(); }, nullptr);
}
inline void CommitProducts() {
  Machine::Now().Warpgroup([](void* const*) { Machine::Now().CommitProducts(); }, nullptr);
}
template <int kPending>
void WaitForProducts() {
  Machine::Now().Warpgroup([](void* const*) { Machine::Now().WaitForProducts(kPending); }, nullptr);
}

template <bool kResultAlongRowsOfB, int kSums, class T>
void StartProduct(float (&sums)[kSums], uint64_t a, uint64_t b, T) {
  emulated::AsyncProduct mine{sums, a, b};
  Machine::Now().Warpgroup(emulated::StartProductOfAll<kResultAlongRowsOfB, 2 * kSums, T>, &mine);
}

inline uint32_t RoundedPair(float a, float b, BF16) {
  return RoundToBF16(a).bits | static_cast<uint32_t>(RoundToBF16(b).bits) << 16;
}
inline uint32_t RoundedPair(float a, float b, F16) {
  return RoundToF16(a).bits | static_cast<uint32_t>(RoundToF16(b).bits) << 16;
}

template <int kCount>
void GiveRegisters() {
  static_assert(kCount >= 24 && kCount <= 256 && kCount % 8 == 0, "What setmaxnreg takes.");
  Machine::Now().Warpgroup([](void* const*) { Machine::Now().GiveRegisters(kCount); }, nullptr);
}
template <int kCount>
void TakeRegisters() {
  static_assert(kCount >= 24 && kCount <= 256 && kCount % 8 == 0, "What setmaxnreg takes.");
  Machine::Now().TakeRegisters(kCount);
}

}  // namespace jaxsparse::cuda
