// Products with block-sparse weights on GPUs: operands and complaints are those of the CPU's
// handlers (ffi/cpu/block_matmul.cc). There is a second result, scratch memory: what a handler
// allocates itself is freed when it returns, and a CUDA graph of its launches would use it again.
#include "cuda/block_matmul.h"

#include <iterator>
#include <string>

#include "ffi/check.h"
#include "ffi/cuda/block_matmul.h"
#include "ffi/decode.h"
#include "ffi/targets.h"

namespace jaxsparse::cuda {
namespace {

Pass PassOf(Role role) {
  if (role == Role::kForward) return Pass::kForward;
  return role == Role::kInputGrad ? Pass::kInputGrad : Pass::kWeightGrad;
}

Precision PrecisionOf(bool exact) { return exact ? Precision::kHighest : Precision::kDefault; }

Status Run(Stream stream, const BlockMatmulBuffers& buffers, ffi::AnyBuffer scratch, bool exact) {
  BlockMatmul problem;
  DType dtype;
  if (Status s = DecodeBlockMatmul(buffers, &problem, &dtype); !s.ok()) return s;
  const Pass pass = PassOf(buffers.role);
  const Precision precision = PrecisionOf(exact);
  const size_t needed = ScratchBytes(pass, problem, dtype, precision);
  if (scratch.size_bytes() < needed)
    return Wrong("the scratch has at least " + std::to_string(needed) + " bytes",
                 Shapes({{"scratch", scratch}}), "Make it as large as _cuda.scratch_bytes says.");
  return LaunchBlockMatmul(pass, problem, dtype, precision,
                           {scratch.untyped_data(), scratch.size_bytes()}, stream);
}

ffi::Error Forward(Stream stream, ffi::AnyBuffer x, ffi::AnyBuffer w, ffi::AnyBuffer rows,
                   ffi::AnyBuffer cols, ffi::Result<ffi::AnyBuffer> y,
                   ffi::Result<ffi::AnyBuffer> scratch, bool exact) {
  return Guarded("block_matmul_forward", [&] {
    return Run(stream, {Role::kForward, x, w, *y, rows, cols}, *scratch, exact);
  });
}

ffi::Error InputGrad(Stream stream, ffi::AnyBuffer w, ffi::AnyBuffer y, ffi::AnyBuffer rows,
                     ffi::AnyBuffer cols, ffi::Result<ffi::AnyBuffer> x,
                     ffi::Result<ffi::AnyBuffer> scratch, bool exact) {
  return Guarded("block_matmul_input_grad", [&] {
    return Run(stream, {Role::kInputGrad, *x, w, y, rows, cols}, *scratch, exact);
  });
}

ffi::Error WeightGrad(Stream stream, ffi::AnyBuffer x, ffi::AnyBuffer y, ffi::AnyBuffer rows,
                      ffi::AnyBuffer cols, ffi::Result<ffi::AnyBuffer> w,
                      ffi::Result<ffi::AnyBuffer> scratch, bool exact) {
  return Guarded("block_matmul_weight_grad", [&] {
    return Run(stream, {Role::kWeightGrad, x, *w, y, rows, cols}, *scratch, exact);
  });
}

auto Binding() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::PlatformStream<Stream>>()
      .Arg<ffi::AnyBuffer>()  // the two operands
      .Arg<ffi::AnyBuffer>()
      .Arg<ffi::AnyBuffer>()  // rows
      .Arg<ffi::AnyBuffer>()  // cols
      .Ret<ffi::AnyBuffer>()
      .Ret<ffi::AnyBuffer>()  // scratch
      .Attr<bool>("exact");
}

// Handlers only enqueue, with the same launches for the same sizes: XLA may record them.
XLA_FFI_DEFINE_HANDLER(kForward, Forward, Binding(), {ffi::Traits::kCmdBufferCompatible});
XLA_FFI_DEFINE_HANDLER(kInputGrad, InputGrad, Binding(), {ffi::Traits::kCmdBufferCompatible});
XLA_FFI_DEFINE_HANDLER(kWeightGrad, WeightGrad, Binding(), {ffi::Traits::kCmdBufferCompatible});

ffi::DataType DataTypeOf(const std::string& name) {
  for (ffi::DataType dtype : {ffi::F32, ffi::F64, ffi::BF16, ffi::F16})
    if (DTypeName(dtype) == name) return dtype;
  return ffi::DataType::INVALID;  // which decoding refuses
}

// An array of a shape, without numbers: what decoding looks at.
class Described {
 public:
  Described(const Shape& shape, ffi::DataType dtype) : dims_(shape) {
    buffer_.struct_size = XLA_FFI_Buffer_STRUCT_SIZE;
    buffer_.dtype = static_cast<XLA_FFI_DataType>(dtype);
    buffer_.rank = static_cast<int64_t>(dims_.size());
    buffer_.dims = dims_.data();
  }
  Described(const Described&) = delete;
  Described& operator=(const Described&) = delete;

  operator ffi::AnyBuffer() const { return ffi::AnyBuffer(&buffer_); }

 private:
  Shape dims_;
  XLA_FFI_Buffer buffer_ = {};
};

}  // namespace

Status ScratchBytesOf(const std::string& role, const Shape& x, const Shape& w, const Shape& y,
                      const Shape& indices, const std::string& dtype, const std::string& dtype_of_y,
                      bool exact, size_t* bytes) {
  const ffi::DataType of_all = DataTypeOf(dtype);
  const Described as_x(x, of_all), as_w(w, of_all), as_y(y, DataTypeOf(dtype_of_y));
  const Described as_indices(indices, ffi::S32);
  const Role as_role = role == "forward"      ? Role::kForward
                       : role == "input_grad" ? Role::kInputGrad
                                              : Role::kWeightGrad;
  BlockMatmul problem;
  DType as_dtype;
  const BlockMatmulBuffers buffers{as_role, as_x, as_w, as_y, as_indices, as_indices};
  if (Status s = DecodeBlockMatmul(buffers, &problem, &as_dtype); !s.ok()) return s;
  *bytes = ScratchBytes(PassOf(as_role), problem, as_dtype, PrecisionOf(exact));
  return {};
}

std::vector<Target> AllTargets() {
  return {{"jaxsparse.block_matmul_forward.v1", reinterpret_cast<void*>(kForward)},
          {"jaxsparse.block_matmul_input_grad.v1", reinterpret_cast<void*>(kInputGrad)},
          {"jaxsparse.block_matmul_weight_grad.v1", reinterpret_cast<void*>(kWeightGrad)}};
}

}  // namespace jaxsparse::cuda
