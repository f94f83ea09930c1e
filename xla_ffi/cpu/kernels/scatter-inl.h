// Lists of active places and their products with neighbouring taps, see scatter_tiles.h.
#pragma once
#include "cpu/kernels/places-inl.h"
#include "cpu/kernels/simd-inl.h"
#include "cpu/scatter_tiles.h"

namespace jaxsparse::cpu {
namespace {

// Of a tile of three taps and two vectors: with AVX-512, 24 sums, 4 numbers and the weights are in
// registers.
constexpr int kScatterPlaces = kVectorRegisters == 32 ? 4 : 2;

void ListPlaces(const ScatterList& p) {
  const int64_t begin = p.begin, end = p.end;
  const int32_t* target_of = p.target_of;
  const int32_t* columns = p.columns;
  const int32_t column = p.column;
  int32_t* const sources = p.sources;
  int32_t* const targets = p.targets;
  int64_t size = p.begins[0];
  // Without branches, which would be missed at every other place.
  for (int64_t row = 0; row < p.rows; ++row) {
    const int32_t* counts = p.counts + row * p.width;
    const auto source = static_cast<int32_t>(row * p.width);
    const auto target = static_cast<int32_t>(row * p.target_width);
#if defined(__AVX512F__)
    const __m512i steps = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    for (int64_t i = begin; i < end; i += 16) {
      const auto exist = static_cast<__mmask16>(end - i < 16 ? (1 << (end - i)) - 1 : 0xffff);
      const __mmask16 is_one_of_them = _mm512_mask_cmpeq_epi32_mask(
          exist, _mm512_maskz_loadu_epi32(exist, columns + i), _mm512_set1_epi32(column));
      const __mmask16 active = _mm512_mask_cmpgt_epi32_mask(
          is_one_of_them, _mm512_maskz_loadu_epi32(exist, counts + i), _mm512_setzero_si512());
      const __m512i its_sources =
          _mm512_add_epi32(steps, _mm512_set1_epi32(source + static_cast<int32_t>(i)));
      const __m512i its_targets = _mm512_add_epi32(_mm512_maskz_loadu_epi32(exist, target_of + i),
                                                   _mm512_set1_epi32(target));
      StoreVector(sources + size, _mm512_maskz_compress_epi32(active, its_sources));
      StoreVector(targets + size, _mm512_maskz_compress_epi32(active, its_targets));
      size += __builtin_popcount(active);
    }
#else
    for (int64_t i = begin; i < end; ++i) {
      sources[size] = source + static_cast<int32_t>(i);
      targets[size] = target + target_of[i];
      size += (counts[i] > 0) & (columns[i] == column);
    }
#endif
    p.begins[row + 1] = static_cast<int32_t>(size);
  }
}

template <class Type, class Op, int kPlaces, int kTaps, int kVectors>
JAXSPARSE_INLINE void ScatterTile(const ScatterProduct& p, int64_t begin) {
  using Word = typename Op::Word;
  using Sum = typename Op::Sum;
  constexpr bool kIsDirect = Type::kSumsAreStored || Op::kItemsPerWord == 2;
  constexpr int64_t kWords = kScatterChannels / Op::kItemsPerWord;
  const auto* source = static_cast<const typename Op::Stored*>(p.source);
  const int32_t* sources = p.sources + begin;
  const int32_t* targets = p.targets + begin;
  const int64_t words = CeilDiv(p.items, Op::kItemsPerWord);
  alignas(64) Word copies[kIsDirect && Op::kItemsPerWord == 1 ? 1 : kPlaces * kWords];
  const Word* row[kPlaces];
#pragma GCC unroll 16
  for (int r = 0; r < kPlaces; ++r) {
    const auto* from = source + sources[r] * p.source_stride;
    row[r] = reinterpret_cast<const Word*>(from);
    if (!kIsDirect || (Op::kItemsPerWord == 2 && p.items % 2 != 0)) {
      CopyWords<Type, Op>(from, p.items, copies + r * kWords);
      row[r] = copies + r * kWords;
    }
  }
  typename Op::Sums acc[kPlaces][kTaps][kVectors];
#pragma GCC unroll 16
  for (int r = 0; r < kPlaces; ++r)
#pragma GCC unroll 16
    for (int t = 0; t < kTaps; ++t)
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) acc[r][t][v] = typename Op::Sums{};
  const auto* w = static_cast<const Word*>(p.weights);
  for (int64_t k = 0; k < words; ++k, w += p.weights_stride) {
    typename Op::Words x[kPlaces];
#pragma GCC unroll 16
    for (int r = 0; r < kPlaces; ++r) {
      Word word;  // pairs in the source are aligned to their halves only
      __builtin_memcpy(&word, row[r] + k, sizeof(word));
      x[r] = Op::Broadcast(&word);
    }
#pragma GCC unroll 16
    for (int t = 0; t < kTaps; ++t)
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) {
        const auto weights = LoadVector<typename Op::Words>(w + t * p.tap_stride + v * Op::kLanes);
#pragma GCC unroll 16
        for (int r = 0; r < kPlaces; ++r) acc[r][t][v] = Op::MulAdd(x[r], weights, acc[r][t][v]);
      }
  }
  const int64_t step = p.target_step * p.sums_stride;
#pragma GCC unroll 16
  for (int r = 0; r < kPlaces; ++r) {
    Sum* to = static_cast<Sum*>(p.sums) + (p.first_target + targets[r]) * p.sums_stride;
#pragma GCC unroll 16
    for (int t = 0; t < kTaps; ++t, to += step)
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) {
        Sum* its = to + v * Op::kLanes;
        StoreVector(its, LoadVector<typename Op::Sums>(its) + acc[r][t][v]);
      }
  }
}

template <class Type, class Op, int kPlaces, int kTaps, int kVectors>
void ScatterPlaces(const ScatterProduct& p, int64_t begin) {
  for (; begin + kPlaces <= p.places; begin += kPlaces) {
    // Those of later groups are on their way from far.
    const auto* source = static_cast<const typename Op::Stored*>(p.source);
    for (int r = 0; r < kPlaces; ++r) {
      const auto* row = reinterpret_cast<const char*>(source + p.sources[begin + kPlacesAhead + r] *
                                                                   p.source_stride);
      for (int64_t i = 0; i < p.items * static_cast<int64_t>(sizeof(*source)); i += 64)
        __builtin_prefetch(row + i);
    }
    ScatterTile<Type, Op, kPlaces, kTaps, kVectors>(p, begin);
  }
  if constexpr (kPlaces > 1) ScatterPlaces<Type, Op, kPlaces / 2, kTaps, kVectors>(p, begin);
}

template <class Type, class Op>
void RunScatter(const ScatterProduct& p) {
  constexpr int kFew = kScatterPlaces, kMore = 2 * kScatterPlaces;
  if (p.vectors == 2) {
    if (p.taps == 3) return ScatterPlaces<Type, Op, kFew, 3, 2>(p, 0);
    if (p.taps == 2) return ScatterPlaces<Type, Op, kFew, 2, 2>(p, 0);
    return ScatterPlaces<Type, Op, kMore, 1, 2>(p, 0);
  }
  if (p.taps == 3) return ScatterPlaces<Type, Op, kFew, 3, 1>(p, 0);
  if (p.taps == 2) return ScatterPlaces<Type, Op, kFew, 2, 1>(p, 0);
  ScatterPlaces<Type, Op, kMore, 1, 1>(p, 0);
}

template <class Type, class Op>
constexpr ScatterTiles MakeScatterTiles() {
  ScatterTiles tiles = {};
  tiles.list = ListPlaces;
  tiles.add = RunScatter<Type, Op>;
  return tiles;
}

}  // namespace
}  // namespace jaxsparse::cpu
