"""Sparse weights from dense arrays, and in other formats."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsparse.formats.parse import as_format
from jaxsparse.formats.pattern import Format, Pattern, as_jax
from jaxsparse.formats.weight import SparseWeight, WeightSum
from jaxsparse.patterns import make


def fromdense(
    w,
    format,
    *,
    sparsity=None,
    mask=None,
    tolerance=0,
    capacity: int | None = None,
    order=None,
    remainder: str = "pad",
) -> SparseWeight:
    """The sparse weight with the entries of a dense array.

    Without `sparsity` or `mask` it is exact: whatever has a non-zero entry is stored.

    Args:
        w: `[in, out]` or `[*kernel, in, out]`, real, concrete or traced.
        format: such as `Block((32, 32))` or "32x32", "unstructured", "grouped:8".
        sparsity: keep the parts of largest Euclidean norm (the weights of largest magnitude, if
            unstructured), so many that this share of all parts is dropped; from 0 to 1.
        mask: bool, of the shape of `w`: what is false is dropped, parts with anything true are
            stored.
        tolerance: what counts as zero: parts of which no entry is larger in magnitude are not
            stored.
        capacity: room for this many parts. Needed for a traced `w` unless `sparsity` is given.
            If there are more to store, a concrete `w` raises; a traced one gives a pattern that
            kernels refuse when they run, and NaN where there are no kernels.
        order: for groups, the outputs in the order in which they form groups, such as
            `jaxsparse.patterns.similar_outputs(w, 8)`; by default neighbours do.
        remainder: where blocks or groups do not divide the weight, "pad" fills the last ones up
            with zeros that stay zero; "error" refuses.

    Raises:
        ValueError, TypeError: arguments that contradict themselves or the shape of `w`.
    """
    if isinstance(w, (SparseWeight, WeightSum)):
        raise TypeError(f"fromdense: w is dense, got a {type(w).__name__}. Use jaxsparse.convert.")
    w = make.as_array(w)
    _check_numeric("fromdense", w)
    shape, format = make.check_weight_shape("fromdense", w.shape, format)
    _check_remainder(shape, format, remainder)
    if sparsity is not None and mask is not None:
        raise ValueError("fromdense: give sparsity or mask, got both. Apply the mask to w first.")
    check_tolerance("fromdense", tolerance)
    if tolerance and (sparsity is not None or mask is not None):
        raise ValueError(
            "fromdense: tolerance says which entries are zero, got it with sparsity or a mask, "
            "which say so too. Leave one out."
        )
    if mask is not None:
        mask = _as_mask(mask, shape)
        pattern = make.from_mask(mask, format, capacity=capacity, order=order)
        w = jnp.where(mask, w, jnp.zeros((), w.dtype))
    elif sparsity is not None:
        if capacity is not None:
            raise ValueError("fromdense: sparsity fixes the capacity, got both. Leave one out.")
        pattern = largest_parts("fromdense", w, format, sparsity, order=order)
    else:
        stored = _is_nonzero(w, tolerance)
        pattern = make.from_mask(stored, format, capacity=capacity, order=order)
    return SparseWeight(pattern.gather(jnp.asarray(w)), pattern)


def largest_parts(function: str, w, format: Format, sparsity, *, order=None) -> Pattern:
    """The pattern of the parts of largest norm, this share of all parts left out."""
    count = make.num_kept(function, math.prod(format.grid(w.shape)), sparsity)
    order = make.check_order(function, order, w.shape, format)
    norms = _norms(w, format, order)
    return make.from_scores(norms, format, w.shape, count, order=order)


def block_norms(w, format, *, order=None) -> jax.Array:
    """The Euclidean norm of each part of a format, in float32 (float64 for float64).

    Args:
        w: a dense array or a sparse weight.
        format: the blocks, groups or single weights to take norms of.
        order: for groups, as in `fromdense`.

    Returns:
        `[grid_rows, grid_cols]`, as `jaxsparse.patterns.from_scores` takes it.
    """
    w = make.as_array(w.todense() if isinstance(w, (SparseWeight, WeightSum)) else w)
    _check_numeric("block_norms", w)
    _, format = make.check_weight_shape("block_norms", w.shape, format)
    order = make.check_order("block_norms", order, w.shape, format)
    return as_jax(_norms(w, format, order))


def _norms(w, format: Format, order):
    """The norms of the parts of a dense array.

    On the host where that is known: XLA would compile some ten programs for each shape.
    """
    xp = jnp if make.is_traced(w, order) else np
    magnitude, inside = format.tiles(_magnitude(xp.asarray(w)), order)
    if not inside:
        return magnitude
    largest = magnitude.max(axis=inside, keepdims=True)
    scale = _scale(largest)
    squares = ((magnitude / scale) ** 2).sum(axis=inside, keepdims=True)
    return (scale * xp.sqrt(squares)).squeeze(inside)


def _magnitude(w):
    """Absolute values in float32, or in float64 where `w` is so wide."""
    if not jnp.issubdtype(w.dtype, jnp.inexact):
        w = w.astype(jnp.float32)
    size = abs(w)
    return size if size.dtype == jnp.float64 else size.astype(jnp.float32)


def _scale(largest):
    """What to divide by, so that squares of what is not much smaller neither overflow nor vanish.

    Limited so that its reciprocal is a normal number: XLA multiplies by that instead of dividing,
    and takes subnormal numbers for zero.
    """
    limit = 2.0 ** (jnp.finfo(largest.dtype).maxexp - 28)
    return largest.clip(1 / limit, limit)


def convert(
    w: SparseWeight | WeightSum, format, policy: str = "cover", *, sparsity=None, order=None
) -> SparseWeight:
    """The weight in another format.

    Args:
        w: any sparse weight, known outside `jit` (or `policy="project"`).
        format: the new format.
        policy: "cover" stores every part that meets something stored, which loses nothing;
            "project" keeps the parts of largest norm.
        sparsity: for "project": the share of parts to drop; by default as many entries are
            stored as in `w`.
        order: for groups, as in `fromdense`.

    Returns:
        A SparseWeight of the same shape and dtype. `norm_kept(w, result)` says how much a
        projection kept. `with_residual` stores what does not fit well beside the rest instead.
    """
    if not isinstance(w, (SparseWeight, WeightSum)):
        raise TypeError(
            f"convert: expected a SparseWeight, got {type(w).__name__}. For arrays use fromdense."
        )
    format = as_format(format)
    dense = w.todense()
    if policy == "cover":
        if sparsity is not None:
            raise ValueError('convert: sparsity goes with policy="project", got policy="cover".')
        mask = _stored(w)
        if make.is_traced(mask):
            raise ValueError(
                'convert: policy="cover" decides how many parts are stored, which inside jit '
                'must be known. Convert outside, or use policy="project".'
            )
        pattern = make.from_mask(mask, format, order=order)
        return SparseWeight(pattern.gather(dense), pattern)
    if policy == "project":
        sparsity = max(0.0, 1 - w.density) if sparsity is None else sparsity
        return fromdense(dense, format, sparsity=sparsity, order=order)
    raise ValueError(f'convert: policy is "cover" or "project", got {policy!r}.')


def with_residual(w, format, *, filled: float = 0.5, tolerance=0, order=None) -> WeightSum:
    """A weight as parts that are well filled, and beside them single weights; nothing is lost.

    Regrouped weights are `with_residual(w, "grouped:8", order=similar_outputs(w, 8))`: what a group
    of outputs has in common is stored once for all, leftovers are unstructured.

    Args:
        w: a dense array or a sparse weight, known outside `jit`.
        format: of the parts: blocks or groups.
        filled: parts of whose entries inside the weight at least this share is not zero are stored
            as parts; from 0 to 1, more than 0.
        tolerance, order: as in `fromdense`, for what counts as zero, and for groups.

    Returns:
        A WeightSum of two SparseWeights, the second unstructured.

    Raises:
        ValueError: the weight is traced, or `filled` no share.
    """
    is_number = isinstance(filled, (int, float, np.number)) and not isinstance(filled, bool)
    if not is_number or not 0 < filled <= 1:
        raise ValueError(f"with_residual: filled is a share above 0, up to 1, got {filled!r}.")
    check_tolerance("with_residual", tolerance)
    dense, nonzero = dense_and_nonzero("with_residual", w, tolerance)
    shape, format = make.check_weight_shape("with_residual", dense.shape, format)
    order = make.check_order("with_residual", order, shape, format)
    counts = format.reduce(nonzero.astype(np.int32), "sum", order)
    sizes = format.reduce(np.ones(shape, np.int32), "sum", order)
    chosen = (counts >= filled * sizes) & (counts > 0)
    parts = make.from_grid(chosen, format, shape, order=order)
    rest = nonzero & ~format.spread(chosen, shape, order).reshape(shape)
    residual = make.from_mask(rest, "unstructured")
    dense = jnp.asarray(dense)
    return WeightSum(tuple(SparseWeight(p.gather(dense), p) for p in (parts, residual)))


def dense_and_nonzero(function: str, w, tolerance=0) -> tuple[Any, np.ndarray]:
    """A weight, dense or sparse, as an array, and where that is not zero.

    Raises:
        ValueError: the weight is traced.
        TypeError: it does not hold numbers.
    """
    is_sparse = isinstance(w, (SparseWeight, WeightSum))
    dense = make.as_array(w.todense() if is_sparse else w)
    _check_numeric(function, dense)
    if make.is_traced(dense):
        raise ValueError(f"{function}: the weight is traced. Call it outside jit.")
    return dense, np.asarray(_is_nonzero(dense, tolerance))


def _stored(w: SparseWeight | WeightSum):
    """Where a weight stores entries; on the host where that is known."""
    parts = w.parts if isinstance(w, WeightSum) else (w,)
    masks = [part.pattern.mask() for part in parts]
    if make.is_traced(*masks):
        return functools.reduce(jnp.logical_or, masks)
    return functools.reduce(np.logical_or, map(np.asarray, masks))


def norm_kept(original, projected) -> jax.Array:
    """The norm of `projected` over that of `original`, each dense or sparse; 1 is lossless."""
    if original.shape != projected.shape:
        raise ValueError(
            f"norm_kept: both must have one shape, got {original.shape} and {projected.shape}."
        )
    whole, kept = (
        _magnitude(jnp.asarray(a.todense() if isinstance(a, (SparseWeight, WeightSum)) else a))
        for a in (original, projected)
    )
    scale = _scale(jnp.max(whole, initial=0))
    whole, kept = (jnp.sum((size / scale) ** 2) for size in (whole, kept))
    return jnp.where(whole == 0, 1.0, jnp.sqrt(kept / whole))


def _is_nonzero(w, tolerance=0):
    """Where `w` is not zero; NaN is not, and without a tolerance no subnormal is."""
    if tolerance:
        xp = jnp if make.is_traced(w) else np
        w = w if xp is jnp else np.asarray(w)
        return ~(xp.abs(w) <= tolerance)
    if not make.is_traced(w):
        return np.asarray(w) != 0
    if not jnp.issubdtype(w.dtype, jnp.floating):
        return w != 0
    # XLA takes subnormals for zeros when it compares; their bits are not zero.
    bits = lax.bitcast_convert_type(w, jnp.dtype(f"uint{8 * w.dtype.itemsize}"))
    return (bits << 1) != 0  # all but the sign


def _check_numeric(function: str, w) -> None:
    if not (jnp.issubdtype(w.dtype, jnp.number)):
        raise TypeError(f"{function}: a weight holds numbers, got dtype {w.dtype}.")


def check_tolerance(function: str, tolerance) -> None:
    is_number = isinstance(tolerance, (int, float, np.number)) and not isinstance(tolerance, bool)
    if not is_number or not 0 <= tolerance < math.inf:
        raise ValueError(
            f"{function}: tolerance is a number, 0 or more, up to which a magnitude counts as "
            f"zero, got {tolerance!r}."
        )


def _check_remainder(shape, format: Format, remainder: str) -> None:
    if remainder not in ("pad", "error"):
        raise ValueError(f'fromdense: remainder is "pad" or "error", got {remainder!r}.')
    size_in, size_out = math.prod(shape[:-1]), shape[-1]
    if remainder == "error" and (size_in % format.extent[0] or size_out % format.extent[1]):
        raise ValueError(
            f"fromdense: {format} {format.noun} do not tile a weight of shape {shape} (matrix view "
            f'{(size_in, size_out)}). Use remainder="pad", or another format.'
        )


def _as_mask(mask, shape):
    mask = mask if hasattr(mask, "dtype") else np.asarray(mask)
    if mask.dtype != bool:
        raise TypeError(f"fromdense: the mask must be bool, got {mask.dtype}.")
    if tuple(mask.shape) != shape:
        raise ValueError(
            f"fromdense: the mask must have the shape of w, {shape}, got {tuple(mask.shape)}."
        )
    return mask
