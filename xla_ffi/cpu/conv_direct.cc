#include "cpu/conv_direct.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <new>
#include <vector>

#include "cpu/block_pattern.h"
#include "cpu/column_pattern.h"

namespace jaxsparse::cpu {
namespace {

template <class T>
T FromBits(uint32_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

double LoadOne(DType dtype, const void* from, int64_t i) {
  switch (dtype) {
    case DType::kF32:
      return static_cast<const float*>(from)[i];
    case DType::kF64:
      return static_cast<const double*>(from)[i];
    case DType::kBF16:
      return FromBits<float>(static_cast<uint32_t>(static_cast<const uint16_t*>(from)[i]) << 16);
    case DType::kF16:
      break;
  }
  const uint32_t half = static_cast<const uint16_t*>(from)[i];
  const uint32_t magnitude = (half & 0x7fff) << 13;
  const float value = magnitude >= 0x7c00u << 13 ? FromBits<float>(magnitude | 0x7f800000)
                                                 : FromBits<float>(magnitude) * 0x1p112f;
  return (half & 0x8000) != 0 ? -value : value;
}

uint16_t RoundTo16(float value, bool is_bf16) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  if (is_bf16) {
    if (value != value) return static_cast<uint16_t>((bits >> 16) | 0x40);
    return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
  }
  const uint16_t sign = (bits >> 16) & 0x8000;
  bits &= 0x7fffffff;
  if (bits > 0x7f800000) return sign | 0x7e00;
  if (bits >= 0x477ff000) return sign | 0x7c00;
  if (bits < 113u << 23) {
    const float aligned = FromBits<float>(bits) + 0.5f;
    std::memcpy(&bits, &aligned, sizeof(bits));
    return sign | static_cast<uint16_t>(bits - 0x3f000000);
  }
  return sign | static_cast<uint16_t>((bits - (112u << 23) + 0xfff + ((bits >> 13) & 1)) >> 13);
}

void StoreOne(DType dtype, void* to, int64_t i, double value) {
  if (dtype == DType::kF64) {
    static_cast<double*>(to)[i] = value;
  } else if (dtype == DType::kF32) {
    static_cast<float*>(to)[i] = static_cast<float>(value);
  } else {
    static_cast<uint16_t*>(to)[i] = RoundTo16(static_cast<float>(value), dtype == DType::kBF16);
  }
}

struct Stored {
  int64_t value, tap, depth, channel;
};

Status ListWeights(const SparseConv& p, int64_t group, std::vector<Stored>* list) {
  const int64_t taps = p.num_taps(), depth = p.depth(), channels = p.channels();
  const int32_t* places = p.places + group * p.capacity;
  const int32_t* order = p.order == nullptr ? nullptr : p.order + group * p.order_size();
  if (p.format == WeightFormat::kBlocks) {
    BlockMatmul matrix;
    matrix.in = taps * depth;
    matrix.out = channels;
    matrix.capacity = p.capacity;
    matrix.block_in = p.block_in;
    matrix.block_out = p.block_out;
    matrix.rows = p.places;
    matrix.cols = p.order;
    BlockPattern pattern;
    if (Status s = pattern.Check(matrix, group); !s.ok()) return s;
    for (int64_t k = 0; k < pattern.by_column().num_blocks(); ++k) {
      for (int64_t i = 0; i < p.block_in * p.block_out; ++i) {
        const int64_t row = places[k] * p.block_in + i / p.block_out;
        const int64_t channel = order[k] * p.block_out + i % p.block_out;
        if (row >= matrix.in || channel >= channels) continue;
        list->push_back({k * p.block_in * p.block_out + i, row / depth, row % depth, channel});
      }
    }
    return {};
  }
  int64_t used;
  if (Status s = CheckPlaces(places, p.capacity, p.num_columns, taps * depth, &used); !s.ok())
    return s;
  if (order != nullptr) {
    if (Status s = CheckOrder(order, p.order_size(), channels); !s.ok()) return s;
  }
  for (int64_t k = 0; k < used; ++k) {
    const int64_t column = places[k] / (taps * depth), inner = places[k] % (taps * depth);
    for (int64_t slot = 0; slot < p.width; ++slot) {
      const int64_t channel = order == nullptr ? column : order[column * p.width + slot];
      if (channel == channels) continue;
      list->push_back({k * p.width + slot, inner % taps, inner / taps, channel});
    }
  }
  return {};
}

}  // namespace

Status DirectConv(const SparseConv& p, ConvRole role, DType dtype, TaskPool&) try {
  const int64_t item = dtype == DType::kF64 ? 8 : dtype == DType::kF32 ? 4 : 2;
  const int64_t x_items = p.batch * NumPlaces(p.x_space) * p.in;
  const int64_t y_items = p.batch * NumPlaces(p.y_space) * p.out;
  const int64_t x_depth = p.in / p.feature_groups, y_depth = p.out / p.feature_groups;
  for (int64_t group = 0; group < p.num_groups(); ++group) {
    std::vector<Stored> weights;
    if (Status s = ListWeights(p, p.pattern_group[group], &weights); !s.ok()) return s;
    char* x = static_cast<char*>(p.x) + p.x_group[group] * x_items * item;
    char* y = static_cast<char*>(p.y) + p.y_group[group] * y_items * item;
    char* w = static_cast<char*>(p.w) + p.w_group[group] * p.num_values() * item;
    void* result = role == ConvRole::kForward ? y : role == ConvRole::kInputGrad ? x : w;
    const int64_t size = role == ConvRole::kForward     ? y_items
                         : role == ConvRole::kInputGrad ? x_items
                                                        : p.num_values();
    std::vector<double> sums(size, 0.0);
    for (const Stored& s : weights) {
      const int64_t t = p.mirrored ? p.num_taps() - 1 - s.tap : s.tap;
      const int64_t i = p.mirrored ? s.channel : s.channel / y_depth * x_depth + s.depth;
      const int64_t o = p.mirrored ? s.channel / x_depth * y_depth + s.depth : s.channel;
      const Space tap = {t / p.kernel[2] / p.kernel[1], t / p.kernel[2] % p.kernel[1],
                         t % p.kernel[2]};
      for (int64_t n = 0; n < p.batch; ++n) {
        for (int64_t q = 0; q < NumPlaces(p.y_space); ++q) {
          const Space at = {q / p.y_space[2] / p.y_space[1], q / p.y_space[2] % p.y_space[1],
                            q % p.y_space[2]};
          int64_t place = 0;
          bool inside = true;
          for (int axis = 0; axis < 3; ++axis) {
            const int64_t from =
                at[axis] * p.strides[axis] + tap[axis] * p.dilation[axis] - p.low[axis];
            inside = inside && from >= 0 && from < p.x_space[axis];
            place = place * p.x_space[axis] + from;
          }
          if (!inside) continue;
          const int64_t xi = (n * NumPlaces(p.x_space) + place) * p.in + i;
          const int64_t yi = (n * NumPlaces(p.y_space) + q) * p.out + o;
          if (role == ConvRole::kForward) {
            sums[yi] += LoadOne(dtype, x, xi) * LoadOne(dtype, w, s.value);
          } else if (role == ConvRole::kInputGrad) {
            sums[xi] += LoadOne(dtype, y, yi) * LoadOne(dtype, w, s.value);
          } else {
            sums[s.value] += LoadOne(dtype, x, xi) * LoadOne(dtype, y, yi);
          }
        }
      }
    }
    for (int64_t i = 0; i < size; ++i) StoreOne(dtype, result, i, sums[i]);
  }
  return {};
} catch (const std::bad_alloc&) {
  return Status::OutOfMemory("no memory for the sums");
}

}  // namespace jaxsparse::cpu
