// The tile of a result that one warp sums in its registers, from operands in shared memory.
#pragma once
#include "cuda/block/arithmetic.h"
#include "cuda/primitives/primitives.h"

namespace jaxsparse::cuda {

// How an operand lies in shared memory: rows of neighbours along the depth of the product, or rows
// of neighbours along the result.
enum class Along { kDepth, kResult };

// A tile of 16 kRows x 8 kCols sums; kCols is even. Lane (g, p) = (lane / 4, lane % 4) has the sums
// at rows 16 i + g + 8 h and columns 8 j + 2 p + e.
template <class Arithmetic, int kRows, int kCols>
struct WarpTile {
  using Element = typename Arithmetic::Element;
  using Sum = typename Arithmetic::Sum;
  Sum sums[kRows][kCols][4];  // [i][j][2 h + e]

  JAXSPARSE_DEVICE void Fill(Sum value) {
    JAXSPARSE_UNROLL
    for (int i = 0; i < kRows; ++i) {
      JAXSPARSE_UNROLL
      for (int j = 0; j < kCols; ++j) {
        JAXSPARSE_UNROLL
        for (int e = 0; e < 4; ++e) sums[i][j][e] = value;
      }
    }
  }

  // Adds the product of one depth of the arithmetic. a and b point at the first element of the
  // tile's first row, and column, at this depth; strides are between rows of shared memory.
  template <Along kA, Along kB>
  JAXSPARSE_DEVICE void AddProduct(const Element* a, int a_stride, const Element* b, int b_stride) {
    const int lane = ThreadIndex() % 32;
    if constexpr (Arithmetic::kOnTensorCores) {
      uint32_t a_parts[kRows][4], b_parts[kCols][2];
      JAXSPARSE_UNROLL
      for (int i = 0; i < kRows; ++i)
        LoadA<kA>(a_parts[i], a + 16 * i * (kA == Along::kDepth ? a_stride : 1), a_stride, lane);
      JAXSPARSE_UNROLL
      for (int j = 0; j < kCols; j += 2)
        LoadB<kB>(b_parts[j], b_parts[j + 1], b + 8 * j * (kB == Along::kDepth ? b_stride : 1),
                  b_stride, lane);
      JAXSPARSE_UNROLL
      for (int i = 0; i < kRows; ++i) {
        JAXSPARSE_UNROLL
        for (int j = 0; j < kCols; ++j) MultiplyAdd(sums[i][j], a_parts[i], b_parts[j], Element());
      }
    } else {
      const int group = lane / 4, pair = lane % 4;
      Sum a_parts[kRows][2], b_parts[kCols][2];
      JAXSPARSE_UNROLL
      for (int i = 0; i < kRows; ++i) {
        JAXSPARSE_UNROLL
        for (int h = 0; h < 2; ++h) {
          const int row = 16 * i + 8 * h + group;
          a_parts[i][h] = LoadShared(a + row * (kA == Along::kDepth ? a_stride : 1));
        }
      }
      JAXSPARSE_UNROLL
      for (int j = 0; j < kCols; ++j) {
        JAXSPARSE_UNROLL
        for (int e = 0; e < 2; ++e) {
          const int col = 8 * j + 2 * pair + e;
          b_parts[j][e] = LoadShared(b + col * (kB == Along::kDepth ? b_stride : 1));
        }
      }
      JAXSPARSE_UNROLL
      for (int i = 0; i < kRows; ++i) {
        JAXSPARSE_UNROLL
        for (int j = 0; j < kCols; ++j) {
          JAXSPARSE_UNROLL
          for (int e = 0; e < 4; ++e) {
            sums[i][j][e] = FusedMultiplyAdd(a_parts[i][e / 2], b_parts[j][e % 2], sums[i][j][e]);
          }
        }
      }
    }
  }

 private:
  // Elements in the 16 bytes of a row of an 8 x 8 matrix, which is as deep as it is wide for short
  // floats and half as deep for TF32.
  static constexpr int kVector = 16 / static_cast<int>(sizeof(Element));

  template <Along kA>
  static JAXSPARSE_DEVICE void LoadA(uint32_t (&parts)[4], const Element* a, int stride, int lane) {
    if constexpr (kA == Along::kDepth) {
      // Matrices: rows 0 to 7 and 8 to 15 of the first half of the depth, then of the second.
      LoadMatrices(parts, a + lane % 16 * stride + lane / 16 * kVector);
    } else if constexpr (sizeof(Element) == 2) {
      LoadMatricesTransposed(parts, a + (lane / 16 * 8 + lane % 8) * stride + lane / 8 % 2 * 8);
    } else {
      JAXSPARSE_UNROLL
      for (int e = 0; e < 4; ++e)
        parts[e] = LoadBits(a + (lane % 4 + 4 * (e / 2)) * stride + lane / 4 + 8 * (e % 2));
    }
    Round(parts);
  }

  // Two neighbours of 8 columns.
  template <Along kB>
  static JAXSPARSE_DEVICE void LoadB(uint32_t (&first)[2], uint32_t (&second)[2], const Element* b,
                                     int stride, int lane) {
    uint32_t parts[4];
    if constexpr (kB == Along::kDepth) {
      LoadMatrices(parts, b + (lane / 16 * 8 + lane % 8) * stride + lane / 8 % 2 * kVector);
    } else if constexpr (sizeof(Element) == 2) {
      LoadMatricesTransposed(parts, b + lane % 16 * stride + lane / 16 * 8);
    } else {
      JAXSPARSE_UNROLL
      for (int e = 0; e < 4; ++e)
        parts[e] = LoadBits(b + (lane % 4 + 4 * (e % 2)) * stride + lane / 4 + 8 * (e / 2));
    }
    Round(parts);
    first[0] = parts[0], first[1] = parts[1];
    second[0] = parts[2], second[1] = parts[3];
  }

  static JAXSPARSE_DEVICE uint32_t LoadBits(const Element* p) {
    return LoadShared(reinterpret_cast<const uint32_t*>(p));
  }

  static JAXSPARSE_DEVICE void Round(uint32_t (&parts)[4]) {
    if constexpr (sizeof(Element) == 4) {
      JAXSPARSE_UNROLL
      for (int e = 0; e < 4; ++e) parts[e] = RoundToTF32(parts[e]);
    }
  }
};

// The numbers of a ring of tiles in shared memory: strides of rows that no warp's loads meet in one
// bank. `kAcross` is the length of rows along the result, kStep along the depth.
template <class Arithmetic, Along kAlong, int kAcross, int kStep>
struct SharedTile {
  using Element = typename Arithmetic::Element;
  static constexpr int kRows = kAlong == Along::kDepth ? kAcross : kStep;
  static constexpr int kLength = kAlong == Along::kDepth ? kStep : kAcross;
  // Rows of LoadMatrices should be an odd number of 16 bytes apart; the plain loads of four rows of
  // TF32, eight neighbours each, eight words.
  static constexpr bool kIsPlain = kAlong == Along::kResult && sizeof(Element) != 2;
  static constexpr int kPadding = (kIsPlain ? 32 : 16) / static_cast<int>(sizeof(Element));
  static constexpr int kStride = kLength + kPadding;
  static constexpr int kBytes = kRows * kStride * static_cast<int>(sizeof(Element));
};

}  // namespace jaxsparse::cuda
