// Products of few rows with single weights: a sum per column and row. See lane_tiles.h.
#pragma once
#include "cpu/kernels/packing-inl.h"
#include "cpu/lane_tiles.h"

namespace jaxsparse::cpu {
namespace {

template <class Sum>
struct IndicesOf {
  typedef int32_t Vector __attribute__((vector_size(kVectorBytes / sizeof(Sum) * sizeof(int32_t))));
};

template <class Sum>
struct MaskOf {
  typedef int32_t Vector __attribute__((vector_size(kVectorBytes)));
};
template <>
struct MaskOf<double> {
  typedef int64_t Vector __attribute__((vector_size(kVectorBytes)));
};

// table[indices[i]].
template <class Sum>
JAXSPARSE_INLINE typename Simd<Sum>::Vector GatherSums(const Sum* table,
                                                       typename IndicesOf<Sum>::Vector indices) {
#if defined(__AVX512F__)
  if constexpr (sizeof(Sum) == 4) {
    return (F32Vector)_mm512_i32gather_ps((__m512i)indices, table, 4);
  } else {
    return (typename Simd<Sum>::Vector)_mm512_i32gather_pd((__m256i)indices, table, 8);
  }
#elif defined(__AVX2__)
  if constexpr (sizeof(Sum) == 4) {
    return (F32Vector)_mm256_i32gather_ps(table, (__m256i)indices, 4);
  } else {
    return (typename Simd<Sum>::Vector)_mm256_i32gather_pd(table, (__m128i)indices, 8);
  }
#else
  typename Simd<Sum>::Vector v = {};
#pragma GCC unroll 16
  for (int i = 0; i < Simd<Sum>::kLanes; ++i) v[i] = table[indices[i]];
  return v;
#endif
}

// The sum of the lanes, by halves.
template <class Sum>
JAXSPARSE_INLINE Sum AddLanes(typename Simd<Sum>::Vector v) {
  Sum lanes[Simd<Sum>::kLanes];
  StoreVector(lanes, v);
#pragma GCC unroll 4
  for (int half = Simd<Sum>::kLanes / 2; half > 0; half /= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

// The next `count` weights, at most a vector of them, in the sums' type; they end at `end`.
template <class Type>
JAXSPARSE_INLINE const typename Type::Sum* Converted(const typename Type::Stored* values,
                                                     int64_t end, int64_t count,
                                                     typename Type::Sum* room) {
  constexpr int kLanes = Simd<typename Type::Sum>::kLanes;
  if constexpr (Type::kSumsAreStored) {
    return values + end - count;
  } else if (end >= kLanes) {  // what else is read are weights of other columns
    StoreVector(room, Type::Load(values + end - kLanes));
    return room + kLanes - count;
  } else {
    typename Type::Stored stored[kLanes] = {};
    for (int64_t i = 0; i < count; ++i) stored[i] = values[end - count + i];
    StoreVector(room, Type::Load(stored));
    return room;
  }
}

// Whether places rise strictly.
inline bool Ascend(const int32_t* places, int64_t count) {
  typedef int32_t Indices __attribute__((vector_size(kVectorBytes)));
  constexpr int kLanes = kVectorBytes / sizeof(int32_t);
  Indices ascends = Indices{} == Indices{};
  int64_t k = 0;
  for (; k + kLanes < count; k += kLanes) {
    ascends &= LoadVector<Indices>(places + k) < LoadVector<Indices>(places + k + 1);
  }
  bool all = true;
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) all &= ascends[i] != 0;
  for (; k + 1 < count; ++k) all &= places[k] < places[k + 1];
  return all;
}

// The last `count` of the weights before `end`, fewer than a vector holds, and where they are in
// the table. The other lanes are zeros and meet the input that is zero.
template <class Type>
JAXSPARSE_INLINE typename Type::Vector LastProducts(const FewRowsTile& t, int64_t end,
                                                    int64_t count, int64_t base) {
  using Sum = typename Type::Sum;
  using Indices = typename IndicesOf<Sum>::Vector;
  constexpr int kLanes = Simd<Sum>::kLanes;
  const auto* values = static_cast<const typename Type::Stored*>(t.values);
  const int32_t zero = static_cast<int32_t>(base + t.size_in);
  Indices places;
  typename Type::Vector weights;
  if (end >= kLanes) {  // what else is read are weights of other columns
    Indices lanes;
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) lanes[i] = i;
    const Indices is_theirs = lanes >= static_cast<int32_t>(kLanes - count);
    places = (LoadVector<Indices>(t.places + end - kLanes) & is_theirs) | (~is_theirs & zero);
    const auto wide = __builtin_convertvector(is_theirs, typename MaskOf<Sum>::Vector);
    weights = (typename Type::Vector)(
        (typename MaskOf<Sum>::Vector)Type::Load(values + end - kLanes) & wide);
  } else {
    typename Type::Stored stored[kLanes] = {};
    places = Indices{} + zero;
    int32_t of_each[kLanes];
    StoreVector(of_each, places);
    for (int64_t i = 0; i < count; ++i) {
      stored[i] = values[end - count + i];
      of_each[i] = t.places[end - count + i];
    }
    places = LoadVector<Indices>(of_each);
    weights = Type::Load(stored);
  }
  return weights *
         GatherSums(static_cast<const Sum*>(t.source), places - static_cast<int32_t>(base));
}

// One row: neighbouring weights are the lanes of a vector.
template <class Type>
void RunOneRow(const FewRowsTile& tile) {
  using Sum = typename Type::Sum;
  using Vector = typename Simd<Sum>::Vector;
  using Indices = typename IndicesOf<Sum>::Vector;
  constexpr int kLanes = Simd<Sum>::kLanes;
  const FewRowsTile t = tile;  // a copy, which stores to sums cannot change
  const auto* values = static_cast<const typename Type::Stored*>(t.values);
  const auto* source = static_cast<const Sum*>(t.source);
  auto* sums = static_cast<Sum*>(t.sums);
  for (int64_t j = 0; j < t.columns; ++j) {
    const int64_t base = t.first_place + j * t.size_in, end = t.begins[j + 1];
    const auto products = [&](int64_t k) __attribute__((always_inline)) {
      const Indices inputs = LoadVector<Indices>(t.places + k) - static_cast<int32_t>(base);
      return Type::Load(values + k) * GatherSums(source, inputs);
    };
    Vector sum[2] = {};
    int64_t k = t.begins[j];
    for (; k + 2 * kLanes <= end; k += 2 * kLanes) {
      sum[0] += products(k);
      sum[1] += products(k + kLanes);
    }
    if (k + kLanes <= end) {
      sum[0] += products(k);
      k += kLanes;
    }
    if (k < end) sum[1] += LastProducts<Type>(t, end, end - k, base);
    sums[j] = AddLanes<Sum>(sum[0] + sum[1]);
  }
}

// Rows are the lanes of kVectors vectors; weights come one by one.
template <class Type, int kVectors>
void RunFewRows(const FewRowsTile& tile) {
  using Sum = typename Type::Sum;
  using Vector = typename Simd<Sum>::Vector;
  constexpr int kSplit = 4;  // independent chains of sums
  const FewRowsTile t = tile;
  const auto* values = static_cast<const typename Type::Stored*>(t.values);
  const auto* source = static_cast<const char*>(t.source);
  auto* sums = static_cast<Vector*>(t.sums);
  for (int64_t j = 0; j < t.columns; ++j) {
    const int64_t base = t.first_place + j * t.size_in, end = t.begins[j + 1];
    Vector sum[kSplit][kVectors] = {};
    const auto add = [&](Sum weight, int64_t k, int split) __attribute__((always_inline)) {
      const Vector w = weight - Vector{};
      const char* x = source + (t.places[k] - base) * int64_t{kVectors * sizeof(Vector)};
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) {
        sum[split][v] += w * LoadVector<Vector>(x + v * sizeof(Vector));
      }
    };
    for (int64_t k = t.begins[j]; k < end;) {
      const int64_t count = Type::kSumsAreStored ? end - k : Min(Simd<Sum>::kLanes, end - k);
      Sum room[Simd<Sum>::kLanes];
      const Sum* weights = Converted<Type>(values, k + count, count, room);
      int64_t i = 0;
      for (; i + kSplit <= count; i += kSplit) {
#pragma GCC unroll 4
        for (int split = 0; split < kSplit; ++split) {
          add(weights[i + split], k + i + split, split);
        }
      }
      for (; i < count; ++i) add(weights[i], k + i, 0);
      k += count;
    }
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      StoreVector(sums + j * kVectors + v, (sum[0][v] + sum[1][v]) + (sum[2][v] + sum[3][v]));
    }
  }
}

}  // namespace
}  // namespace jaxsparse::cpu
