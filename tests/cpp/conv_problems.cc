#include "conv_problems.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>

namespace jaxsparse::testing {

ConvWindow WindowOf(const ConvShape& s) {
  ConvWindow window;
  window.x_space = s.x_space;
  window.y_space = s.y_space;
  window.kernel = s.kernel;
  window.strides = s.strides;
  window.low = s.low;
  window.dilation = s.dilation;
  window.feature_groups = s.feature_groups;
  window.mirrored = s.mirrored;
  window.batch = s.batch;
  window.in = s.in;
  window.out = s.out;
  return window;
}

namespace {

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

SparseConv Sizes(const ConvShape& s) {
  SparseConv args;
  static_cast<ConvWindow&>(args) = WindowOf(s);
  if (s.block_in > 0) {
    args.format = WeightFormat::kBlocks;
    args.block_in = s.block_in;
    args.block_out = s.block_out;
  } else {
    args.width = std::max<int64_t>(1, s.width);
    args.num_columns = CeilDiv(args.channels(), args.width);
  }
  return args;
}

// How many places there are to store weights at.
int64_t NumAll(const SparseConv& args) {
  return args.format == WeightFormat::kBlocks ? args.grid_rows() * args.grid_cols()
                                              : args.num_columns * args.depth() * args.num_taps();
}

// With one unused place, unless the pattern is full.
SparseConv WithCapacity(SparseConv args, double density) {
  const auto used = static_cast<int64_t>(density * NumAll(args));
  args.capacity = density == 1 ? used : used + 1;
  return args;
}

std::string Listed(const Space& space) {
  return std::to_string(space[0]) + "x" + std::to_string(space[1]) + "x" + std::to_string(space[2]);
}

}  // namespace

cpu::SparseConvKernel ConvKernel(const cpu::KernelTable& table, Role role, DType dtype) {
  const int i = static_cast<int>(dtype);
  return role == Role::kForward     ? table.conv_forward[i]
         : role == Role::kInputGrad ? table.conv_input_grad[i]
                                    : table.conv_weight_grad[i];
}

ConvShape ConvShape::Stored(int64_t new_width) const {
  ConvShape changed = *this;
  changed.width = new_width;
  changed.block_in = changed.block_out = 0;
  return changed;
}

ConvShape ConvShape::Blocks(int64_t new_block_in, int64_t new_block_out) const {
  ConvShape changed = *this;
  changed.block_in = new_block_in;
  changed.block_out = new_block_out;
  return changed;
}

std::string Name(const ConvShape& s) {
  return s.name + ", " + std::to_string(s.batch) + " of " + Listed(s.x_space) + "x" +
         std::to_string(s.in) + " -> " + Listed(s.y_space) + "x" + std::to_string(s.out) +
         ", window " + Listed(s.kernel) + ", " +
         (s.block_in > 0
              ? "blocks " + std::to_string(s.block_in) + "x" + std::to_string(s.block_out)
              : "width " + std::to_string(s.width)) +
         ", density " + std::to_string(s.density) + ", " + std::to_string(s.groups) + " groups";
}

ConvShape Conv2d(int64_t batch, int64_t size, int64_t in, int64_t out, int64_t taps,
                 int64_t stride) {
  ConvShape shape;
  shape.name = "2d";
  shape.batch = batch;
  shape.in = in;
  shape.out = out;
  shape.x_space = {1, size, size};
  shape.y_space = {1, CeilDiv(size, stride), CeilDiv(size, stride)};
  shape.kernel = {1, taps, taps};
  shape.strides = {1, stride, stride};
  shape.low = {0, (taps - 1) / 2, (taps - 1) / 2};
  return shape;
}

ConvShape Product(int64_t rows, int64_t in, int64_t out) {
  ConvShape shape;
  shape.name = "product";
  shape.batch = rows;
  shape.in = in;
  shape.out = out;
  return shape;
}

std::vector<ConvShape> SomeConvs() {
  std::vector<ConvShape> shapes;
  const auto add = [&](const char* name, ConvShape shape) {
    shape.name = name;
    shapes.push_back(shape);
  };
  ConvShape shape;
  add("product", Product(37, 11, 13));
  add("no rows", Product(0, 3, 5));
  add("one row", Product(1, 30, 20));
  add("3x3", Conv2d(2, 7, 5, 6, 3));
  add("large image", Conv2d(1, 40, 3, 4, 3));
  add("even window", Conv2d(2, 6, 5, 6, 4));
  shape = Conv2d(2, 9, 4, 6, 3, 2);
  add("stride 2", shape);
  shape.mirrored = true;
  add("mirrored", shape);
  shape.feature_groups = 2;
  add("mirrored groups", shape);
  shape = Conv2d(2, 9, 5, 3, 3);
  shape.strides = {1, 2, 3};
  shape.y_space = {1, 5, 3};
  shape.low = {0, 0, 2};
  add("unequal strides", shape);
  shape = Conv2d(3, 11, 2, 7, 2, 3);
  add("stride over window", shape);
  shape = Conv2d(2, 12, 3, 4, 3);
  shape.dilation = {1, 2, 3};
  shape.low = {0, 2, 3};
  add("dilation", shape);
  shape.strides = {1, 2, 2};
  shape.y_space = {1, 6, 6};
  add("dilation and stride", shape);
  shape = Conv2d(2, 5, 3, 4, 3);
  shape.dilation = {1, 1 << 30, 4};
  shape.low = {0, 1 << 30, 4};
  add("dilation over image", shape);
  shape.strides = {1, 2, 2};
  shape.y_space = {1, 3, 3};
  add("dilation over image and stride", shape);
  shape = Conv2d(2, 8, 3, 4, 3);
  shape.low = {0, -1, -2};
  shape.y_space = {1, 3, 4};
  add("negative padding", shape);
  shape = Conv2d(2, 3, 3, 4, 7);
  add("window over image", shape);
  shape = Conv2d(2, 3, 3, 4, 3);
  shape.y_space = {1, 9, 1};
  add("results beyond the image", shape);
  shape.y_space = {1, 0, 3};
  add("no results", shape);
  shape = Conv2d(2, 5, 12, 8, 3);
  shape.feature_groups = 4;
  add("feature groups", shape);
  shape = Conv2d(2, 5, 6, 6, 3);
  shape.feature_groups = 6;
  add("depthwise", shape);
  shape = Conv2d(2, 5, 4, 3, 2);
  shape.x_space = {4, 5, 6};
  shape.y_space = {4, 5, 5};
  shape.kernel = {3, 1, 2};
  shape.low = {1, 0, 0};
  add("3d", shape);
  return shapes;
}

ConvProblem::ConvProblem(const ConvShape& s, Role of_role, DType of_dtype,
                         const std::function<double()>& draw)
    : shape(s),
      role(of_role),
      dtype(of_dtype),
      args(WithCapacity(Sizes(s), s.density)),
      x(dtype, s.groups * s.batch * NumPlaces(s.x_space) * s.in),
      w(dtype, s.groups * args.num_values()),
      y(dtype, s.groups * s.batch * NumPlaces(s.y_space) * s.out) {
  DrawPattern();
  x.Fill(draw);
  w.Fill(draw);
  y.Fill(draw);
  const double nan = std::numeric_limits<double>::quiet_NaN();
  for (int64_t group = 0; group < s.groups; ++group) {
    for (int64_t value = 0; value < args.num_values(); ++value) {
      if (Find(group, value).tap < 0) w.Set(group * args.num_values() + value, nan);
    }
  }
  result().Fill([&] { return nan; });
}

void ConvProblem::DrawPattern() {
  const ConvShape& s = shape;
  std::mt19937 random(static_cast<uint32_t>(NumAll(args) + 31 * s.batch));
  const int64_t all = NumAll(args), patterns = s.shared_pattern ? 1 : s.groups;
  const int64_t used = s.density == 1 ? all : args.capacity - 1;
  const bool blocks = args.format == WeightFormat::kBlocks;
  places.assign(patterns * args.capacity, blocks ? 0 : static_cast<int32_t>(all));
  if (blocks) order.assign(patterns * args.capacity, static_cast<int32_t>(args.grid_cols()));
  for (int64_t group = 0; group < patterns; ++group) {
    std::vector<int32_t> some(all);
    std::iota(some.begin(), some.end(), 0);
    std::shuffle(some.begin(), some.end(), random);
    std::sort(some.begin(), some.begin() + used);
    for (int64_t k = 0; k < used; ++k) {
      const int64_t at = group * args.capacity + k;
      places[at] = some[k];
      if (!blocks) continue;
      places[at] = static_cast<int32_t>(some[k] % args.grid_rows());
      order[at] = static_cast<int32_t>(some[k] / args.grid_rows());
    }
    if (s.width == 0 || blocks) continue;
    std::vector<int32_t> channels(args.num_columns * args.width);
    for (size_t i = 0; i < channels.size(); ++i) {
      channels[i] = static_cast<int32_t>(std::min<int64_t>(i, args.channels()));
    }
    std::shuffle(channels.begin(), channels.end(), random);
    order.insert(order.end(), channels.begin(), channels.end());
  }
  for (int64_t group = 0; group < s.groups; ++group) {
    for (auto* of : {&args.x_group, &args.w_group, &args.y_group}) of->push_back(group);
    args.pattern_group.push_back(s.shared_pattern ? 0 : group);
  }
  args.x = x.data();
  args.w = w.data();
  args.y = y.data();
  args.places = places.data();
  args.order = order.empty() ? nullptr : order.data();
}

ConvProblem::Weight ConvProblem::Find(int64_t group, int64_t value) const {
  constexpr Weight kNone = {-1, 0, 0};
  const int64_t pattern = args.pattern_group[group];
  const int64_t taps = args.num_taps(), depth = args.depth(), channels = args.channels();
  int64_t tap, c, channel;
  if (args.format == WeightFormat::kBlocks) {
    const int64_t k = value / (args.block_in * args.block_out);
    const int64_t in_block = value % (args.block_in * args.block_out);
    const int64_t at = pattern * args.capacity + k;
    const int64_t line = places[at] * args.block_in + in_block / args.block_out;
    channel = order[at] * args.block_out + in_block % args.block_out;
    if (order[at] == args.grid_cols() || line >= taps * depth || channel >= channels) return kNone;
    tap = line / depth;
    c = line % depth;
  } else {
    const int64_t place = places[pattern * args.capacity + value / args.width];
    const int64_t column = place / (depth * taps), slot = value % args.width;
    if (column == args.num_columns) return kNone;
    channel = args.order == nullptr
                  ? column * args.width + slot
                  : order[pattern * args.order_size() + column * args.width + slot];
    if (channel >= channels) return kNone;
    c = place % (depth * taps) / taps;
    tap = place % taps;
  }
  const int64_t across = channel / (channels / args.feature_groups) * depth + c;
  if (args.mirrored) return {taps - 1 - tap, channel, across};
  return {tap, across, channel};
}

void ConvProblem::ForEachProduct(
    const std::function<void(int64_t, int64_t, int64_t)>& visit) const {
  const int64_t x_places = NumPlaces(args.x_space), y_places = NumPlaces(args.y_space);
  for (int64_t group = 0; group < shape.groups; ++group) {
    for (int64_t value = 0; value < args.num_values(); ++value) {
      const Weight weight = Find(group, value);
      if (weight.tap < 0) continue;
      const Space tap = {weight.tap / (args.kernel[1] * args.kernel[2]),
                         weight.tap / args.kernel[2] % args.kernel[1], weight.tap % args.kernel[2]};
      for (int64_t q = 0; q < y_places; ++q) {
        const Space at = {q / (args.y_space[1] * args.y_space[2]),
                          q / args.y_space[2] % args.y_space[1], q % args.y_space[2]};
        int64_t p = 0;
        bool exists = true;
        for (int a = 0; a < 3; ++a) {
          const int64_t i = at[a] * args.strides[a] + tap[a] * args.dilation[a] - args.low[a];
          exists &= i >= 0 && i < args.x_space[a];
          p = p * args.x_space[a] + i;
        }
        if (!exists) continue;
        for (int64_t n = group * args.batch; n < (group + 1) * args.batch; ++n) {
          visit((n * x_places + p) * args.in + weight.in, group * args.num_values() + value,
                (n * y_places + q) * args.out + weight.out);
        }
      }
    }
  }
}

Status ConvProblem::Run(const cpu::KernelTable& table, TaskPool& pool) {
  return ConvKernel(table, role, dtype)(args, pool);
}

std::vector<Problem::Sum> ConvProblem::Expected() {
  std::vector<Problem::Sum> sums(result().size());
  ForEachProduct([&](int64_t xi, int64_t wi, int64_t yi) {
    const double product = role == Role::kForward     ? x[xi] * w[wi]
                           : role == Role::kInputGrad ? y[yi] * w[wi]
                                                      : x[xi] * y[yi];
    Problem::Sum& sum = sums[role == Role::kForward ? yi : role == Role::kInputGrad ? xi : wi];
    sum.value += product;
    sum.magnitude += std::fabs(product);
  });
  return sums;
}

}  // namespace jaxsparse::testing
