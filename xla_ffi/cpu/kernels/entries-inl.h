// Lists of nonzeros and their products, see entry_tiles.h.
#pragma once
#include "cpu/entry_tiles.h"
#include "cpu/kernels/packing-inl.h"
#include "cpu/kernels/places-inl.h"
#include "cpu/tiles.h"

namespace jaxsparse::cpu {
namespace {

template <class Type>
void ListEntries(const EntryLists& p) {
  using Sum = typename Type::Sum;
  using Vector = typename Type::Vector;
  constexpr int kLanes = Simd<Sum>::kLanes;
  const auto weight_bytes = static_cast<int32_t>(p.weight_bytes);
#if defined(__AVX512F__)
  const __m512i steps =
      _mm512_mullo_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                         _mm512_set1_epi32(weight_bytes));
#endif
  for (int64_t place = 0; place < p.places; ++place) {
    const auto* row = static_cast<const typename Type::Stored*>(p.source) + place * p.source_stride;
    Sum* values = static_cast<Sum*>(p.values) + place * p.list_stride;
    int32_t* offsets = p.offsets + place * p.list_stride;
    int32_t count = 0;
    int64_t c = p.nonzeros[place] > 0 ? 0 : p.channels;
#if defined(__AVX512F__)
    if constexpr (sizeof(Sum) == 4) {
      for (; c + kLanes <= p.channels; c += kLanes) {
        const auto v = (__m512)Type::Load(row + c);
        const __mmask16 mask = _mm512_cmp_ps_mask(v, _mm512_setzero_ps(), _CMP_NEQ_UQ);
        const __m512i at =
            _mm512_add_epi32(steps, _mm512_set1_epi32(static_cast<int32_t>(c) * weight_bytes));
        StoreVector(values + count, _mm512_maskz_compress_ps(mask, v));
        StoreVector(offsets + count, _mm512_maskz_compress_epi32(mask, at));
        count += __builtin_popcount(mask);
      }
    }
#endif
    for (; c < p.channels; c += kLanes) {
      const int64_t left = Min(kLanes, p.channels - c);
      Sum numbers[kLanes];
      if (left == kLanes) {
        StoreVector(numbers, Type::Load(row + c));
      } else {
        typename Type::Stored few[kLanes] = {};
        for (int64_t i = 0; i < left; ++i) few[i] = row[c + i];
        const Vector wide = Type::Load(few);
        StoreVector(numbers, wide);
      }
      for (int64_t i = 0; i < left; ++i) {
        values[count] = numbers[i];
        offsets[count] = static_cast<int32_t>(c + i) * weight_bytes;
        count += numbers[i] != 0;
      }
    }
    p.counts[place] = count;
  }
}

// Adds the products of a list. Several sets of sums hide the latency where vectors are few.
template <class Sum, int kVectors, int kSets>
JAXSPARSE_INLINE void AddList(const Sum* values, const int32_t* offsets, int64_t count,
                              const char* weights, typename Simd<Sum>::Vector (*sums)[kVectors]) {
  using Vector = typename Simd<Sum>::Vector;
  int64_t i = 0;
  for (; i + kSets <= count; i += kSets) {
#pragma GCC unroll 8
    for (int s = 0; s < kSets; ++s) {
      const Vector x = values[i + s] - Vector{};
      const char* w = weights + offsets[i + s];
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) sums[s][v] += x * LoadVector<Vector>(w + v * kVectorBytes);
    }
  }
  for (; i < count; ++i) {
    const Vector x = values[i] - Vector{};
    const char* w = weights + offsets[i];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) sums[0][v] += x * LoadVector<Vector>(w + v * kVectorBytes);
  }
}

template <class Sum, int kVectors, int kSets>
void EntryRowOf(const EntryRow& p) {
  using Vector = typename Simd<Sum>::Vector;
  const auto* values = static_cast<const Sum*>(p.values);
  auto* target = static_cast<Sum*>(p.sums);
  for (int64_t t = 0; t < p.targets; ++t, target += p.sums_stride) {
    Vector sums[kSets][kVectors];
#pragma GCC unroll 8
    for (int s = 0; s < kSets; ++s)
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) sums[s][v] = Vector{};
    if (p.accumulate) LoadColumns<Sum, kVectors>(target, p.cols, sums[0]);
    for (int64_t tap = 0; tap < p.taps; ++tap) {
      const int64_t list = p.source_of[tap * p.source_stride + t];
      if (list < 0) continue;
      AddList<Sum, kVectors, kSets>(
          values + list * p.list_stride, p.offsets + list * p.list_stride, p.counts[list],
          static_cast<const char*>(p.weights) + tap * p.weights_tap_bytes, sums);
    }
#pragma GCC unroll 8
    for (int s = 1; s < kSets; ++s)
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) sums[0][v] += sums[s][v];
    StoreColumns<Sum, kVectors>(target, p.cols, sums[0]);
  }
}

template <class Type>
void RunEntryRow(const EntryRow& p) {
  using Sum = typename Type::Sum;
  if (p.vectors == 8) return EntryRowOf<Sum, 8, 1>(p);
  if (p.vectors == 4) return EntryRowOf<Sum, 4, 2>(p);
  if (p.vectors == 2) return EntryRowOf<Sum, 2, 4>(p);
  EntryRowOf<Sum, 1, 4>(p);
}

template <class Type>
constexpr EntryTiles MakeEntryTiles() {
  EntryTiles tiles = {};
  tiles.sum_bytes = sizeof(typename Type::Sum);
  tiles.lanes = Simd<typename Type::Sum>::kLanes;
  tiles.list = ListEntries<Type>;
  tiles.row = RunEntryRow<Type>;
  tiles.pack_columns = PackColumns<Singles<Type>>;
  tiles.pack_transposed = PackTransposed<Singles<Type>>;
  return tiles;
}

}  // namespace
}  // namespace jaxsparse::cpu
