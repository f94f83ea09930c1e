// Convolutions and products with sparse weights: operands in the order x, w, y without the result,
// then places, and the order of a grouped weight or the columns of blocks; then the result. Shapes:
// ffi/decode_conv.h. The handlers differ in which array is the result, in how the weight is stored,
// and in whether there is a window.
#include "core/sparse_conv.h"

#include <string>

#include "cpu/kernel_table.h"
#include "ffi/check.h"
#include "ffi/decode_conv.h"
#include "ffi/targets.h"
#include "ffi/thread_pool.h"

XLA_FFI_REGISTER_STRUCT_ATTR_DECODING(
    ::jaxsparse::ConvAttributes,
    ::xla::ffi::StructMember<::xla::ffi::Span<const int64_t>>("kernel"),
    ::xla::ffi::StructMember<::xla::ffi::Span<const int64_t>>("strides"),
    ::xla::ffi::StructMember<::xla::ffi::Span<const int64_t>>("padding_low"),
    ::xla::ffi::StructMember<::xla::ffi::Span<const int64_t>>("kernel_dilation"),
    ::xla::ffi::StructMember<int64_t>("feature_groups"),
    ::xla::ffi::StructMember<int64_t>("mirrored"));

namespace jaxsparse::cpu {
namespace {

constexpr const char* kForms[] = {"unstructured", "grouped", "block"};
constexpr const char* kRoles[] = {"forward", "input_grad", "weight_grad"};

Status RunProblem(ffi::ThreadPool pool, const SparseConvBuffers& buffers) {
  DecodedConv decoded;
  if (Status s = DecodeSparseConv(buffers, &decoded); !s.ok()) return s;
  std::string why;
  const KernelTable* kernels = ActiveKernels(&why);
  if (kernels == nullptr) return Status::InvalidArgument(why);
  XlaTaskPool tasks(pool);
  const SparseConvKernel* kernel = kernels->conv_forward;
  if (buffers.role == Role::kInputGrad) kernel = kernels->conv_input_grad;
  if (buffers.role == Role::kWeightGrad) kernel = kernels->conv_weight_grad;
  return kernel[static_cast<int>(decoded.dtype)](decoded.problem, tasks);
}

ffi::Error Run(ffi::ThreadPool pool, Role role, Form form, ffi::AnyBuffer a, ffi::AnyBuffer b,
               ffi::AnyBuffer places, std::optional<ffi::AnyBuffer> order,
               ffi::Result<ffi::AnyBuffer> result, std::optional<ConvAttributes> window) {
  const std::string name = std::string(kForms[static_cast<int>(form)]) +
                           (window ? "_conv_" : "_matmul_") + kRoles[static_cast<int>(role)];
  return Guarded(name.c_str(), [&] {
    const auto buffers = [&](ffi::AnyBuffer x, ffi::AnyBuffer w, ffi::AnyBuffer y) {
      return SparseConvBuffers{role, form, x, w, y, places, order, window};
    };
    switch (role) {
      case Role::kForward:
        return RunProblem(pool, buffers(a, b, *result));
      case Role::kInputGrad:
        return RunProblem(pool, buffers(*result, a, b));
      case Role::kWeightGrad:
        break;
    }
    return RunProblem(pool, buffers(a, *result, b));
  });
}

// The two operands and places, the second index array of forms that have one, the window of a
// convolution.
auto Operands() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .Arg<ffi::AnyBuffer>()
      .Arg<ffi::AnyBuffer>()
      .Arg<ffi::AnyBuffer>();
}

template <Role role>
ffi::Error UnstructuredMatmul(ffi::ThreadPool pool, ffi::AnyBuffer a, ffi::AnyBuffer b,
                              ffi::AnyBuffer places, ffi::Result<ffi::AnyBuffer> result) {
  return Run(pool, role, Form::kUnstructured, a, b, places, std::nullopt, result, std::nullopt);
}

template <Role role>
ffi::Error UnstructuredConv(ffi::ThreadPool pool, ffi::AnyBuffer a, ffi::AnyBuffer b,
                            ffi::AnyBuffer places, ffi::Result<ffi::AnyBuffer> result,
                            ConvAttributes window) {
  return Run(pool, role, Form::kUnstructured, a, b, places, std::nullopt, result, window);
}

template <Role role>
ffi::Error GroupedMatmul(ffi::ThreadPool pool, ffi::AnyBuffer a, ffi::AnyBuffer b,
                         ffi::AnyBuffer places, ffi::AnyBuffer order,
                         ffi::Result<ffi::AnyBuffer> result) {
  return Run(pool, role, Form::kGrouped, a, b, places, order, result, std::nullopt);
}

// Grouped or blocks.
template <Role role, Form form>
ffi::Error Conv(ffi::ThreadPool pool, ffi::AnyBuffer a, ffi::AnyBuffer b, ffi::AnyBuffer places,
                ffi::AnyBuffer order, ffi::Result<ffi::AnyBuffer> result, ConvAttributes window) {
  return Run(pool, role, form, a, b, places, order, result, window);
}

#define JAXSPARSE_HANDLERS(role)                                                       \
  XLA_FFI_DEFINE_HANDLER(kUnstructuredMatmul##role, UnstructuredMatmul<Role::k##role>, \
                         Operands().Ret<ffi::AnyBuffer>());                            \
  XLA_FFI_DEFINE_HANDLER(kUnstructuredConv##role, UnstructuredConv<Role::k##role>,     \
                         Operands().Ret<ffi::AnyBuffer>().Attrs<ConvAttributes>());    \
  XLA_FFI_DEFINE_HANDLER(kGroupedMatmul##role, GroupedMatmul<Role::k##role>,           \
                         Operands().Arg<ffi::AnyBuffer>().Ret<ffi::AnyBuffer>());      \
  XLA_FFI_DEFINE_HANDLER(                                                              \
      kGroupedConv##role, (Conv<Role::k##role, Form::kGrouped>),                       \
      Operands().Arg<ffi::AnyBuffer>().Ret<ffi::AnyBuffer>().Attrs<ConvAttributes>()); \
  XLA_FFI_DEFINE_HANDLER(                                                              \
      kBlockConv##role, (Conv<Role::k##role, Form::kBlocks>),                          \
      Operands().Arg<ffi::AnyBuffer>().Ret<ffi::AnyBuffer>().Attrs<ConvAttributes>())

JAXSPARSE_HANDLERS(Forward);
JAXSPARSE_HANDLERS(InputGrad);
JAXSPARSE_HANDLERS(WeightGrad);
#undef JAXSPARSE_HANDLERS

}  // namespace

std::vector<Target> SparseConvTargets() {
#define JAXSPARSE_TARGETS(role, name)                                                          \
  {"jaxsparse.unstructured_matmul_" name ".v1",                                                \
   reinterpret_cast<void*>(kUnstructuredMatmul##role)},                                        \
      {"jaxsparse.unstructured_conv_" name ".v1",                                              \
       reinterpret_cast<void*>(kUnstructuredConv##role)},                                      \
      {"jaxsparse.grouped_matmul_" name ".v1", reinterpret_cast<void*>(kGroupedMatmul##role)}, \
      {"jaxsparse.grouped_conv_" name ".v1", reinterpret_cast<void*>(kGroupedConv##role)}, {   \
    "jaxsparse.block_conv_" name ".v1", reinterpret_cast<void*>(kBlockConv##role)              \
  }
  return {JAXSPARSE_TARGETS(Forward, "forward"), JAXSPARSE_TARGETS(InputGrad, "input_grad"),
          JAXSPARSE_TARGETS(WeightGrad, "weight_grad")};
#undef JAXSPARSE_TARGETS
}

}  // namespace jaxsparse::cpu
