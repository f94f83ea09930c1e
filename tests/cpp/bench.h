// What benchmarks of kernels share: time, and what the arithmetic of a core can do.
#pragma once
#include <algorithm>
#include <chrono>
#include <ctime>
#include <string>
#include <vector>

namespace jaxsparse::testing {

inline double WallSeconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

inline double CpuSeconds() {
  timespec t;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

// Whether a line is one of those that were asked for, which hold every word.
inline bool HoldsAll(const std::string& line, const std::vector<std::string>& words) {
  return std::all_of(words.begin(), words.end(),
                     [&](const std::string& word) { return line.find(word) != std::string::npos; });
}

template <class F>
double MedianSeconds(F run, int64_t threads, double budget_seconds) {
  std::vector<double> times;
  run();
  const double begin = WallSeconds();
  while (times.size() < 5 || (WallSeconds() - begin < budget_seconds && times.size() < 400)) {
    const double wall = WallSeconds(), cpu = CpuSeconds();
    run();
    const double wall_time = WallSeconds() - wall;
    times.push_back(threads == 1 ? std::min(CpuSeconds() - cpu, wall_time) : wall_time);
  }
  std::nth_element(times.begin(), times.begin() + times.size() / 2, times.end());
  return times[times.size() / 2];
}

// Multiply-adds of vectors that stay in registers.
template <class V>
inline __attribute__((always_inline)) float MultiplyAdds(int64_t n) {
  constexpr int kSums = 12;
  V sums[kSums], x = V{} + 0.999f, y = V{} + 1e-4f;
#pragma GCC unroll 12
  for (int j = 0; j < kSums; ++j) sums[j] = V{} + 1e-3f * j;
  for (int64_t i = 0; i < n; ++i) {
#pragma GCC unroll 12
    for (int j = 0; j < kSums; ++j) sums[j] = sums[j] * x + y;
  }
  V total = sums[0];
#pragma GCC unroll 12
  for (int j = 1; j < kSums; ++j) total += sums[j];
  return total[0];
}

typedef float Vector128 __attribute__((vector_size(16)));
#if defined(__x86_64__)
typedef float Vector256 __attribute__((vector_size(32)));
typedef float Vector512 __attribute__((vector_size(64)));
__attribute__((target("avx512f,fma"), noinline)) inline float Peak512(int64_t n) {
  return MultiplyAdds<Vector512>(n);
}
__attribute__((target("avx2,fma"), noinline)) inline float Peak256(int64_t n) {
  return MultiplyAdds<Vector256>(n);
}
#endif
__attribute__((noinline)) inline float Peak128(int64_t n) { return MultiplyAdds<Vector128>(n); }

// float32 operations per second of one core, with the vectors of `isa`.
inline double PeakFlops(const std::string& isa) {
  constexpr int64_t kRounds = 1000000;
  float (*run)(int64_t) = Peak128;
  int lanes = 4;
#if defined(__x86_64__)
  if (isa == "avx2") run = Peak256, lanes = 8;
  if (isa.rfind("avx512", 0) == 0) run = Peak512, lanes = 16;
#endif
  volatile float sink;
  const double seconds = MedianSeconds([&] { sink = run(kRounds); }, 1, 0.1);
  (void)sink;
  return 2.0 * 12 * lanes * kRounds / seconds;
}

}  // namespace jaxsparse::testing
