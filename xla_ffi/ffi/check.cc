#include "ffi/check.h"

namespace jaxsparse {

std::string DTypeName(ffi::DataType dtype) {
  switch (dtype) {
    case ffi::F16:
      return "float16";
    case ffi::BF16:
      return "bfloat16";
    case ffi::F32:
      return "float32";
    case ffi::F64:
      return "float64";
    case ffi::C64:
      return "complex64";
    case ffi::C128:
      return "complex128";
    case ffi::PRED:
      return "bool";
    case ffi::S8:
      return "int8";
    case ffi::S16:
      return "int16";
    case ffi::S32:
      return "int32";
    case ffi::S64:
      return "int64";
    case ffi::U8:
      return "uint8";
    case ffi::U16:
      return "uint16";
    case ffi::U32:
      return "uint32";
    case ffi::U64:
      return "uint64";
    default:
      return "dtype " + std::to_string(static_cast<int>(dtype));
  }
}

std::string Shapes(std::initializer_list<NamedBuffer> arrays) {
  std::string text;
  for (const NamedBuffer& array : arrays) {
    text += text.empty() ? "" : ", ";
    text += std::string(array.name) + ".shape=(";
    for (size_t i = 0; i < array.ndim(); ++i)
      text += (i == 0 ? "" : ", ") + std::to_string(array.dims()[i]);
    text += array.ndim() == 1 ? ",)" : ")";
  }
  return text;
}

Status Wrong(const std::string& rule, const std::string& got, const std::string& advice) {
  return Status::InvalidArgument(rule + ", got " + got + ". " + advice);
}

Status CheckPattern(const NamedBuffer& rows, const NamedBuffer& cols) {
  for (const NamedBuffer& array : {rows, cols})
    if (array.dtype() != ffi::S32)
      return Wrong("block indices are int32", array.name + (" of " + DTypeName(array.dtype())),
                   "Convert them when the pattern is made.");
  bool same = rows.ndim() == cols.ndim() && rows.ndim() > 0;
  for (size_t i = 0; same && i < rows.ndim(); ++i) same = rows.dims()[i] == cols.dims()[i];
  if (!same)
    return Wrong("rows and cols have one shape, [*group, capacity]", Shapes({rows, cols}),
                 "Give one row and one column for each stored block.");
  return {};
}

Status CheckOneDType(std::initializer_list<NamedBuffer> arrays) {
  const NamedBuffer& first = *arrays.begin();
  std::string got;
  bool same = true;
  for (const NamedBuffer& array : arrays) {
    same = same && array.dtype() == first.dtype();
    got += (got.empty() ? "" : ", ") + std::string(array.name) + " of " + DTypeName(array.dtype());
  }
  return same ? Status{} : Wrong("all arrays have one dtype", got, "Convert them before the call.");
}

Status Product(const NamedBuffer& array, size_t begin, size_t end, int64_t* product) {
  *product = 1;
  for (size_t i = begin; i < end; ++i)
    if (__builtin_mul_overflow(*product, array.dims()[i], product))
      return Wrong("sizes multiply to less than 2^63", Shapes({array}), "Use smaller arrays.");
  return {};
}

Status CheckProductFits(const char* what, std::initializer_list<int64_t> sizes) {
  int64_t product = 1;
  std::string got;
  bool fits = true;
  for (int64_t size : sizes) {
    fits = fits && !__builtin_mul_overflow(product, size, &product);
    got += (got.empty() ? "" : " * ") + std::to_string(size);
  }
  return fits ? Status{} : Wrong(std::string(what) + " is less than 2^63", got, "Split the call.");
}

Status GroupAxes::FromOperands(std::initializer_list<NamedBuffer> operands, size_t count,
                               GroupAxes* groups) {
  groups->sizes_.assign(count, 1);
  groups->num_groups_ = 1;
  for (size_t i = 0; i < count; ++i) {
    int64_t& full = groups->sizes_[i];  // 1 until an operand has another size, which may be 0
    for (const NamedBuffer& operand : operands) {
      const int64_t size = operand.dims()[i];
      if (size == 1 || size == full) continue;
      if (full != 1)
        return Wrong("group axis " + std::to_string(i) + " is 1 or the full size in every array",
                     Shapes(operands), "Broadcast the arrays first, or give each the same size.");
      full = size;
    }
    if (__builtin_mul_overflow(groups->num_groups_, full, &groups->num_groups_))
      return Wrong("there are fewer than 2^63 groups", Shapes(operands), "Use smaller arrays.");
  }
  return {};
}

Status GroupAxes::CheckResult(const NamedBuffer& result) const {
  for (size_t i = 0; i < count(); ++i)
    if (result.dims()[i] != sizes_[i])
      return Wrong("group axis " + std::to_string(i) + " of the result has the full size " +
                       std::to_string(sizes_[i]),
                   Shapes({result}), "Ask for a result with the group sizes of the operands.");
  return {};
}

std::vector<int64_t> GroupAxes::MapTo(const NamedBuffer& operand) const {
  std::vector<int64_t> map(num_groups_, 0);
  for (int64_t flat = 0; flat < num_groups_; ++flat) {
    int64_t rest = flat, stride = 1;
    for (size_t i = count(); i-- > 0;) {
      const int64_t size = operand.dims()[i], coordinate = rest % sizes_[i];
      rest /= sizes_[i];
      if (size != 1) map[flat] += coordinate * stride;
      stride *= size;
    }
  }
  return map;
}

ffi::Error ToError(const char* handler, const Status& status) {
  if (status.ok()) return ffi::Error::Success();
  const std::string message = std::string(handler) + ": " + status.message;
  switch (status.code) {
    case StatusCode::kOk:
      break;
    case StatusCode::kInvalidArgument:
      return ffi::Error::InvalidArgument(message);
    case StatusCode::kOutOfMemory:
      return ffi::Error(ffi::ErrorCode::kResourceExhausted, message);
    case StatusCode::kDeviceError:
      return ffi::Error::Internal(message);
  }
  return ffi::Error::Internal(message);
}

}  // namespace jaxsparse
