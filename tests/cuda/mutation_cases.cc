// What mutate.py runs on mutated kernels: a few problems of one pass, with every timing and several
// seeds. Exits with 1 and the complaint at the first that goes wrong.
#include <cmath>
#include <cstdio>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "run_emulated.h"

namespace jaxsparse::testing {
namespace {

struct Case {
  DType dtype;
  cuda::Precision precision;
  Shape shape;
};

// Each has a list longer than the ring, one over the edge, a ragged batch; of short floats aligned
// and not, TF32, exact; one has groups; the last of the weight gradient is split.
std::vector<Case> Cases(Role role) {
  const auto shape = [&](int64_t batch, int64_t in, int64_t out, int64_t side) -> Shape {
    if (role == Role::kInputGrad) std::swap(in, out);
    return {batch, in, out, side, side, 0.6};
  };
  std::vector<Case> cases = {
      {DType::kBF16, cuda::Precision::kDefault, shape(130, 152, 56, 32)},
      {DType::kBF16, cuda::Precision::kDefault, shape(35, 77, 45, 19)},
      {DType::kF32, cuda::Precision::kDefault, shape(40, 104, 24, 16)},
      {DType::kF32, cuda::Precision::kHighest, shape(40, 104, 24, 16)},
  };
  cases.push_back(cases[2]);
  cases.back().shape.groups = 2;
  // More rows of blocks than the threads that count them, each with a block or none.
  if (role == Role::kInputGrad)
    cases.push_back({DType::kBF16, cuda::Precision::kDefault, {1, 1100, 2, 1, 2, 0.5}});
  if (role == Role::kWeightGrad)
    cases.push_back({DType::kBF16, cuda::Precision::kDefault, {1100, 64, 32, 32, 32, 0.5}});
  return cases;
}

double NaN() { return std::numeric_limits<double>::quiet_NaN(); }
double Infinity() { return std::numeric_limits<double>::infinity(); }

bool AnyNaN(const Array& array) {
  for (int64_t i = 0; i < array.size(); ++i) {
    if (std::isnan(array[i])) return true;
  }
  return false;
}

// Each of these is empty if all is well.

std::string ComputesTheDefinition(const Case& test, Role role) {
  Problem problem(test.shape, role, test.dtype, SmallIntegers(17));
  const std::vector<Problem::Sum> expected = problem.Expected();
  for (uint32_t seed = 1; seed <= 2; ++seed) {
    for (const cuda::Timing timing : kTimings) {
      problem.result().Fill(NaN);
      const cuda::Device device = seed == 1 ? kAmpere : WithSmallCache(kAmpere);
      const Emulation emulation = Emulate(problem, test.precision, timing, seed, device);
      if (!emulation.failure.empty()) return Name(timing) + ": " + emulation.failure;
      if (emulation.bank_conflicts != 0) return "bank conflicts";
      const std::string difference = FirstDifference(problem, expected);
      if (!difference.empty()) return Name(timing) + ": " + difference;
    }
  }
  return "";
}

std::string HasTheSameBits(const Case& test, Role role) {
  Problem problem(test.shape, role, test.dtype, RealNumbers(17));
  Array::Bytes bits;
  for (uint32_t seed = 1; seed <= 3; ++seed) {
    problem.result().Fill(NaN);
    Emulate(problem, test.precision, cuda::Timing::kMixed, seed);
    if (seed > 1 && bits != problem.result().bytes()) return "two runs, two results";
    bits = problem.result().bytes();
  }
  return "";
}

std::string KeepsInfinityOut(const Case& test) {
  Problem problem(test.shape, Role::kWeightGrad, test.dtype, SmallIntegers(17));
  problem.x.Fill(Infinity);
  problem.y.Fill(Infinity);
  Emulate(problem, test.precision, cuda::Timing::kMixed);
  return AnyNaN(problem.w) ? "an infinity over the edge" : "";
}

std::string RefusesBadIndices(const Case& test, Role role) {
  Problem problem(test.shape, role, test.dtype, SmallIntegers(17));
  problem.cols[1] = std::numeric_limits<int32_t>::max();
  problem.rows[2] = -5;
  problem.result().Fill([] { return 0; });
  const Emulation emulation = Emulate(problem, test.precision, cuda::Timing::kMixed);
  if (!emulation.failure.empty()) return "bad indices: " + emulation.failure;
  return std::isnan(problem.result()[0]) ? "" : "bad indices and no NaN";
}

std::string Complaint(const Case& test, Role role) {
  std::string complaint = ComputesTheDefinition(test, role);
  if (complaint.empty()) complaint = HasTheSameBits(test, role);
  if (complaint.empty() && role == Role::kWeightGrad) complaint = KeepsInfinityOut(test);
  if (complaint.empty()) complaint = RefusesBadIndices(test, role);
  return complaint;
}

// The products of sm_90a: more tiles than multiprocessors, lists longer than the ring, a ragged
// batch, groups, one block over the edge.
std::string HopperComplaint() {
  const Case cases[] = {
      {DType::kBF16, cuda::Precision::kDefault, {300, 384, 192, 64, 64, 0.7}},
      {DType::kBF16, cuda::Precision::kDefault, {70, 128, 128, 64, 64, 0.8, 3}},
      {DType::kF16, cuda::Precision::kDefault, {70, 384, 200, 128, 128, 0.8}},
  };
  for (Case test : cases) {
    for (const Role role : {Role::kForward, Role::kInputGrad}) {
      if (role == Role::kInputGrad) std::swap(test.shape.in, test.shape.out);
      Problem problem(test.shape, role, test.dtype, SmallIntegers(17));
      const std::vector<Problem::Sum> expected = problem.Expected();
      for (uint32_t seed = 1; seed <= 2; ++seed) {
        for (const cuda::Timing timing : kTimings) {
          problem.result().Fill(NaN);
          const cuda::Device device = seed == 1 ? kHopper : WithSmallCache(kHopper);
          const Emulation emulation = Emulate(problem, test.precision, timing, seed, device);
          if (!emulation.failure.empty()) return Name(timing) + ": " + emulation.failure;
          if (!IsHopper(emulation.variant)) return "another kernel";
          const std::string difference = FirstDifference(problem, expected);
          if (!difference.empty()) return Name(timing) + ": " + difference;
        }
      }
      problem.rows[1] = -5;
      problem.result().Fill([] { return 0; });
      Emulate(problem, test.precision, cuda::Timing::kMixed, 1, kHopper);
      if (!std::isnan(problem.result()[0])) return "bad indices and no NaN";
    }
  }
  return "";
}

int Report(const std::string& complaint) {
  if (!complaint.empty()) std::printf("%s\n", complaint.c_str());
  return complaint.empty() ? 0 : 1;
}

int Run(Role role) {
  for (const Case& test : Cases(role)) {
    const std::string complaint = Complaint(test, role);
    if (!complaint.empty()) return Report(complaint);
  }
  return 0;
}

}  // namespace
}  // namespace jaxsparse::testing

int main(int argc, char** argv) {
  using jaxsparse::testing::Role;
  if (argc == 2 && argv[1] == std::string("hopper"))
    return jaxsparse::testing::Report(jaxsparse::testing::HopperComplaint());
  for (const Role role : jaxsparse::testing::kRoles) {
    if (argc == 2 && Name(role) == argv[1]) return jaxsparse::testing::Run(role);
  }
  std::fprintf(stderr, "usage: %s forward|input_grad|weight_grad|hopper\n", argv[0]);
  return 2;
}
