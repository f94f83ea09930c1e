// Problems with random blocks, and their results by definition.
#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "core/block_matmul.h"
#include "core/status.h"
#include "cpu/kernel_table.h"
#include "numbers.h"

namespace jaxsparse::testing {

enum class Role { kForward, kInputGrad, kWeightGrad };
inline constexpr Role kRoles[] = {Role::kForward, Role::kInputGrad, Role::kWeightGrad};

std::string Name(Role role);
cpu::BlockMatmulKernel Kernel(const cpu::KernelTable& table, Role role, DType dtype);

struct Shape {
  int64_t batch, in, out, block_in, block_out;
  double density = 0.5;
  int64_t groups = 1;
  bool shared_pattern = false;  // one pattern for all groups
  bool shared_operands = false;  // one x and one w for all groups, where the role reads them
};
std::string Name(const Shape& shape);

// An array of stored numbers that ends where its memory does, for the address sanitizer to see.
class Array {
 public:
  Array(DType dtype, int64_t size) : dtype_(dtype), bytes_(size * ItemBytes(dtype)) {}
  void* data() { return bytes_.data(); }
  const std::vector<unsigned char>& bytes() const { return bytes_; }
  int64_t size() const { return static_cast<int64_t>(bytes_.size() / ItemBytes(dtype_)); }
  double operator[](int64_t i) const { return Load(dtype_, bytes_.data(), i); }
  void Set(int64_t i, double value) { Store(dtype_, bytes_.data(), i, value); }
  void Fill(const std::function<double()>& draw);

 private:
  DType dtype_;
  std::vector<unsigned char> bytes_;
};

class Problem {
 public:
  // Operands are drawn by `draw`. What no result may depend on is NaN: the result before the call,
  // blocks at unused places, and what lies over the weight's edge.
  Problem(const Shape& shape, Role role, DType dtype, const std::function<double()>& draw);

  Status Run(const cpu::KernelTable& table, TaskPool& pool);

  Array& result() { return role_ == Role::kForward ? y : role_ == Role::kInputGrad ? x : w; }

  // For each number of the result: its exact value, and the sum of its terms' magnitudes.
  struct Sum {
    double value = 0, magnitude = 0;
  };
  std::vector<Sum> Expected() const;

  int64_t used_blocks() const { return used_blocks_; }
  double flops() const;

  Shape shape;
  Role role_;
  DType dtype_;
  Array x, w, y;
  std::vector<int32_t> rows, cols;
  BlockMatmul args;

 private:
  int64_t used_blocks_ = 0;
};

// Nonzero integers of at most 3: sums of them are exact.
std::function<double()> SmallIntegers(uint32_t seed);
// Numbers of both signs, a few units large.
std::function<double()> RealNumbers(uint32_t seed);

}  // namespace jaxsparse::testing
