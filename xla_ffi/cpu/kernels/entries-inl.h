// Lists of nonzeros and their products, see entry_tiles.h.
#pragma once
#include "cpu/entry_tiles.h"
#include "cpu/kernels/offsets-inl.h"
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
  int64_t* begins = p.lists.begins;
  Sum* values = static_cast<Sum*>(p.lists.values) + begins[0];
  int32_t* offsets = p.lists.offsets + begins[0];
  for (int64_t place = 0; place < p.places; ++place) {
    const auto* row = static_cast<const typename Type::Stored*>(p.source) + place * p.source_stride;
    int64_t count = 0;
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
    values += count;
    offsets += count;
    begins[place + 1] = begins[place] + count;
  }
}

template <class Sum>
void JoinLists(const EntryJoin& p) {
  using Vector = typename Simd<Sum>::Vector;
  using Offsets = typename Simd<int32_t>::Vector;
  const auto* values = static_cast<const Sum*>(p.lists.values);
  auto* joined = static_cast<Sum*>(p.joined.values);
  int64_t count = p.joined.begins[0];
  for (int64_t target = 0; target < p.targets; ++target) {
    for (int64_t tap = 0; tap < p.taps; ++tap) {
      const int64_t source = p.source_of[tap * p.targets + target];
      if (source < 0) continue;
      const int64_t begin = p.lists.begins[source], size = p.lists.begins[source + 1] - begin;
      const Offsets weights = static_cast<int32_t>(tap * p.tap_bytes) - Offsets{};
      for (int64_t i = 0; i < size; i += Simd<Sum>::kLanes)
        StoreVector(joined + count + i, LoadVector<Vector>(values + begin + i));
      for (int64_t i = 0; i < size; i += Simd<int32_t>::kLanes)
        StoreVector(p.joined.offsets + count + i,
                    LoadVector<Offsets>(p.lists.offsets + begin + i) + weights);
      count += size;
    }
    joined[count] = 0;
    p.joined.offsets[count] = static_cast<int32_t>(p.zeros);
    count += (count - p.joined.begins[0]) & 1;  // all lists before are even
    p.joined.begins[target + 1] = count;
  }
}

// Adds the products of a list of an even length. Two sets of sums hide the latency of few vectors.
template <class Sum, int kVectors, int kSets>
JAXSPARSE_INLINE void AddList(const Sum* values, const int32_t* offsets, int64_t count,
                              const char* weights, typename Simd<Sum>::Vector (*sums)[kVectors]) {
  using Vector = typename Simd<Sum>::Vector;
  const auto add = [&](int64_t offset, Sum value, int set) __attribute__((always_inline)) {
    const Vector x = value - Vector{};
    const char* w = weights + offset;
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) sums[set][v] += x * LoadVector<Vector>(w + v * kVectorBytes);
  };
  uint64_t next = LoadTwoOffsets(offsets), after = LoadTwoOffsets(offsets + 2);
  for (int64_t i = 0; i < count; i += 2) {
    const uint64_t two = next;
    next = after;
    after = LoadTwoOffsets(offsets + i + 4);
    add(FirstOffset(two), values[i], 0);
    add(SecondOffset(two), values[i + 1], 1 % kSets);
  }
}

template <class Sum, int kVectors, int kSets>
void EntryRowOf(const EntryRow& p) {
  using Vector = typename Simd<Sum>::Vector;
  constexpr int64_t kWidth = kVectors * Simd<Sum>::kLanes;
  const auto* values = static_cast<const Sum*>(p.values);
  auto* target = static_cast<Sum*>(p.sums);
  for (int64_t t = 0; t < p.targets; ++t, target += p.sums_stride) {
    for (int64_t strip = 0; strip < p.strips; ++strip) {
      const int64_t cols = Min(kWidth, p.cols - strip * kWidth);
      const char* weights = static_cast<const char*>(p.weights) + strip * p.strip_bytes;
      Vector sums[kSets][kVectors];
#pragma GCC unroll 8
      for (int s = 0; s < kSets; ++s)
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) sums[s][v] = Vector{};
      if (p.accumulate) LoadColumns<Sum, kVectors>(target + strip * kWidth, cols, sums[0]);
      for (int64_t i = 0; i < p.num_segments; ++i) {
        const int64_t begin = p.segments[i].begins[t];
        AddList<Sum, kVectors, kSets>(values + begin, p.offsets + begin,
                                      p.segments[i].begins[t + 1] - begin,
                                      weights + p.segments[i].weights, sums);
      }
#pragma GCC unroll 8
      for (int s = 1; s < kSets; ++s)
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) sums[0][v] += sums[s][v];
      StoreColumns<Sum, kVectors>(target + strip * kWidth, cols, sums[0]);
    }
  }
}

template <class Type>
void RunEntryRow(const EntryRow& p) {
  using Sum = typename Type::Sum;
  if (p.vectors == 8) return EntryRowOf<Sum, 8, 1>(p);
  if (p.vectors == 4) return EntryRowOf<Sum, 4, 2>(p);
  if (p.vectors == 2) return EntryRowOf<Sum, 2, 2>(p);
  EntryRowOf<Sum, 1, 2>(p);
}

template <class Type>
constexpr EntryTiles MakeEntryTiles() {
  EntryTiles tiles = {};
  tiles.sum_bytes = sizeof(typename Type::Sum);
  tiles.lanes = Simd<typename Type::Sum>::kLanes;
  tiles.list = ListEntries<Type>;
  tiles.join = JoinLists<typename Type::Sum>;
  tiles.row = RunEntryRow<Type>;
  tiles.pack_columns = PackColumns<Singles<Type>>;
  tiles.pack_transposed = PackTransposed<Singles<Type>>;
  return tiles;
}

}  // namespace
}  // namespace jaxsparse::cpu
