"""Sparse weights from other libraries' sparse matrices, and back."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.formats.pattern import Pattern, check_single, check_usable, matrix_view
from jaxsparse.formats.weight import SparseWeight, WeightSum, check_sum, check_values
from jaxsparse.patterns import make

KINDS = ("bcoo", "bcsr", "scipy")


def fromsparse(
    matrix, format, *, shape=None, capacity: int | None = None, order=None
) -> SparseWeight:
    """The sparse weight with the stored entries of another library's sparse matrix.

    Args:
        matrix: `[in, out]`; a `scipy.sparse` matrix or array of any kind, or a BCOO or BCSR of
            `jax.experimental.sparse`. Entries stored twice are added, as in those libraries.
        format, capacity, order: as in `fromdense`. Parts with a stored entry are stored, also where
            that entry is zero.
        shape: `[*kernel, in, out]` for a convolution's weight, whose matrix view
            `[prod(kernel) * in, out]` the matrix is.

    Raises:
        ValueError: a matrix with other axes, of another shape, or traced.
        TypeError: what is no sparse matrix.
    """
    rows, cols, data = _entries(matrix)
    given = matrix.shape if shape is None else shape
    shape, format = make.check_weight_shape("fromsparse", given, format)
    if matrix_view(shape) != tuple(matrix.shape):
        raise ValueError(
            f"fromsparse: a weight of shape {shape} has the matrix view {matrix_view(shape)}, got "
            f"a matrix of shape {tuple(matrix.shape)}. Give the shape that it is the view of."
        )
    order = make.check_order("fromsparse", order, shape, format)
    for name, index, size in (("row", rows, matrix.shape[0]), ("column", cols, matrix.shape[1])):
        if index.size and not 0 <= index.min() <= index.max() < size:
            raise ValueError(
                f"fromsparse: {name}s must be from 0 to {size - 1}, got {index.min()} to "
                f"{index.max()}. The matrix is not a valid one."
            )
    data, rows, cols = _each_once(data, rows, cols, matrix.shape[1])
    # Straight into the parts: the dense matrix may be far larger than memory.
    places, inside = format.parts(rows, cols, shape, order)
    stored, slots = np.unique(places, return_inverse=True)
    pattern = make.from_places("fromsparse", stored, format, shape, capacity, order)
    values = np.zeros(pattern.values_shape, data.dtype)
    values[(slots, *inside)] = data
    return SparseWeight(jnp.asarray(values), pattern)


def tosparse(w: SparseWeight | WeightSum, kind: str) -> Any:
    """The weight as a sparse matrix of another library; `fromsparse` is the way back.

    All that is stored is an entry of the matrix, also where it is zero, but for what parts store
    beyond the edges of the weight. What several parts of a WeightSum store is added.

    Args:
        w: any sparse weight. That of a convolution, `[*kernel, in, out]`, becomes its matrix view
            `[prod(kernel) * in, out]`.
        kind: "bcoo" or "bcsr" of `jax.experimental.sparse`, or "scipy" for a
            `scipy.sparse.csr_array`.

    Returns:
        The matrix, entries in row-major order. Inside `jit` a pattern that was made there has a
        fixed capacity: the BCOO is then in the order of the pattern, unused places are padding,
        as BCOO has it, and one that lost parts is NaN.

    Raises:
        ValueError: an unknown kind; a traced pattern for anything but "bcoo", traced values for
            "scipy"; a pattern that cannot be used, or stacked ones.
        TypeError: what is no sparse weight; a dtype that SciPy does not have.
    """
    if kind not in KINDS:
        raise ValueError(f'tosparse: kind is "bcoo", "bcsr" or "scipy", got {kind!r}.')
    if isinstance(w, WeightSum):
        check_sum("tosparse", w)
    elif not isinstance(w, SparseWeight):
        raise TypeError(
            f"tosparse: expected a SparseWeight, got {type(w).__name__}. For arrays use fromdense."
        )
    parts = w.parts if isinstance(w, WeightSum) else (w,)
    for part in parts:
        check_single("tosparse", part.pattern)
        check_values("tosparse", part.values, part.pattern)
    if make.is_traced(*(index for part in parts for index in part.pattern.indices)):
        if kind != "bcoo":
            raise ValueError(
                f"tosparse: {kind!r} takes as many entries as are stored, which inside jit must be "
                'known, got a traced pattern. Call it outside jit, or with "bcoo".'
            )
        return _padded_bcoo(parts)
    with jax.ensure_compile_time_eval():  # the pattern is known, also where values are traced
        for part in parts:
            check_usable("tosparse", part.pattern)
        places = [_places_inside(part.pattern) for part in parts]
    data, rows, cols = _sorted_entries(parts, places)
    return _matrix(kind, data, rows, cols, matrix_view(w.shape))


def _places_inside(pattern: Pattern) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which of the values are inside of the weight, and their rows and columns."""
    size_in, size_out = matrix_view(pattern.shape)
    coordinates = pattern.spec().coordinates(*pattern.indices)
    rows, cols = (
        np.broadcast_to(np.asarray(c), pattern.values_shape).ravel().astype(np.int64)
        for c in coordinates
    )
    (kept,) = np.nonzero((rows < size_in) & (cols < size_out))
    return kept, rows[kept], cols[kept]


def _sorted_entries(parts, places) -> tuple[Any, np.ndarray, np.ndarray]:
    """Numbers, rows and columns of all that is stored, each once, in row-major order."""
    kept, rows, cols = zip(*places)
    xp = jnp if make.is_traced(*(part.values for part in parts)) else np
    data = [xp.asarray(part.values).ravel()[k] for part, k in zip(parts, kept)]
    size_out = parts[0].shape[-1]
    return _each_once(xp.concatenate(data), np.concatenate(rows), np.concatenate(cols), size_out)


def _each_once(data, rows, cols, size_out: int) -> tuple[Any, np.ndarray, np.ndarray]:
    """The same entries in row-major order; those of one place are added."""
    places, first, slots = np.unique(rows * size_out + cols, return_index=True, return_inverse=True)
    rows, cols = rows[first], cols[first]
    if len(places) == len(data):  # and a negative zero stays one, which it would not in a sum
        return data[first], rows, cols
    if make.is_traced(data):
        return jnp.zeros(len(places), data.dtype).at[slots].add(data), rows, cols
    whole = np.zeros(len(places), data.dtype)
    np.add.at(whole, slots, data)
    return whole, rows, cols


def _matrix(kind: str, data, rows, cols, shape: tuple[int, int]) -> Any:
    """A matrix of entries in row-major order."""
    starts = np.searchsorted(rows, np.arange(shape[0] + 1))
    if kind == "scipy":
        return _scipy_matrix(data, cols, starts, shape)
    from jax.experimental import sparse

    given = {"shape": shape, "indices_sorted": True, "unique_indices": True}
    data, cols = jnp.asarray(data), cols.astype(np.int32)
    if kind == "bcoo":
        indices = np.stack([rows.astype(np.int32), cols], axis=1)
        return sparse.BCOO((data, jnp.asarray(indices)), **given)
    starts = starts.astype(np.int32)
    return sparse.BCSR((data, jnp.asarray(cols), jnp.asarray(starts)), **given)


def _scipy_matrix(data, cols, starts, shape: tuple[int, int]) -> Any:
    import scipy.sparse

    if make.is_traced(data):
        raise ValueError('tosparse: "scipy" takes known values, got traced ones. Use "bcoo".')
    if data.dtype.name in ("bfloat16", "float16"):
        raise TypeError(
            f"tosparse: SciPy has no sparse matrices of {data.dtype}. Write, for example, "
            'tosparse(w.astype("float32"), "scipy"), which loses nothing.'
        )
    return scipy.sparse.csr_array((data, cols, starts), shape=shape)


def _padded_bcoo(parts) -> Any:
    """All places of the patterns, used or not, in their order."""
    from jax.experimental import sparse

    shape = matrix_view(parts[0].shape)
    data, places = zip(*(_padded(part, shape) for part in parts))
    return sparse.BCOO((jnp.concatenate(data), jnp.concatenate(places)), shape=shape)


def _padded(part: SparseWeight, shape: tuple[int, int]) -> tuple[jax.Array, jax.Array]:
    """A part's numbers, and `[entries, 2]`: their rows and columns, one past both if unused."""
    spec, indices = part.pattern.spec(), part.pattern.indices
    coordinates = [jnp.broadcast_to(c, part.values.shape) for c in spec.coordinates(*indices)]
    places = jnp.stack([c.ravel() for c in coordinates], axis=1)
    ends = jnp.broadcast_to(np.asarray(shape, places.dtype), places.shape)
    is_inside = jnp.all(places < ends, axis=1)
    data = jnp.where(is_inside, part.values.ravel(), jnp.zeros((), part.dtype))
    places = jnp.where(is_inside[:, None], places, ends)
    # Padding would hide what a pattern has lost: its NaN lie where they show.
    anywhere = jnp.arange(len(places), dtype=places.dtype)
    anywhere = jnp.stack([anywhere % shape[0], anywhere // shape[0] % shape[1]], axis=1)
    places = jnp.where(spec.is_valid(*indices), places, anywhere)
    return spec.nan_if_invalid(data, *indices), places


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
