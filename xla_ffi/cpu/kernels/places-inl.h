// Register tiles over rows that lie anywhere, see place_tiles.h.
#pragma once
#include "cpu/kernels/packing-inl.h"
#include "cpu/kernels/simd-inl.h"
#include "cpu/place_tiles.h"

namespace jaxsparse::cpu {
namespace {

// Rows of a tile of two vectors. With twelve, all their addresses stay in registers.
constexpr int kPlaceRows = kVectorRegisters == 32 ? 12 : 6;
constexpr int kFewPlaceRows = kVectorRegisters == 32 ? 4 : 2;  // for what is left
constexpr int kPlaceVectors = 2;
constexpr int kPairsAtOnce = 128;  // of an outer product: their columns stay in L1

// --- Counting

template <class Type>
void CountNonzeros(const PlaceCount& p) {
  using Bits = std::conditional_t<
      sizeof(typename Type::Stored) == 2, uint16_t,
      std::conditional_t<sizeof(typename Type::Stored) == 4, uint32_t, uint64_t>>;
  constexpr int kLanes = Simd<Bits>::kLanes;
  constexpr Bits kMagnitude = static_cast<Bits>(~Bits{0}) >> 1;  // -0.0 is zero
  const auto* row = static_cast<const Bits*>(p.source);
  for (int64_t place = 0; place < p.places; ++place, row += p.channels) {
    int32_t count = 0;
    int64_t c = 0;
#if defined(__AVX512BW__)
    for (; c + kLanes <= p.channels; c += kLanes) {
      const auto v = LoadVector<__m512i>(row + c);
      if constexpr (sizeof(Bits) == 2) {
        count += __builtin_popcount(_mm512_test_epi16_mask(v, _mm512_set1_epi16(kMagnitude)));
      } else if constexpr (sizeof(Bits) == 4) {
        count += __builtin_popcount(_mm512_test_epi32_mask(v, _mm512_set1_epi32(kMagnitude)));
      } else {
        count += __builtin_popcount(_mm512_test_epi64_mask(v, _mm512_set1_epi64(kMagnitude)));
      }
    }
#else
    using Vector = typename Simd<Bits>::Vector;
    // A lane counts at most so many vectors before it could overflow.
    while (c + kLanes <= p.channels) {
      Vector sums = {};
      const int64_t end = Min(p.channels, c + kLanes * int64_t{60000});
      for (; c + kLanes <= end; c += kLanes) {
        const Vector v = LoadVector<Vector>(row + c);
        sums -= (Vector)((v & kMagnitude) != 0);
      }
      Bits lanes[kLanes];
      StoreVector(lanes, sums);
      for (int i = 0; i < kLanes; ++i) count += static_cast<int32_t>(lanes[i]);
    }
#endif
    for (; c < p.channels; ++c) count += (row[c] & kMagnitude) != 0;
    p.counts[place] = count;
  }
}

// --- Products

// Words of a row of `items` numbers; where kItemsPerWord is two, an odd last one is followed by 0.
template <class Type, class Op>
JAXSPARSE_INLINE void CopyWords(const typename Op::Stored* row, int64_t items,
                                typename Op::Word* words) {
  if constexpr (Op::kItemsPerWord == 2) {
    auto* items_of_words = reinterpret_cast<typename Op::Stored*>(words);
    __builtin_memcpy(items_of_words, row, items * sizeof(typename Op::Stored));
    if (items % 2 != 0) items_of_words[items] = 0;
  } else {
    constexpr int kLanes = Op::kLanes;
    int64_t i = 0;
    for (; i + kLanes <= items; i += kLanes) StoreVector(words + i, Op::Load(row + i));
    if (i == items) return;
    typename Op::Word wide[kLanes];
    StoreVector(wide, LoadPartial<Op>(row + i, items - i));
    CopyFew<kLanes>(words + i, wide, items - i);
  }
}

// The first sums of a vector, fewer than it has; the others are zero. Under a mask where there is
// one: a copy through memory waits for its stores, once a tile.
template <class Sum>
JAXSPARSE_INLINE typename Simd<Sum>::Vector LoadFew(const Sum* from, int64_t count) {
  using Vector = typename Simd<Sum>::Vector;
#if defined(__AVX512F__)
  if constexpr (sizeof(Sum) == 4) return (Vector)_mm512_maskz_loadu_ps((1u << count) - 1, from);
  if constexpr (sizeof(Sum) == 8) return (Vector)_mm512_maskz_loadu_pd((1u << count) - 1, from);
#endif
  Sum few[Simd<Sum>::kLanes] = {};
  CopyFew<Simd<Sum>::kLanes>(few, from, count);
  return LoadVector<Vector>(few);
}

template <class Sum>
JAXSPARSE_INLINE void StoreFew(Sum* to, int64_t count, typename Simd<Sum>::Vector from) {
#if defined(__AVX512F__)
  if constexpr (sizeof(Sum) == 4) {
    _mm512_mask_storeu_ps(to, (1u << count) - 1, (__m512)from);
    return;
  }
  if constexpr (sizeof(Sum) == 8) {
    _mm512_mask_storeu_pd(to, (1u << count) - 1, (__m512d)from);
    return;
  }
#endif
  Sum few[Simd<Sum>::kLanes];
  StoreVector(few, from);
  CopyFew<Simd<Sum>::kLanes>(to, few, count);
}

template <class Sum, int kVectors>
JAXSPARSE_INLINE void LoadColumns(const Sum* from, int64_t cols, typename Simd<Sum>::Vector* to) {
  using Vector = typename Simd<Sum>::Vector;
  constexpr int kLanes = Simd<Sum>::kLanes;
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; ++v) {
    const int64_t left = cols - v * kLanes;
    if (left >= kLanes)
      to[v] = LoadVector<Vector>(from + v * kLanes);
    else
      to[v] = left > 0 ? LoadFew(from + v * kLanes, left) : Vector{};
  }
}

template <class Sum, int kVectors>
JAXSPARSE_INLINE void StoreColumns(Sum* to, int64_t cols, const typename Simd<Sum>::Vector* from) {
  constexpr int kLanes = Simd<Sum>::kLanes;
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; ++v) {
    const int64_t left = cols - v * kLanes;
    if (left >= kLanes)
      StoreVector(to + v * kLanes, from[v]);
    else if (left > 0)
      StoreFew(to + v * kLanes, left, from[v]);
  }
}

// sums[r] += word k of row r * the weights at w.
template <class Op, int kRows, int kVectors>
JAXSPARSE_INLINE void AddWord(const typename Op::Word* const* rows, int64_t k,
                              const typename Op::Word* w, typename Op::Sums (*sums)[kVectors]) {
  typename Op::Words weights[kVectors];
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v)
    weights[v] = LoadVector<typename Op::Words>(w + v * Op::kLanes);
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    typename Op::Word word;  // pairs in the source are aligned to their halves only
    __builtin_memcpy(&word, rows[r] + k, sizeof(word));
    const auto x = Op::Broadcast(&word);
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sums[r][v] = Op::MulAdd(x, weights[v], sums[r][v]);
  }
}

// sums[r] += rows[r] * weights.
template <class Op, int kRows, int kVectors>
JAXSPARSE_INLINE void PlaceTile(const typename Op::Word* const* rows, const PlaceProduct& p,
                                int64_t words, typename Op::Sum* const* sums) {
  using Word = typename Op::Word;
  typename Op::Sums acc[kRows][kVectors];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) LoadColumns<typename Op::Sum, kVectors>(sums[r], p.cols, acc[r]);
  const Word* row[kRows];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) row[r] = rows[r];
  const auto* w = static_cast<const Word*>(p.weights);
  for (int64_t k = 0; k < words; ++k, w += p.weights_stride)
    AddWord<Op, kRows, kVectors>(row, k, w, acc);
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) StoreColumns<typename Op::Sum, kVectors>(sums[r], p.cols, acc[r]);
}

// The next `kRows` pairs, or fewer: `left`.
template <class Type, class Op, int kRows, int kVectors>
void PlaceRows(const PlaceProduct& p, int64_t begin, int64_t left) {
  using Word = typename Op::Word;
  using Sum = typename Op::Sum;
  constexpr bool kIsDirect = Type::kSumsAreStored || Op::kItemsPerWord == 2;
  const auto* source = static_cast<const typename Op::Stored*>(p.source);
  auto* sums = static_cast<Sum*>(p.sums);
  const PlacePair* pairs = p.pairs + begin;
  const int64_t count = Min(kRows, left), ahead = Min(left - count, kRows);
  const int64_t words = CeilDiv(p.items, Op::kItemsPerWord);
  alignas(64) Word copies[kIsDirect ? 1 : kRows * kDepthOfProduct];
  alignas(64) Word odd[Op::kItemsPerWord == 2 ? kRows * kDepthOfProduct / 2 : 1];
  alignas(64) Sum nowhere[kVectors * Op::kLanes] = {};
  const Word* rows[kRows];
  Sum* targets[kRows];
  for (int r = 0; r < kRows; ++r) {
    const PlacePair& pair = pairs[Min(r, count - 1)];
    const auto* row = source + pair.source * p.source_stride;
    if constexpr (!kIsDirect) {
      CopyWords<Type, Op>(row, p.items, copies + r * kDepthOfProduct);
      rows[r] = copies + r * kDepthOfProduct;
    } else if (Op::kItemsPerWord == 2 && p.items % 2 != 0) {
      CopyWords<Type, Op>(row, p.items, odd + r * (kDepthOfProduct / 2));
      rows[r] = odd + r * (kDepthOfProduct / 2);
    } else {
      rows[r] = reinterpret_cast<const Word*>(row);
    }
    targets[r] = r < count ? sums + pair.target * p.sums_stride : nowhere;
  }
  for (int64_t r = 0; r < ahead; ++r) {
    const auto* target =
        reinterpret_cast<const char*>(sums + pairs[count + r].target * p.sums_stride);
    __builtin_prefetch(target);
    if (kVectors == 2) __builtin_prefetch(target + kVectorBytes);
    const auto* row =
        reinterpret_cast<const char*>(source + pairs[count + r].source * p.source_stride);
    const int64_t bytes = Min(256, p.items * static_cast<int64_t>(sizeof(*source)));
    for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(row + i);
  }
  PlaceTile<Op, kRows, kVectors>(rows, p, words, targets);
}

// The same of kRows pairs at least, whole vectors of columns and rows that are words as they lie.
// With 64 channels, a tile takes some 1600 cycles where an FMA takes one: what is done once per
// tile must be little. So targets are not kept but found again, and what the next tile reads is
// fetched between multiplications, a pair at a step, where the loads find room. Measured on Zen 4,
// in L1: 108 instead of 97 GF/s, of 118, with 64 channels; 112 instead of 105 with 128.
template <class Op, int kRows, int kVectors>
void WholePlaceTile(const PlaceProduct& p, const PlacePair* pairs, int64_t left) {
  using Word = typename Op::Word;
  using Sum = typename Op::Sum;
  using Sums = typename Op::Sums;
  constexpr int64_t kMaxBytes = 256;  // that are fetched of a row
  const auto* source = static_cast<const typename Op::Stored*>(p.source);
  auto* sums = static_cast<Sum*>(p.sums);
  const Word* row[kRows];
  Sums acc[kRows][kVectors];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    row[r] = reinterpret_cast<const Word*>(source + pairs[r].source * p.source_stride);
    const Sum* from = sums + pairs[r].target * p.sums_stride;
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) acc[r][v] = LoadVector<Sums>(from + v * Op::kLanes);
  }
  const auto* w = static_cast<const Word*>(p.weights);
  const int64_t words = p.items / Op::kItemsPerWord;
  int64_t k = 0;
  const auto step = [&]() __attribute__((always_inline)) {
    AddWord<Op, kRows, kVectors>(row, k, w, acc);
    w += p.weights_stride;
    ++k;
  };
  const int64_t ahead = Min(Min(left - kRows, kRows), words);
  const int64_t bytes = Min(kMaxBytes, p.items * static_cast<int64_t>(sizeof(*source)));
  while (k < ahead) {
    const PlacePair& next = pairs[kRows + k];
    const auto* target = reinterpret_cast<const char*>(sums + next.target * p.sums_stride);
    __builtin_prefetch(target);
    if (kVectors == 2) __builtin_prefetch(target + kVectorBytes);
    const auto* from = reinterpret_cast<const char*>(source + next.source * p.source_stride);
    for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(from + i);
    step();
  }
  constexpr int kSteps = 4;
  while (k + kSteps <= words)
#pragma GCC unroll 4
    for (int i = 0; i < kSteps; ++i) step();
  while (k < words) step();
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    Sum* to = sums + pairs[r].target * p.sums_stride;
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) StoreVector(to + v * Op::kLanes, acc[r][v]);
  }
}

template <class Type, class Op, int kVectors>
void PlaceProductOf(const PlaceProduct& p) {
  int64_t i = 0;
  if constexpr (Type::kSumsAreStored || Op::kItemsPerWord == 2) {
    if (p.cols == kVectors * Op::kLanes && p.items % Op::kItemsPerWord == 0) {
      for (; i + kPlaceRows <= p.num_pairs; i += kPlaceRows)
        WholePlaceTile<Op, kPlaceRows, kVectors>(p, p.pairs + i, p.num_pairs - i);
      const int64_t left = p.num_pairs - i;
      if (left <= kPlaceRows - kFewPlaceRows)
        for (; i + kFewPlaceRows <= p.num_pairs; i += kFewPlaceRows)
          WholePlaceTile<Op, kFewPlaceRows, kVectors>(p, p.pairs + i, p.num_pairs - i);
    }
  }
  for (; i + kPlaceRows - kFewPlaceRows < p.num_pairs; i += kPlaceRows)
    PlaceRows<Type, Op, kPlaceRows, kVectors>(p, i, p.num_pairs - i);
  for (; i < p.num_pairs; i += kFewPlaceRows)
    PlaceRows<Type, Op, kFewPlaceRows, kVectors>(p, i, p.num_pairs - i);
}

template <class Type, class Op>
void RunPlaceProduct(const PlaceProduct& p) {
  (p.vectors == 1 ? PlaceProductOf<Type, Op, 1> : PlaceProductOf<Type, Op, 2>)(p);
}

// --- Outer products

template <class Type, int kRows, int kVectors>
JAXSPARSE_INLINE void OuterTile(const typename Type::Sum* const* rows, int64_t first_row,
                                const typename Type::Sum* cols, int64_t count,
                                typename Type::Sum* sums, const PlaceOuter& p) {
  using Sum = typename Type::Sum;
  using Vector = typename Simd<Sum>::Vector;
  constexpr int kLanes = Simd<Sum>::kLanes;
  Vector acc[kRows][kVectors];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) acc[r][v] = Vector{};
  for (int64_t i = 0; i < count; ++i, cols += kVectors * kLanes) {
    Vector b[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) b[v] = LoadVector<Vector>(cols + v * kLanes);
    const Sum* a = rows[i] + first_row;
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const Vector x = a[r] - Vector{};
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) acc[r][v] += x * b[v];
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    Sum* to = sums + r * p.sums_stride;
    if (p.accumulate) {
      Vector old[kVectors];
      LoadColumns<Sum, kVectors>(to, p.cols, old);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) acc[r][v] += old[v];
    }
    StoreColumns<Sum, kVectors>(to, p.cols, acc[r]);
  }
}

template <class Type, int kVectors>
void PlaceOuterOf(const PlaceOuter& all) {
  using Sum = typename Type::Sum;
  using Stored = typename Type::Stored;
  using Single = Singles<Type>;
  constexpr int kLanes = Simd<Sum>::kLanes;
  alignas(64) Sum cols[kPairsAtOnce * kVectors * kLanes];
  alignas(64) Sum copies[Type::kSumsAreStored ? 1 : kPairsAtOnce * kPlaceRows];
  const Sum* rows[kPairsAtOnce];
  PlaceOuter p = all;
  for (int64_t begin = 0; begin < all.num_pairs; begin += kPairsAtOnce) {
    const int64_t count = Min(kPairsAtOnce, all.num_pairs - begin);
    const PlacePair* pairs = all.pairs + begin;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t place = p.rows_are_sources ? pairs[i].target : pairs[i].source;
      const auto* from = static_cast<const Stored*>(p.cols_of) + place * p.cols_stride;
      Sum* to = cols + i * kVectors * kLanes;
      if (p.cols < kVectors * kLanes)
        for (int c = 0; c < kVectors * kLanes; ++c) to[c] = 0;
      CopyWords<Type, Single>(from, p.cols, to);
    }
    auto* sums = static_cast<Sum*>(p.sums);
    for (int64_t row = 0; row < p.rows;) {
      const int64_t left = p.rows - row;
      const int64_t num_rows = left >= kPlaceRows      ? kPlaceRows
                               : left >= kFewPlaceRows ? kFewPlaceRows
                                                       : 1;
      for (int64_t i = 0; i < count; ++i) {
        const int64_t place = p.rows_are_sources ? pairs[i].source : pairs[i].target;
        const auto* from = static_cast<const Stored*>(p.rows_of) + place * p.rows_stride;
        if constexpr (Type::kSumsAreStored) {
          rows[i] = from;
        } else {
          CopyWords<Type, Single>(from + row, num_rows, copies + i * kPlaceRows);
          rows[i] = copies + i * kPlaceRows;
        }
      }
      const int64_t first = Type::kSumsAreStored ? row : 0;
      Sum* to = sums + row * p.sums_stride;
      if (num_rows == kPlaceRows)
        OuterTile<Type, kPlaceRows, kVectors>(rows, first, cols, count, to, p);
      else if (num_rows == kFewPlaceRows)
        OuterTile<Type, kFewPlaceRows, kVectors>(rows, first, cols, count, to, p);
      else
        OuterTile<Type, 1, kVectors>(rows, first, cols, count, to, p);
      row += num_rows;
    }
    p.accumulate = true;
  }
}

template <class Type>
void RunPlaceOuter(const PlaceOuter& p) {
  (p.vectors == 1 ? PlaceOuterOf<Type, 1> : PlaceOuterOf<Type, 2>)(p);
}

template <class Type, class Op>
constexpr PlaceTiles MakePlaceTiles() {
  PlaceTiles tiles = {};
  tiles.count = CountNonzeros<Type>;
  tiles.product = RunPlaceProduct<Type, Op>;
  tiles.outer = RunPlaceOuter<Type>;
  return tiles;
}

}  // namespace
}  // namespace jaxsparse::cpu
