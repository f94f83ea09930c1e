#include "ffi/decode_conv.h"

#include <algorithm>
#include <string>

#include "ffi/decode_columns.h"

namespace jaxsparse {
namespace {

// Places of x are sums and products of a few of these; below, none of them overflows.
constexpr int64_t kMaxExtent = INT32_MAX;

std::string Listed(const char* name, const ffi::Span<const int64_t>& numbers) {
  std::string text = std::string(name) + "=(";
  for (size_t i = 0; i < numbers.size(); ++i)
    text += (i == 0 ? "" : ", ") + std::to_string(numbers[i]);
  return text + (numbers.size() == 1 ? ",)" : ")");
}

}  // namespace

Status ReadWindow(const ConvAttributes& given, ConvWindow* window) {
  const size_t ndim = given.kernel.size();
  const std::string all = Listed("kernel", given.kernel) + ", " + Listed("strides", given.strides) +
                          ", " + Listed("padding_low", given.padding_low) + ", " +
                          Listed("kernel_dilation", given.kernel_dilation);
  if (ndim < 1 || ndim > 3 || given.strides.size() != ndim || given.padding_low.size() != ndim ||
      given.kernel_dilation.size() != ndim)
    return Wrong("a window has one number per space axis, of which there are one to three", all,
                 "Fold leading axes of space into the batch where the window has one place there.");
  for (size_t i = 0; i < ndim; ++i) {
    const size_t axis = 3 - ndim + i;
    window->kernel[axis] = given.kernel[i];
    window->strides[axis] = given.strides[i];
    window->low[axis] = given.padding_low[i];
    window->dilation[axis] = given.kernel_dilation[i];
    for (const int64_t size : {given.kernel[i], given.strides[i], given.kernel_dilation[i]})
      if (size < 1 || size > kMaxExtent)
        return Wrong("kernel, strides and kernel_dilation are at least 1 and less than 2^31", all,
                     "Give each axis such a number.");
    if (given.padding_low[i] < -kMaxExtent || given.padding_low[i] > kMaxExtent)
      return Wrong("padding is less than 2^31", all, "Pad less.");
  }
  if (given.mirrored != 0 && given.mirrored != 1)
    return Wrong("mirrored is 0 or 1", "mirrored=" + std::to_string(given.mirrored),
                 "Say whether the weight is stored with its channel axes exchanged.");
  window->mirrored = given.mirrored == 1;
  window->feature_groups = given.feature_groups;
  return {};
}

Status ReadActivations(const NamedBuffer& x, const NamedBuffer& y, const NamedBuffer& last,
                       size_t num_group_axes, size_t ndim, bool is_conv, ConvWindow* window) {
  const std::string space = is_conv ? ", *x_space, in] and y [*group, *batch, *y_space, out]"
                                    : ", in] and y [*group, *batch, out]";
  if (x.ndim() != y.ndim() || x.ndim() < num_group_axes + ndim + 1)
    return Wrong(
        "x is [*group, *batch" + space + " with the group axes of " + last.name +
            (is_conv ? " and the space axes of the window" : ""),
        Shapes({x, y, last}) + (is_conv ? ", " + std::to_string(ndim) + " space axes" : ""),
        "Give every array the same group axes, of size 1 if need be.");
  const size_t first_space = x.ndim() - 1 - ndim;
  for (size_t i = num_group_axes; i < first_space; ++i)
    if (x.dims()[i] != y.dims()[i])
      return Wrong("x and y have the same batch axes", Shapes({x, y}), "Make them agree.");
  if (Status s = Product(x, num_group_axes, first_space, &window->batch); !s.ok()) return s;
  for (size_t i = 0; i < ndim; ++i) {
    window->x_space[3 - ndim + i] = x.dims()[first_space + i];
    window->y_space[3 - ndim + i] = y.dims()[first_space + i];
    if (std::max(x.dims()[first_space + i], y.dims()[first_space + i]) > kMaxExtent)
      return Wrong("space axes are less than 2^31", Shapes({x, y}), "Split the call.");
  }
  window->in = x.dims().back();
  window->out = y.dims().back();
  for (const auto& [space_of, channels] :
       {std::pair{window->x_space, window->in}, std::pair{window->y_space, window->out}})
    if (Status s = CheckProductFits("the size of an image",
                                    {space_of[0], space_of[1], space_of[2], channels, 8});
        !s.ok())
      return s;
  const int64_t groups = window->feature_groups;
  if (groups < 1 || window->in % groups != 0 || window->out % groups != 0)
    return Wrong("feature groups divide the channels of x and y",
                 Shapes({x, y}) + ", feature_groups=" + std::to_string(groups),
                 "Use a number of groups that divides both.");
  return {};
}

namespace {

// The number of axes of w after the group axes, and what they are.
std::string InnerOfWeight(Form form, size_t* ndim) {
  switch (form) {
    case Form::kUnstructured:
      *ndim = 1;
      return "capacity]";
    case Form::kGrouped:
      *ndim = 2;
      return "capacity, width]";
    case Form::kBlocks:
      break;
  }
  *ndim = 3;
  return "capacity, block_in, block_out]";
}

// What w and the indices say of the stored weights, whose sizes the window and x and y have said.
Status ReadWeight(const SparseConvBuffers& buffers, const NamedBuffer& w, const NamedBuffer& places,
                  const std::optional<NamedBuffer>& order, SparseConv* problem) {
  const size_t num_group_axes = places.ndim() - 1;
  size_t inner;
  const std::string axes = InnerOfWeight(buffers.form, &inner);
  if (w.ndim() != num_group_axes + inner)
    return Wrong("w is [*group, " + axes + " with the group axes of " + places.name,
                 Shapes({w, places}),
                 "Give every array the same group axes, of size 1 if need be.");
  problem->capacity = w.dims()[num_group_axes];
  if (problem->capacity != places.dims()[num_group_axes])
    return Wrong(buffers.form == Form::kBlocks ? "there are as many blocks as indices"
                                               : "there are as many values as places",
                 Shapes({w, places}), "Give one index for each stored part.");
  if (Status s = CheckProductFits("the number of stored places",
                                  {problem->kernel[0], problem->kernel[1], problem->kernel[2],
                                   problem->depth(), std::max<int64_t>(1, problem->channels())});
      !s.ok())
    return s;
  switch (buffers.form) {
    case Form::kUnstructured:
      problem->num_columns = problem->channels();
      break;
    case Form::kGrouped:
      problem->width = w.dims().back();
      if (Status s = ReadColumns(w, *order, problem->width, &problem->num_columns); !s.ok())
        return s;
      break;
    case Form::kBlocks:
      problem->format = WeightFormat::kBlocks;
      problem->block_in = w.dims()[num_group_axes + 1];
      problem->block_out = w.dims()[num_group_axes + 2];
      if (problem->block_in < 1 || problem->block_out < 1)
        return Wrong("blocks have at least one row and one column", Shapes({w}),
                     "Use blocks of (1, 1) or larger.");
      return {};
  }
  // An unused place has the number after the last one.
  const int64_t column_size = problem->num_taps() * problem->depth();
  if (column_size > 0 && problem->num_columns > (INT32_MAX - 1) / column_size)
    return Wrong(
        "a weight has fewer than 2^31 - 1 places",
        std::to_string(problem->num_columns) + " columns of " + std::to_string(column_size),
        "Split the weight.");
  return {};
}

// One copy of the indices for each of `groups`.
std::vector<int32_t> Expanded(const NamedBuffer& indices, const std::vector<int64_t>& groups) {
  const auto* from = static_cast<const int32_t*>(indices.buffer.untyped_data());
  const int64_t size = indices.dims().back();
  std::vector<int32_t> all;
  for (const int64_t group : groups)
    all.insert(all.end(), from + group * size, from + (group + 1) * size);
  return all;
}

}  // namespace

Status DecodeSparseConv(const SparseConvBuffers& buffers, DecodedConv* decoded) {
  const bool is_blocks = buffers.form == Form::kBlocks;
  const NamedBuffer x{"x", buffers.x}, w{"w", buffers.w}, y{"y", buffers.y};
  const NamedBuffer places{is_blocks ? "rows" : "places", buffers.places};
  std::optional<NamedBuffer> order;
  if (buffers.order) order = NamedBuffer{is_blocks ? "cols" : "order", *buffers.order};
  const bool forward = buffers.role == Role::kForward;
  const bool input_grad = buffers.role == Role::kInputGrad;
  const NamedBuffer& a = input_grad ? w : x;
  const NamedBuffer& b = forward ? w : y;
  const NamedBuffer& result = forward ? y : input_grad ? x : w;
  SparseConv* problem = &decoded->problem;

  if (Status s = is_blocks ? CheckPattern(places, *order) : CheckColumnIndices(places, order);
      !s.ok())
    return s;
  if (Status s = CheckOneDType({x, w, y}); !s.ok()) return s;
  if (Status s = ReadDType(x.dtype(), &decoded->dtype); !s.ok()) return s;
  size_t ndim = 0;
  if (buffers.window) {
    if (Status s = ReadWindow(*buffers.window, problem); !s.ok()) return s;
    ndim = buffers.window->kernel.size();
  }
  if (Status s = ReadActivations(x, y, places, places.ndim() - 1, ndim, buffers.window.has_value(),
                                 problem);
      !s.ok())
    return s;
  if (Status s = ReadWeight(buffers, w, places, order, problem); !s.ok()) return s;

  GroupAxes groups;
  const NamedBuffer& last = order ? *order : places;
  if (Status s = GroupAxes::FromOperands({a, b, places, last}, places.ndim() - 1, &groups); !s.ok())
    return s;
  if (Status s = groups.CheckResult(result); !s.ok()) return s;
  const Space& space = problem->y_space;
  if (Status s = CheckProductFits(
          "the number of multiplications",
          {groups.num_groups(), problem->capacity, problem->width,
           std::max<int64_t>(1, problem->block_in), std::max<int64_t>(1, problem->block_out),
           problem->batch, space[0], space[1], space[2]});
      !s.ok())
    return s;

  problem->x_group = groups.MapTo(x);
  problem->w_group = groups.MapTo(w);
  problem->y_group = groups.MapTo(y);
  problem->pattern_group = groups.MapTo(places);
  problem->x = x.buffer.untyped_data();
  problem->w = w.buffer.untyped_data();
  problem->y = y.buffer.untyped_data();
  problem->places = static_cast<const int32_t*>(places.buffer.untyped_data());
  problem->order = order ? static_cast<const int32_t*>(order->buffer.untyped_data()) : nullptr;
  if (const std::vector<int64_t> order_group = groups.MapTo(last);
      order_group != problem->pattern_group) {
    // Mapped over places or over the order alone: kernels know one pattern per group.
    decoded->places = Expanded(places, problem->pattern_group);
    decoded->order = Expanded(last, order_group);
    problem->places = decoded->places.data();
    problem->order = decoded->order.data();
    for (int64_t group = 0; group < groups.num_groups(); ++group)
      problem->pattern_group[group] = group;
  }
  return {};
}

}  // namespace jaxsparse
