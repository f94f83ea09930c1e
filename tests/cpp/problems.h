// Problems with random blocks, and their results by definition.
#pragma once
#include <cstdint>
#include <functional>
#include <new>
#include <string>
#include <vector>

#include "core/block_matmul.h"
#include "core/status.h"
#include "cpu/kernel_table.h"
#include "numbers.h"

namespace jaxsparse::testing {

enum class Role { kForward, kInputGrad, kWeightGrad };
inline constexpr Role kRoles[] = {Role::kForward, Role::kInputGrad, Role::kWeightGrad};

// Of every instruction set that this machine runs.
std::vector<const cpu::KernelTable*> Tables();

std::string Name(Role role);
cpu::BlockMatmulKernel Kernel(const cpu::KernelTable& table, Role role, DType dtype);

struct Shape {
  int64_t batch, in, out, block_in, block_out;
  double density = 0.5;
  int64_t groups = 1;
  bool shared_pattern = false;   // one pattern for all groups
  bool shared_operands = false;  // one x and one w for all groups, where the role reads them
};
std::string Name(const Shape& shape);

// Aligned to cache lines, as XLA's buffers are.
template <class T>
struct LineAllocator {
  using value_type = T;
  LineAllocator() = default;
  template <class U>
  LineAllocator(const LineAllocator<U>&) {}
  T* allocate(size_t count) {
    return static_cast<T*>(::operator new(count * sizeof(T), std::align_val_t(64)));
  }
  void deallocate(T* memory, size_t) { ::operator delete(memory, std::align_val_t(64)); }
  template <class U>
  bool operator==(const LineAllocator<U>&) const {
    return true;
  }
  template <class U>
  bool operator!=(const LineAllocator<U>&) const {
    return false;
  }
};

// An array of stored numbers that ends where its memory does, for the address sanitizer to see.
class Array {
 public:
  using Bytes = std::vector<unsigned char, LineAllocator<unsigned char>>;
  Array(DType dtype, int64_t size) : dtype_(dtype), bytes_(size * ItemBytes(dtype)) {}
  void* data() { return bytes_.data(); }
  const Bytes& bytes() const { return bytes_; }
  int64_t size() const { return static_cast<int64_t>(bytes_.size() / ItemBytes(dtype_)); }
  double operator[](int64_t i) const { return Load(dtype_, bytes_.data(), i); }
  std::vector<double> Values() const;
  void Set(int64_t i, double value) { Store(dtype_, bytes_.data(), i, value); }
  void Fill(const std::function<double()>& draw);

 private:
  DType dtype_;
  Bytes bytes_;
};

class Problem {
 public:
  // Operands are drawn by `draw`. What no result may depend on is NaN: the result before the call,
  // blocks at unused places, and what lies over the weight's edge.
  Problem(const Shape& shape, Role role, DType dtype, const std::function<double()>& draw);

  Status Run(const cpu::KernelTable& table, TaskPool& pool);

  Array& result() { return role_ == Role::kForward ? y : role_ == Role::kInputGrad ? x : w; }
  const Array& result() const { return const_cast<Problem*>(this)->result(); }

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
