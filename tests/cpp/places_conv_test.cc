#include "core/places_conv.h"

#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "conv_problems.h"
#include "cpu/parallel_for.h"
#include "test_pool.h"

namespace jaxsparse::testing {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

// Which sides have counts.
enum class Counted { kX, kY, kBoth };

cpu::PlacesConvKernel PlacesKernel(const cpu::KernelTable& table, Role role, DType dtype) {
  const int d = static_cast<int>(dtype);
  if (role == Role::kForward) return table.places_forward[d];
  return role == Role::kInputGrad ? table.places_input_grad[d] : table.places_weight_grad[d];
}

// A convolution whose arrays are NaN wherever a place counts as zero, and before they are written.
class PlacesProblem {
 public:
  // Of active places, `zeros` of the numbers are zero.
  PlacesProblem(const ConvShape& shape, Role role, DType dtype, Counted counted, double zeros = 0)
      : role_(role),
        dtype_(dtype),
        args_(Args(shape)),
        x_(dtype, shape.groups * Places(args_.x_space) * args_.in),
        w_(dtype, args_.num_taps() * args_.depth() * args_.channels()),
        y_(dtype, shape.groups * Places(args_.y_space) * args_.out),
        x_counts_(shape.groups * Places(args_.x_space), 1),
        y_counts_(shape.groups * Places(args_.y_space), 1) {
    const auto integers = SmallIntegers(17);
    w_.Fill(integers);
    Draw(args_.in, counted != Counted::kY, role != Role::kInputGrad ? zeros : 0, &x_, &x_counts_);
    Draw(args_.out, counted != Counted::kX, role == Role::kInputGrad ? zeros : 0, &y_, &y_counts_);
    args_.x = x_.data();
    args_.w = w_.data();
    args_.y = y_.data();
    const auto pointer = [&](const std::vector<int32_t>& counts) {
      return counts.empty() ? nothing_.data() + nothing_.size() : counts.data();
    };
    if (counted != Counted::kY) args_.x_counts = pointer(x_counts_);
    if (counted != Counted::kX) args_.y_counts = pointer(y_counts_);
    for (int64_t g = 0; g < shape.groups; ++g) {
      for (auto* groups :
           {&args_.x_group, &args_.y_group, &args_.x_counts_group, &args_.y_counts_group})
        groups->push_back(g);
      args_.w_group.push_back(0);
    }
  }

  // The first number of the result that is not what it should be, as a sentence; empty if none is.
  std::string Check(const cpu::KernelTable& table, TaskPool& pool) {
    if (expected_.empty()) expected_ = Expected();
    const std::vector<double>& expected = expected_;
    Array& result = role_ == Role::kForward ? y_ : role_ == Role::kInputGrad ? x_ : w_;
    result.Fill([] { return kNaN; });
    const Status status = PlacesKernel(table, role_, dtype_)(args_, pool);
    if (!status.ok()) return status.message;
    for (int64_t i = 0; i < result.size(); ++i)
      if (result[i] != Rounded(dtype_, expected[i]) &&
          !(std::isnan(result[i]) && std::isnan(expected[i])))
        return "result[" + std::to_string(i) + "] is " + std::to_string(result[i]) + ", not " +
               std::to_string(expected[i]);
    return "";
  }

  // Puts infinities and NaN at some active places of x, and infinities at some of y; zeros of
  // x then meet nothing.
  void Spoil() {
    const auto spoil = [&](int64_t every, int64_t channels, std::vector<int32_t>& counts,
                           bool is_counted, bool with_nan, Array* array) {
      int64_t active = 0;
      for (size_t place = 0; place < counts.size(); ++place) {
        if (is_counted && (counts[place] == 0 || active++ % every != 0)) continue;
        if (!is_counted && place % every != 0) continue;
        const int64_t at = place * channels + static_cast<int64_t>(Next() * channels);
        counts[place] += (*array)[at] == 0;
        const double bad = with_nan && Next() < 0.3 ? kNaN : HUGE_VAL;
        (*array).Set(at, Next() < 0.5 ? bad : -bad);
      }
    };
    const bool from_x = args_.x_counts != nullptr;
    spoil(3, args_.in, x_counts_, from_x, from_x, &x_);
    spoil(7, args_.out, y_counts_, !from_x, !from_x, &y_);
    zeros_meet_nothing_ = true;
    expected_.clear();
  }

  // Puts a number that no count can be where most counts are.
  void SpoilCounts(int32_t wrong) {
    for (auto* counts : {&x_counts_, &y_counts_})
      for (int32_t& count : *counts)
        if (Next() < 0.7) count = wrong;
  }

  // Numbers whose sums round.
  void MakeReal() {
    for (Array* array : {&x_, &y_})
      for (int64_t i = 0; i < array->size(); ++i) array->Set(i, (*array)[i] * (0.5 + Next()));
    expected_.clear();
  }

  Array::Bytes Run(const cpu::KernelTable& table, TaskPool& pool) {
    CHECK(PlacesKernel(table, role_, dtype_)(args_, pool).ok());
    return result().bytes();
  }

  Array& result() { return role_ == Role::kForward ? y_ : role_ == Role::kInputGrad ? x_ : w_; }

 private:
  static PlacesConv Args(const ConvShape& shape) {
    PlacesConv args;
    static_cast<ConvWindow&>(args) = WindowOf(shape);
    return args;
  }

  int64_t Places(const Space& space) const { return args_.batch * NumPlaces(space); }

  void Draw(int64_t channels, bool counted, double zeros, Array* array,
            std::vector<int32_t>* counts) {
    for (size_t place = 0; place < counts->size(); ++place) {
      const bool active = !counted || Next() < 0.4;
      int32_t count = 0;
      for (int64_t c = 0; c < channels; ++c) {
        double value = active ? (Next() < 0.5 ? -1 : 1) * (Next() < 0.5 ? 1 : 2) : kNaN;
        if (active && Next() < zeros) value = 0;
        count += active && value != 0;
        (*array).Set(place * channels + c, value);
      }
      (*counts)[place] = count;
      if (active && count == 0) {  // then it may as well hold anything
        for (int64_t c = 0; c < channels; ++c) (*array).Set(place * channels + c, kNaN);
      }
    }
  }

  double Next() {  // in [0, 1)
    state_ = state_ * 6364136223846793005ull + 1442695040888963407ull;
    return static_cast<double>(state_ >> 11) * 0x1p-53;
  }

  // In double: every sum of the integers is exact.
  std::vector<double> Expected() {
    const PlacesConv& p = args_;
    Array& result = this->result();
    std::vector<double> sums(result.size(), 0);
    const int64_t groups = static_cast<int64_t>(p.x_group.size());
    const int64_t in = p.in / p.feature_groups, out = p.out / p.feature_groups;
    const auto at = [](const Space& space, int64_t image, const Space& place) {
      return ((image * space[0] + place[0]) * space[1] + place[1]) * space[2] + place[2];
    };
    for (int64_t image = 0; image < groups * p.batch; ++image)
      for (int64_t q = 0; q < NumPlaces(p.y_space); ++q)
        for (int64_t t = 0; t < p.num_taps(); ++t) {
          const Space& ys = p.y_space;
          const Space place = {q / (ys[1] * ys[2]), q / ys[2] % ys[1], q % ys[2]};
          const Space tap = {t / (p.kernel[1] * p.kernel[2]), t / p.kernel[2] % p.kernel[1],
                             t % p.kernel[2]};
          Space seen;
          bool inside = true;
          for (int axis = 0; axis < 3; ++axis) {
            seen[axis] = place[axis] * p.strides[axis] + tap[axis] * p.dilation[axis] - p.low[axis];
            inside &= seen[axis] >= 0 && seen[axis] < p.x_space[axis];
          }
          if (!inside) continue;
          const int64_t xi = at(p.x_space, image, seen), yi = at(ys, image, place);
          if (p.x_counts != nullptr && p.x_counts[xi] == 0) continue;
          if (p.y_counts != nullptr && p.y_counts[yi] == 0) continue;
          for (int64_t i = 0; i < p.in; ++i)
            for (int64_t o = i / in * out; o < i / in * out + out; ++o) {
              const int64_t stored_tap = p.mirrored ? p.num_taps() - 1 - t : t;
              const int64_t row = p.mirrored ? o % out : i % in, column = p.mirrored ? i : o;
              const int64_t wi = (stored_tap * p.depth() + row) * p.channels() + column;
              const int64_t x = xi * p.in + i, y = yi * p.out + o;
              if (role_ == Role::kForward) sums[y] += x_[x] * w_[wi];
              if (role_ == Role::kInputGrad) sums[x] += y_[y] * w_[wi];
              const double sparse = p.x_counts != nullptr ? x_[x] : y_[y];
              if (zeros_meet_nothing_ && sparse == 0) continue;
              if (role_ == Role::kWeightGrad) sums[wi] += x_[x] * y_[y];
            }
        }
    return sums;
  }

  const Role role_;
  const DType dtype_;
  PlacesConv args_;
  Array x_, w_, y_;
  std::vector<int32_t> x_counts_, y_counts_;
  const std::vector<int32_t> nothing_ = {1};  // behind it are the counts of an empty array
  std::vector<double> expected_;              // once computed
  bool zeros_meet_nothing_ = false;
  uint64_t state_ = 12345;
};

void CheckEverywhere(const ConvShape& shape, Role role, DType dtype, Counted counted,
                     double zeros = 0) {
  ThreadPool pool(3);
  PlacesProblem problem(shape, role, dtype, counted, zeros);
  for (const cpu::KernelTable* table : Tables())
    for (TaskPool* on : {static_cast<TaskPool*>(&pool), &cpu::CallerOnly()}) {
      INFO(table->isa << " " << Name(role) << " " << Name(dtype) << " " << Name(shape) << " "
                      << static_cast<int>(counted));
      CHECK(problem.Check(*table, *on) == "");
    }
}

TEST_CASE("places that count as zero are neither read nor written, in every window") {
  for (const ConvShape& shape : SomeConvs())
    for (const Role role : kRoles) {
      if (role == Role::kWeightGrad && shape.groups > 1) continue;  // one w for all groups here
      for (const Counted counted : {Counted::kX, Counted::kY, Counted::kBoth})
        CheckEverywhere(shape, role, DType::kF32, counted);
    }
}

TEST_CASE("every dtype has its kernels, also where channels do not fill a vector or a pair") {
  for (const DType dtype : kDTypes)
    for (const int64_t in : {1, 7, 34})
      for (const Role role : kRoles)
        CheckEverywhere(Conv2d(2, 6, in, 37, 3), role, dtype, Counted::kX);
}

TEST_CASE("lists of single nonzeros equal the definition") {
  for (const DType dtype : kDTypes)
    for (const int64_t out : {32, 64, 75, 128})
      for (const double zeros : {0.6, 0.95}) {
        CheckEverywhere(Conv2d(2, 7, 48, out, 3), Role::kForward, dtype, Counted::kX, zeros);
        CheckEverywhere(Conv2d(2, 7, out, 48, 3, 2), Role::kInputGrad, dtype, Counted::kY, zeros);
      }
}

// With channels enough for lists of nonzeros, whatever the window is.
std::vector<ConvShape> ManyChannels() {
  std::vector<ConvShape> shapes = {Conv2d(2, 9, 32, 48, 3),   Conv2d(2, 12, 20, 75, 3, 2),
                                   Conv2d(1, 9, 48, 64, 5),   Conv2d(2, 9, 35, 64, 4),
                                   Conv2d(9, 5, 32, 48, 3),   Conv2d(1, 60, 16, 16, 3),
                                   Conv2d(1, 6, 150, 260, 2), Product(1000, 40, 64)};
  ConvShape shape = Conv2d(2, 8, 32, 64, 3);
  shape.feature_groups = 2;
  shapes.push_back(shape);
  shape = Conv2d(2, 9, 32, 40, 3);
  shape.dilation = {1, 2, 3};
  shape.low = {0, 2, 3};
  shapes.push_back(shape);
  shape.batch = 20;
  shape.strides = {1, 3, 2};
  shape.y_space = {1, 3, 5};
  shapes.push_back(shape);
  shape = Conv2d(2, 9, 32, 40, 3);
  shape.low = {0, -1, -2};
  shape.y_space = {1, 5, 4};
  shapes.push_back(shape);
  shape = Conv2d(2, 5, 40, 48, 2);
  shape.x_space = {4, 5, 6};
  shape.y_space = {4, 5, 5};
  shape.kernel = {3, 1, 2};
  shape.low = {1, 0, 0};
  shapes.push_back(shape);
  shape = Conv2d(1, 1, 16, 20, 7);
  shape.x_space = shape.y_space = {1, 1, 1500};
  shape.kernel = {1, 1, 7};
  shape.low = {0, 0, 3};
  shapes.push_back(shape);
  return shapes;
}

// By rows of channels, zeros that meet an infinity would make NaN.
TEST_CASE(
    "the weight gradient lists single nonzeros, and infinities only where they meet a target") {
  ThreadPool pool(3);
  for (const ConvShape& shape : ManyChannels())
    for (const DType dtype : kDTypes)
      for (const bool mirrored : {false, true})
        for (const Counted counted : {Counted::kX, Counted::kY}) {
          ConvShape its = shape;
          its.mirrored = mirrored;
          if (dtype != DType::kF32 && mirrored != (counted == Counted::kY)) continue;
          for (const bool is_spoiled : {false, true}) {
            PlacesProblem problem(its, Role::kWeightGrad, dtype, counted, 0.9);
            if (is_spoiled) problem.Spoil();
            for (const cpu::KernelTable* table : Tables()) {
              INFO(table->isa << " " << Name(dtype) << " " << Name(its) << " "
                              << static_cast<int>(counted) << mirrored << is_spoiled);
              CHECK(problem.Check(*table, pool) == "");
            }
          }
        }
}

TEST_CASE("axes without places, and sides without channels") {
  for (int axis = 0; axis < 3; ++axis)
    for (const bool of_x : {false, true})
      for (const Role role : kRoles)
        for (const Counted counted : {Counted::kX, Counted::kY, Counted::kBoth}) {
          ConvShape shape = Conv2d(2, 4, 3, 5, 3);
          (of_x ? shape.x_space : shape.y_space)[axis] = 0;
          CheckEverywhere(shape, role, DType::kF32, counted);
          shape = Conv2d(2, 4, of_x ? 0 : 3, of_x ? 5 : 0, 3);
          CheckEverywhere(shape, role, DType::kF32, counted);
        }
}

TEST_CASE("counts that cannot be do no harm") {
  for (const int64_t channels : {0, 3, 40})
    for (const Role role : kRoles)
      for (const Counted counted : {Counted::kX, Counted::kY, Counted::kBoth})
        for (const int32_t wrong : {INT32_MIN, -1, INT32_MAX}) {
          PlacesProblem problem(Conv2d(2, 9, channels, 40, 3), role, DType::kF32, counted, 0.9);
          problem.SpoilCounts(wrong);
          for (const cpu::KernelTable* table : Tables()) problem.Run(*table, cpu::CallerOnly());
        }
}

TEST_CASE("any number of pairs and of channels, fewer or more than a tile takes") {
  for (const DType dtype : {DType::kF32, DType::kBF16})
    for (const int64_t size : {1, 3, 5, 6, 7, 8})
      for (const int64_t in : {2, 9, 14, 26})
        for (const int64_t out : {16, 64})
          CheckEverywhere(Conv2d(1, size, in, out, 1), Role::kForward, dtype, Counted::kX);
}

TEST_CASE("lists of single nonzeros follow every window") {
  for (ConvShape shape : SomeConvs()) {
    if (shape.feature_groups > 1) continue;
    shape.in = shape.out = 32;
    CheckEverywhere(shape, Role::kForward, DType::kF32, Counted::kX, 0.8);
    CheckEverywhere(shape, Role::kInputGrad, DType::kF32, Counted::kY, 0.8);
  }
}

TEST_CASE("an image larger than a band, and more channels than are multiplied at once") {
  CheckEverywhere(Conv2d(1, 70, 3, 5, 3), Role::kForward, DType::kF32, Counted::kX);
  CheckEverywhere(Conv2d(1, 70, 3, 5, 3), Role::kWeightGrad, DType::kF32, Counted::kX);
  CheckEverywhere(Conv2d(1, 3, 515, 3, 2), Role::kForward, DType::kBF16, Counted::kX);
}

// Rows of columns that meet other taps at the edges, or with a stride; bands; strips.
std::vector<ConvShape> FewChannels() {
  std::vector<ConvShape> shapes;
  for (const int64_t taps : {1, 2, 3, 4, 5, 7})
    for (const int64_t stride : {1, 2, 3}) shapes.push_back(Conv2d(2, 11, 5, 9, taps, stride));
  for (const int64_t in : {1, 16, 31, 32})
    for (const int64_t out : {1, 16, 17, 33, 64}) shapes.push_back(Conv2d(1, 9, in, out, 3));
  shapes.push_back(Conv2d(1, 90, 2, 8, 3));  // some bands
  shapes.push_back(Conv2d(1, 40, 2, 33, 3, 2));
  shapes.push_back(Conv2d(1, 1, 3, 4, 3));
  ConvShape shape = Conv2d(2, 12, 3, 20, 4);
  shape.dilation = {1, 2, 3};
  shape.low = {0, 3, 4};
  shapes.push_back(shape);
  shape.strides = {1, 2, 2};
  shape.y_space = {1, 6, 5};
  shapes.push_back(shape);
  shape.mirrored = true;
  shapes.push_back(shape);
  shape = Conv2d(2, 12, 5, 16, 3, 2);  // sources of neighbouring rows that are no neighbours
  shape.strides = {1, 2, 1};
  shape.y_space = {1, 6, 12};
  shapes.push_back(shape);
  shape = Conv2d(2, 6, 7, 18, 3);  // every second tap of a row has the same parity
  shape.kernel = {2, 3, 5};
  shape.x_space = {3, 4, 12};
  shape.y_space = {2, 4, 6};
  shape.strides = {1, 1, 2};
  shape.low = {0, 1, 2};
  shapes.push_back(shape);
  shape.groups = 3;
  shapes.push_back(shape);
  return shapes;
}

TEST_CASE("few channels equal the definition in every window") {
  for (const ConvShape& shape : FewChannels())
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      CheckEverywhere(shape, Role::kForward, dtype, Counted::kX);
      CheckEverywhere(shape, Role::kInputGrad, dtype, Counted::kY);
    }
}

TEST_CASE("more than few channels") {
  CheckEverywhere(Conv2d(1, 70, 33, 3, 3), Role::kForward, DType::kF32, Counted::kX);
  for (const DType dtype : kDTypes)
    CheckEverywhere(Conv2d(2, 6, 67, 37, 3, 2), Role::kForward, dtype, Counted::kX);
}

// Many channels and few, whole places and single zeros: every kernel there is.
template <class Visit>
void ForEachKernel(const Visit& visit) {
  std::vector<ConvShape> shapes = ManyChannels();
  for (const ConvShape& shape : FewChannels()) shapes.push_back(shape);
  shapes.push_back(Conv2d(4, 16, 64, 96, 3));  // work for several threads
  for (const ConvShape& shape : shapes)
    for (const DType dtype : {DType::kF32, DType::kBF16})
      for (const Role role : kRoles)
        for (const double zeros : {0.0, 0.9}) {
          if (role == Role::kWeightGrad && shape.groups > 1) continue;  // one w for all groups here
          const Counted counted = role == Role::kInputGrad ? Counted::kY : Counted::kX;
          INFO(Name(shape) << " " << Name(dtype) << " " << Name(role) << " " << zeros);
          visit(PlacesProblem(shape, role, dtype, counted, zeros));
        }
}

TEST_CASE("the same bits for any number of threads") {
  ThreadPool two(2), five(5), forty(40);
  ForEachKernel([&](PlacesProblem problem) {
    problem.MakeReal();
    const cpu::KernelTable& table = *Tables().back();
    const auto alone = problem.Run(table, cpu::CallerOnly());
    for (ThreadPool* pool : {&two, &five, &forty}) CHECK((problem.Run(table, *pool) == alone));
  });
}

TEST_CASE("infinities and NaN of active places reach what they meet, and nothing else") {
  for (const std::vector<ConvShape>& shapes : {ManyChannels(), FewChannels()})
    for (const ConvShape& shape : shapes)
      for (const Role role : {Role::kForward, Role::kInputGrad})
        for (const double zeros : {0.0, 0.9}) {
          const Counted counted = role == Role::kInputGrad ? Counted::kY : Counted::kX;
          PlacesProblem problem(shape, role, DType::kF32, counted, zeros);
          problem.Spoil();
          INFO(Name(shape) << " " << Name(role) << " " << zeros);
          for (const cpu::KernelTable* table : Tables())
            CHECK(problem.Check(*table, cpu::CallerOnly()) == "");
        }
}

}  // namespace
}  // namespace jaxsparse::testing
