// How fast the register tiles of sparse convolution are by themselves, and so how fast they can
// make a layer. Prints a line per tile, share of stored weights, and size of the packed block of
// source channels: float32 GF/s, also as a share of what a core's arithmetic can do.
//
//   bench_lanes [WORD...]     the lines that hold every WORD, e.g. `bench_lanes 2x7 "10 %"`
//
// Pin it to one CPU (taskset -c 1). The sums of a tile are checked before it is timed.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "bench.h"
#include "best_tiles.h"

namespace jaxsparse::testing {
namespace {

constexpr int64_t kColumns = 128;  // of `values` results each, as many as share a part

// One block of channels under a square window of `taps` x `taps`.
struct Block {
  int64_t taps, channels;
  double density;
};

void Run(const cpu::TileTable& table, const cpu::LaneShape& shape, const Block& block, double peak,
         const std::vector<std::string>& words) {
  const int64_t lanes = table.lanes[static_cast<int>(DType::kF32)].lanes;
  const int64_t cols = shape.cols + block.taps - 1, rows = shape.rows + block.taps - 1;
  const int64_t channel = (rows * cols) | 1;
  Floats source(block.channels * channel * lanes);
  std::mt19937 random(1);
  for (int64_t i = 0; i < source.count; ++i) source.data[i] = static_cast<int>(random() % 5) - 2;

  std::vector<int32_t> offsets;
  std::vector<cpu::Segment> segments;
  std::bernoulli_distribution stored(block.density);
  for (int64_t column = 0; column < kColumns; ++column) {
    const auto begin = static_cast<int32_t>(offsets.size());
    for (int64_t c = 0; c < block.channels; ++c) {
      for (int64_t tap = 0; tap < block.taps * block.taps; ++tap) {
        if (!stored(random)) continue;
        const int64_t place = c * channel + tap / block.taps * cols + tap % block.taps;
        offsets.push_back(static_cast<int32_t>(place * lanes * sizeof(float)));
      }
    }
    segments.push_back({begin, static_cast<int32_t>(offsets.size()) - begin, begin,
                        static_cast<int32_t>(column * shape.values), 0});
  }
  const auto entries = static_cast<int64_t>(offsets.size());
  offsets.resize(entries + cpu::kOffsetsAhead);
  std::vector<float> weights(entries * shape.values);
  for (float& weight : weights) weight = static_cast<int>(random() % 3) - 1;
  const int64_t places = shape.rows * shape.cols;
  Floats sums(kColumns * shape.values * places * lanes);
  std::memset(sums.data, 0, sums.count * sizeof(float));

  char line[160];
  std::snprintf(line, sizeof(line), "%d x %dx%d  %ldx%ld window  %3.0f %%  %4.0f KiB %5.1f entries",
                shape.values, shape.rows, shape.cols, block.taps, block.taps, 100 * block.density,
                source.count * 4 / 1024.0, static_cast<double>(entries) / kColumns);
  if (!HoldsAll(line, words)) return;

  const cpu::LaneTile tile = {reinterpret_cast<const char*>(source.data),
                              cols * lanes * static_cast<int64_t>(sizeof(float)),
                              weights.data(),
                              offsets.data(),
                              segments.data(),
                              kColumns,
                              sums.data};
  shape.run(tile);
  for (int64_t i = 0; i < sums.count; ++i) {  // small integers: exact
    const int64_t lane = i % lanes, place = i / lanes % places, row = i / lanes / places;
    const cpu::Segment& segment = segments[row / shape.values];
    float expected = 0;
    for (int64_t k = segment.begin; k < segment.begin + segment.count; ++k) {
      const int64_t at = offsets[k] / static_cast<int64_t>(sizeof(float)) +
                         (place / shape.cols * cols + place % shape.cols) * lanes + lane;
      expected += weights[k * shape.values + row % shape.values] * source.data[at];
    }
    if (sums.data[i] != expected) {
      std::printf("%s  WRONG\n", line);
      std::exit(1);
    }
  }
  const double seconds = MedianSeconds([&] { shape.run(tile); }, 1, 0.1);
  const double flops = 2.0 * entries * shape.values * places * lanes / seconds;
  std::printf("%s  %5.0f GF/s  %3.0f %%\n", line, flops / 1e9, 100 * flops / peak);
  std::fflush(stdout);
}

int Main(const std::vector<std::string>& words) {
  const cpu::TileTable& table = BestTiles();
  const double peak = PeakFlops(table.isa);
  std::printf("%s, one core does %.0f GF/s\n", table.isa, peak / 1e9);
  const cpu::LaneTiles& tiles = table.lanes[static_cast<int>(DType::kF32)];
  for (const double density : {0.5, 0.1, 0.02}) {
    for (const int64_t taps : {3, 1}) {
      for (int64_t i = 0; i < tiles.num_shapes; ++i) {
        const cpu::LaneShape& shape = tiles.shapes[i];
        const int64_t lines = (shape.rows + taps - 1) * (shape.cols + taps - 1);
        for (const int64_t bytes : {36 << 10, 360 << 10}) {  // in L1, in L2
          const int64_t channels = std::max<int64_t>(1, bytes / (lines * tiles.lanes * 4));
          Run(table, shape, {taps, channels, density}, peak, words);
        }
      }
    }
  }
  return 0;
}

}  // namespace
}  // namespace jaxsparse::testing

int main(int argc, char** argv) {
  return jaxsparse::testing::Main(std::vector<std::string>(argv + 1, argv + argc));
}
