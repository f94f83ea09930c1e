#include "ffi/decode_columns.h"

#include <string>

namespace jaxsparse {

Status CheckColumnIndices(const NamedBuffer& places, const std::optional<NamedBuffer>& order) {
  const auto check = [](const NamedBuffer& array) -> Status {
    if (array.dtype() == ffi::S32) return {};
    return Wrong("indices are int32", array.name + (" of " + DTypeName(array.dtype())),
                 "Convert them when the pattern is made.");
  };
  if (Status s = check(places); !s.ok()) return s;
  if (places.ndim() < 1)
    return Wrong("places are [*group, capacity]", Shapes({places}),
                 "Give one place for each stored weight.");
  if (!order) return {};
  if (Status s = check(*order); !s.ok()) return s;
  if (order->ndim() != places.ndim())
    return Wrong("order is [*group, slots] with the group axes of places", Shapes({*order, places}),
                 "Give every array the same group axes, of size 1 if need be.");
  return {};
}

Status ReadColumns(const NamedBuffer& values, const NamedBuffer& order, int64_t width,
                   int64_t* num_columns) {
  if (width < 1)
    return Wrong("columns have at least one slot", Shapes({values}), "Use a width of 1 or larger.");
  const int64_t slots = order.dims().back();
  if (slots % width != 0)
    return Wrong("order has whole columns of " + std::to_string(width) + " slots", Shapes({order}),
                 "Fill the last column with slots of no channel.");
  *num_columns = slots / width;
  return {};
}

Status DecodeColumnCopy(const ColumnCopyBuffers& buffers, ColumnCopy* problem) {
  const NamedBuffer dense{"dense", buffers.dense}, values{"values", buffers.values};
  const NamedBuffer places{"places", buffers.places};
  std::optional<NamedBuffer> order;
  if (buffers.order) order = NamedBuffer{"order", *buffers.order};
  const NamedBuffer& operand = buffers.to_values ? dense : values;
  const NamedBuffer& result = buffers.to_values ? values : dense;

  if (Status s = CheckColumnIndices(places, order); !s.ok()) return s;
  if (Status s = CheckOneDType({dense, values}); !s.ok()) return s;
  problem->item_bytes = static_cast<int64_t>(ffi::ByteWidth(dense.dtype()));
  if (problem->item_bytes == 0)
    return Wrong("arrays have elements of one byte or more", DTypeName(dense.dtype()),
                 "Convert them before the call.");

  const size_t num_group_axes = places.ndim() - 1;
  if (dense.ndim() != num_group_axes + 2 || values.ndim() != num_group_axes + (order ? 2 : 1))
    return Wrong("dense is [*group, taps * in, out] and values [*group, capacity" +
                     std::string(order ? ", width" : "") + "] with the group axes of places",
                 Shapes({dense, values, places}),
                 "Give every array the same group axes, of size 1 if need be.");

  GroupAxes groups;
  const NamedBuffer& last = order ? *order : places;
  if (Status s = GroupAxes::FromOperands({operand, places, last}, num_group_axes, &groups); !s.ok())
    return s;
  if (Status s = groups.CheckResult(result); !s.ok()) return s;

  problem->capacity = places.dims()[num_group_axes];
  if (values.dims()[num_group_axes] != problem->capacity)
    return Wrong("there are as many values as places", Shapes({values, places}),
                 "Give one place for each stored weight.");
  const int64_t rows = dense.dims()[num_group_axes];
  if (buffers.taps < 1 || rows % buffers.taps != 0)
    return Wrong("dense has taps * in rows",
                 Shapes({dense}) + ", taps=" + std::to_string(buffers.taps),
                 "Give the number of positions of the kernel, 1 for a matrix.");
  problem->taps = buffers.taps;
  problem->in = rows / buffers.taps;
  problem->out = dense.dims()[num_group_axes + 1];
  problem->width = order ? values.dims().back() : 1;
  problem->num_columns = problem->out;
  if (order) {
    if (Status s = ReadColumns(values, *order, problem->width, &problem->num_columns); !s.ok())
      return s;
  }
  for (const auto& [what, items] : {std::pair{"the size of the dense array", problem->out},
                                    std::pair{"the number of places", problem->num_columns}}) {
    if (Status s = CheckProductFits(what, {groups.num_groups(), rows, items, problem->item_bytes});
        !s.ok())
      return s;
  }
  if (Status s = CheckProductFits("the size of the values", {groups.num_groups(), problem->capacity,
                                                             problem->width, problem->item_bytes});
      !s.ok())
    return s;

  problem->dense_group = groups.MapTo(dense);
  problem->values_group = groups.MapTo(values);
  problem->places_group = groups.MapTo(places);
  problem->order_group = groups.MapTo(last);
  problem->dense = dense.buffer.untyped_data();
  problem->values = values.buffer.untyped_data();
  problem->places = static_cast<const int32_t*>(places.buffer.untyped_data());
  problem->order = order ? static_cast<const int32_t*>(order->buffer.untyped_data()) : nullptr;
  return {};
}

}  // namespace jaxsparse
