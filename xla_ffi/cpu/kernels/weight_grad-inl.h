// Register tiles of the weight gradient.
#pragma once
#include "cpu/kernels/packing-inl.h"

namespace jaxsparse::cpu {
namespace {

// sums [kRows][kVectors] (+)= sum over the depth of x[d][row] * gradient[d][strip].
template <class Op, int kRows, int kVectors>
JAXSPARSE_INLINE void RunWeightGradTile(const typename Op::Word* x, int64_t x_stride,
                                        const typename Op::Word* gradient, int64_t depth,
                                        typename Op::Sum* result, int64_t stride, bool accumulate) {
  typename Op::Sums sums[kRows][kVectors];
  if (accumulate) {
#pragma GCC unroll 32
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        sums[r][v] = LoadVector<typename Op::Sums>(result + r * stride + v * Op::kLanes);
      }
  } else {
#pragma GCC unroll 32
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sums[r][v] = typename Op::Sums{};
  }
  for (int64_t d = 0; d < depth; ++d) {
    typename Op::Words g[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      g[v] = LoadVector<typename Op::Words>(gradient + v * Op::kLanes);
    }
#pragma GCC unroll 32
    for (int r = 0; r < kRows; ++r) {
      const auto xv = Op::Broadcast(x + r);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sums[r][v] = Op::MulAdd(xv, g[v], sums[r][v]);
    }
    x += x_stride;
    gradient += kVectors * Op::kLanes;
  }
#pragma GCC unroll 32
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      StoreVector(result + r * stride + v * Op::kLanes, sums[r][v]);
    }
}

template <class Op, int kVectors>
void RunWeightGradStrip(const WeightGradStrip& t) {
  // 16 sums cover the latency; more would not divide the usual blocks.
  constexpr int kRows = (kVectorRegisters == 32 ? 16 : 8) / kVectors;
  const auto* x_panel = static_cast<const typename Op::Word*>(t.x);
  const auto* gradient = static_cast<const typename Op::Word*>(t.gradient);
  auto* sums = static_cast<typename Op::Sum*>(t.sums);
  for (int64_t b = 0; b < t.num_blocks; ++b) {
    const auto* x = x_panel + t.blocks[b] * t.x_block_stride;
    int64_t i = 0;
    for (; i + kRows <= t.block_in; i += kRows) {
      RunWeightGradTile<Op, kRows, kVectors>(x + i, t.block_in, gradient, t.depth_words,
                                             sums + i * t.sums_stride, t.sums_stride, t.accumulate);
    }
    for (; i < t.block_in; ++i) {
      RunWeightGradTile<Op, 1, kVectors>(x + i, t.block_in, gradient, t.depth_words,
                                         sums + i * t.sums_stride, t.sums_stride, t.accumulate);
    }
    sums += t.sums_block_stride;
  }
}

template <class Op>
void RunWeightGrad(const WeightGradStrip& t) {
  t.vectors == 1 ? RunWeightGradStrip<Op, 1>(t) : RunWeightGradStrip<Op, 2>(t);
}

}  // namespace
}  // namespace jaxsparse::cpu
