#include "ffi/decode.h"

#include <string>

namespace jaxsparse {
namespace {

constexpr size_t kInnerOfWeight = 3;  // capacity, block_in, block_out

// Reads capacity and block sizes out of `w`, whose number of axes is right, and checks the first
// against `rows`.
Status ReadBlocks(const NamedBuffer& w, const NamedBuffer& rows, size_t num_group_axes,
                  BlockMatmul* problem) {
  problem->capacity = w.dims()[num_group_axes];
  problem->block_in = w.dims()[num_group_axes + 1];
  problem->block_out = w.dims()[num_group_axes + 2];
  if (problem->capacity != rows.dims()[num_group_axes])
    return Wrong("there are as many blocks as indices", Shapes({w, rows}),
                 "Give one row and one column for each stored block.");
  if (problem->block_in < 1 || problem->block_out < 1)
    return Wrong("blocks have at least one row and one column", Shapes({w}),
                 "Use blocks of (1, 1) or larger.");
  return {};
}

}  // namespace

Status ReadDType(ffi::DataType given, DType* dtype) {
  switch (given) {
    case ffi::F32:
      *dtype = DType::kF32;
      return {};
    case ffi::F64:
      *dtype = DType::kF64;
      return {};
    case ffi::BF16:
      *dtype = DType::kBF16;
      return {};
    case ffi::F16:
      *dtype = DType::kF16;
      return {};
    default:
      return Wrong("kernels take float32, float64, bfloat16 and float16", DTypeName(given),
                   "Convert the arrays, or use implementation=\"xla\".");
  }
}

Status DecodeBlockMatmul(const BlockMatmulBuffers& buffers, BlockMatmul* problem, DType* dtype) {
  const NamedBuffer x{"x", buffers.x}, w{"w", buffers.w}, y{"y", buffers.y};
  const NamedBuffer rows{"rows", buffers.rows}, cols{"cols", buffers.cols};
  const bool forward = buffers.role == Role::kForward;
  const bool input_grad = buffers.role == Role::kInputGrad;
  const NamedBuffer& a = input_grad ? w : x;
  const NamedBuffer& b = forward ? w : y;
  const NamedBuffer& result = forward ? y : input_grad ? x : w;

  if (Status s = CheckPattern(rows, cols); !s.ok()) return s;
  const bool is_short = x.dtype() == ffi::BF16 || x.dtype() == ffi::F16;
  problem->y_is_float32 = forward && is_short && y.dtype() == ffi::F32;
  if (Status s = problem->y_is_float32 ? CheckOneDType({x, w}) : CheckOneDType({x, w, y}); !s.ok())
    return s;
  if (Status s = ReadDType(x.dtype(), dtype); !s.ok()) return s;

  const size_t num_group_axes = rows.ndim() - 1;
  if (w.ndim() != num_group_axes + kInnerOfWeight)
    return Wrong("w is [*group, capacity, block_in, block_out] with the group axes of rows",
                 Shapes({w, rows}), "Give every array the same group axes, of size 1 if need be.");
  if (x.ndim() != y.ndim() || x.ndim() < num_group_axes + 1)
    return Wrong("x is [*group, *batch, in] and y is [*group, *batch, out]", Shapes({x, y, rows}),
                 "Give every array the same group axes, of size 1 if need be.");
  for (size_t i = num_group_axes; i + 1 < x.ndim(); ++i)
    if (x.dims()[i] != y.dims()[i])
      return Wrong("x and y have the same batch axes", Shapes({x, y}), "Make them agree.");

  GroupAxes groups;
  if (Status s = GroupAxes::FromOperands({a, b, rows, cols}, num_group_axes, &groups); !s.ok())
    return s;
  if (Status s = groups.CheckResult(result); !s.ok()) return s;
  if (Status s = ReadBlocks(w, rows, num_group_axes, problem); !s.ok()) return s;
  if (Status s = Product(x, num_group_axes, x.ndim() - 1, &problem->batch); !s.ok()) return s;
  problem->in = x.dims().back();
  problem->out = y.dims().back();
  if (Status s = CheckProductFits("the number of multiplications",
                                  {groups.num_groups(), problem->capacity, problem->block_in,
                                   problem->block_out, problem->batch});
      !s.ok())
    return s;

  problem->x_group = groups.MapTo(x);
  problem->w_group = groups.MapTo(w);
  problem->y_group = groups.MapTo(y);
  problem->pattern_group = groups.MapTo(rows);
  problem->x = x.buffer.untyped_data();
  problem->w = w.buffer.untyped_data();
  problem->y = y.buffer.untyped_data();
  problem->rows = static_cast<const int32_t*>(rows.buffer.untyped_data());
  problem->cols = static_cast<const int32_t*>(cols.buffer.untyped_data());
  return {};
}

Status DecodeBlockCopy(const BlockCopyBuffers& buffers, BlockMatmul* problem, size_t* item_bytes) {
  const NamedBuffer dense{"dense", buffers.dense}, values{"values", buffers.values};
  const NamedBuffer rows{"rows", buffers.rows}, cols{"cols", buffers.cols};
  const NamedBuffer& operand = buffers.to_blocks ? dense : values;
  const NamedBuffer& result = buffers.to_blocks ? values : dense;

  if (Status s = CheckPattern(rows, cols); !s.ok()) return s;
  if (Status s = CheckOneDType({dense, values}); !s.ok()) return s;
  *item_bytes = ffi::ByteWidth(dense.dtype());
  if (*item_bytes == 0)
    return Wrong("arrays have elements of one byte or more", DTypeName(dense.dtype()),
                 "Convert them before the call.");

  const size_t num_group_axes = rows.ndim() - 1;
  if (dense.ndim() != num_group_axes + 2 || values.ndim() != num_group_axes + kInnerOfWeight)
    return Wrong(
        "dense is [*group, in, out] and values [*group, capacity, block_in, block_out] with the "
        "group axes of rows",
        Shapes({dense, values, rows}),
        "Give every array the same group axes, of size 1 if need be.");

  GroupAxes groups;
  if (Status s = GroupAxes::FromOperands({operand, rows, cols}, num_group_axes, &groups); !s.ok())
    return s;
  if (Status s = groups.CheckResult(result); !s.ok()) return s;
  if (Status s = ReadBlocks(values, rows, num_group_axes, problem); !s.ok()) return s;
  problem->batch = 1;
  problem->in = dense.dims()[num_group_axes];
  problem->out = dense.dims()[num_group_axes + 1];
  if (Status s = CheckProductFits(
          "the size of the dense array",
          {groups.num_groups(), problem->in, problem->out, static_cast<int64_t>(*item_bytes)});
      !s.ok())
    return s;
  if (Status s = CheckProductFits("the size of the values",
                                  {groups.num_groups(), problem->capacity, problem->block_in,
                                   problem->block_out, static_cast<int64_t>(*item_bytes)});
      !s.ok())
    return s;

  problem->x_group = groups.MapTo(dense);
  problem->w_group = groups.MapTo(values);
  problem->pattern_group = groups.MapTo(rows);
  problem->x = dense.buffer.untyped_data();
  problem->w = values.buffer.untyped_data();
  problem->rows = static_cast<const int32_t*>(rows.buffer.untyped_data());
  problem->cols = static_cast<const int32_t*>(cols.buffer.untyped_data());
  return {};
}

}  // namespace jaxsparse
