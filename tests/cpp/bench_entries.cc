// How fast lists of single nonzeros are multiplied, without the work of making them, and so how
// fast they can make a convolution. Prints a line per share of zeros, size of the weights of a pass
// and kind of list: float32 GF/s, also as a share of what a core's arithmetic can do.
//
//   bench_entries [WORD...]     the lines that hold every WORD, e.g. `bench_entries "90 %" even`
//
// "even" lists are all as long as the mean, so that no end of a list surprises the branch
// predictor. Pin it to one CPU (taskset -c 1). The sums are checked before they are timed.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "bench.h"
#include "best_tiles.h"

namespace jaxsparse::testing {
namespace {

constexpr int64_t kTargets = 1024;  // 256 KiB of sums
constexpr int64_t kVectors = 4;
constexpr int64_t kRows = 24;  // of targets, each with lists of its own

void Run(const cpu::EntryTiles& tiles, int64_t weight_bytes, double zeros, bool is_even,
         double peak, const std::vector<std::string>& words) {
  const int64_t width = kVectors * tiles.lanes;
  const int64_t row_bytes = width * static_cast<int64_t>(sizeof(float));
  const int64_t channels = weight_bytes / row_bytes;  // of all taps of a row
  char line[160];
  std::snprintf(line, sizeof(line), "%3.0f %% zeros  %4ld KiB of weights  %5.1f entries  %s",
                100 * zeros, static_cast<long>(weight_bytes >> 10), (1 - zeros) * channels,
                is_even ? "even" : "as drawn");
  if (!HoldsAll(line, words)) return;

  std::mt19937 random(1);
  Floats weights(channels * width), sums(kTargets * width);
  for (int64_t i = 0; i < weights.count; ++i) weights.data[i] = static_cast<int>(random() % 5) - 2;
  std::vector<float> values;
  std::vector<int32_t> offsets;
  std::vector<cpu::EntryRange> ranges;
  std::bernoulli_distribution is_nonzero(1 - zeros);
  const auto mean = static_cast<int64_t>((1 - zeros) * channels + 0.5);
  for (int64_t target = 0; target < kRows * kTargets; ++target) {
    const auto begin = static_cast<int64_t>(values.size());
    for (int64_t c = 0; c < channels; ++c) {
      const bool is_next =
          is_even ? (c + 1) * mean / channels > c * mean / channels : is_nonzero(random);
      if (!is_next) continue;
      values.push_back(1 + static_cast<int>(random() % 3));
      offsets.push_back(static_cast<int32_t>(c * row_bytes));
    }
    ranges.push_back({begin, static_cast<int64_t>(values.size()) - begin, 0});
  }
  const auto entries = static_cast<int64_t>(values.size());
  values.resize(entries + cpu::kEntriesBeyond);
  offsets.resize(entries + cpu::kEntriesBeyond);

  const auto run = [&] {
    for (int64_t row = 0; row < kRows; ++row) {
      const cpu::EntrySegment segment = {ranges.data() + row * kTargets, 0};
      cpu::EntryRow product = {};
      product.values = values.data();
      product.offsets = offsets.data();
      product.segments = &segment;
      product.num_segments = product.num_ranges = 1;
      product.targets = kTargets;
      product.weights = weights.data;
      product.strips = 1;
      product.vectors = kVectors;
      product.cols = width;
      product.sums = sums.data;
      product.sums_stride = width;
      tiles.row(product);
    }
  };
  run();
  for (int64_t i = 0; i < sums.count; ++i) {  // of the last row; small integers: exact
    const cpu::EntryRange& range = ranges[(kRows - 1) * kTargets + i / width];
    float expected = 0;
    for (int64_t k = range.begin; k < range.begin + range.count; ++k)
      expected += values[k] * weights.data[offsets[k] / sizeof(float) + i % width];
    if (sums.data[i] != expected) {
      std::printf("%s  WRONG\n", line);
      std::exit(1);
    }
  }
  const double seconds = MedianSeconds(run, 1, 0.3);
  const double flops = 2.0 * entries * width / seconds;
  std::printf("%-52s  %5.0f GF/s  %3.0f %%\n", line, flops / 1e9, 100 * flops / peak);
  std::fflush(stdout);
}

int Main(const std::vector<std::string>& words) {
  const cpu::TileTable& table = BestTiles();
  const double peak = PeakFlops(table.isa);
  std::printf("%s, one core does %.0f GF/s\n", table.isa, peak / 1e9);
  for (const double zeros : {0.5, 0.7, 0.9, 0.95})
    for (const int64_t kib : {24, 48, 384})
      for (const bool is_even : {false, true})
        Run(table.entries[static_cast<int>(DType::kF32)], kib << 10, zeros, is_even, peak, words);
  return 0;
}

}  // namespace
}  // namespace jaxsparse::testing

int main(int argc, char** argv) {
  return jaxsparse::testing::Main(std::vector<std::string>(argv + 1, argv + argc));
}
