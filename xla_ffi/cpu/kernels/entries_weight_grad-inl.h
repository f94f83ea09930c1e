// Lists of nonzeros by channel and their products, see entry_grad_tiles.h.
#pragma once
#include "cpu/entry_grad_tiles.h"
#include "cpu/kernels/packing-inl.h"
#include "cpu/kernels/simd-inl.h"
#include "cpu/tiles.h"

namespace jaxsparse::cpu {
namespace {

// Which of a vector of one channel's numbers are listed, and what is written of them.
template <class Sum>
struct Lister {
  using Vector = typename Simd<Sum>::Vector;
  static constexpr int kLanes = Simd<Sum>::kLanes;
  typedef int32_t Offsets __attribute__((vector_size(kLanes * sizeof(int32_t))));

  Sum* values;
  int32_t* offsets;

#if defined(__AVX512F__)
  using Some = uint32_t;  // of the numbers
#else
  using Some = decltype(Vector{} != Vector{});
#endif

  static JAXSPARSE_INLINE bool IsAny(Some some) {
#if defined(__AVX512F__)
    return some != 0;
#else
    bool is_any = false;
    for (int i = 0; i < kLanes; ++i) is_any |= some[i] != 0;
    return is_any;
#endif
  }

  // Returns how many numbers were written.
  JAXSPARSE_INLINE int32_t Add(Vector v, Offsets of, bool of_nonfinite, Some* nonfinite) const {
#if defined(__AVX512F__)
    if constexpr (sizeof(Sum) == 4) {
      const auto wide = (__m512)v;
      const __mmask16 odd = _mm512_fpclass_ps_mask(wide, 0x99);  // NaN and infinities
      const __mmask16 some = _mm512_cmp_ps_mask(wide, _mm512_setzero_ps(), _CMP_NEQ_UQ);
      const __mmask16 mask = of_nonfinite ? odd : some & ~odd;
      *nonfinite |= odd;
      StoreVector(values, _mm512_maskz_compress_ps(mask, wide));
      StoreVector(offsets, _mm512_maskz_compress_epi32(mask, (__m512i)of));
      return __builtin_popcount(mask);
    } else {
      const auto wide = (__m512d)v;
      const __mmask8 odd = _mm512_fpclass_pd_mask(wide, 0x99);
      const __mmask8 some = _mm512_cmp_pd_mask(wide, _mm512_setzero_pd(), _CMP_NEQ_UQ);
      const __mmask8 mask = of_nonfinite ? odd : some & ~odd;
      *nonfinite |= odd;
      StoreVector(values, _mm512_maskz_compress_pd(mask, wide));
      StoreVector(offsets, _mm256_maskz_compress_epi32(mask, (__m256i)of));
      return __builtin_popcount(mask);
    }
#else
    const Some odd = v - v != Vector{};
    const Some some = v != Vector{};
    *nonfinite |= odd;
    const Some mask = of_nonfinite ? odd : some & ~odd;
    int32_t count = 0, places[kLanes];
    StoreVector(places, of);
#pragma GCC unroll 8
    for (int i = 0; i < kLanes; ++i) {
      values[count] = v[i];
      offsets[count] = places[i];
      count -= static_cast<int32_t>(mask[i]);
    }
    return count;
#endif
  }
};

template <class Type>
bool ListChannels(const ChannelLists& p) {
  using Sum = typename Type::Sum;
  using Vector = typename Type::Vector;
  using Stored = typename Type::Stored;
  using Its = Lister<Sum>;
  constexpr int kLanes = Its::kLanes;
  const auto* source = static_cast<const Stored*>(p.source);
  for (int64_t c = 0; c < p.channels; ++c) p.sizes[c] = 0;
  typename Its::Some nonfinite = {};
  for (int64_t place = 0; place < p.num_places; place += kLanes) {
    const int64_t count = Min(kLanes, p.num_places - place);
    int32_t few[kLanes] = {};
    __builtin_memcpy(few, p.offsets + place, count * sizeof(int32_t));
    const auto offsets = LoadVector<typename Its::Offsets>(few);
    const Stored* from[kLanes];
    for (int i = 0; i < kLanes; ++i)
      from[i] = source + p.places[place + Min(i, count - 1)] * p.source_stride;
    for (int64_t c = 0; c < p.channels; c += kLanes) {
      const int64_t channels = Min(kLanes, p.channels - c);
      Vector rows[kLanes];
      if (channels == kLanes && count == kLanes) {
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) rows[i] = Type::Load(from[i] + c);
      } else {
        for (int i = 0; i < kLanes; ++i)
          rows[i] = i < count ? LoadPartial<Singles<Type>>(from[i] + c, channels) : Vector{};
      }
      Transpose<Sum>(rows);
      const auto add = [&](int i) __attribute__((always_inline)) {
        const int64_t at = (c + i) * p.room + p.sizes[c + i];
        const Its its = {static_cast<Sum*>(p.values) + at, p.its_offsets + at};
        p.sizes[c + i] += its.Add(rows[i], offsets, p.of_nonfinite, &nonfinite);
      };
      if (channels == kLanes) {
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) add(i);
      } else {
        for (int i = 0; i < channels; ++i) add(i);
      }
    }
  }
  return Its::IsAny(nonfinite);
}

template <class Sum, int kTaps, int kVectors>
void SumChannelsOf(const ChannelSums& p) {
  using Vector = typename Simd<Sum>::Vector;
  // Two sets of sums hide the latency of few.
  constexpr int kSets = kTaps * kVectors < 8 ? 2 : 1;
  const char* rows[kTaps];
#pragma GCC unroll 16
  for (int t = 0; t < kTaps; ++t) rows[t] = p.panel + p.tap_bytes[t];
  char* to = p.sums;
  const char* ahead = p.ahead;
  for (int64_t c = 0; c < p.channels; ++c, to += p.sums_bytes) {
    const int64_t size = p.sizes[c], end = c * p.room + size;
    const Sum* values = static_cast<const Sum*>(p.values) + end;
    const int32_t* offsets = p.offsets + end;
    for (int64_t i = 0; i < p.lines_ahead; ++i, ahead += 64) __builtin_prefetch(ahead, 0, 2);
    Vector sums[kSets][kTaps][kVectors] = {};
    const auto add = [&](int64_t i, int set) __attribute__((always_inline)) {
      const Vector x = values[i] - Vector{};
      const int64_t offset = offsets[i];
#pragma GCC unroll 16
      for (int t = 0; t < kTaps; ++t)
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v)
          sums[set][t][v] += x * LoadVector<Vector>(rows[t] + offset + v * kVectorBytes);
    };
    int64_t i = -size;
    if constexpr (kSets == 2)
      for (; i < -1; i += 2) {
        add(i, 0);
        add(i + 1, 1);
      }
    for (; i < 0; ++i) add(i, 0);
#pragma GCC unroll 16
    for (int t = 0; t < kTaps; ++t)
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        char* sum = to + (t * kVectors + v) * kVectorBytes;
        Vector all = LoadVector<Vector>(sum) + sums[0][t][v];
        if constexpr (kSets == 2) all += sums[1][t][v];
        StoreVector(sum, all);
      }
  }
}

template <class Sum, int kVectors, int kTaps>
void SumChannelsOfUpTo(const ChannelSums& p) {
  if constexpr (kTaps > 0) {
    if (p.num_taps == kTaps) return SumChannelsOf<Sum, kTaps, kVectors>(p);
    SumChannelsOfUpTo<Sum, kVectors, kTaps - 1>(p);
  }
}

template <class Type>
void RunChannelSums(const ChannelSums& p) {
  using Sum = typename Type::Sum;
  if (p.vectors == 1) return SumChannelsOfUpTo<Sum, 1, 9>(p);
  if (p.vectors == 2) return SumChannelsOfUpTo<Sum, 2, 4>(p);
  SumChannelsOfUpTo<Sum, 4, 2>(p);
}

template <class Type>
constexpr EntryGradTiles MakeEntryGradTiles() {
  EntryGradTiles tiles = {};
  tiles.sum_bytes = sizeof(typename Type::Sum);
  tiles.lanes = Simd<typename Type::Sum>::kLanes;
  tiles.list = ListChannels<Type>;
  tiles.sum = RunChannelSums<Type>;
  tiles.pack = PackColumns<Singles<Type>>;
  return tiles;
}

}  // namespace
}  // namespace jaxsparse::cpu
