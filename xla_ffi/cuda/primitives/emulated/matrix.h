// Fragments and products of small matrices, emulated. What each function means, and where elements
// lie: ptx/matrix.h. The tables here are our reading of the PTX manual; `layout probes` on a GPU
// compare them with hardware.
#pragma once
#include "cuda/primitives/emulated/copy.h"

namespace jaxsparse::cuda {
namespace emulated {

struct MatrixRow {
  const uint8_t* address;
  uint32_t* out;
};

template <bool kTransposed>
void LoadFourMatrices(void* const* lanes) {
  for (int matrix = 0; matrix < 4; ++matrix) {
    uint16_t elements[8][8];
    uint32_t banks = 0;
    for (int row = 0; row < 8; ++row) {
      const uint8_t* address = static_cast<MatrixRow*>(lanes[matrix * 8 + row])->address;
      Machine::Now().ReadShared(elements[row], address, 16, 16);
      banks |= 1u << (address - Machine::Now().shared()) / 16 % 8;
    }
    // Rows are 16 bytes: eight of them fill the 32 banks once.
    if (banks != 0xFF) Machine::Now().CountBankConflicts(1);
    for (int lane = 0; lane < 32; ++lane) {
      uint32_t pair = 0;
      for (int h = 0; h < 2; ++h) {
        const int i = lane / 4, j = lane % 4 * 2 + h;
        const uint32_t element = kTransposed ? elements[j][i] : elements[i][j];
        pair |= element << (16 * h);
      }
      static_cast<MatrixRow*>(lanes[lane])->out[matrix] = pair;
    }
  }
}

template <class T>
float HalfOf(uint32_t pair, int half) {
  return ToFloat(T{static_cast<uint16_t>(pair >> (16 * half))});
}

struct Product {
  float* sums;
  const uint32_t *a, *b;
};

// a and b of 16 x kDepth and kDepth x 8, gathered from all lanes.
template <int kDepth>
void AddProduct(void* const* lanes, const float (&a)[16][kDepth], const float (&b)[kDepth][8]) {
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + 8 * (i / 2), col = lane % 4 * 2 + i % 2;
      float& sum = static_cast<Product*>(lanes[lane])->sums[i];
      for (int k = 0; k < kDepth; ++k) sum += a[row][k] * b[k][col];
    }
  }
}

template <class T>
void ProductOfShort(void* const* lanes) {
  float a[16][16], b[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const Product& mine = *static_cast<Product*>(lanes[lane]);
    const int group = lane / 4, pair = lane % 4;
    for (int h = 0; h < 2; ++h) {
      for (int i = 0; i < 4; ++i)
        a[group + 8 * (i % 2)][pair * 2 + h + 8 * (i / 2)] = HalfOf<T>(mine.a[i], h);
      for (int i = 0; i < 2; ++i) b[pair * 2 + h + 8 * i][group] = HalfOf<T>(mine.b[i], h);
    }
  }
  AddProduct<16>(lanes, a, b);
}

inline void ProductOfTF32(void* const* lanes) {
  float a[16][8], b[8][8];
  const auto cut = [](uint32_t bits) { return FloatOf(bits & ~0x1FFFu); };
  for (int lane = 0; lane < 32; ++lane) {
    const Product& mine = *static_cast<Product*>(lanes[lane]);
    const int group = lane / 4, pair = lane % 4;
    for (int i = 0; i < 4; ++i) a[group + 8 * (i % 2)][pair + 4 * (i / 2)] = cut(mine.a[i]);
    for (int i = 0; i < 2; ++i) b[pair + 4 * i][group] = cut(mine.b[i]);
  }
  AddProduct<8>(lanes, a, b);
}

}  // namespace emulated

inline void LoadMatrices(uint32_t (&out)[4], const void* row) {
  emulated::MatrixRow mine{static_cast<const uint8_t*>(row), out};
  Machine::Now().Warp(emulated::LoadFourMatrices<false>, &mine);
}

inline void LoadMatricesTransposed(uint32_t (&out)[4], const void* row) {
  emulated::MatrixRow mine{static_cast<const uint8_t*>(row), out};
  Machine::Now().Warp(emulated::LoadFourMatrices<true>, &mine);
}

template <class T>
void MultiplyAdd(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], T) {
  emulated::Product mine{sums, a, b};
  if constexpr (sizeof(T) == 2) {
    Machine::Now().Warp(emulated::ProductOfShort<T>, &mine);
  } else {
    Machine::Now().Warp(emulated::ProductOfTF32, &mine);
  }
}

inline uint32_t RoundToTF32(uint32_t bits) {
  const bool is_finite = (bits & 0x7F800000) != 0x7F800000;
  return is_finite ? (bits + 0x1000) & ~0x1FFFu : bits;
}

inline float FusedMultiplyAdd(float a, float b, float c) { return std::fma(a, b, c); }
inline double FusedMultiplyAdd(double a, double b, double c) { return std::fma(a, b, c); }

}  // namespace jaxsparse::cuda
