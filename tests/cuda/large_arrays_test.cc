// Arrays of more numbers than 32 bits count, in the bodies of kernels: no product overflows, and
// nothing is read or written where a shortened address would lie.
#include <doctest/doctest.h>
#include <sys/mman.h>

#include <cstring>
#include <string>
#include <vector>

#include "emulated_kernels.h"
#include "run_emulated.h"

namespace jaxsparse::testing {
namespace {

constexpr int64_t kFar = int64_t{1} << 24;  // the group of the second of two arrays

// An array of two groups, the second of which is group kFar: of what lies between only addresses
// exist, and kernels may touch nothing there.
class FarGroups {
 public:
  explicit FarGroups(const Array& array)
      : group_bytes_(array.bytes().size() / 2), bytes_((kFar + 1) * group_bytes_) {
    void* memory = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    REQUIRE(memory != MAP_FAILED);
    data_ = static_cast<unsigned char*>(memory);
    std::memcpy(data_, array.bytes().data(), group_bytes_);
    std::memcpy(second(), array.bytes().data() + group_bytes_, group_bytes_);
  }
  ~FarGroups() { munmap(data_, bytes_); }
  FarGroups(const FarGroups&) = delete;

  void* data() { return data_; }

  void AllowIn(cuda::Machine& machine, bool is_result) {
    const auto access =
        is_result ? cuda::Machine::Access::kWriteOnce : cuda::Machine::Access::kRead;
    machine.Allow(data_, group_bytes_, access);
    machine.Allow(second(), group_bytes_, access);
  }

  void CopyTo(Array& array) {
    std::memcpy(array.data(), data_, group_bytes_);
    std::memcpy(static_cast<unsigned char*>(array.data()) + group_bytes_, second(), group_bytes_);
  }

 private:
  unsigned char* second() { return data_ + kFar * group_bytes_; }

  size_t group_bytes_, bytes_;
  unsigned char* data_;
};

void CheckFarGroups(const Shape& shape, Role role, DType dtype, const cuda::Device& device) {
  INFO(Name(role) << " " << Name(dtype) << " " << Name(shape));
  Problem problem(shape, role, dtype, SmallIntegers(3));
  const std::vector<Problem::Sum> expected = problem.Expected();
  FarGroups x(problem.x), w(problem.w), y(problem.y);
  problem.args.x = x.data();
  problem.args.w = w.data();
  problem.args.y = y.data();
  problem.args.x_group = problem.args.w_group = problem.args.y_group = {0, kFar};

  cuda::Machine machine(cuda::Timing::kMixed, 1);
  EmulatedKernels kernels(machine, device);
  const cuda::Pass pass = PassOf(role);
  const size_t bytes = cuda::ScratchBytes(pass, problem.args, dtype, cuda::Precision::kDefault);
  std::vector<unsigned char, LineAllocator<unsigned char>> scratch(bytes, 0xFF);
  x.AllowIn(machine, role == Role::kInputGrad);
  w.AllowIn(machine, role == Role::kWeightGrad);
  y.AllowIn(machine, role == Role::kForward);
  machine.Allow(problem.rows.data(), problem.rows.size() * sizeof(int32_t),
                cuda::Machine::Access::kRead);
  machine.Allow(problem.cols.data(), problem.cols.size() * sizeof(int32_t),
                cuda::Machine::Access::kRead);
  machine.Allow(scratch.data(), scratch.size(), cuda::Machine::Access::kWrite);
  std::string failure;
  try {
    failure = cuda::RunBlockMatmul(pass, problem.args, dtype, cuda::Precision::kDefault,
                                   {scratch.data(), bytes}, kernels)
                  .message;
  } catch (const cuda::EmulationError& error) {
    failure = error.what();
  }
  CHECK(failure == "");
  (role == Role::kForward ? y : role == Role::kInputGrad ? x : w).CopyTo(problem.result());
  CHECK(FirstDifference(problem, expected) == "");
}

TEST_CASE("groups that lie more than 2^32 numbers apart are read and written where they lie") {
  for (const Role role : kRoles) {
    for (const DType dtype : {DType::kBF16, DType::kF32})
      CheckFarGroups({9, 48, 32, 16, 16, 0.5, 2}, role, dtype, kAmpere);
    CheckFarGroups({9, 47, 33, 5, 3, 0.5, 2}, role, DType::kF32, kAmpere);  // by element
  }
}

TEST_CASE("so are they by the products of sm_90a") {
  for (const Role role : {Role::kForward, Role::kInputGrad})
    CheckFarGroups({9, 128, 128, 64, 64, 0.5, 2}, role, DType::kBF16, kHopper);
}

}  // namespace
}  // namespace jaxsparse::testing
