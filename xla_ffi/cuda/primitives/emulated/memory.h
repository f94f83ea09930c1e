// Threads and memory, emulated. What each function means: ptx/memory.h.
#pragma once
#include <cstring>

#include "cuda/primitives/emulated/machine.h"
#include "cuda/primitives/emulated/rounding.h"
#include "cuda/primitives/numbers.h"

#define JAXSPARSE_DEVICE inline
#define JAXSPARSE_UNROLL
#define JAXSPARSE_UNROLL_BY(COUNT)

namespace jaxsparse::cuda {

inline int ThreadIndex() { return Machine::Now().thread(); }
inline int64_t BlockIndex() { return Machine::Now().block_x(); }
inline int64_t NumBlocks() { return Machine::Now().grid().x; }
inline int GroupIndex() { return Machine::Now().block_y(); }
inline int SplitIndex() { return Machine::Now().block_z(); }

template <class T>
T LoadConstant(const T* p) {
  Machine::Now().CheckGlobal(p, sizeof(T), sizeof(T), false);
  return *p;
}

template <class T>
T LoadGlobal(const T* p) {
  return LoadConstant(p);
}

template <class T>
void StoreGlobal(T* p, T value) {
  Machine::Now().CheckGlobal(p, sizeof(T), sizeof(T), true);
  *p = value;
}

inline void StoreRounded(float* p, float a) { StoreGlobal(p, a); }
inline void StoreRounded(double* p, double a) { StoreGlobal(p, a); }
inline void StoreRounded(BF16* p, float a) { StoreGlobal(p, RoundToBF16(a)); }
inline void StoreRounded(F16* p, float a) { StoreGlobal(p, RoundToF16(a)); }

template <class T, class Float>
void StorePair(T* p, Float a, Float b) {
  if (reinterpret_cast<uintptr_t>(p) % (2 * sizeof(T)) != 0)
    Machine::Fail("global memory: misaligned pair");
  StoreRounded(p, a);
  StoreRounded(p + 1, b);
}

inline int32_t AddAtomically(int32_t* p, int32_t value) {
  Machine::Now().CheckGlobal(p, sizeof *p, sizeof *p, true);
  const int32_t before = *p;
  *p += value;
  return before;
}

template <class T>
T* SharedArray(int first_byte) {
  return reinterpret_cast<T*>(Machine::Now().shared() + first_byte);
}

template <class T>
T LoadShared(const T* p) {
  T value;
  Machine::Now().ReadShared(&value, p, sizeof(T), sizeof(T));
  return value;
}

template <class T>
void StoreShared(T* p, T value) {
  Machine::Now().WriteShared(p, &value, sizeof(T), sizeof(T));
}

inline void SyncThreads() { Machine::Now().Barrier(false); }
inline bool SyncThreadsOr(bool mine) { return Machine::Now().Barrier(mine); }

inline int32_t ShuffleUp(int32_t value, int distance) {
  struct Operands {
    int32_t value, distance, result;
  } mine{value, distance, 0};
  Machine::Now().Warp(
      [](void* const* lanes) {
        for (int lane = 0; lane < 32; ++lane) {
          Operands& to = *static_cast<Operands*>(lanes[lane]);
          const int from = lane < to.distance ? lane : lane - to.distance;
          to.result = static_cast<Operands*>(lanes[from])->value;
        }
      },
      &mine);
  return mine.result;
}

}  // namespace jaxsparse::cuda
