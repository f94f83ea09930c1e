// Register tiles over lanes, and packing into lanes. See lane_tiles.h.
#pragma once
#include "cpu/kernels/conv_weight_grad-inl.h"
#include "cpu/kernels/few_rows-inl.h"
#include "cpu/kernels/offsets-inl.h"
#include "cpu/kernels/packing-inl.h"
#include "cpu/lane_tiles.h"

namespace jaxsparse::cpu {
namespace {

// How many sums each result is split into: a tile of few results needs eight independent chains.
constexpr int LaneSplit(int results) { return results >= 8 ? 1 : results >= 4 ? 2 : 4; }

// Sums of one segment stay in registers while its entries pass.
template <class Sum, int kValues, int kRows, int kCols>
void RunLaneTile(const LaneTile& tile) {
  using Vector = typename Simd<Sum>::Vector;
  constexpr int kPlaces = kRows * kCols;
  constexpr int kSplit = LaneSplit(kValues * kPlaces);
  const LaneTile t = tile;  // a copy, which stores to sums cannot change
  const auto* values = static_cast<const Sum*>(t.values);
  if (t.num_segments == 0) return;
  // The entries of the segments follow each other.
  const int32_t* offsets = t.offsets + t.segments[0].begin;
  uint64_t ahead[2] = {LoadTwoOffsets(offsets), LoadTwoOffsets(offsets + 2)};
  for (int64_t s = 0; s < t.num_segments; ++s) {
    const Segment segment = t.segments[s];
    const Sum* weights = values + segment.weights * int64_t{kValues};
    if (s + 2 < t.num_segments) {
      // Weights that are stored by column are read a block of channels at a time, in strides that
      // no hardware prefetcher follows. Measured: 2 to 6 % where they exceed L2, else nothing.
      const Sum* next = values + t.segments[s + 2].weights * int64_t{kValues};
      __builtin_prefetch(next);
      __builtin_prefetch(reinterpret_cast<const char*>(next) + 64);
    }
    char* row =
        static_cast<char*>(t.sums) + segment.row * static_cast<int64_t>(kPlaces * sizeof(Vector));
    Vector sums[kSplit][kValues * kPlaces];
#pragma GCC unroll 64
    for (int i = 0; i < kSplit * kValues * kPlaces; ++i) {
      sums[i / (kValues * kPlaces)][i % (kValues * kPlaces)] = Vector{};
    }
    if (!segment.is_first) {
#pragma GCC unroll 64
      for (int i = 0; i < kValues * kPlaces; ++i) {
        sums[0][i] = LoadVector<Vector>(row + i * sizeof(Vector));
      }
    }
    const auto add = [&](int64_t offset, const Sum* value,
                         int split) __attribute__((always_inline)) {
      const char* source = t.source + offset;
      if constexpr (kValues == 1) {
        const Vector w = *value - Vector{};
#pragma GCC unroll 8
        for (int i = 0; i < kRows; ++i) {
          if (i > 0) source = NextRow(source, t.row_bytes);
#pragma GCC unroll 32
          for (int j = 0; j < kCols; ++j) {
            sums[split][i * kCols + j] += w * LoadVector<Vector>(source + j * sizeof(Vector));
          }
        }
      } else if constexpr (kPlaces <= 3) {
        // Few places: they stay in registers while the values pass.
        Vector x[kPlaces];
#pragma GCC unroll 4
        for (int i = 0; i < kPlaces; ++i) {
          if (i > 0 && i % kCols == 0) source = NextRow(source, t.row_bytes);
          x[i] = LoadVector<Vector>(source + i % kCols * sizeof(Vector));
        }
#pragma GCC unroll 8
        for (int v = 0; v < kValues; ++v) {
          const Vector w = value[v] - Vector{};
#pragma GCC unroll 4
          for (int i = 0; i < kPlaces; ++i) sums[split][v * kPlaces + i] += w * x[i];
        }
      } else {
        Vector w[kValues];
#pragma GCC unroll 8
        for (int v = 0; v < kValues; ++v) w[v] = value[v] - Vector{};
#pragma GCC unroll 32
        for (int i = 0; i < kPlaces; ++i) {
          if (i > 0 && i % kCols == 0) source = NextRow(source, t.row_bytes);
          const Vector x = LoadVector<Vector>(source + i % kCols * sizeof(Vector));
#pragma GCC unroll 8
          for (int v = 0; v < kValues; ++v) sums[split][v * kPlaces + i] += w[v] * x;
        }
      }
    };
    int64_t count = segment.count;
    for (; count >= 4; count -= 4) {
      offsets += 4;
#pragma GCC unroll 2
      for (int pair = 0; pair < 2; ++pair) {
        const int64_t first = FirstOffset(ahead[pair]), second = SecondOffset(ahead[pair]);
        ahead[pair] = LoadTwoOffsets(offsets + 2 * pair);
        add(first, weights, 2 * pair % kSplit);
        add(second, weights + kValues, (2 * pair + 1) % kSplit);
        weights += 2 * kValues;
      }
    }
    const uint64_t rest[2] = {ahead[0], ahead[1]};
    offsets += count;
    ahead[0] = LoadTwoOffsets(offsets);
    ahead[1] = LoadTwoOffsets(offsets + 2);
    if (count > 0) {
      add(FirstOffset(rest[0]), weights, 0);
      if (count > 1) add(SecondOffset(rest[0]), weights + kValues, 1 % kSplit);
      if (count > 2) add(FirstOffset(rest[1]), weights + 2 * kValues, 2 % kSplit);
    }
#pragma GCC unroll 64
    for (int i = 0; i < kValues * kPlaces; ++i) {
      Vector sum = sums[0][i];
#pragma GCC unroll 4
      for (int u = 1; u < kSplit; ++u) sum += sums[u][i];
      StoreVector(row + i * sizeof(Vector), sum);
    }
  }
}

// Rows to lanes, a square of lanes x lanes at a time.
template <class Type>
void PackLanes(const LanePack& p) {
  using Op = Singles<Type>;
  using Sum = typename Type::Sum;
  using Vector = typename Type::Vector;
  constexpr int kLanes = Op::kLanes;
  const auto* const* rows = reinterpret_cast<const typename Type::Stored* const*>(p.rows);
  const auto* const* next = reinterpret_cast<const typename Type::Stored* const*>(p.next);
  auto* packed = static_cast<Sum*>(p.packed);
  bool all = true;
  for (int l = 0; l < kLanes; ++l) all &= rows[l] != nullptr;
  for (int64_t c = 0; c < p.channels; c += kLanes) {
    const int64_t count = Min(kLanes, p.channels - c);
#pragma GCC unroll 16
    for (int l = 0; l < kLanes; ++l) __builtin_prefetch(next[l] + c);
    Vector square[kLanes];
    if (all && count == kLanes) {
#pragma GCC unroll 16
      for (int l = 0; l < kLanes; ++l) square[l] = Type::Load(rows[l] + c);
    } else {
      for (int l = 0; l < kLanes; ++l) {
        square[l] = rows[l] == nullptr ? Vector{} : LoadPartial<Op>(rows[l] + c, count);
      }
    }
    Transpose<Sum>(square);
    if (p.order == nullptr && count == kLanes) {
      Sum* to = packed + c * p.stride;
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) StoreVector(to + i * p.stride, square[i]);
    } else {
      for (int i = 0; i < count; ++i) {
        StoreVector(packed + (p.order == nullptr ? c + i : p.order[c + i]) * p.stride, square[i]);
      }
    }
  }
}

template <class Type>
void UnpackLanes(const LaneUnpack& p) {
  using Sum = typename Type::Sum;
  using Vector = typename Type::Vector;
  using Stored = typename Type::Stored;
  constexpr int kLanes = Simd<Sum>::kLanes;
  const auto* packed = static_cast<const Sum*>(p.packed);
  auto* const* rows = reinterpret_cast<Stored* const*>(p.rows);
  auto* const* next = reinterpret_cast<const Stored* const*>(p.next);
  for (int64_t c = 0; c < p.channels; c += kLanes) {
    const int64_t count = Min(kLanes, p.channels - c);
#pragma GCC unroll 16
    for (int l = 0; l < kLanes; ++l) __builtin_prefetch(next[l] + c, 1);
    Vector square[kLanes];
    if (p.order == nullptr && count == kLanes) {
      const Sum* from = packed + c * p.stride;
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) square[i] = LoadVector<Vector>(from + i * p.stride);
    } else {
      for (int i = 0; i < kLanes; ++i) {
        square[i] = Vector{};
        if (i < count) {
          square[i] =
              LoadVector<Vector>(packed + (p.order == nullptr ? c + i : p.order[c + i]) * p.stride);
        }
      }
    }
    Transpose<Sum>(square);
    if (count == kLanes) {
#pragma GCC unroll 16
      for (int l = 0; l < kLanes; ++l) {
        if (rows[l] != nullptr) Type::Store(rows[l] + c, square[l]);
      }
    } else {
      for (int l = 0; l < kLanes; ++l) {
        if (rows[l] == nullptr) continue;
        Stored items[kLanes];
        Type::Store(items, square[l]);
        CopyFew<kLanes>(rows[l] + c, items, count);
      }
    }
  }
}

template <class Type>
JAXSPARSE_INLINE typename Type::Sum LoadOne(const typename Type::Stored* from) {
  if constexpr (Type::kSumsAreStored) {
    return *from;
  } else {
    typename Type::Stored items[Simd<float>::kLanes] = {*from};
    return Type::Load(items)[0];
  }
}

template <class Type>
JAXSPARSE_INLINE void StoreOne(typename Type::Stored* to, typename Type::Sum value) {
  if constexpr (Type::kSumsAreStored) {
    *to = value;
  } else {
    typename Type::Stored items[Simd<float>::kLanes];
    Type::Store(items, value - typename Type::Vector{});
    *to = items[0];
  }
}

template <class Type>
void PackValues(const ValuePack& p) {
  using Stored = typename Type::Stored;
  using Sum = typename Type::Sum;
  constexpr int kLanes = Simd<Sum>::kLanes;
  const auto* stored = static_cast<const Stored*>(p.stored);
  auto* packed = static_cast<Sum*>(p.packed);
  if (p.indices == nullptr) {
    const int64_t count = p.count * p.values;
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) StoreVector(packed + i, Type::Load(stored + i));
    for (; i < count; ++i) packed[i] = LoadOne<Type>(stored + i);
    return;
  }
  if (p.values == 1) {
    for (int64_t k = 0; k < p.count; ++k) packed[k] = LoadOne<Type>(stored + p.indices[k]);
    return;
  }
  for (int64_t k = 0; k < p.count; ++k) {
    const Stored* from = stored + p.indices[k];
    for (int64_t v = 0; v < p.values; ++v) *packed++ = LoadOne<Type>(from + v * p.value_stride);
  }
}

template <class Type>
void StoreValues(const ValueStore& p) {
  using Stored = typename Type::Stored;
  using Sum = typename Type::Sum;
  using Vector = typename Type::Vector;
  constexpr int kLanes = Simd<Sum>::kLanes;
  const auto* sums = static_cast<const Sum*>(p.sums);
  auto* stored = static_cast<Stored*>(p.stored);
  if (p.indices == nullptr) {
    int64_t k = 0;
    for (; k + kLanes <= p.count; k += kLanes) {
      Type::Store(stored + k, LoadVector<Vector>(sums + k));
    }
    for (; k < p.count; ++k) StoreOne<Type>(stored + k, sums[k]);
    return;
  }
  for (int64_t k = 0; k < p.count; ++k) StoreOne<Type>(stored + p.indices[k], sums[k]);
}

template <class Sum, int kValues, int kRows, int kCols>
constexpr LaneShape MakeShape() {
  return {kValues, kRows, kCols, RunLaneTile<Sum, kValues, kRows, kCols>, nullptr};
}

// Sums of a tile and an entry's values fit the registers; for one value, operands come from memory.
template <class Sum>
struct LaneShapes {
  static constexpr LaneShape kAll[] = {
      MakeShape<Sum, 1, 1, 1>(), MakeShape<Sum, 1, 1, 2>(),  MakeShape<Sum, 1, 1, 4>(),
      MakeShape<Sum, 1, 1, 7>(), MakeShape<Sum, 1, 1, 8>(),  MakeShape<Sum, 1, 2, 2>(),
      MakeShape<Sum, 1, 2, 3>(), MakeShape<Sum, 1, 2, 4>(),  MakeShape<Sum, 1, 1, 12>(),
      MakeShape<Sum, 1, 2, 6>(), MakeShape<Sum, 1, 3, 4>(),  MakeShape<Sum, 2, 1, 1>(),
      MakeShape<Sum, 2, 1, 2>(), MakeShape<Sum, 2, 1, 4>(),  MakeShape<Sum, 2, 1, 5>(),
      MakeShape<Sum, 2, 2, 2>(), MakeShape<Sum, 4, 1, 1>(),  MakeShape<Sum, 4, 1, 2>(),
      MakeShape<Sum, 4, 2, 1>(), MakeShape<Sum, 4, 1, 3>(),  MakeShape<Sum, 8, 1, 1>(),
#if !defined(__x86_64__) || defined(__AVX2__)
      MakeShape<Sum, 1, 2, 7>(), MakeShape<Sum, 1, 1, 14>(),
#endif
  };
  static constexpr LaneShape kWide[] = {
      MakeShape<Sum, 1, 1, 1>(),  MakeShape<Sum, 1, 1, 2>(),  MakeShape<Sum, 1, 1, 4>(),
      MakeShape<Sum, 1, 1, 6>(),  MakeShape<Sum, 1, 1, 7>(),  MakeShape<Sum, 1, 1, 8>(),
      MakeShape<Sum, 1, 1, 10>(), MakeShape<Sum, 1, 1, 12>(), MakeShape<Sum, 1, 1, 14>(),
      MakeShape<Sum, 1, 1, 16>(), MakeShape<Sum, 1, 1, 20>(), MakeShape<Sum, 1, 1, 24>(),
      MakeShape<Sum, 1, 1, 28>(), MakeShape<Sum, 1, 2, 1>(),  MakeShape<Sum, 1, 2, 2>(),
      MakeShape<Sum, 1, 2, 3>(),  MakeShape<Sum, 1, 2, 4>(),  MakeShape<Sum, 1, 2, 5>(),
      MakeShape<Sum, 1, 2, 6>(),  MakeShape<Sum, 1, 2, 7>(),  MakeShape<Sum, 1, 2, 8>(),
      MakeShape<Sum, 1, 2, 10>(), MakeShape<Sum, 1, 2, 14>(), MakeShape<Sum, 1, 4, 2>(),
      MakeShape<Sum, 1, 3, 4>(),  MakeShape<Sum, 1, 4, 4>(),  MakeShape<Sum, 1, 4, 5>(),
      MakeShape<Sum, 1, 4, 6>(),  MakeShape<Sum, 1, 4, 7>(),  MakeShape<Sum, 1, 3, 5>(),
      MakeShape<Sum, 2, 1, 1>(),  MakeShape<Sum, 2, 1, 2>(),  MakeShape<Sum, 2, 1, 4>(),
      MakeShape<Sum, 2, 1, 7>(),  MakeShape<Sum, 2, 1, 8>(),  MakeShape<Sum, 2, 1, 10>(),
      MakeShape<Sum, 2, 1, 12>(), MakeShape<Sum, 2, 1, 14>(), MakeShape<Sum, 2, 2, 2>(),
      MakeShape<Sum, 2, 2, 4>(),  MakeShape<Sum, 2, 2, 6>(),  MakeShape<Sum, 2, 2, 7>(),
      MakeShape<Sum, 4, 1, 1>(),  MakeShape<Sum, 4, 1, 2>(),  MakeShape<Sum, 4, 2, 1>(),
      MakeShape<Sum, 4, 1, 4>(),  MakeShape<Sum, 4, 1, 5>(),  MakeShape<Sum, 4, 1, 6>(),
      MakeShape<Sum, 4, 2, 2>(),  MakeShape<Sum, 4, 2, 3>(),  MakeShape<Sum, 8, 1, 1>(),
      MakeShape<Sum, 8, 1, 2>(),  MakeShape<Sum, 8, 2, 1>(),  MakeShape<Sum, 8, 1, 3>(),
  };
};

template <class Type>
constexpr LaneTiles MakeLaneTiles() {
  using Sum = typename Type::Sum;
  LaneTiles tiles = {};
  tiles.item_bytes = sizeof(typename Type::Stored);
  tiles.sum_bytes = sizeof(Sum);
  tiles.lanes = Simd<Sum>::kLanes;
  tiles.sums_are_stored = Type::kSumsAreStored;
  if constexpr (kVectorRegisters == 32) {
    tiles.shapes = LaneShapes<Sum>::kWide;
    tiles.num_shapes = sizeof(LaneShapes<Sum>::kWide) / sizeof(LaneShape);
    tiles.dot_shapes = DotShapes<Sum>::kWide;
    tiles.num_dot_shapes = sizeof(DotShapes<Sum>::kWide) / sizeof(LaneShape);
  } else {
    tiles.shapes = LaneShapes<Sum>::kAll;
    tiles.num_shapes = sizeof(LaneShapes<Sum>::kAll) / sizeof(LaneShape);
    tiles.dot_shapes = DotShapes<Sum>::kAll;
    tiles.num_dot_shapes = sizeof(DotShapes<Sum>::kAll) / sizeof(LaneShape);
  }
  tiles.pack = PackLanes<Type>;
  tiles.unpack = UnpackLanes<Type>;
  tiles.pack_values = PackValues<Type>;
  tiles.store_values = StoreValues<Type>;
  tiles.masked_dot = RunMaskedDot<Sum>;
  tiles.few_rows[0] = RunOneRow<Type>;
  tiles.few_rows[1] = RunFewRows<Type, 1>;
  tiles.few_rows[2] = RunFewRows<Type, 2>;
  tiles.ascend = Ascend;
  tiles.all_finite = AllFinite<Type>;
  return tiles;
}

}  // namespace
}  // namespace jaxsparse::cpu
