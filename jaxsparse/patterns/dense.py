"""Sparse weights from dense arrays and from other libraries' sparse matrices."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsparse.formats.block import Block
from jaxsparse.formats.parse import as_format
from jaxsparse.formats.weight import SparseWeight
from jaxsparse.patterns import make


def fromdense(
    w, format, *, sparsity=None, mask=None, capacity: int | None = None, remainder: str = "pad"
) -> SparseWeight:
    """The sparse weight with the entries of a dense array.

    Without `sparsity` or `mask` it is exact: every block with a non-zero entry is stored.

    Args:
        w: `[in, out]` or `[*kernel, in, out]`, real, concrete or traced.
        format: such as `Block((32, 32))` or "32x32".
        sparsity: keep the blocks of largest Euclidean norm, so many that this share of all blocks
            is dropped; from 0 to 1.
        mask: bool, of the shape of `w`: what is false is dropped, blocks with anything true are
            stored.
        capacity: room for this many blocks. Needed for a traced `w` unless `sparsity` is given.
            If there are more blocks to store, a concrete `w` raises; a traced one gives a pattern
            that kernels refuse when they run, and NaN where there are no kernels.
        remainder: where blocks do not divide the weight, "pad" fills the last ones up with zeros
            that stay zero; "error" refuses.

    Raises:
        ValueError, TypeError: arguments that contradict themselves or the shape of `w`.
    """
    if isinstance(w, SparseWeight):
        raise TypeError("fromdense: w is dense, got a SparseWeight. Use jaxsparse.convert.")
    w = make.as_array(w)
    _check_numeric("fromdense", w)
    shape, format = make.check_weight_shape("fromdense", w.shape, format)
    _check_remainder(shape, format, remainder)
    if sparsity is not None and mask is not None:
        raise ValueError("fromdense: give sparsity or mask, got both. Apply the mask to w first.")
    if mask is not None:
        mask = _as_mask(mask, shape)
        pattern = make.from_mask(mask, format, capacity=capacity)
        w = jnp.where(mask, w, jnp.zeros((), w.dtype))
    elif sparsity is not None:
        if capacity is not None:
            raise ValueError("fromdense: sparsity fixes the capacity, got both. Leave one out.")
        count = make.num_kept("fromdense", math.prod(format.grid(shape)), sparsity)
        pattern = make.from_scores(block_norms(w, format), format, shape, count)
    else:
        pattern = make.from_mask(_is_nonzero(w), format, capacity=capacity)
    return SparseWeight(pattern.gather(jnp.asarray(w)), pattern)


def fromsparse(matrix, format, *, capacity: int | None = None) -> SparseWeight:
    """The sparse weight with the stored entries of another library's sparse matrix.

    Args:
        matrix: `[in, out]`; a `scipy.sparse` matrix or array of any kind, or a BCOO or BCSR of
            `jax.experimental.sparse`. Entries stored twice are added, as in those libraries.
        format, capacity: as in `fromdense`. Blocks with a stored entry are stored, also where that
            entry is zero.
    """
    rows, cols, data = _entries(matrix)
    shape, format = make.check_weight_shape("fromsparse", matrix.shape, format)
    for name, index, size in (("row", rows, shape[0]), ("column", cols, shape[1])):
        if index.size and not 0 <= index.min() <= index.max() < size:
            raise ValueError(
                f"fromsparse: {name}s must be from 0 to {size - 1}, got {index.min()} to "
                f"{index.max()}. The matrix is not a valid one."
            )
    grid = format.grid(shape)
    stored = np.zeros(grid, bool)
    stored[rows // format.shape[0], cols // format.shape[1]] = True
    pattern = make.from_grid(stored, format, shape, capacity=capacity)
    # Straight into the blocks: the dense matrix may be far larger than memory.
    slots = np.zeros(grid, np.int64)
    used = int(stored.sum())
    slots[np.asarray(pattern.rows)[:used], np.asarray(pattern.cols)[:used]] = np.arange(used)
    values = np.zeros(pattern.values_shape, data.dtype)
    block_in, block_out = format.shape
    places = (slots[rows // block_in, cols // block_out], rows % block_in, cols % block_out)
    np.add.at(values, places, data)
    return SparseWeight(jnp.asarray(values), pattern)


def block_norms(w, format) -> jax.Array:
    """The Euclidean norm of each block, `[grid_rows, grid_cols]`, in float32 (float64 for float64).

    Args:
        w: a dense array or a SparseWeight.
        format: the blocks to take norms of.
    """
    w = jnp.asarray(w.todense() if isinstance(w, SparseWeight) else w)
    _check_numeric("block_norms", w)
    _, format = make.check_weight_shape("block_norms", w.shape, format)
    magnitude = _magnitude(w)
    scale = _scale(make.reduce_blocks(magnitude, format, "max"))
    block_in, block_out = format.shape
    of_each = jnp.repeat(jnp.repeat(scale, block_in, axis=0), block_out, axis=1)
    of_each = of_each[: math.prod(w.shape[:-1]), : w.shape[-1]].reshape(w.shape)
    return scale * jnp.sqrt(make.reduce_blocks((magnitude / of_each) ** 2, format, "sum"))


def _magnitude(w):
    """Absolute values in float32, or in float64 where `w` is so wide."""
    if not jnp.issubdtype(w.dtype, jnp.inexact):
        w = w.astype(jnp.float32)
    size = jnp.abs(w)
    return size if size.dtype == jnp.float64 else size.astype(jnp.float32)


def _scale(largest):
    """What to divide by, so that squares of what is not much smaller neither overflow nor vanish.

    Limited so that its reciprocal is a normal number: XLA multiplies by that instead of dividing,
    and takes subnormal numbers for zero.
    """
    limit = 2.0 ** (jnp.finfo(largest.dtype).maxexp - 28)
    return jnp.clip(largest, 1 / limit, limit)


def convert(w: SparseWeight, format, policy: str = "cover", *, sparsity=None) -> SparseWeight:
    """The weight in another format.

    Args:
        w: any sparse weight, known outside `jit` (or `policy="project"`).
        format: the new format.
        policy: "cover" stores every block that meets a stored one, which loses nothing;
            "project" keeps the blocks of largest norm.
        sparsity: for "project": the share of blocks to drop; by default as many entries are
            stored as in `w`.

    Returns:
        A SparseWeight of the same shape and dtype. `norm_kept(w, result)` says how much a
        projection kept.
    """
    if not isinstance(w, SparseWeight):
        raise TypeError(
            f"convert: expected a SparseWeight, got {type(w).__name__}. For arrays use fromdense."
        )
    format = as_format(format)
    dense = w.todense()
    if policy == "cover":
        if sparsity is not None:
            raise ValueError('convert: sparsity goes with policy="project", got policy="cover".')
        mask = w.pattern.mask()
        if make.is_traced(mask):
            raise ValueError(
                'convert: policy="cover" decides how many blocks are stored, which inside jit '
                'must be known. Convert outside, or use policy="project".'
            )
        pattern = make.from_mask(np.asarray(mask), format)
        return SparseWeight(pattern.gather(dense), pattern)
    if policy == "project":
        return fromdense(dense, format, sparsity=1 - w.density if sparsity is None else sparsity)
    raise ValueError(f'convert: policy is "cover" or "project", got {policy!r}.')


def norm_kept(original, projected) -> jax.Array:
    """The norm of `projected` over that of `original`, each dense or sparse; 1 is lossless."""
    if original.shape != projected.shape:
        raise ValueError(
            f"norm_kept: both must have one shape, got {original.shape} and {projected.shape}."
        )
    whole, kept = (
        _magnitude(jnp.asarray(a.todense() if isinstance(a, SparseWeight) else a))
        for a in (original, projected)
    )
    scale = _scale(jnp.max(whole, initial=0))
    whole, kept = (jnp.sum((size / scale) ** 2) for size in (whole, kept))
    return jnp.where(whole == 0, 1.0, jnp.sqrt(kept / whole))


def _is_nonzero(w):
    """Where `w` is not zero; NaN is not, and no subnormal is."""
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


def _check_remainder(shape, format: Block, remainder: str) -> None:
    if remainder not in ("pad", "error"):
        raise ValueError(f'fromdense: remainder is "pad" or "error", got {remainder!r}.')
    size_in, size_out = math.prod(shape[:-1]), shape[-1]
    if remainder == "error" and (size_in % format.shape[0] or size_out % format.shape[1]):
        raise ValueError(
            f"fromdense: blocks of {format} do not tile a weight of shape {shape} (matrix view "
            f'{(size_in, size_out)}). Use remainder="pad", or other blocks.'
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


def _entries(matrix):
    """Rows, columns and numbers of the stored entries of a scipy or JAX sparse matrix."""
    if make.is_traced(*jax.tree.leaves(matrix)):
        raise ValueError("fromsparse: the matrix is traced. Call it outside jit.")
    if hasattr(matrix, "tocoo") and matrix.ndim != 2:
        raise ValueError(f"fromsparse: a matrix has two axes, got shape {matrix.shape}.")
    if hasattr(matrix, "to_bcoo"):  # BCSR
        matrix = matrix.to_bcoo()
    if hasattr(matrix, "tocoo"):  # scipy.sparse
        coo = matrix.tocoo()
        return coo.row.astype(np.int64), coo.col.astype(np.int64), np.asarray(coo.data)
    if hasattr(matrix, "indices") and hasattr(matrix, "n_batch"):  # BCOO
        if matrix.ndim != 2 or matrix.n_batch or matrix.n_dense:
            raise ValueError(
                "fromsparse: a BCOO must be a matrix without batch or dense axes, got shape "
                f"{matrix.shape}, n_batch={matrix.n_batch}, n_dense={matrix.n_dense}."
            )
        places = np.asarray(matrix.indices).astype(np.int64)
        data = np.asarray(matrix.data)
        # BCOO pads with indices one past the end.
        inside = (places < np.asarray(matrix.shape)).all(axis=1)
        return places[inside, 0], places[inside, 1], data[inside]
    raise TypeError(
        "fromsparse: expected a scipy.sparse matrix, BCOO or BCSR, got "
        f"{type(matrix).__name__}. For arrays use fromdense."
    )
