"""`lax.dot_general` with a sparse right-hand side: also what Flax layers take as their product."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from jaxsparse.formats.columns import ColumnPattern, num_taps
from jaxsparse.formats.pattern import Pattern, check_pattern
from jaxsparse.formats.weight import SparseWeight, WeightSum, check_sum, check_values
from jaxsparse.ops.arguments import sum_over
from jaxsparse.ops.matmul import matmul
from jaxsparse.ops.options import check_options


def dot_general(
    lhs,
    rhs,
    dimension_numbers,
    precision=None,
    preferred_element_type=None,
    *,
    out_sharding=None,
    pattern: Pattern | None = None,
    implementation: str | None = None,
    grad: str = "exact",
) -> jax.Array:
    """Contracts `lhs` with a weight of which only some entries take part.

    The arguments of `jax.lax.dot_general`, and its result for a `rhs` that is zero off the pattern.
    `functools.partial(jaxsparse.dot_general, pattern=pattern)` fits the `dot_general` argument of
    Flax's layers.

    Args:
        lhs: an array.
        rhs: a SparseWeight or a WeightSum; or an array with `pattern`: its entries on the pattern;
            or an array alone: this is `jax.lax.dot_general`.
        dimension_numbers: `((lhs_contract, rhs_contract), (lhs_batch, rhs_batch))`. Batch axes
            apart, the contracted axes of `rhs` must come before its free axes: they are the rows
            and the columns of the matrix that the pattern sees. A SparseWeight has one batch axis
            for each leading axis of its pattern's indices, before the axes of its shape.
        precision, preferred_element_type: as for `jax.lax.dot_general`.
        out_sharding: of the result, as for `jax.lax.dot_general`.
        pattern: for an array `rhs`. Indices `[capacity]` serve all batch elements, indices
            `[*batch, capacity]` give each its own, batch axes in the order of `lhs_batch`.
        implementation, grad: as in `jaxsparse.matmul`.

    Returns:
        `[*batch, *lhs_free, *rhs_free]`.

    Raises:
        ValueError, TypeError: arguments that do not fit together.
        NotImplementedError: dimension numbers that do not contract the pattern's rows, or a sparse
            `lhs`.
    """
    check_options("dot_general", implementation, grad)
    if isinstance(lhs, (SparseWeight, WeightSum)):
        raise NotImplementedError(
            f"dot_general: the sparse operand is rhs, got a {type(lhs).__name__} as lhs. Exchange "
            "the operands, or use lhs.todense()."
        )
    arguments = {
        "precision": precision,
        "preferred_element_type": preferred_element_type,
        "out_sharding": out_sharding,
        "implementation": implementation,
        "grad": grad,
    }
    if isinstance(rhs, (SparseWeight, WeightSum)) and pattern is not None:
        raise ValueError(
            f"dot_general: a {type(rhs).__name__} has its pattern, got another. Drop it."
        )
    if isinstance(rhs, WeightSum):
        check_sum("dot_general", rhs)
        product = lambda part: dot_general(lhs, part, dimension_numbers, **arguments)
        return sum_over(rhs.parts, product)
    if isinstance(rhs, SparseWeight):
        return packed_dot_general(lhs, rhs, rhs.shape, dimension_numbers, **arguments)
    if pattern is None:
        if implementation == "ffi":
            raise ValueError(
                'dot_general: implementation="ffi" needs a sparse weight, got an array. Pass a '
                "SparseWeight or a pattern."
            )
        return lax.dot_general(
            lhs,
            rhs,
            dimension_numbers,
            precision,
            preferred_element_type,
            out_sharding=out_sharding,
        )
    check_pattern("dot_general", pattern)
    rhs = jnp.asarray(rhs)
    return _dot_general(
        lhs, rhs, rhs.shape, pattern, dimension_numbers, is_packed=False, **arguments
    )


def packed_dot_general(lhs, w: SparseWeight, shape, dimension_numbers, **arguments) -> jax.Array:
    """`dot_general` with a weight that is seen as an array `[*group, *shape]`.

    Args:
        shape: of the same matrix view, (contracted, free), as that of the weight's own.
        lhs, dimension_numbers, **arguments: as for `dot_general`.
    """
    check_values("dot_general", w.values, w.pattern)
    shape = (*w.pattern.group, *shape)
    return _dot_general(
        lhs, w.values, shape, w.pattern, dimension_numbers, is_packed=True, **arguments
    )


def _dot_general(
    lhs,
    numbers,
    rhs_shape,
    pattern,
    dimension_numbers,
    *,
    is_packed,
    out_sharding=None,
    **arguments,
):
    lhs = jnp.asarray(lhs)
    # lax checks the dimension numbers, and says in which dtype it would compute.
    dense = functools.partial(lax.dot_general, dimension_numbers=dimension_numbers)
    left_struct = jax.ShapeDtypeStruct(lhs.shape, lhs.dtype)
    right_struct = jax.ShapeDtypeStruct(rhs_shape, numbers.dtype)
    dtype = jax.eval_shape(dense, left_struct, right_struct).dtype
    left, right = _axes(dimension_numbers, lhs.ndim, len(rhs_shape))
    stacked = _check_rhs(right, rhs_shape, pattern, is_packed)

    matrix = tuple(math.prod(rhs_shape[a] for a in axes) for axes in (right.contracted, right.free))
    num_batch = len(right.batch)
    x = lhs.astype(dtype).transpose(*left.batch, *left.free, *left.contracted)
    x = x.reshape(*x.shape[: x.ndim - len(left.contracted)], matrix[0])
    x = _in_order(pattern, x, x.ndim - 1)
    indices = pattern.indices
    if is_packed:
        indices = [index.transpose(*right.batch, num_batch) for index in indices]
        numbers = numbers.transpose(*right.batch, *range(num_batch, numbers.ndim))
    else:
        numbers = numbers.transpose(*right.batch, *right.contracted, *right.free)
        numbers = numbers.reshape(*numbers.shape[:num_batch], *matrix)
        numbers = _in_order(pattern, numbers, num_batch)

    def product(x, numbers, *indices):
        p = pattern.with_indices(*indices, shape=matrix)
        w, p = (SparseWeight(numbers, p), None) if is_packed else (numbers, p)
        return matmul(x, w, pattern=p, **arguments)

    for _ in right.batch:
        index_axis = 0 if stacked else None
        product = jax.vmap(product, in_axes=(0, 0, *[index_axis] * len(indices)))
    y = product(x, numbers.astype(dtype), *indices)
    y = y.reshape(*y.shape[:-1], *(rhs_shape[axis] for axis in right.free))
    return y if out_sharding is None else jax.sharding.reshard(y, out_sharding)


def _in_order(pattern: Pattern, array, axis: int):
    """An array whose axis counts rows of the matrix view, in the order in which columns list them.

    Columns list the taps of one channel together, which as a matrix without taps is another order
    of its rows.
    """
    taps = num_taps(pattern.shape)
    if taps == 1 or not isinstance(pattern, ColumnPattern):
        return array
    before, after = array.shape[:axis], array.shape[axis + 1 :]
    by_tap = array.reshape(*before, taps, -1, *after)
    return by_tap.swapaxes(axis, axis + 1).reshape(array.shape)


@dataclasses.dataclass(frozen=True)
class _Axes:
    """The axes of one operand. Those of the two operands correspond, the free ones apart."""

    batch: tuple[int, ...]
    contracted: tuple[int, ...]
    free: tuple[int, ...]


def _axes(dimension_numbers, lhs_ndim: int, rhs_ndim: int) -> tuple[_Axes, _Axes]:
    """The axes of both operands, contracted ones in the order in which `rhs` has them."""
    (lhs_contract, rhs_contract), (lhs_batch, rhs_batch) = dimension_numbers
    order = sorted(range(len(rhs_contract)), key=lambda i: rhs_contract[i])
    both = []
    for ndim, batch, contract in (
        (lhs_ndim, lhs_batch, lhs_contract),
        (rhs_ndim, rhs_batch, rhs_contract),
    ):
        batch, contract = tuple(batch), tuple(contract[i] for i in order)
        free = tuple(axis for axis in range(ndim) if axis not in batch + contract)
        both.append(_Axes(batch, contract, free))
    return both[0], both[1]


def _check_rhs(axes: _Axes, shape, pattern: Pattern, is_packed: bool) -> bool:
    """Raises unless the pattern's rows are contracted; whether each batch element has its own."""
    batch_shape, index_shape = tuple(shape[a] for a in axes.batch), pattern.group
    if is_packed and sorted(axes.batch) != list(range(len(index_shape))):
        raise NotImplementedError(
            "dot_general: the batch axes of a SparseWeight must be the leading axes of its "
            f"pattern's indices, {len(index_shape)} here, got rhs batch axes {axes.batch}."
        )
    if not is_packed and index_shape not in ((), batch_shape):
        raise ValueError(
            "dot_general: the pattern must have indices [capacity], or [*batch, capacity] with "
            f"batch axes {batch_shape}, got indices of shape {pattern.indices[0].shape}."
        )
    if axes.contracted and axes.free and max(axes.contracted) > min(axes.free):
        raise NotImplementedError(
            "dot_general: batch axes apart, the contracted axes of a sparse rhs must come before "
            f"its free axes, got contracted {axes.contracted} and free {axes.free}. Transpose rhs "
            "and make its pattern anew."
        )
    sizes = [math.prod(shape[a] for a in group) for group in (axes.contracted, axes.free)]
    rows, cols = pattern.spec().weight_shape
    if (rows, cols) != tuple(sizes):
        if rows * cols == math.prod(sizes):
            raise NotImplementedError(
                f"dot_general: the pattern sees a matrix of shape {(rows, cols)} of which the rows "
                f"are contracted, got dimension numbers that contract {sizes[0]} of {sizes} "
                "entries. Make the pattern for the matrix (contracted, free)."
            )
        raise ValueError(
            f"dot_general: the pattern is for a matrix of shape {(rows, cols)}, got a rhs of shape "
            f"{tuple(shape)}, which is {tuple(sizes)} (contracted, free). Make a pattern for it."
        )
    return bool(index_shape)
