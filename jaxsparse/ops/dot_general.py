"""`lax.dot_general` with a sparse right-hand side: also what Flax layers take as their product."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from jaxsparse.formats.block import BlockPattern, matrix_view
from jaxsparse.formats.weight import SparseWeight, check_values
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
    pattern: BlockPattern | None = None,
    implementation: str | None = None,
    grad: str = "exact",
) -> jax.Array:
    """Contracts `lhs` with a weight of which only some entries take part.

    The arguments of `jax.lax.dot_general`, and its result for a `rhs` that is zero off the pattern.
    `functools.partial(jaxsparse.dot_general, pattern=pattern)` fits the `dot_general` argument of
    Flax's layers.

    Args:
        lhs: an array.
        rhs: a SparseWeight; or an array with `pattern`: its entries on the pattern; or an array
            alone: this is `jax.lax.dot_general`.
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
    if isinstance(lhs, SparseWeight):
        raise NotImplementedError(
            "dot_general: the sparse operand is rhs, got a SparseWeight as lhs. Exchange the "
            "operands, or use lhs.todense()."
        )
    is_packed = isinstance(rhs, SparseWeight)
    if is_packed:
        if pattern is not None:
            raise ValueError("dot_general: a SparseWeight has its pattern, got another. Drop it.")
        check_values("dot_general", rhs.values, rhs.pattern)
        pattern, numbers = rhs.pattern, rhs.values
        rhs_shape = (*pattern.rows.shape[:-1], *pattern.shape)
    elif pattern is None:
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
    elif not isinstance(pattern, BlockPattern):
        raise TypeError(f"dot_general: expected a pattern, got {type(pattern).__name__}.")
    else:
        numbers = jnp.asarray(rhs)
        rhs_shape = numbers.shape
    lhs = jnp.asarray(lhs)
    # lax checks the dimension numbers, and says in which dtype it would compute.
    dense = functools.partial(lax.dot_general, dimension_numbers=dimension_numbers)
    left_struct = jax.ShapeDtypeStruct(lhs.shape, lhs.dtype)
    right_struct = jax.ShapeDtypeStruct(rhs_shape, numbers.dtype)
    dtype = jax.eval_shape(dense, left_struct, right_struct).dtype
    left, right = _axes(dimension_numbers, lhs.ndim, len(rhs_shape))
    stacked = _check_rhs(right, rhs_shape, pattern, is_packed)

    matrix = tuple(math.prod(rhs_shape[a] for a in axes) for axes in (right.contracted, right.free))
    x = lhs.astype(dtype).transpose(*left.batch, *left.free, *left.contracted)
    x = x.reshape(*x.shape[: x.ndim - len(left.contracted)], matrix[0])
    if is_packed:
        rows, cols = (index.transpose(*right.batch, index.ndim - 1) for index in pattern.indices)
        inner = range(numbers.ndim - 2, numbers.ndim)
        numbers = numbers.transpose(*right.batch, len(right.batch), *inner)
    else:
        rows, cols = pattern.indices
        numbers = numbers.transpose(*right.batch, *right.contracted, *right.free)
        numbers = numbers.reshape(*numbers.shape[: len(right.batch)], *matrix)

    def product(x, numbers, rows, cols):
        p = BlockPattern(rows, cols, matrix, pattern.format)
        w, p = (SparseWeight(numbers, p), None) if is_packed else (numbers, p)
        return matmul(
            x,
            w,
            pattern=p,
            precision=precision,
            preferred_element_type=preferred_element_type,
            implementation=implementation,
            grad=grad,
        )

    for _ in right.batch:
        index_axis = 0 if stacked else None
        product = jax.vmap(product, in_axes=(0, 0, index_axis, index_axis))
    y = product(x, numbers.astype(dtype), rows, cols)
    y = y.reshape(*y.shape[:-1], *(rhs_shape[axis] for axis in right.free))
    return y if out_sharding is None else jax.sharding.reshard(y, out_sharding)


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


def _check_rhs(axes: _Axes, shape, pattern: BlockPattern, is_packed: bool) -> bool:
    """Raises unless the pattern's rows are contracted; whether each batch element has its own."""
    batch_shape, index_shape = tuple(shape[a] for a in axes.batch), pattern.rows.shape[:-1]
    if is_packed and sorted(axes.batch) != list(range(len(index_shape))):
        raise NotImplementedError(
            "dot_general: the batch axes of a SparseWeight must be the leading axes of its "
            f"pattern's indices, {len(index_shape)} here, got rhs batch axes {axes.batch}."
        )
    if not is_packed and index_shape not in ((), batch_shape):
        raise ValueError(
            "dot_general: the pattern must have indices [capacity], or [*batch, capacity] with "
            f"batch axes {batch_shape}, got pattern.rows.shape={pattern.rows.shape}."
        )
    if axes.contracted and axes.free and max(axes.contracted) > min(axes.free):
        raise NotImplementedError(
            "dot_general: batch axes apart, the contracted axes of a sparse rhs must come before "
            f"its free axes, got contracted {axes.contracted} and free {axes.free}. Transpose rhs "
            "and make its pattern anew."
        )
    sizes = [math.prod(shape[a] for a in group) for group in (axes.contracted, axes.free)]
    rows, cols = matrix_view(pattern.shape)
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
