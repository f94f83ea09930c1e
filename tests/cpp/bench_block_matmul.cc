// How fast the kernels are on this machine, as a share of what its arithmetic can do.
//
//   bench_block_matmul [--quick] [--threads=N] [WORD...]
//
// runs the cases whose line holds every WORD, e.g. `bench_block_matmul forward bfloat16 512x768x`.
// Checks a sample of each result by definition before it is timed. Pin it to as many CPUs as it has
// threads (taskset -c 1). A time is the median over rounds of the smaller of wall and CPU time, so
// that preemption does not count. Results are written to memory that was touched before.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "bench.h"
#include "cpu/parallel_for.h"
#include "problems.h"
#include "test_pool.h"

namespace jaxsparse::testing {
namespace {

// float64 has half the lanes; pairs of bfloat16 are two products per lane, where there are such.
double PeakFactor(const std::string& isa, DType dtype) {
  if (dtype == DType::kF64) return 0.5;
  return dtype == DType::kBF16 && isa == "avx512bf16" ? 2 : 1;
}

// Whether some results are right, within the bound of summing in sequence.
bool SampleIsRight(const Problem& p) {
  std::mt19937 random(7);
  const Shape& s = p.shape;
  for (int sample = 0; sample < 50; ++sample) {
    const int64_t index = random() % p.result().size();
    double value = 0, magnitude = 0;
    const auto add = [&](double a, double b) {
      value += a * b;
      magnitude += std::fabs(a * b);
    };
    const int64_t block_items = s.block_in * s.block_out;
    if (p.role_ == Role::kWeightGrad) {
      const int64_t k = index / block_items;
      const int64_t i = p.rows[k] * s.block_in + index % block_items / s.block_out;
      const int64_t o = p.cols[k] * s.block_out + index % s.block_out;
      const bool exists = p.cols[k] < p.args.grid_cols() && i < s.in && o < s.out;
      for (int64_t m = 0; exists && m < s.batch; ++m) add(p.x[m * s.in + i], p.y[m * s.out + o]);
    } else {
      const bool forward = p.role_ == Role::kForward;
      const int64_t width = forward ? s.out : s.in, depth = forward ? s.in : s.out;
      const int64_t m = index / width, at = index % width;
      for (int64_t k = 0; k < p.used_blocks(); ++k) {
        const int64_t line = forward ? p.cols[k] : p.rows[k];
        const int64_t across = forward ? p.rows[k] : p.cols[k];
        const int64_t block_width = forward ? s.block_out : s.block_in;
        const int64_t block_depth = forward ? s.block_in : s.block_out;
        if (line != at / block_width) continue;
        for (int64_t d = 0; d < block_depth && across * block_depth + d < depth; ++d) {
          const int64_t in_block =
              forward ? d * s.block_out + at % block_width : at % block_width * s.block_out + d;
          const Array& rows = forward ? p.x : p.y;
          add(rows[m * depth + across * block_depth + d], p.w[k * block_items + in_block]);
        }
      }
    }
    const double slack =
        8 * SumUnit(p.dtype_) * magnitude + 1.01 * Unit(p.dtype_) * std::fabs(value);
    if (!(std::fabs(p.result()[index] - value) <= slack)) return false;
  }
  return true;
}

struct Options {
  double seconds = 0.6;
  int64_t threads = 1;
  std::vector<std::string> words;
};

bool Measure(const Shape& shape, Role role, DType dtype, const cpu::KernelTable& table, double peak,
             TaskPool& pool, const Options& options) {
  char line[200];
  std::snprintf(line, sizeof(line), "%-11s %-8s %4ldx%ldx%-4ld blocks %ldx%-3ld d %.2f",
                Name(role).c_str(), Name(dtype).c_str(), static_cast<long>(shape.batch),
                static_cast<long>(shape.in), static_cast<long>(shape.out),
                static_cast<long>(shape.block_in), static_cast<long>(shape.block_out),
                shape.density);
  if (!HoldsAll(line, options.words)) return true;
  Problem problem(shape, role, dtype, RealNumbers(1));
  const Status status = problem.Run(table, pool);
  if (!status.ok() || !SampleIsRight(problem)) {
    std::printf("%s  WRONG %s\n", line, status.message.c_str());
    return false;
  }
  const double seconds =
      MedianSeconds([&] { problem.Run(table, pool); }, options.threads, options.seconds);
  const double weight_bytes = static_cast<double>(problem.used_blocks()) * shape.block_in *
                              shape.block_out * ItemBytes(dtype);
  std::printf(
      "%s  %8.3f ms  %6.1f GF/s  %4.0f %%  weights at %5.1f GB/s\n", line, seconds * 1e3,
      problem.flops() / seconds * 1e-9,
      100 * problem.flops() / seconds / (peak * PeakFactor(table.isa, dtype) * options.threads),
      weight_bytes / seconds * 1e-9);
  std::fflush(stdout);
  return true;
}

int Main(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    if (word == "--quick") {
      options.seconds = 0.15;
    } else if (word.rfind("--threads=", 0) == 0) {
      options.threads = std::max(1, std::atoi(word.c_str() + 10));
    } else {
      options.words.push_back(word);
    }
  }
  std::string why;
  const cpu::KernelTable* table = cpu::ActiveKernels(&why);
  if (table == nullptr) {
    std::fprintf(stderr, "%s\n", why.c_str());
    return 1;
  }
  const double peak = PeakFlops(table->isa);
  std::printf("%s, float32 peak of one core %.1f GF/s, %ld threads\n", table->isa, peak * 1e-9,
              static_cast<long>(options.threads));
  ThreadPool threads(static_cast<int>(options.threads == 1 ? 0 : options.threads));
  TaskPool& pool = options.threads == 1 ? cpu::CallerOnly() : threads;

  struct Layer {
    int64_t batch, in, out;
  };
  const Layer layers[] = {{512, 768, 3072},  {512, 3072, 768}, {512, 4096, 4096},
                          {4096, 768, 3072}, {16, 4096, 4096}, {1, 4096, 4096}};
  const int64_t blocks[] = {8, 16, 32, 64, 128};
  const double densities[] = {0.5, 0.25, 0.1, 0.05};
  bool right = true;
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16, DType::kF64}) {
    for (const Role role : kRoles) {
      for (const Layer& layer : layers) {
        for (const int64_t block : blocks) {
          for (const double density : densities) {
            const Shape shape = {layer.batch, layer.in, layer.out, block, block, density};
            right &= Measure(shape, role, dtype, *table, peak, pool, options);
          }
        }
      }
    }
  }
  return right ? 0 : 1;
}

}  // namespace
}  // namespace jaxsparse::testing

int main(int argc, char** argv) { return jaxsparse::testing::Main(argc, argv); }
