// Tiles from global to shared memory, by all threads of a block.
#pragma once
#include "cuda/primitives/primitives.h"

namespace jaxsparse::cuda {

// Not a number, whatever the mantissa.
template <class Sum>
JAXSPARSE_DEVICE Sum NaN() {
  return static_cast<Sum>(__builtin_nan(""));
}

// Asynchronous copies take no registers but addresses; others hold what is on its way.
template <bool kIsAligned>
inline constexpr int kCopiesAtOnce = kIsAligned ? 32 : 8;

// Copies the part of a kRows x kLength tile that is there, the rest of it becomes zero. Aligned
// tiles arrive asynchronously, 16 bytes at a time; others element by element, at once.
template <int kRows, int kLength, int kThreads, bool kIsAligned, class Element>
JAXSPARSE_DEVICE void CopyTile(Element* tile, int tile_stride, const Element* source,
                               int64_t source_stride, int64_t rows_there, int length_there) {
  constexpr int kVector = kIsAligned ? 16 / static_cast<int>(sizeof(Element)) : 1;
  constexpr int kPerRow = kLength / kVector, kTotal = kRows * kPerRow;
  static_assert(kLength % kVector == 0, "A row of a tile is whole vectors.");
  JAXSPARSE_UNROLL_BY(kCopiesAtOnce<kIsAligned>)
  for (int first = 0; first < kTotal; first += kThreads) {
    const int i = first + ThreadIndex();
    if (kTotal % kThreads != 0 && i >= kTotal) break;
    const int row = i / kPerRow, at = i % kPerRow * kVector;
    const bool is_there = row < rows_there && at < length_there;
    Element* to = tile + row * tile_stride + at;
    const Element* from = source + row * source_stride + at;
    if constexpr (kIsAligned) {
      CopyAsync16(to, is_there ? from : source, is_there);
    } else {
      StoreShared(to, is_there ? LoadConstant(from) : Element{});
    }
  }
}

}  // namespace jaxsparse::cuda
