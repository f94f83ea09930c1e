// A problem on the emulated kernels.
#pragma once
#include <string>
#include <vector>

#include "cuda/block/variant.h"
#include "cuda/primitives/emulated/machine.h"
#include "problems.h"

namespace jaxsparse::testing {

inline constexpr cuda::Timing kTimings[] = {cuda::Timing::kLazy, cuda::Timing::kEager,
                                            cuda::Timing::kMixed};
std::string Name(cuda::Timing timing);

cuda::Pass PassOf(Role role);

struct Emulation {
  std::string failure;  // of the emulation or of the launch; empty if all went well
  cuda::Variant variant;
  bool is_split = false;
  int64_t bank_conflicts = 0;
};

// A device of sm_90a that has few multiprocessors, so that each makes several tiles, and takes its
// products for any number of rows.
inline constexpr cuda::Device kHopper{3, 1, 1 << 30};

// The same device with so small a cache that tiles are taken in the other order.
inline constexpr cuda::Device WithSmallCache(cuda::Device device) {
  device.l2_bytes = 0;
  return device;
}
inline constexpr cuda::Device kAmpere{1, INT64_MAX, 1 << 30};

// Runs the problem's pass into its result. Every array, and the scratch, is just as large as it is
// said to be; every element of the result may be written once.
Emulation Emulate(Problem& problem, cuda::Precision precision, cuda::Timing timing,
                  uint32_t seed = 1, const cuda::Device& device = kAmpere);

// The first number of the result that is not the rounded sum, as a sentence; empty if none is.
std::string FirstDifference(const Problem& problem, const std::vector<Problem::Sum>& expected);

}  // namespace jaxsparse::testing
