#include "problems.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <random>

namespace jaxsparse::testing {
namespace {

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t GridRows(const Shape& s) { return CeilDiv(s.in, s.block_in); }
int64_t GridCols(const Shape& s) { return CeilDiv(s.out, s.block_out); }

// Room for every block and one unused place, unless the pattern is to be empty or full.
int64_t Capacity(const Shape& s) {
  const int64_t all = GridRows(s) * GridCols(s);
  if (s.density == 0) return 0;
  if (s.density == 1) return all;
  return static_cast<int64_t>(std::ceil(s.density * all)) + 1;
}

int64_t Groups(const Shape& s, bool shared) { return shared ? 1 : s.groups; }

}  // namespace

std::string Name(Role role) {
  return role == Role::kForward     ? "forward"
         : role == Role::kInputGrad ? "input_grad"
                                    : "weight_grad";
}

std::string Name(const Shape& s) {
  std::string name = std::to_string(s.batch) + ": " + std::to_string(s.in) + " -> " +
                     std::to_string(s.out) + ", blocks " + std::to_string(s.block_in) + "x" +
                     std::to_string(s.block_out) + ", density " + std::to_string(s.density);
  if (s.groups != 1) name += ", " + std::to_string(s.groups) + " groups";
  return name;
}

std::vector<double> Array::Values() const {
  std::vector<double> values(size());
  for (int64_t i = 0; i < size(); ++i) values[i] = (*this)[i];
  return values;
}

void Array::Fill(const std::function<double()>& draw) {
  for (int64_t i = 0; i < size(); ++i) Set(i, draw());
}

Problem::Problem(const Shape& s, Role role, DType dtype, const std::function<double()>& draw)
    : shape(s),
      role_(role),
      dtype_(dtype),
      x(dtype, Groups(s, s.shared_operands && role != Role::kInputGrad) * s.batch * s.in),
      w(dtype, Groups(s, s.shared_operands && role != Role::kWeightGrad) * Capacity(s) *
                   s.block_in * s.block_out),
      y(dtype, Groups(s, s.shared_operands && role == Role::kWeightGrad) * s.batch * s.out) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const int64_t capacity = Capacity(s), patterns = Groups(s, s.shared_pattern);
  const int64_t grid_rows = GridRows(s), grid_cols = GridCols(s), all = grid_rows * grid_cols;
  x.Fill(draw);
  w.Fill(draw);
  y.Fill(draw);
  result().Fill([&] { return nan; });

  rows.assign(patterns * capacity, -7);  // unused places may hold any row
  cols.assign(patterns * capacity, static_cast<int32_t>(grid_cols));
  std::mt19937 random(static_cast<uint32_t>(all + 31 * s.batch));
  const int64_t wanted = std::min<int64_t>(all, static_cast<int64_t>(std::ceil(s.density * all)));
  for (int64_t group = 0; group < patterns; ++group) {
    std::vector<int64_t> places(all);
    for (int64_t i = 0; i < all; ++i) places[i] = i;
    std::shuffle(places.begin(), places.end(), random);
    places.resize(wanted);
    std::sort(places.begin(), places.end());
    for (int64_t k = 0; k < wanted; ++k) {
      rows[group * capacity + k] = static_cast<int32_t>(places[k] % grid_rows);
      cols[group * capacity + k] = static_cast<int32_t>(places[k] / grid_rows);
    }
    used_blocks_ += wanted;
  }

  for (int64_t g = 0; g < s.groups; ++g) {
    args.x_group.push_back(s.shared_operands && role != Role::kInputGrad ? 0 : g);
    args.w_group.push_back(s.shared_operands && role != Role::kWeightGrad ? 0 : g);
    args.y_group.push_back(s.shared_operands && role == Role::kWeightGrad ? 0 : g);
    args.pattern_group.push_back(s.shared_pattern ? 0 : g);
  }
  args.batch = s.batch;
  args.in = s.in;
  args.out = s.out;
  args.capacity = capacity;
  args.block_in = s.block_in;
  args.block_out = s.block_out;
  args.x = x.data();
  args.w = w.data();
  args.y = y.data();
  args.rows = rows.data();
  args.cols = cols.data();

  if (role == Role::kWeightGrad || (s.shared_operands && !s.shared_pattern)) return;
  for (int64_t g = 0; g < s.groups; ++g) {
    for (int64_t k = 0; k < capacity; ++k) {
      const int64_t p = args.pattern_group[g] * capacity + k;
      for (int64_t i = 0; i < s.block_in * s.block_out; ++i) {
        const int64_t row = rows[p] * s.block_in + i / s.block_out;
        const int64_t col = cols[p] * s.block_out + i % s.block_out;
        if (cols[p] == grid_cols || row >= s.in || col >= s.out) {
          w.Set((args.w_group[g] * capacity + k) * s.block_in * s.block_out + i, nan);
        }
      }
    }
  }
}

double Problem::flops() const {
  const double per_pattern = 2.0 * shape.batch * shape.block_in * shape.block_out;
  return per_pattern * used_blocks_ * (shape.shared_pattern ? shape.groups : 1);
}

std::vector<Problem::Sum> Problem::Expected() const {
  const Shape& s = shape;
  std::vector<Sum> sums(result().size());
  const auto add = [](Sum& sum, double a, double b) {
    sum.value += a * b;
    sum.magnitude += std::fabs(a * b);
  };
  const std::vector<double> xs = x.Values(), ws = w.Values(), ys = y.Values();
  for (int64_t g = 0; g < s.groups; ++g) {
    for (int64_t k = 0; k < args.capacity; ++k) {
      const int64_t p = args.pattern_group[g] * args.capacity + k;
      if (cols[p] == GridCols(s)) continue;
      const int64_t row = rows[p] * s.block_in, col = cols[p] * s.block_out;
      const int64_t block = (args.w_group[g] * args.capacity + k) * s.block_in * s.block_out;
      const int64_t size_in = std::min(s.block_in, s.in - row);
      const int64_t size_out = std::min(s.block_out, s.out - col);
      for (int64_t m = 0; m < s.batch; ++m) {
        const int64_t of_x = (args.x_group[g] * s.batch + m) * s.in + row;
        const int64_t of_y = (args.y_group[g] * s.batch + m) * s.out + col;
        for (int64_t i = 0; i < size_in; ++i) {
          for (int64_t o = 0; o < size_out; ++o) {
            const int64_t xi = of_x + i, yi = of_y + o, wi = block + i * s.block_out + o;
            switch (role_) {
              case Role::kForward:
                add(sums[yi], xs[xi], ws[wi]);
                break;
              case Role::kInputGrad:
                add(sums[xi], ys[yi], ws[wi]);
                break;
              case Role::kWeightGrad:
                add(sums[wi], xs[xi], ys[yi]);
                break;
            }
          }
        }
      }
    }
  }
  return sums;
}

std::function<double()> SmallIntegers(uint32_t seed) {
  auto random = std::make_shared<std::mt19937>(seed);
  return [random] {
    const int magnitude = 1 + static_cast<int>((*random)() % 3);
    return (*random)() % 2 == 0 ? magnitude : -magnitude;
  };
}

std::function<double()> RealNumbers(uint32_t seed) {
  auto random = std::make_shared<std::mt19937>(seed);
  auto normal = std::make_shared<std::normal_distribution<double>>();
  return [random, normal] { return (*normal)(*random); };
}

}  // namespace jaxsparse::testing
