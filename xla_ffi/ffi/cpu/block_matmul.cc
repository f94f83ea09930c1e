// Products with block-sparse weights: operands in the order x, w, y without the result, then rows,
// cols; then the result. Shapes: ffi/decode.h. The three differ in which array is the result.
#include "core/block_matmul.h"

#include <string>

#include "cpu/kernel_table.h"
#include "ffi/check.h"
#include "ffi/decode.h"
#include "ffi/targets.h"
#include "ffi/thread_pool.h"

namespace jaxsparse::cpu {
namespace {

Status Run(ffi::ThreadPool pool, const BlockMatmulBuffers& buffers) {
  BlockMatmul problem;
  DType dtype;
  if (Status s = DecodeBlockMatmul(buffers, &problem, &dtype); !s.ok()) return s;
  std::string why;
  const KernelTable* kernels = ActiveKernels(&why);
  if (kernels == nullptr) return Status::InvalidArgument(why);
  const BlockMatmulKernel* kernel = kernels->block_forward;
  if (buffers.role == Role::kInputGrad) kernel = kernels->block_input_grad;
  if (buffers.role == Role::kWeightGrad) kernel = kernels->block_weight_grad;
  XlaTaskPool tasks(pool);
  return kernel[static_cast<int>(dtype)](problem, tasks);
}

ffi::Error Forward(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::AnyBuffer w, ffi::AnyBuffer rows,
                   ffi::AnyBuffer cols, ffi::Result<ffi::AnyBuffer> y) {
  return Guarded("block_matmul_forward",
                 [&] { return Run(pool, {Role::kForward, x, w, *y, rows, cols}); });
}

ffi::Error InputGrad(ffi::ThreadPool pool, ffi::AnyBuffer w, ffi::AnyBuffer y, ffi::AnyBuffer rows,
                     ffi::AnyBuffer cols, ffi::Result<ffi::AnyBuffer> x) {
  return Guarded("block_matmul_input_grad",
                 [&] { return Run(pool, {Role::kInputGrad, *x, w, y, rows, cols}); });
}

ffi::Error WeightGrad(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::AnyBuffer y, ffi::AnyBuffer rows,
                      ffi::AnyBuffer cols, ffi::Result<ffi::AnyBuffer> w) {
  return Guarded("block_matmul_weight_grad",
                 [&] { return Run(pool, {Role::kWeightGrad, x, *w, y, rows, cols}); });
}

auto Binding() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .Arg<ffi::AnyBuffer>()  // the two operands
      .Arg<ffi::AnyBuffer>()
      .Arg<ffi::AnyBuffer>()  // rows
      .Arg<ffi::AnyBuffer>()  // cols
      .Ret<ffi::AnyBuffer>();
}

XLA_FFI_DEFINE_HANDLER(kForward, Forward, Binding());
XLA_FFI_DEFINE_HANDLER(kInputGrad, InputGrad, Binding());
XLA_FFI_DEFINE_HANDLER(kWeightGrad, WeightGrad, Binding());

}  // namespace

std::vector<Target> BlockMatmulTargets() {
  return {{"jaxsparse.block_matmul_forward.v1", reinterpret_cast<void*>(kForward)},
          {"jaxsparse.block_matmul_input_grad.v1", reinterpret_cast<void*>(kInputGrad)},
          {"jaxsparse.block_matmul_weight_grad.v1", reinterpret_cast<void*>(kWeightGrad)}};
}

}  // namespace jaxsparse::cpu
