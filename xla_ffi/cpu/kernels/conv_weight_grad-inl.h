// Dot products over lanes, for the weight gradient of sparse convolution. See lane_tiles.h.
#pragma once
#include "cpu/kernels/offsets-inl.h"
#include "cpu/kernels/simd-inl.h"
#include "cpu/lane_tiles.h"

namespace jaxsparse::cpu {
namespace {

// The sums of the halves of a, and of b, interleaved.
template <int kLanes, int kUnit, int kSpan, class V>
JAXSPARSE_INLINE V Fold(V a, V b) {
  return Interleave<kLanes, kUnit, kSpan, false>::Of(a, b) +
         Interleave<kLanes, kUnit, kSpan, true>::Of(a, b);
}

// Lane j holds the sum of all lanes of rows[j]. Half the shuffles of a transposition.
template <class Sum, class V>
JAXSPARSE_INLINE V SumsOfRows(const V* rows) {
  constexpr int kLanes = Simd<Sum>::kLanes;
  constexpr int kUnits = 16 / sizeof(Sum);
  constexpr int kGroups = kLanes / kUnits;
  V groups[kGroups];
#pragma GCC unroll 4
  for (int g = 0; g < kGroups; ++g) {
    V some[kUnits];
#pragma GCC unroll 4
    for (int i = 0; i < kUnits; ++i) some[i] = rows[g * kUnits + i];
#pragma GCC unroll 2
    for (int n = kUnits / 2; n > 0; n /= 2)
#pragma GCC unroll 2
      for (int i = 0; i < n; ++i) some[i] = Fold<kLanes, 1, kUnits>(some[i], some[i + n]);
    groups[g] = some[0];
  }
#pragma GCC unroll 2
  for (int n = kGroups / 2; n > 0; n /= 2)
#pragma GCC unroll 2
    for (int g = 0; g < n; ++g) groups[g] = Fold<kLanes, kUnits, kLanes>(groups[g], groups[g + n]);
  return groups[0];
}

template <int kNumber>
struct Number {
  static constexpr int value = kNumber;
};

// How many dots are in flight: eight chains of additions, or as many as have registers beside the
// results.
constexpr int DotsInFlight(int results) {
  int dots = 8;
  while (dots > 1 && dots > kVectorRegisters - results) dots /= 2;
  return dots;
}

// The results of a segment's row stay in registers while its entries pass. Each entry makes a
// vector of partial sums; as many of them as there are lanes are added up at once. They wait in a
// ring until there are so many, from one segment to the next.
template <class Sum, int kRows, int kCols>
void RunLaneDot(const LaneDot& t) {
  using Vector = typename Simd<Sum>::Vector;
  constexpr int kLanes = Simd<Sum>::kLanes;
  constexpr int kPlaces = kRows * kCols;
  constexpr int kDots = DotsInFlight(kPlaces);
  constexpr int kPairs = (kDots + 1) / 2;
  constexpr int kRing = 2 * (kDots > kLanes ? kDots : kLanes);
  const char* const source = t.source;
  const int64_t row_bytes = t.row_bytes;
  const Segment* const segments = t.segments;
  const int64_t num_segments = t.num_segments;
  const int32_t* offsets = t.offsets + segments[0].begin;
  uint64_t ahead[kPairs];
#pragma GCC unroll 4
  for (int i = 0; i < kPairs; ++i) ahead[i] = LoadTwoOffsets(offsets + 2 * i);
  auto* weights = static_cast<Sum*>(t.weights) + segments[0].begin;
  Vector ring[kRing];
  int64_t made = 0, stored = 0;
  for (int64_t s = 0; s < num_segments; ++s) {
    const char* row = static_cast<const char*>(t.result) +
                      segments[s].row * static_cast<int64_t>(kPlaces * sizeof(Vector));
    Vector result[kPlaces];
#pragma GCC unroll 64
    for (int i = 0; i < kPlaces; ++i) result[i] = LoadVector<Vector>(row + i * sizeof(Vector));
    const auto dot = [&](auto number) __attribute__((always_inline)) {
      constexpr int kCount = decltype(number)::value;
      const char* from[kCount];
      Vector sums[kCount];
#pragma GCC unroll 8
      for (int e = 0; e < kCount; ++e) {
        from[e] = source + (e % 2 == 0 ? FirstOffset(ahead[e / 2]) : SecondOffset(ahead[e / 2]));
      }
      offsets += kCount;
#pragma GCC unroll 4
      for (int i = 0; i < kPairs; ++i) ahead[i] = LoadTwoOffsets(offsets + 2 * i);
#pragma GCC unroll 8
      for (int e = 0; e < kCount; ++e) sums[e] = Vector{};
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        if (r > 0) {
          // One addition per row. The compiler would else keep the address of every row of every
          // entry in a register, of which there are too few.
#pragma GCC unroll 8
          for (int e = 0; e < kCount; ++e) {
            from[e] += row_bytes;
            asm("" : "+r"(from[e]));
          }
        }
#pragma GCC unroll 32
        for (int c = 0; c < kCols; ++c) {
#pragma GCC unroll 8
          for (int e = 0; e < kCount; ++e) {
            sums[e] += result[r * kCols + c] * LoadVector<Vector>(from[e] + c * sizeof(Vector));
          }
        }
      }
#pragma GCC unroll 8
      for (int e = 0; e < kCount; ++e) ring[(made + e) % kRing] = sums[e];
      made += kCount;
      while (made - stored >= kLanes) {
        StoreVector(weights, LoadVector<Vector>(weights) + SumsOfRows<Sum>(ring + stored % kRing));
        weights += kLanes;
        stored += kLanes;
      }
    };
    int64_t count = segments[s].count;
    for (; count >= kDots; count -= kDots) dot(Number<kDots>());
    if constexpr (kDots > 4) {
      if ((count & 4) != 0) dot(Number<4>());
    }
    if constexpr (kDots > 2) {
      if ((count & 2) != 0) dot(Number<2>());
    }
    if constexpr (kDots > 1) {
      if ((count & 1) != 0) dot(Number<1>());
    }
  }
  const int64_t rest = made - stored;
  for (int64_t i = rest; i < kLanes; ++i) ring[(stored + i) % kRing] = Vector{};
  const Vector sums = SumsOfRows<Sum>(ring + stored % kRing);
  for (int64_t i = 0; i < rest; ++i) weights[i] += sums[i];
}

template <class Sum>
struct LaneBits;
template <>
struct LaneBits<float> {
  using Vector = typename Simd<uint32_t>::Vector;
};
template <>
struct LaneBits<double> {
  using Vector = typename Simd<uint64_t>::Vector;
};

// Any shape, without the source's numbers where the result has no place: zero times an infinity
// would not be zero. Slow, for sources that are not finite.
template <class Sum>
void RunMaskedDot(const LaneDot& t, const LaneShape& shape) {
  using Vector = typename Simd<Sum>::Vector;
  using Bits = typename LaneBits<Sum>::Vector;
  const int64_t places = shape.rows * shape.cols;
  auto* weights = static_cast<Sum*>(t.weights);
  for (int64_t s = 0; s < t.num_segments; ++s) {
    const Segment segment = t.segments[s];
    const auto* result = static_cast<const Vector*>(t.result) + segment.row * places;
    for (int64_t k = segment.begin; k < segment.begin + segment.count; ++k) {
      Vector sums = {};
      for (int64_t i = 0; i < places; ++i) {
        const Bits x = LoadVector<Bits>(t.source + t.offsets[k] + i / shape.cols * t.row_bytes +
                                        i % shape.cols * sizeof(Vector));
        const Bits exists =
            LoadVector<Bits>(static_cast<const char*>(t.exists) + i * sizeof(Vector));
        sums += LoadVector<Vector>(result + i) * (Vector)(x & exists);
      }
      for (int l = 0; l < Simd<Sum>::kLanes; ++l) weights[k] += sums[l];
    }
  }
}

template <class Type>
bool AllFinite(const void* stored, int64_t count) {
  using Vector = typename Type::Vector;
  constexpr int kLanes = Simd<typename Type::Sum>::kLanes;
  const auto* numbers = static_cast<const typename Type::Stored*>(stored);
  Vector zeros[4] = {};  // NaN where a number was not finite
  int64_t i = 0;
  for (; i + 4 * kLanes <= count; i += 4 * kLanes) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const Vector some = Type::Load(numbers + i + j * kLanes);
      zeros[j] += some - some;
    }
  }
  for (; i < count; ++i) {
    typename Type::Stored one[kLanes] = {numbers[i]};
    const Vector some = Type::Load(one);
    zeros[0] += some - some;
  }
  const Vector zero = zeros[0] + zeros[1] + zeros[2] + zeros[3];
  bool all = true;
  for (int l = 0; l < kLanes; ++l) all &= zero[l] == 0;
  return all;
}

template <class Sum, int kRows, int kCols>
constexpr LaneShape MakeDotShape() {
  return {1, kRows, kCols, nullptr, RunLaneDot<Sum, kRows, kCols>};
}

// The results of a tile and the sums of the dots in flight fit the registers. Entries of several
// values have no shapes: they would share loads, but leave each dot fewer places between two
// additions of lanes, and were slower than single ones at every width.
template <class Sum>
struct DotShapes {
  static constexpr LaneShape kAll[] = {
      MakeDotShape<Sum, 1, 1>(), MakeDotShape<Sum, 1, 2>(), MakeDotShape<Sum, 1, 4>(),
      MakeDotShape<Sum, 1, 7>(), MakeDotShape<Sum, 1, 8>(), MakeDotShape<Sum, 2, 2>(),
      MakeDotShape<Sum, 2, 4>(), MakeDotShape<Sum, 2, 6>(), MakeDotShape<Sum, 1, 12>(),
      MakeDotShape<Sum, 3, 4>(),
  };
  static constexpr LaneShape kWide[] = {
      MakeDotShape<Sum, 1, 1>(),  MakeDotShape<Sum, 1, 2>(),  MakeDotShape<Sum, 1, 4>(),
      MakeDotShape<Sum, 1, 7>(),  MakeDotShape<Sum, 1, 8>(),  MakeDotShape<Sum, 1, 12>(),
      MakeDotShape<Sum, 1, 14>(), MakeDotShape<Sum, 1, 16>(), MakeDotShape<Sum, 1, 20>(),
      MakeDotShape<Sum, 1, 24>(), MakeDotShape<Sum, 2, 2>(),  MakeDotShape<Sum, 2, 4>(),
      MakeDotShape<Sum, 2, 6>(),  MakeDotShape<Sum, 2, 7>(),  MakeDotShape<Sum, 2, 8>(),
      MakeDotShape<Sum, 2, 12>(), MakeDotShape<Sum, 3, 7>(),  MakeDotShape<Sum, 4, 4>(),
      MakeDotShape<Sum, 4, 6>(),
  };
};

}  // namespace
}  // namespace jaxsparse::cpu
