// Convolutions of sparse inputs: operands in the order x, w, y without the result, then the counts
// of x, of y or of both; then the result. And the counting. Shapes: ffi/decode_places.h.
#include "core/places_conv.h"

#include <string>
#include <vector>

#include "cpu/kernel_table.h"
#include "ffi/check.h"
#include "ffi/decode_places.h"
#include "ffi/targets.h"
#include "ffi/thread_pool.h"

XLA_FFI_REGISTER_STRUCT_ATTR_DECODING(
    ::jaxsparse::PlacesAttributes,
    ::xla::ffi::StructMember<::xla::ffi::Span<const int64_t>>("kernel"),
    ::xla::ffi::StructMember<::xla::ffi::Span<const int64_t>>("strides"),
    ::xla::ffi::StructMember<::xla::ffi::Span<const int64_t>>("padding_low"),
    ::xla::ffi::StructMember<::xla::ffi::Span<const int64_t>>("kernel_dilation"),
    ::xla::ffi::StructMember<int64_t>("feature_groups"),
    ::xla::ffi::StructMember<int64_t>("mirrored"), ::xla::ffi::StructMember<int64_t>("places"));

namespace jaxsparse::cpu {
namespace {

constexpr const char* kNames[] = {"places_conv_forward", "places_conv_input_grad",
                                  "places_conv_weight_grad"};

Status RunProblem(ffi::ThreadPool pool, const PlacesConvBuffers& buffers) {
  PlacesConv problem;
  DType dtype;
  if (Status s = DecodePlacesConv(buffers, &problem, &dtype); !s.ok()) return s;
  std::string why;
  const KernelTable* kernels = ActiveKernels(&why);
  if (kernels == nullptr) return Status::InvalidArgument(why);
  XlaTaskPool tasks(pool);
  const PlacesConvKernel* kernel = kernels->places_forward;
  if (buffers.role == Role::kInputGrad) kernel = kernels->places_input_grad;
  if (buffers.role == Role::kWeightGrad) kernel = kernels->places_weight_grad;
  return kernel[static_cast<int>(dtype)](problem, tasks);
}

template <Role role>
ffi::Error Run(ffi::ThreadPool pool, ffi::AnyBuffer a, ffi::AnyBuffer b, ffi::RemainingArgs counts,
               ffi::Result<ffi::AnyBuffer> result, PlacesAttributes attributes) {
  return Guarded(kNames[static_cast<int>(role)], [&] {
    std::vector<ffi::AnyBuffer> given;
    for (size_t i = 0; i < counts.size(); ++i) given.push_back(*counts.get<ffi::AnyBuffer>(i));
    const auto buffers = [&](ffi::AnyBuffer x, ffi::AnyBuffer w, ffi::AnyBuffer y) {
      return PlacesConvBuffers{role, x, w, y, given, attributes};
    };
    if (role == Role::kForward) return RunProblem(pool, buffers(a, b, *result));
    if (role == Role::kInputGrad) return RunProblem(pool, buffers(*result, a, b));
    return RunProblem(pool, buffers(a, *result, b));
  });
}

ffi::Error Nonzeros(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::Result<ffi::AnyBuffer> counts) {
  return Guarded("nonzeros", [&] {
    const NamedBuffer given{"x", x}, result{"counts", *counts};
    DType dtype;
    if (Status s = ReadDType(given.dtype(), &dtype); !s.ok()) return s;
    bool fits = result.dtype() == ffi::S32 && result.ndim() + 1 == given.ndim();
    for (size_t i = 0; fits && i < result.ndim(); ++i) fits = result.dims()[i] == given.dims()[i];
    if (!fits)
      return Wrong("counts are int32 and have the axes of x without the last",
                   Shapes({given, result}), "Ask for such a result.");
    int64_t places;
    if (Status s = Product(given, 0, given.ndim() - 1, &places); !s.ok()) return s;
    std::string why;
    const KernelTable* kernels = ActiveKernels(&why);
    if (kernels == nullptr) return Status::InvalidArgument(why);
    XlaTaskPool tasks(pool);
    return kernels->nonzeros[static_cast<int>(dtype)](
        x.untyped_data(), places, given.dims().back(),
        static_cast<int32_t*>(result.buffer.untyped_data()), tasks);
  });
}

auto Operands() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .Arg<ffi::AnyBuffer>()
      .Arg<ffi::AnyBuffer>()
      .RemainingArgs()
      .Ret<ffi::AnyBuffer>()
      .Attrs<PlacesAttributes>();
}

XLA_FFI_DEFINE_HANDLER(kForward, Run<Role::kForward>, Operands());
XLA_FFI_DEFINE_HANDLER(kInputGrad, Run<Role::kInputGrad>, Operands());
XLA_FFI_DEFINE_HANDLER(kWeightGrad, Run<Role::kWeightGrad>, Operands());
XLA_FFI_DEFINE_HANDLER(
    kNonzeros, Nonzeros,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<ffi::AnyBuffer>().Ret<ffi::AnyBuffer>());

}  // namespace

std::vector<Target> PlacesConvTargets() {
  return {{"jaxsparse.places_conv_forward.v1", reinterpret_cast<void*>(kForward)},
          {"jaxsparse.places_conv_input_grad.v1", reinterpret_cast<void*>(kInputGrad)},
          {"jaxsparse.places_conv_weight_grad.v1", reinterpret_cast<void*>(kWeightGrad)},
          {"jaxsparse.nonzeros.v1", reinterpret_cast<void*>(kNonzeros)}};
}

}  // namespace jaxsparse::cpu
