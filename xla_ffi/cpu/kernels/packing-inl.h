// Panels: operands in the order in which the tiles read them; and results back to storage.
#pragma once
#include "cpu/kernels/simd-inl.h"
#include "cpu/tiles.h"

namespace jaxsparse::cpu {
namespace {

// Copies the items that `count` has in its bits below 2 * kPart.
template <int kPart, class T>
JAXSPARSE_INLINE void CopyBits(T* to, const T* from, int64_t count) {
  if constexpr (kPart > 0) {
    if (count & kPart) {
      __builtin_memcpy(to, from, kPart * sizeof(T));
      to += kPart;
      from += kPart;
    }
    CopyBits<kPart / 2>(to, from, count);
  }
}

// Copies `count` items, at most kMax, a power of two. Copies of constant sizes are instructions;
// one of a variable size is a call, which made packing blocks of 8 ten times slower.
template <int kMax, class T>
JAXSPARSE_INLINE void CopyFew(T* to, const T* from, int64_t count) {
  if (count == kMax) {
    __builtin_memcpy(to, from, kMax * sizeof(T));
  } else {
    CopyBits<kMax / 2>(to, from, count);
  }
}

// `count` items, then zeros. Nothing behind them is read: they may end the array.
template <class Op>
JAXSPARSE_INLINE typename Op::Words LoadPartial(const typename Op::Stored* row, int64_t count) {
  constexpr int kItems = Op::kLanes * Op::kItemsPerWord;
  typename Op::Stored items[kItems] = {};
  CopyFew<kItems>(items, row, count);
  return Op::Load(items);
}

template <class Op>
void PackRows(const RowPanel& p) {
  constexpr int64_t kSliceWords = kSliceBytes / sizeof(typename Op::Word);
  constexpr int64_t kSliceItems = kSliceWords * Op::kItemsPerWord;
  constexpr int64_t kVectorItems = Op::kLanes * Op::kItemsPerWord;
  const auto* source = static_cast<const typename Op::Stored*>(p.source);
  auto* panel = static_cast<typename Op::Word*>(p.panel);
  const int64_t slices = CeilDiv(p.block_depth, kSliceItems);
  for (int64_t block = 0; block < p.depth; block += p.block_depth) {
    const int64_t block_depth = Min(p.block_depth, p.depth - block);
    for (int64_t s = 0; s < slices; ++s) {
      const int64_t items = Min(kSliceItems, block_depth - s * kSliceItems);
      const auto* row = source + block + s * kSliceItems;
      for (int64_t r = 0; r < p.rows; ++r) {
        if (items == kSliceItems) {
#pragma GCC unroll 4
          for (int v = 0; v < kSliceWords; v += Op::kLanes) {
            StoreVector(panel + v, Op::Load(row + v * Op::kItemsPerWord));
          }
          // More rows at a time than the hardware follows. 1 to 3 % of a product of 3072 inputs.
          __builtin_prefetch(row + 8 * kSliceItems);
        } else {
          // What lies behind the depth stays unset: the tile stops at the last word.
          for (int64_t i = 0; i < items; i += kVectorItems) {
            StoreVector(panel + i / Op::kItemsPerWord,
                        LoadPartial<Op>(row + i, Min(kVectorItems, items - i)));
          }
        }
        row += p.source_stride;
        panel += kSliceWords;
      }
    }
  }
}

template <class Op>
void PackColumns(const ColumnPanel& p) {
  constexpr int kLanes = Op::kLanes;
  using Stored = typename Op::Stored;
  using Word = typename Op::Word;
  const auto* row = static_cast<const Stored*>(p.source);
  auto* panel = static_cast<Word*>(p.panel);
  // All parts of a row before the next row: the source is read along its lines.
  for (int64_t d = 0; d < p.depth; d += Op::kItemsPerWord) {
    const bool has_next = d + 1 < p.depth;
    const auto* next = row + p.source_stride;
    for (int64_t part = 0; part < p.parts; ++part) {
      Word* to = panel + part * p.part_stride;
      const int64_t begin = part * p.width;
      int64_t c = 0;
      if (Op::kItemsPerWord == 1 || has_next) {
        const int64_t whole = Min(p.width, p.cols - begin) - kLanes;
        for (; c <= whole; c += kLanes) {
          StoreVector(to + c, Op::Zip(row + begin + c, next + begin + c));
        }
      }
      for (; c < p.width; c += kLanes) {
        const int64_t cols = Min(Min(kLanes, p.width - c), p.cols - begin - c);
        Stored first[kLanes] = {}, second[kLanes] = {};
        if (cols > 0) {
          CopyFew<kLanes>(first, row + begin + c, cols);
          if (Op::kItemsPerWord == 2 && has_next) {
            CopyFew<kLanes>(second, next + begin + c, cols);
          }
        }
        Word words[kLanes];
        StoreVector(words, Op::Zip(first, second));
        CopyFew<kLanes>(to + c, words, Min(kLanes, p.width - c));
      }
    }
    row += Op::kItemsPerWord * p.source_stride;
    panel += p.width;
  }
}

// One part of such a panel from a source whose columns are the depth.
template <class Op>
void PackTransposed(const ColumnPanel& p) {
  constexpr int64_t kLanes = Op::kLanes;
  constexpr int64_t kItems = kLanes * Op::kItemsPerWord;
  const auto* source = static_cast<const typename Op::Stored*>(p.source);
  auto* panel = static_cast<typename Op::Word*>(p.panel);
  for (int64_t d = 0; d < p.depth; d += kItems) {
    const int64_t items = Min(kItems, p.depth - d);
    const int64_t words = CeilDiv(items, Op::kItemsPerWord);
    for (int64_t c = 0; c < p.width; c += kLanes) {
      typename Op::Words rows[kLanes];
      const auto* column = source + c * p.source_stride + d;
      if (items == kItems && c + kLanes <= p.cols) {
#pragma GCC unroll 16
        for (int j = 0; j < kLanes; ++j) rows[j] = Op::Load(column + j * p.source_stride);
      } else {
        for (int j = 0; j < kLanes; ++j) {
          const bool exists = c + j < p.cols;
          rows[j] =
              exists ? LoadPartial<Op>(column + j * p.source_stride, items) : typename Op::Words{};
        }
      }
      Transpose<typename Op::Word>(rows);
      auto* target = panel + d / Op::kItemsPerWord * p.width + c;
      if (words == kLanes) {
#pragma GCC unroll 16
        for (int j = 0; j < kLanes; ++j) StoreVector(target + j * p.width, rows[j]);
      } else {
        for (int j = 0; j < words; ++j) StoreVector(target + j * p.width, rows[j]);
      }
    }
  }
}

template <class Type>
void StoreRows(const StoredRows& p) {
  constexpr int kLanes = Simd<typename Type::Sum>::kLanes;
  const auto* sums = static_cast<const typename Type::Sum*>(p.sums);
  auto* result = static_cast<typename Type::Stored*>(p.result);
  for (int64_t r = 0; r < p.rows; ++r) {
    int64_t c = 0;
    for (; c + kLanes <= p.cols; c += kLanes) {
      Type::Store(result + c, LoadVector<typename Type::Vector>(sums + c));
    }
    if (c < p.cols) {
      typename Type::Sum last[kLanes] = {};
      typename Type::Stored rounded[kLanes];
      CopyFew<kLanes>(last, sums + c, p.cols - c);
      Type::Store(rounded, LoadVector<typename Type::Vector>(last));
      CopyFew<kLanes>(result + c, rounded, p.cols - c);
    }
    sums += p.sums_stride;
    result += p.result_stride;
  }
}

}  // namespace
}  // namespace jaxsparse::cpu
