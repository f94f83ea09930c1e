"""`lax.conv_general_dilated` with a sparse weight: a convolution that Flax layers can be given."""

import functools
from collections.abc import Sequence

import jax
from jax import lax

from jaxsparse.formats.pattern import Pattern
from jaxsparse.formats.weight import SparseWeight, WeightSum
from jaxsparse.ops import arguments
from jaxsparse.ops.conv import conv
from jaxsparse.ops.options import check_options


def conv_general_dilated(
    lhs,
    rhs,
    window_strides,
    padding,
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers=None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision=None,
    preferred_element_type=None,
    out_sharding=None,
    *,
    pattern: Pattern | None = None,
    implementation: str | None = None,
    grad: str = "exact",
) -> jax.Array:
    """Convolves `lhs` with a weight of which only some entries take part.

    The arguments of `jax.lax.conv_general_dilated`, and its result for a `rhs` that is zero off the
    pattern. `functools.partial(jaxsparse.conv_general_dilated, pattern=pattern)` fits the
    `conv_general_dilated` argument of Flax's layers.

    Args:
        lhs: an array.
        rhs: an array with `pattern`: its entries on the pattern; or an array alone: this is
            `jax.lax.conv_general_dilated`; or a SparseWeight or WeightSum, which is
            `[*kernel, in, out]`, as `dimension_numbers` must say ("HWIO").
        window_strides, lhs_dilation, rhs_dilation: one int per space axis.
        padding: "SAME", "SAME_LOWER", "VALID", or a pair (low, high) for each space axis.
        dimension_numbers: as for lax, any. The pattern is for `rhs` in the order
            `[*kernel, in, out]`, whatever its own; the kernel's axes follow each other as they do
            in `rhs`.
        feature_group_count: as for lax.
        batch_group_count: 1.
        precision, preferred_element_type: as for lax.
        out_sharding: of the result, as for lax.
        pattern: for an array `rhs`, which of its entries take part.
        implementation, grad: as in `jaxsparse.conv`.

    Returns:
        What lax returns.

    Raises:
        ValueError, TypeError, RuntimeError: as lax, for arguments that do not fit together.
        NotImplementedError: batch groups; a sparse `lhs`; a SparseWeight in another order.
    """
    name = "conv_general_dilated"
    check_options(name, implementation, grad)
    is_sparse = isinstance(rhs, (SparseWeight, WeightSum))
    if isinstance(lhs, (SparseWeight, WeightSum)):
        raise NotImplementedError(
            f"{name}: the sparse operand is rhs, got a {type(lhs).__name__} as lhs. Exchange the "
            "operands, or use lhs.todense()."
        )
    if not is_sparse and pattern is None:
        if implementation == "ffi":
            raise ValueError(
                f'{name}: implementation="ffi" needs a sparse weight, got an array. Pass a '
                "SparseWeight or a pattern."
            )
        return lax.conv_general_dilated(
            lhs,
            rhs,
            window_strides,
            padding,
            lhs_dilation,
            rhs_dilation,
            dimension_numbers,
            feature_group_count,
            batch_group_count,
            precision,
            preferred_element_type,
            out_sharding,
        )
    if batch_group_count != 1:
        raise NotImplementedError(
            f"{name}: sparse weights have no batch groups, got batch_group_count="
            f"{batch_group_count}. Use feature_group_count, or a dense rhs."
        )
    lhs = arguments.as_array(name, "lhs", lhs)
    if not is_sparse:
        rhs = arguments.as_array(name, "rhs", rhs)
    numbers = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    out, inputs, *kernel = numbers.rhs_spec
    rhs_order = (*kernel, inputs, out)
    if is_sparse and rhs_order != tuple(range(rhs.ndim)):
        raise NotImplementedError(
            f"{name}: a {type(rhs).__name__} is [*kernel, in, out], got dimension_numbers="
            f"{dimension_numbers} that put its axes elsewhere. Write them as in "
            '("NHWC", "HWIO", "NHWC").'
        )
    # lax checks the arguments, but for those that are ours.
    dense = functools.partial(
        lax.conv_general_dilated,
        window_strides=window_strides,
        padding=padding,
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        dimension_numbers=dimension_numbers,
        feature_group_count=feature_group_count,
        precision=precision,
        preferred_element_type=preferred_element_type,
    )
    jax.eval_shape(dense, *(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (lhs, rhs)))
    if not isinstance(rhs, (SparseWeight, WeightSum)):
        rhs = rhs.transpose(rhs_order)
    batch, channels, *space = numbers.lhs_spec
    y = conv(
        lhs.transpose(batch, *space, channels),
        rhs,
        pattern=pattern,
        strides=window_strides,
        padding=padding,
        input_dilation=lhs_dilation,
        kernel_dilation=rhs_dilation,
        feature_group_count=feature_group_count,
        precision=precision,
        preferred_element_type=preferred_element_type,
        implementation=implementation,
        grad=grad,
    )
    batch, channels, *space = numbers.out_spec
    source = {batch: 0, channels: y.ndim - 1, **{axis: i for i, axis in enumerate(space, start=1)}}
    y = y.transpose([source[axis] for axis in range(y.ndim)])
    return y if out_sharding is None else jax.sharding.reshard(y, out_sharding)
