// Vectors of the including file's instruction set, by GCC and Clang vector extensions.
//
// The including file defines kVectorBytes and kVectorRegisters in this namespace first. All of it
// is in an anonymous namespace and calls no inline function from outside: a body shared with
// another file's instruction set could be the one that the linker keeps, on a CPU without it.
#pragma once
#include <cstdint>
#include <utility>
#if defined(__F16C__) || defined(__AVX512F__)
// GCC 12 takes the deliberately undefined operands of these headers for mistakes.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif

#define JAXSPARSE_INLINE inline __attribute__((always_inline))

namespace jaxsparse::cpu {
namespace {

template <class T>
struct Simd {
  static constexpr int kLanes = kVectorBytes / sizeof(T);
  typedef T Vector __attribute__((vector_size(kVectorBytes)));
};

using F32Vector = Simd<float>::Vector;
using U32Vector = Simd<uint32_t>::Vector;
typedef uint16_t U16HalfVector __attribute__((vector_size(kVectorBytes / 2)));

// Vectors move through memcpy: any alignment, any type, one instruction.
template <class V>
JAXSPARSE_INLINE V LoadVector(const void* from) {
  V v;
  __builtin_memcpy(&v, from, sizeof(v));
  return v;
}
template <class V>
JAXSPARSE_INLINE void StoreVector(void* to, V v) {
  __builtin_memcpy(to, &v, sizeof(v));
}

JAXSPARSE_INLINE int64_t Min(int64_t a, int64_t b) { return a < b ? a : b; }
JAXSPARSE_INLINE int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// --- Stored types: how vectors of sums are read from them and rounded to them.

template <class T>
struct Full {  // float, double
  using Stored = T;
  using Sum = T;
  using Vector = typename Simd<T>::Vector;
  static constexpr bool kSumsAreStored = true;
  static JAXSPARSE_INLINE Vector Load(const T* from) { return LoadVector<Vector>(from); }
  static JAXSPARSE_INLINE void Store(T* to, Vector v) { StoreVector(to, v); }
};
using F32 = Full<float>;
using F64 = Full<double>;

struct BF16 {
  using Stored = uint16_t;
  using Sum = float;
  using Vector = F32Vector;
  static constexpr bool kSumsAreStored = false;
  static JAXSPARSE_INLINE Vector Load(const uint16_t* from) {
    return (Vector)(__builtin_convertvector(LoadVector<U16HalfVector>(from), U32Vector) << 16);
  }
  static JAXSPARSE_INLINE void Store(uint16_t* to, Vector v) {
#if defined(__AVX512BF16__)
    // Flushes subnormals, as the products that made these sums have done already.
    StoreVector(to, _mm512_cvtneps_pbh((__m512)v));
#else
    const U32Vector bits = (U32Vector)v;
    const U32Vector rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    // Rounding could carry a NaN's payload into the exponent; a quiet bit keeps it a NaN.
    const U32Vector quiet = (bits >> 16) | 0x40;
    const U32Vector is_nan = (U32Vector)(v != v);
    StoreVector(to, __builtin_convertvector((is_nan & quiet) | (~is_nan & rounded), U16HalfVector));
#endif
  }
};

#if defined(__F16C__) || defined(__ARM_NEON)
struct F16 {
  using Stored = uint16_t;
  using Sum = float;
  using Vector = F32Vector;
  static constexpr bool kSumsAreStored = false;
  static JAXSPARSE_INLINE Vector Load(const uint16_t* from) {
#if defined(__AVX512F__)
    return (Vector)_mm512_cvtph_ps(LoadVector<__m256i>(from));
#elif defined(__F16C__)
    return (Vector)_mm256_cvtph_ps(LoadVector<__m128i>(from));
#else
    typedef __fp16 HalfVector __attribute__((vector_size(kVectorBytes / 2)));
    return __builtin_convertvector(LoadVector<HalfVector>(from), Vector);
#endif
  }
  static JAXSPARSE_INLINE void Store(uint16_t* to, Vector v) {
#if defined(__AVX512F__)
    StoreVector(to, _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#elif defined(__F16C__)
    StoreVector(to, _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#else
    typedef __fp16 HalfVector __attribute__((vector_size(kVectorBytes / 2)));
    StoreVector(to, __builtin_convertvector(v, HalfVector));
#endif
  }
};
#else
// Without conversion instructions, the bits are moved by hand.
struct F16 {
  using Stored = uint16_t;
  using Sum = float;
  using Vector = F32Vector;
  static constexpr bool kSumsAreStored = false;
  static JAXSPARSE_INLINE Vector Load(const uint16_t* from) {
    const U32Vector half = __builtin_convertvector(LoadVector<U16HalfVector>(from), U32Vector);
    const U32Vector magnitude = (half & 0x7fff) << 13;
    // Subnormals: above 2^-14 the same steps are those of normal numbers. At no point is there a
    // subnormal float32, which XLA's threads take for zero.
    const U32Vector subnormal = (U32Vector)((Vector)(magnitude + (113u << 23)) - 0x1p-14f);
    const U32Vector is_subnormal = (U32Vector)(magnitude < (1u << 23));
    const U32Vector is_special = (U32Vector)(magnitude >= (0x7c00u << 13));
    const U32Vector normal = (magnitude + (112u << 23)) | (is_special & 0x7f800000);
    const U32Vector bits = (is_subnormal & subnormal) | (~is_subnormal & normal);
    return (Vector)(bits | ((half & 0x8000) << 16));
  }
  static JAXSPARSE_INLINE void Store(uint16_t* to, Vector v) {
    const U32Vector all = (U32Vector)v;
    const U32Vector sign = (all >> 16) & 0x8000;
    const U32Vector bits = all & 0x7fffffff;
    // Normal results: rebias the exponent, round to even at bit 13.
    const U32Vector normal = (bits - (112u << 23) + 0xfff + ((bits >> 13) & 1)) >> 13;
    // Subnormal results: adding 0.5 aligns the bits so that the addition itself rounds.
    const U32Vector subnormal = (U32Vector)((Vector)bits + 0.5f) - 0x3f000000;
    const U32Vector is_subnormal = (U32Vector)(bits < (113u << 23));
    const U32Vector is_overflow = (U32Vector)(bits >= 0x47800000);
    const U32Vector is_nan = (U32Vector)(bits > 0x7f800000);
    const U32Vector finite = (is_subnormal & subnormal) | (~is_subnormal & normal);
    const U32Vector huge = 0x7c00 | (is_nan & (0x200 | ((bits >> 13) & 0x3ff)));
    const U32Vector half = sign | (is_overflow & huge) | (~is_overflow & finite);
    StoreVector(to, __builtin_convertvector(half, U16HalfVector));
  }
};
#endif

// --- Operands: how words of a product are made from stored numbers.

// A word is one number in the sum's type.
template <class Type>
struct Singles {
  using Stored = typename Type::Stored;
  using Word = typename Type::Sum;
  using Sum = typename Type::Sum;
  using Words = typename Type::Vector;
  using Sums = typename Type::Vector;
  static constexpr int kItemsPerWord = 1;
  static constexpr int kLanes = Simd<Word>::kLanes;
  // kLanes words of one row.
  static JAXSPARSE_INLINE Words Load(const Stored* row) { return Type::Load(row); }
  // The first word of kLanes columns.
  static JAXSPARSE_INLINE Words Zip(const Stored* row, const Stored*) { return Type::Load(row); }
  static JAXSPARSE_INLINE Words Broadcast(const Word* word) { return *word - Words{}; }
  static JAXSPARSE_INLINE Sums MulAdd(Words a, Words b, Sums sums) { return sums + a * b; }
};

#if defined(__AVX512BF16__)
// A word is two bfloat16, neighbours along the depth.
struct BF16Pairs {
  using Stored = uint16_t;
  using Word = uint32_t;
  using Sum = float;
  using Words = U32Vector;
  using Sums = F32Vector;
  static constexpr int kItemsPerWord = 2;
  static constexpr int kLanes = Simd<Word>::kLanes;
  static JAXSPARSE_INLINE Words Load(const Stored* row) { return LoadVector<Words>(row); }
  static JAXSPARSE_INLINE Words Zip(const Stored* row, const Stored* next) {
    return __builtin_convertvector(LoadVector<U16HalfVector>(row), Words) |
           (__builtin_convertvector(LoadVector<U16HalfVector>(next), Words) << 16);
  }
  static JAXSPARSE_INLINE Words Broadcast(const Word* word) { return *word - Words{}; }
  static JAXSPARSE_INLINE Sums MulAdd(Words a, Words b, Sums sums) {
    return (Sums)_mm512_dpbf16_ps((__m512)sums, (__m512bh)a, (__m512bh)b);
  }
};
#endif

// --- Transposing kLanes vectors of words in registers.

// Interleaves units of kUnit words of a and b, the low or the high half of every kSpan words.
template <int kLanes, int kUnit, int kSpan, bool kHigh>
struct Interleave {
  static constexpr int Index(int lane) {
    const int span = lane / kSpan, unit = lane % kSpan / kUnit, word = lane % kUnit;
    return span * kSpan + (kHigh ? kSpan / 2 : 0) + unit / 2 * kUnit + word +
           (unit % 2 == 0 ? 0 : kLanes);
  }
  template <class V, int... I>
  static JAXSPARSE_INLINE V Apply(V a, V b, std::integer_sequence<int, I...>) {
    return __builtin_shufflevector(a, b, Index(I)...);
  }
  template <class V>
  static JAXSPARSE_INLINE V Of(V a, V b) {
    return Apply(a, b, std::make_integer_sequence<int, kLanes>());
  }
};

// One step of the perfect-shuffle network: rows i and i + n/2 of each group of n become rows 2i
// and 2i + 1. log2(n) steps transpose the units of the group.
template <int kLanes, int kUnit, int kSpan, int kGroup, class V>
JAXSPARSE_INLINE void TransposeStep(V* rows) {
  V next[kGroup];
#pragma GCC unroll 16
  for (int i = 0; i < kGroup / 2; ++i) {
    next[2 * i] = Interleave<kLanes, kUnit, kSpan, false>::Of(rows[i], rows[i + kGroup / 2]);
    next[2 * i + 1] = Interleave<kLanes, kUnit, kSpan, true>::Of(rows[i], rows[i + kGroup / 2]);
  }
#pragma GCC unroll 16
  for (int i = 0; i < kGroup; ++i) rows[i] = next[i];
}

// rows[i][j] -> rows[j][i]. First inside 16-byte lanes, where shuffles are cheap, then whole lanes.
template <class Word, class V>
JAXSPARSE_INLINE void Transpose(V* rows) {
  constexpr int kLanes = Simd<Word>::kLanes;
  constexpr int kUnits = 16 / sizeof(Word);
  constexpr int kGroups = kLanes / kUnits;
  V turned[kLanes];
#pragma GCC unroll 16
  for (int g = 0; g < kGroups; ++g) {
    V unit[kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < kUnits; ++i) unit[i] = rows[g * kUnits + i];
    TransposeStep<kLanes, 1, kUnits, kUnits>(unit);
    if constexpr (kUnits == 4) TransposeStep<kLanes, 1, kUnits, kUnits>(unit);
#pragma GCC unroll 16
    for (int i = 0; i < kUnits; ++i) turned[i * kGroups + g] = unit[i];
  }
#pragma GCC unroll 16
  for (int i = 0; i < kUnits; ++i) {
    V* group = turned + i * kGroups;
    if constexpr (kGroups >= 2) TransposeStep<kLanes, kUnits, kLanes, kGroups>(group);
    if constexpr (kGroups == 4) TransposeStep<kLanes, kUnits, kLanes, kGroups>(group);
#pragma GCC unroll 16
    for (int g = 0; g < kGroups; ++g) rows[g * kUnits + i] = group[g];
  }
}

}  // namespace
}  // namespace jaxsparse::cpu
