// What every handler checks before a kernel runs: shapes, dtypes, sizes that fit. Failures are
// sentences for the user: the rule, what was given, what to do.
#pragma once
#include <cstddef>
#include <cstdint>
#include <exception>
#include <initializer_list>
#include <new>
#include <string>
#include <vector>

#include "core/status.h"
#include "xla/ffi/api/ffi.h"

namespace jaxsparse {

namespace ffi = ::xla::ffi;
using Dims = ffi::Span<const int64_t>;

// A buffer and the name it has in messages.
struct NamedBuffer {
  const char* name;
  ffi::AnyBuffer buffer;

  Dims dims() const { return buffer.dimensions(); }
  size_t ndim() const { return dims().size(); }
  ffi::DataType dtype() const { return buffer.element_type(); }
};

// "float32", as NumPy calls it; "dtype 17" for one that no kernel has.
std::string DTypeName(ffi::DataType dtype);

// "x.shape=(8, 64), w.shape=(12, 32, 32)".
std::string Shapes(std::initializer_list<NamedBuffer> arrays);

// "<rule>, got <got>. <advice>"
Status Wrong(const std::string& rule, const std::string& got, const std::string& advice);

// Rows and cols: int32, one shape [*group, capacity].
Status CheckPattern(const NamedBuffer& rows, const NamedBuffer& cols);

// All of one dtype. Which one is for the caller to judge.
Status CheckOneDType(std::initializer_list<NamedBuffer> arrays);

// product = dims[begin] * ... * dims[end - 1]. Dims of a buffer may overflow where one of the
// others is zero.
Status Product(const NamedBuffer& array, size_t begin, size_t end, int64_t* product);

// Fails where the product of `sizes`, none negative, exceeds int64. `what` names it in the message.
Status CheckProductFits(const char* what, std::initializer_list<int64_t> sizes);

// The leading axes in which weights differ. In each array such an axis is 1 or the full size.
class GroupAxes {
 public:
  // Full sizes, from the operands' first `count` axes, of which each must have at least so many.
  static Status FromOperands(std::initializer_list<NamedBuffer> operands, size_t count,
                             GroupAxes* groups);

  size_t count() const { return sizes_.size(); }
  int64_t num_groups() const { return num_groups_; }

  // The result must have the full sizes.
  Status CheckResult(const NamedBuffer& result) const;

  // Flat group in `operand` for each flat group of the result.
  std::vector<int64_t> MapTo(const NamedBuffer& operand) const;

 private:
  std::vector<int64_t> sizes_;
  int64_t num_groups_ = 1;
};

// The status of a call of `handler` as XLA takes it.
ffi::Error ToError(const char* handler, const Status& status);

// Runs `body() -> Status` so that no C++ exception leaves the handler.
template <class Body>
ffi::Error Guarded(const char* handler, const Body& body) {
  try {
    return ToError(handler, body());
  } catch (const std::bad_alloc&) {
    return ToError(handler, Status::OutOfMemory("out of memory on the host."));
  } catch (const std::exception& error) {
    return ffi::Error::Internal(std::string(handler) + ": " + error.what());
  } catch (...) {
    return ffi::Error::Internal(std::string(handler) + ": an exception of unknown type.");
  }
}

}  // namespace jaxsparse
