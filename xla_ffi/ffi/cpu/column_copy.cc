// Values of a dense weight, and the dense weight of values, for weights listed by column:
// (dense, places[, order]) -> values and (values, places[, order]) -> dense. Shapes:
// ffi/decode_columns.h.
#include "cpu/column_copy.h"

#include "ffi/check.h"
#include "ffi/decode_columns.h"
#include "ffi/targets.h"
#include "ffi/thread_pool.h"

namespace jaxsparse::cpu {
namespace {

ffi::Error Run(const char* handler, ffi::ThreadPool pool, const ColumnCopyBuffers& buffers) {
  return Guarded(handler, [&]() -> Status {
    ColumnCopy problem;
    if (Status s = DecodeColumnCopy(buffers, &problem); !s.ok()) return s;
    XlaTaskPool tasks(pool);
    return (buffers.to_values ? GatherColumns : ScatterColumns)(problem, tasks);
  });
}

ffi::Error UnstructuredGather(ffi::ThreadPool pool, ffi::AnyBuffer dense, ffi::AnyBuffer places,
                              ffi::Result<ffi::AnyBuffer> values, int64_t taps) {
  return Run("unstructured_gather", pool, {true, dense, *values, places, std::nullopt, taps});
}

ffi::Error UnstructuredScatter(ffi::ThreadPool pool, ffi::AnyBuffer values, ffi::AnyBuffer places,
                               ffi::Result<ffi::AnyBuffer> dense, int64_t taps) {
  return Run("unstructured_scatter", pool, {false, *dense, values, places, std::nullopt, taps});
}

ffi::Error GroupedGather(ffi::ThreadPool pool, ffi::AnyBuffer dense, ffi::AnyBuffer places,
                         ffi::AnyBuffer order, ffi::Result<ffi::AnyBuffer> values, int64_t taps) {
  return Run("grouped_gather", pool, {true, dense, *values, places, order, taps});
}

ffi::Error GroupedScatter(ffi::ThreadPool pool, ffi::AnyBuffer values, ffi::AnyBuffer places,
                          ffi::AnyBuffer order, ffi::Result<ffi::AnyBuffer> dense, int64_t taps) {
  return Run("grouped_scatter", pool, {false, *dense, values, places, order, taps});
}

auto UnstructuredBinding() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .Arg<ffi::AnyBuffer>()  // dense or values
      .Arg<ffi::AnyBuffer>()  // places
      .Ret<ffi::AnyBuffer>()
      .Attr<int64_t>("taps");
}

auto GroupedBinding() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .Arg<ffi::AnyBuffer>()  // dense or values
      .Arg<ffi::AnyBuffer>()  // places
      .Arg<ffi::AnyBuffer>()  // order
      .Ret<ffi::AnyBuffer>()
      .Attr<int64_t>("taps");
}

XLA_FFI_DEFINE_HANDLER(kUnstructuredGather, UnstructuredGather, UnstructuredBinding());
XLA_FFI_DEFINE_HANDLER(kUnstructuredScatter, UnstructuredScatter, UnstructuredBinding());
XLA_FFI_DEFINE_HANDLER(kGroupedGather, GroupedGather, GroupedBinding());
XLA_FFI_DEFINE_HANDLER(kGroupedScatter, GroupedScatter, GroupedBinding());

}  // namespace

std::vector<Target> ColumnCopyTargets() {
  return {{"jaxsparse.unstructured_gather.v1", reinterpret_cast<void*>(kUnstructuredGather)},
          {"jaxsparse.unstructured_scatter.v1", reinterpret_cast<void*>(kUnstructuredScatter)},
          {"jaxsparse.grouped_gather.v1", reinterpret_cast<void*>(kGroupedGather)},
          {"jaxsparse.grouped_scatter.v1", reinterpret_cast<void*>(kGroupedScatter)}};
}

}  // namespace jaxsparse::cpu
