// Blocks of a dense weight, and the dense weight of blocks: (dense, rows, cols) -> values and
// (values, rows, cols) -> dense. Shapes: ffi/decode.h.
#include "cpu/block_copy.h"

#include "ffi/check.h"
#include "ffi/decode.h"
#include "ffi/targets.h"
#include "ffi/thread_pool.h"

namespace jaxsparse::cpu {
namespace {

Status Run(ffi::ThreadPool pool, const BlockCopyBuffers& buffers) {
  BlockMatmul problem;
  size_t item_bytes;
  if (Status s = DecodeBlockCopy(buffers, &problem, &item_bytes); !s.ok()) return s;
  XlaTaskPool tasks(pool);
  return (buffers.to_blocks ? GatherBlocks : ScatterBlocks)(problem, item_bytes, tasks);
}

ffi::Error Gather(ffi::ThreadPool pool, ffi::AnyBuffer dense, ffi::AnyBuffer rows,
                  ffi::AnyBuffer cols, ffi::Result<ffi::AnyBuffer> values) {
  return Guarded("block_gather", [&] { return Run(pool, {true, dense, *values, rows, cols}); });
}

ffi::Error Scatter(ffi::ThreadPool pool, ffi::AnyBuffer values, ffi::AnyBuffer rows,
                   ffi::AnyBuffer cols, ffi::Result<ffi::AnyBuffer> dense) {
  return Guarded("block_scatter", [&] { return Run(pool, {false, *dense, values, rows, cols}); });
}

auto Binding() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .Arg<ffi::AnyBuffer>()  // dense or values
      .Arg<ffi::AnyBuffer>()  // rows
      .Arg<ffi::AnyBuffer>()  // cols
      .Ret<ffi::AnyBuffer>();
}

XLA_FFI_DEFINE_HANDLER(kGather, Gather, Binding());
XLA_FFI_DEFINE_HANDLER(kScatter, Scatter, Binding());

}  // namespace

std::vector<Target> BlockCopyTargets() {
  return {{"jaxsparse.block_gather.v1", reinterpret_cast<void*>(kGather)},
          {"jaxsparse.block_scatter.v1", reinterpret_cast<void*>(kScatter)}};
}

}  // namespace jaxsparse::cpu
