#include "ffi/decode_places.h"

#include <algorithm>
#include <string>

#include "ffi/decode_conv.h"

namespace jaxsparse {
namespace {

// Counts have the axes of their side without its channels.
Status CheckCounts(const NamedBuffer& counts, const NamedBuffer& side, size_t num_group_axes) {
  bool fits = counts.dtype() == ffi::S32 && counts.ndim() + 1 == side.ndim();
  for (size_t i = num_group_axes; fits && i < counts.ndim(); ++i)
    fits = counts.dims()[i] == side.dims()[i];
  if (fits) return {};
  return Wrong("counts are int32 and have the axes of their side without channels",
               Shapes({counts, side}) + ", " + DTypeName(counts.dtype()),
               "Count the nonzeros of each place.");
}

}  // namespace

Status DecodePlacesConv(const PlacesConvBuffers& buffers, PlacesConv* problem, DType* dtype) {
  const PlacesAttributes& given = buffers.attributes;
  const NamedBuffer x{"x", buffers.x}, w{"w", buffers.w}, y{"y", buffers.y};
  const bool has_x = given.places & 1, has_y = given.places & 2;
  if (given.places < 1 || given.places > 3 ||
      buffers.counts.size() != static_cast<size_t>(has_x + has_y))
    return Wrong("`places` says of which of x (1) and y (2) counts follow the operands",
                 "places=" + std::to_string(given.places) + " and " +
                     std::to_string(buffers.counts.size()) + " arrays of counts",
                 "Give one array for each bit.");
  const NamedBuffer x_counts{"x_counts", buffers.counts.front()};
  const NamedBuffer y_counts{"y_counts", buffers.counts.back()};
  const bool forward = buffers.role == Role::kForward;
  const bool input_grad = buffers.role == Role::kInputGrad;
  const NamedBuffer& a = input_grad ? w : x;
  const NamedBuffer& b = forward ? w : y;
  const NamedBuffer& result = forward ? y : input_grad ? x : w;

  if (Status s = CheckOneDType({x, w, y}); !s.ok()) return s;
  if (Status s = ReadDType(x.dtype(), dtype); !s.ok()) return s;
  const size_t ndim = given.kernel.size();
  if (ndim > 0) {
    const ConvAttributes window = {given.kernel,          given.strides,        given.padding_low,
                                   given.kernel_dilation, given.feature_groups, given.mirrored};
    if (Status s = ReadWindow(window, problem); !s.ok()) return s;
  }
  if (w.ndim() < ndim + 2)
    return Wrong("w is [*group, *kernel, depth, channels]", Shapes({w}), "Add the axes it lacks.");
  const size_t num_group_axes = w.ndim() - ndim - 2;
  if (Status s = ReadActivations(x, y, w, num_group_axes, ndim, ndim > 0, problem); !s.ok())
    return s;
  bool fits = w.dims()[w.ndim() - 2] == problem->depth() && w.dims().back() == problem->channels();
  for (size_t i = 0; i < ndim; ++i) fits &= w.dims()[num_group_axes + i] == given.kernel[i];
  if (!fits)
    return Wrong("w is [*group, *kernel, depth, channels], of the kernel and the channels of x, y",
                 Shapes({x, w, y}), "Make them agree.");
  if (has_x)
    if (Status s = CheckCounts(x_counts, x, num_group_axes); !s.ok()) return s;
  if (has_y)
    if (Status s = CheckCounts(y_counts, y, num_group_axes); !s.ok()) return s;

  const NamedBuffer& counts = has_x ? x_counts : y_counts;
  const NamedBuffer& more = has_y ? y_counts : x_counts;
  GroupAxes groups;
  if (Status s = GroupAxes::FromOperands({a, b, counts, more}, num_group_axes, &groups); !s.ok())
    return s;
  if (Status s = groups.CheckResult(result); !s.ok()) return s;
  for (const Space& space : {problem->x_space, problem->y_space})
    if (Status s = CheckProductFits(
            "the number of multiplications",
            {groups.num_groups(), problem->batch, space[0], space[1], space[2], problem->num_taps(),
             std::max<int64_t>(1, problem->in), std::max<int64_t>(1, problem->out), 16});
        !s.ok())
      return s;

  problem->x_group = groups.MapTo(x);
  problem->w_group = groups.MapTo(w);
  problem->y_group = groups.MapTo(y);
  problem->x = x.buffer.untyped_data();
  problem->w = w.buffer.untyped_data();
  problem->y = y.buffer.untyped_data();
  if (has_x) {
    problem->x_counts_group = groups.MapTo(x_counts);
    problem->x_counts = static_cast<const int32_t*>(x_counts.buffer.untyped_data());
  }
  if (has_y) {
    problem->y_counts_group = groups.MapTo(y_counts);
    problem->y_counts = static_cast<const int32_t*>(y_counts.buffer.untyped_data());
  }
  return {};
}

}  // namespace jaxsparse
