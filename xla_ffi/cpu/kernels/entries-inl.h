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
  constexpr int kLanes = Simd<Sum>::kLanes;
  const auto channel_bytes = static_cast<int32_t>(p.channel_bytes);
#if defined(__AVX512F__)
  const __m512i steps =
      _mm512_mullo_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                         _mm512_set1_epi32(channel_bytes));
#endif
  int64_t* begins = p.lists.begins;
  Sum* values = static_cast<Sum*>(p.lists.values) + begins[0];
  int32_t* offsets = p.lists.offsets + begins[0];
  for (int64_t place = 0; place < p.places; ++place) {
    const auto* row = static_cast<const typename Type::Stored*>(p.source) + place * p.source_stride;
    const auto first = static_cast<int32_t>(p.first_bytes + place * p.place_bytes);
    int64_t count = 0;
    int64_t c = p.nonzeros[place] > 0 ? 0 : p.channels;
#if defined(__AVX512F__)
    if constexpr (sizeof(Sum) == 4) {
      for (; c + kLanes <= p.channels; c += kLanes) {
        const auto v = (__m512)Type::Load(row + c);
        const __mmask16 mask = _mm512_cmp_ps_mask(v, _mm512_setzero_ps(), _CMP_NEQ_UQ);
        const __m512i at = _mm512_add_epi32(
            steps, _mm512_set1_epi32(first + static_cast<int32_t>(c) * channel_bytes));
        StoreVector(values + count, _mm512_maskz_compress_ps(mask, v));
        StoreVector(offsets + count, _mm512_maskz_compress_epi32(mask, at));
        count += __builtin_popcount(mask);
      }
    }
#endif
    for (; c < p.channels; c += kLanes) {
      const int64_t left = Min(kLanes, p.channels - c);
      Sum numbers[kLanes];
      StoreVector(numbers,
                  left == kLanes ? Type::Load(row + c) : LoadPartial<Singles<Type>>(row + c, left));
      for (int64_t i = 0; i < left; ++i) {
        values[count] = numbers[i];
        offsets[count] = first + static_cast<int32_t>(c + i) * channel_bytes;
        count += numbers[i] != 0;
      }
    }
    values += count;
    offsets += count;
    begins[place + 1] = begins[place] + count;
  }
}

// Adds the products of a list. Two sets of sums hide the latency of few vectors.
template <class Sum, int kVectors, int kSets>
JAXSPARSE_INLINE void AddList(const Sum* values, const int32_t* offsets, int64_t count,
                              const char* weights, typename Simd<Sum>::Vector (*sums)[kVectors]) {
  using Vector = typename Simd<Sum>::Vector;
  alignas(64) static const Sum kZeros[kVectors * Simd<Sum>::kLanes] = {};
  const auto add = [&](const void* from, Sum value, int set) __attribute__((always_inline)) {
    const Vector x = value - Vector{};
    const auto* w = static_cast<const char*>(from);
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) sums[set][v] += x * LoadVector<Vector>(w + v * kVectorBytes);
  };
  // The first entry of an odd list, or zeros: a branch would be missed at every other list, and the
  // compiler would make one of a choice.
  const auto zeros = reinterpret_cast<intptr_t>(kZeros);
  int64_t odd = count & 1, mask = -odd;
  asm("" : "+r"(mask));
  const auto at_odd = [&](const void* p) {
    return reinterpret_cast<const Sum*>(zeros + (mask & (reinterpret_cast<intptr_t>(p) - zeros)));
  };
  add(at_odd(weights + static_cast<uint32_t>(offsets[0])), *at_odd(values), 1 % kSets);
  uint64_t next = LoadTwoOffsets(offsets + odd), after = LoadTwoOffsets(offsets + odd + 2);
  for (int64_t i = odd; i < count; i += 2) {
    const uint64_t two = next;
    next = after;
    after = LoadTwoOffsets(offsets + i + 4);
    add(weights + FirstOffset(two), values[i], 0);
    add(weights + SecondOffset(two), values[i + 1], 1 % kSets);
  }
}

// What loops over segments and ranges cost shows where lists are short.
template <class Sum, int kVectors, int kSets, bool kIsOneRange>
void EntryRowOf(const EntryRow& p) {
  using Vector = typename Simd<Sum>::Vector;
  constexpr int64_t kWidth = kVectors * Simd<Sum>::kLanes;
  const auto* values = static_cast<const Sum*>(p.values);
  for (int64_t strip = 0; strip < p.strips; ++strip) {
    const int64_t cols = Min(kWidth, p.cols - strip * kWidth);
    const char* weights = static_cast<const char*>(p.weights) + strip * p.strip_bytes;
    auto* target = static_cast<Sum*>(p.sums) + strip * kWidth;
    for (int64_t t = 0; t < p.targets; ++t, target += p.sums_stride) {
      Vector sums[kSets][kVectors];
#pragma GCC unroll 8
      for (int s = 0; s < kSets; ++s)
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) sums[s][v] = Vector{};
      if (p.accumulate) LoadColumns<Sum, kVectors>(target, cols, sums[0]);
      const auto add = [&](const EntrySegment& segment, int64_t range) {
        const EntryRange& its = segment.ranges[range * p.targets + t];
        AddList<Sum, kVectors, kSets>(values + its.begin, p.offsets + its.begin, its.count,
                                      weights + segment.weights + its.weights, sums);
      };
      if constexpr (kIsOneRange) {
        add(p.segments[0], 0);
      } else {
        for (int64_t i = 0; i < p.num_segments; ++i)
          for (int64_t k = 0; k < p.num_ranges; ++k) add(p.segments[i], k);
      }
#pragma GCC unroll 8
      for (int s = 1; s < kSets; ++s)
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) sums[0][v] += sums[s][v];
      StoreColumns<Sum, kVectors>(target, cols, sums[0]);
    }
  }
}

template <class Type, bool kIsOneRange>
void EntryRowOfVectors(const EntryRow& p) {
  using Sum = typename Type::Sum;
  if (p.vectors == 8) return EntryRowOf<Sum, 8, 1, kIsOneRange>(p);
  if (p.vectors == 4) return EntryRowOf<Sum, 4, 2, kIsOneRange>(p);
  if (p.vectors == 2) return EntryRowOf<Sum, 2, 2, kIsOneRange>(p);
  EntryRowOf<Sum, 1, 2, kIsOneRange>(p);
}

template <class Type>
void RunEntryRow(const EntryRow& p) {
  const bool is_one_range = p.num_segments == 1 && p.num_ranges == 1;
  (is_one_range ? EntryRowOfVectors<Type, true> : EntryRowOfVectors<Type, false>)(p);
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
