#include "cpu/column_copy.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "cpu/column_pattern.h"
#include "cpu/parallel_for.h"
#include "test_pool.h"

namespace jaxsparse::testing {
namespace {

struct CopyShape {
  int64_t taps, in, out;
  int64_t width = 0;  // 0: unstructured
  double density = 0.4;
  int64_t groups = 1;
  bool shared_pattern = false;
};

const CopyShape kShapes[] = {
    {1, 20, 30},
    {9, 5, 7},
    {9, 5, 7, 0, 1.0},
    {9, 5, 7, 0, 0.0},
    {9, 0, 7},
    {9, 5, 0},
    {9, 5, 7, 1},
    {9, 5, 7, 4},
    {4, 6, 16, 8},
    {4, 6, 17, 8, 1.0},
    {1, 3, 2, 8},
    {9, 5, 7, 0, 0.4, 3},
    {9, 5, 7, 4, 0.4, 3},
    {9, 5, 7, 0, 0.4, 3, true},
    {9, 5, 7, 4, 0.4, 3, true},
    {9, 64, 192},
    {9, 64, 192, 8},        // several pieces of work
    {9, 64, 150, 0, 0.05},  // few weights: not through tiles
    {2, 100, 33, 0, 0.9},   // tiles and bands that end early
};

std::string Name(const CopyShape& s) {
  return std::to_string(s.taps) + " taps, " + std::to_string(s.in) + " -> " +
         std::to_string(s.out) + ", width " + std::to_string(s.width) + ", density " +
         std::to_string(s.density) + ", " + std::to_string(s.groups) + " groups";
}

// Arrays of `item_bytes` numbers each, filled with random bytes.
struct Copies {
  Copies(const CopyShape& s, int64_t item_bytes) : shape(s) {
    std::mt19937 random(7);
    const int64_t patterns = s.shared_pattern ? 1 : s.groups;
    args.taps = s.taps;
    args.in = s.in;
    args.out = s.out;
    args.item_bytes = item_bytes;
    args.width = std::max<int64_t>(1, s.width);
    args.num_columns = s.width == 0 ? s.out : (s.out + s.width - 1) / s.width;
    const int64_t slots = args.num_columns * args.width;
    const int64_t all = args.num_columns * args.column_size();
    const auto used = static_cast<int64_t>(s.density * all);
    args.capacity = s.density == 1.0 ? all : used + 2;
    places.assign(patterns * args.capacity, static_cast<int32_t>(all));
    for (int64_t group = 0; group < patterns; ++group) {
      std::vector<int32_t> some(all);
      std::iota(some.begin(), some.end(), 0);
      std::shuffle(some.begin(), some.end(), random);
      some.resize(used);
      std::sort(some.begin(), some.end());
      std::copy(some.begin(), some.end(), places.begin() + group * args.capacity);
      std::vector<int32_t> channels(slots);
      for (int64_t i = 0; i < slots; ++i) {
        channels[i] = static_cast<int32_t>(std::min<int64_t>(i, s.out));
      }
      std::shuffle(channels.begin(), channels.end(), random);
      order.insert(order.end(), channels.begin(), channels.end());
    }
    for (int64_t group = 0; group < s.groups; ++group) {
      args.dense_group.push_back(group);
      args.values_group.push_back(group);
      args.places_group.push_back(s.shared_pattern ? 0 : group);
      args.order_group.push_back(s.shared_pattern ? 0 : group);
    }
    dense.resize(s.groups * args.column_size() * s.out * item_bytes);
    values.resize(s.groups * args.capacity * args.width * item_bytes);
    for (unsigned char& byte : dense) byte = static_cast<unsigned char>(random());
    for (unsigned char& byte : values) byte = static_cast<unsigned char>(random());
    args.dense = dense.data();
    args.values = values.data();
    args.places = places.data();
    args.order = s.width == 0 ? nullptr : order.data();
  }

  // Calls visit(index into values, index into dense or -1), both in items.
  template <class Visit>
  void ForEachValue(Visit visit) const {
    for (int64_t group = 0; group < shape.groups; ++group) {
      const int64_t pattern = args.places_group[group];
      for (int64_t k = 0; k < args.capacity; ++k) {
        for (int64_t slot = 0; slot < args.width; ++slot) {
          const int64_t value = (group * args.capacity + k) * args.width + slot;
          const int64_t place = places[pattern * args.capacity + k];
          if (place == args.num_columns * args.column_size()) {
            visit(value, -1);
            continue;
          }
          const int64_t column = place / args.column_size();
          const int64_t channel = place % args.column_size() / args.taps, tap = place % args.taps;
          const int64_t out =
              shape.width == 0 ? column
                               : order[(pattern * args.num_columns + column) * args.width + slot];
          const int64_t row = tap * args.in + channel;
          visit(value, out == args.out ? -1 : (group * args.column_size() + row) * args.out + out);
        }
      }
    }
  }

  CopyShape shape;
  ColumnCopy args;
  std::vector<int32_t> places, order;
  std::vector<unsigned char> dense, values;
};

constexpr int64_t kItemBytes[] = {1, 2, 4, 8, 16};

TEST_CASE("gathered values hold the weights, and zero at unused places and slots") {
  ThreadPool pool(2);
  for (const int64_t bytes : kItemBytes) {
    for (const CopyShape& shape : kShapes) {
      Copies copies(shape, bytes);
      std::vector<unsigned char> expected(copies.values.size(), 0);
      copies.ForEachValue([&](int64_t value, int64_t at) {
        if (at < 0) return;
        std::copy_n(copies.dense.begin() + at * bytes, bytes, expected.begin() + value * bytes);
      });
      INFO(Name(shape));
      CHECK(cpu::GatherColumns(copies.args, pool).message == "");
      CHECK((copies.values == expected));
    }
  }
}

TEST_CASE("scattered values make the weight, zero elsewhere") {
  ThreadPool pool(2);
  for (const int64_t bytes : kItemBytes) {
    for (const CopyShape& shape : kShapes) {
      Copies copies(shape, bytes);
      std::vector<unsigned char> expected(copies.dense.size(), 0);
      copies.ForEachValue([&](int64_t value, int64_t at) {
        if (at < 0) return;
        std::copy_n(copies.values.begin() + value * bytes, bytes, expected.begin() + at * bytes);
      });
      INFO(Name(shape));
      CHECK(cpu::ScatterColumns(copies.args, pool).message == "");
      CHECK((copies.dense == expected));
    }
  }
}

// The message of a check of 3 columns of 10 places.
std::string Check(std::vector<int32_t> places) {
  int64_t used = -1;
  return cpu::CheckPlaces(places.data(), static_cast<int64_t>(places.size()), 3, 10, &used).message;
}

TEST_CASE("places are refused with what is wrong") {
  int64_t used = -1;
  const int32_t good[] = {0, 9, 10, 29, 30, 30};
  CHECK(cpu::CheckPlaces(good, 6, 3, 10, &used).message == "");
  CHECK(used == 4);
  CHECK(Check({}) == "");
  CHECK(Check({30}) == "");
  CHECK(Check({0, -1}) == "place -1 of weight 1 lies outside the weight of 3 columns of 10");
  CHECK(Check({31}) == "place 31 of weight 0 lies outside the weight of 3 columns of 10");
  CHECK(Check({4, 4}) ==
        "places must be in strictly ascending order; place 4 of weight 1 comes after place 4 of "
        "weight 0");
  CHECK(Check({30, 4}) ==
        "places must be in strictly ascending order; place 4 of weight 1 comes after an unused "
        "place");
  CHECK(Check({4, 3, INT32_MIN}).substr(0, 24) == "the pattern lost weights");
  CHECK(cpu::CheckPlaces(good, 6, 1 << 20, 1 << 12, &used).message ==
        "a weight has fewer than 2^31 - 1 places, got 1048576 columns of 4096");
}

TEST_CASE("a wrong place is found wherever it is") {
  for (int64_t k = 0; k < 200; ++k) {
    std::vector<int32_t> places(200);
    std::iota(places.begin(), places.end(), 50);
    int64_t used = -1;
    CHECK(cpu::CheckPlaces(places.data(), 200, 1, 250, &used).ok());
    CHECK(used == 200);
    CHECK(cpu::CheckPlaces(places.data(), 200, 1, 249, &used).ok());  // the last one is unused
    CHECK(used == 199);
    for (const int32_t wrong : {-1, 251, k > 0 ? places[k - 1] : -7}) {
      std::vector<int32_t> changed = places;
      changed[k] = wrong;
      CHECK_FALSE(cpu::CheckPlaces(changed.data(), 200, 1, 250, &used).ok());
    }
  }
}

TEST_CASE("orders are refused with what is wrong") {
  const int32_t good[] = {2, 0, 3, 1, 3};
  CHECK(cpu::CheckOrder(good, 5, 3).message == "");
  const int32_t twice[] = {2, 0, 2};
  CHECK(cpu::CheckOrder(twice, 3, 3).message ==
        "order has each output channel once, got 2 in slot 2 again");
  const int32_t outside[] = {2, 4};
  CHECK(cpu::CheckOrder(outside, 2, 3).message ==
        "order holds output channels from 0 to 3, the last for none, got 4 in slot 1");
  const int32_t missing[] = {2, 0, 3, 3};
  CHECK(cpu::CheckOrder(missing, 4, 3).message ==
        "order has each output channel once, got none with 1");
  const int32_t negative[] = {-1};
  CHECK(cpu::CheckOrder(negative, 1, 3).message ==
        "order holds output channels from 0 to 3, the last for none, got -1 in slot 0");
}

TEST_CASE("copies check every pattern before they write") {
  Copies copies({9, 5, 7, 4, 0.4, 3}, 4);
  copies.places[2 * copies.args.capacity] = -5;
  const std::vector<unsigned char> dense = copies.dense, values = copies.values;
  CHECK(cpu::ScatterColumns(copies.args, cpu::CallerOnly()).message.find("place -5") == 0);
  CHECK(cpu::GatherColumns(copies.args, cpu::CallerOnly()).message.find("place -5") == 0);
  CHECK((copies.dense == dense));
  CHECK((copies.values == values));
}

}  // namespace
}  // namespace jaxsparse::testing
