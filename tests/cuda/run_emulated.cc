#include "run_emulated.h"

#include <cmath>
#include <cstring>

#include "emulated_kernels.h"

namespace jaxsparse::testing {

std::string Name(cuda::Timing timing) {
  return timing == cuda::Timing::kLazy    ? "lazy"
         : timing == cuda::Timing::kEager ? "eager"
                                          : "mixed";
}

cuda::Pass PassOf(Role role) {
  return role == Role::kForward     ? cuda::Pass::kForward
         : role == Role::kInputGrad ? cuda::Pass::kInputGrad
                                    : cuda::Pass::kWeightGrad;
}

Emulation Emulate(Problem& problem, cuda::Precision precision, cuda::Timing timing, uint32_t seed,
                  const cuda::Device& device) {
  using Access = cuda::Machine::Access;
  cuda::Machine machine(timing, seed);
  EmulatedKernels kernels(machine, device);
  const cuda::Pass pass = PassOf(problem.role_);
  const size_t bytes = cuda::ScratchBytes(pass, problem.args, problem.dtype_, precision);
  std::vector<unsigned char, LineAllocator<unsigned char>> scratch(bytes, 0xFF);

  const auto allow = [&](Array& array, bool is_result) {
    machine.Allow(array.data(), array.bytes().size(),
                  is_result ? Access::kWriteOnce : Access::kRead);
  };
  allow(problem.x, problem.role_ == Role::kInputGrad);
  allow(problem.w, problem.role_ == Role::kWeightGrad);
  allow(problem.y, problem.role_ == Role::kForward);
  machine.Allow(problem.rows.data(), problem.rows.size() * sizeof(int32_t), Access::kRead);
  machine.Allow(problem.cols.data(), problem.cols.size() * sizeof(int32_t), Access::kRead);
  machine.Allow(scratch.data(), scratch.size(), Access::kWrite);

  Emulation emulation;
  try {
    const Status status = cuda::RunBlockMatmul(pass, problem.args, problem.dtype_, precision,
                                               {scratch.data(), bytes}, kernels);
    emulation.failure = status.message;
  } catch (const cuda::EmulationError& error) {
    emulation.failure = error.what();
  }
  emulation.variant = kernels.ran;
  emulation.is_split = kernels.has_added_splits;
  emulation.bank_conflicts = machine.bank_conflicts();
  return emulation;
}

std::string FirstDifference(const Problem& problem, const std::vector<Problem::Sum>& expected) {
  for (int64_t i = 0; i < problem.result().size(); ++i) {
    const double want = Rounded(problem.dtype_, expected[i].value), got = problem.result()[i];
    if (!(got == want)) {
      return "result[" + std::to_string(i) + "] is " + std::to_string(got) + ", not " +
             std::to_string(want);
    }
  }
  return "";
}

}  // namespace jaxsparse::testing
