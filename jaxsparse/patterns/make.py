"""Making block patterns from masks, lists, scores or at random; on the host or in `jit`."""

import dataclasses
import math
import operator

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxsparse.formats.block import INT32_MAX, Block, BlockPattern, check_single
from jaxsparse.formats.parse import as_format

# All indices of a pattern made in `jit` whose capacity was too small. Kernels refuse it, with a
# message of its own (xla_ffi/cpu/block_pattern.cc), and references answer with NaN, so the loss of
# blocks cannot pass unseen.
OVERFLOW = np.iinfo(np.int32).min


def is_traced(*arrays) -> bool:
    """Whether any of these is known only inside a transformation."""
    return any(isinstance(array, Tracer) for array in arrays)


def check_weight_shape(function: str, shape, format) -> tuple[tuple[int, ...], Block]:
    """The shape as a tuple and the format, or an error that says what is wrong with them."""
    format = as_format(format)
    try:
        sizes = tuple(operator.index(n) for n in shape)
    except TypeError:
        sizes = ()
    if len(sizes) < 2 or any(n < 0 for n in sizes):
        raise ValueError(
            f"{function}: a weight has at least two axes, (in, out) or (*kernel, in, out), none "
            f"negative, got shape {shape!r}."
        )
    if math.prod(format.grid(sizes)) >= INT32_MAX:
        raise ValueError(
            f"{function}: blocks are numbered with int32, got {math.prod(format.grid(sizes))} "
            f"blocks of {format} in shape {sizes}. Use larger blocks."
        )
    return sizes, format


def num_kept(function: str, total: int, sparsity) -> int:
    """How many of `total` blocks stay at this sparsity, rounded to the nearest."""
    is_number = isinstance(sparsity, (int, float, np.number)) and not isinstance(sparsity, bool)
    if not is_number or not 0 <= sparsity <= 1:
        raise ValueError(
            f"{function}: sparsity is the share of zeros, from 0 to 1, got {sparsity!r}."
        )
    return round((1 - float(sparsity)) * total)


def from_grid(grid_mask, format, shape, *, capacity: int | None = None) -> BlockPattern:
    """The pattern that stores the blocks where `grid_mask` is true.

    Args:
        grid_mask: `bool[grid_rows, grid_cols]`, one entry per block.
        format: such as `Block((32, 32))` or "32x32".
        shape: the weight's shape, `(in, out)` or `(*kernel, in, out)`.
        capacity: how many blocks there is room for; by default as many as are true. Needed for a
            traced mask. If a traced mask has more, the pattern is unusable on purpose: kernels
            refuse it, and elsewhere results are NaN.

    Raises:
        ValueError: shapes that do not fit, a capacity that is missing or too small.
        TypeError: the mask is not bool.
    """
    shape, format = check_weight_shape("from_grid", shape, format)
    grid_mask = as_array(grid_mask)
    grid = format.grid(shape)
    if tuple(grid_mask.shape) != grid:
        raise ValueError(
            f"from_grid: the mask must have one entry per block, {grid} for blocks of {format} in "
            f"shape {shape}, got shape {tuple(grid_mask.shape)}."
        )
    if grid_mask.dtype != bool:
        raise TypeError(f"from_grid: the mask must be bool, got {grid_mask.dtype}.")
    if is_traced(grid_mask):
        if capacity is None:
            raise ValueError(
                "from_grid: inside jit the number of blocks must be fixed, got capacity=None. Say "
                "how many blocks there is room for."
            )
        # Without a single place there would be none to mark an overflow in.
        capacity = _check_capacity("from_grid", capacity, min(1, math.prod(grid)), grid)
        count = jnp.count_nonzero(grid_mask)
        places = jnp.nonzero(grid_mask.T.ravel(), size=capacity, fill_value=math.prod(grid))[0]
        rows, cols = _rows_and_cols(jnp, places, grid)
        rows, cols = (jnp.where(count > capacity, OVERFLOW, index) for index in (rows, cols))
    else:
        places = np.flatnonzero(np.asarray(grid_mask).T)
        capacity = _check_capacity("from_grid", capacity, len(places), grid)
        unused = np.full(capacity - len(places), math.prod(grid))
        rows, cols = _rows_and_cols(np, np.concatenate([places, unused]), grid)
    return _pattern(rows, cols, shape, format)


def from_mask(mask, format, *, capacity: int | None = None) -> BlockPattern:
    """The pattern that stores every block in which `mask` is true somewhere.

    Args:
        mask: bool, of the weight's shape.
        format, capacity: as in `from_grid`.
    """
    mask = as_array(mask)
    if mask.dtype != bool:
        raise TypeError(f"from_mask: the mask must be bool, got {mask.dtype}.")
    shape, format = check_weight_shape("from_mask", mask.shape, format)
    return from_grid(reduce_blocks(mask, format, "any"), format, shape, capacity=capacity)


def from_blocks(rows, cols, format, shape, *, capacity: int | None = None) -> BlockPattern:
    """The pattern that stores the listed blocks, in any order.

    Args:
        rows, cols: ints, one entry per block: its place in the grid of blocks, counted along the
            weight's inputs and along its outputs.
        format, shape: as in `from_grid`.
        capacity: room for this many blocks; by default as many as are listed.

    Raises:
        ValueError: a block outside the grid or listed twice (lists known outside `jit`; inside,
            the kernels refuse such a pattern when they run).
        TypeError: the lists are not ints.
    """
    shape, format = check_weight_shape("from_blocks", shape, format)
    grid = format.grid(shape)
    traced = is_traced(rows, cols)
    xp = jnp if traced else np
    rows, cols = xp.asarray(rows), xp.asarray(cols)
    rows, cols = (xp.zeros(0, np.int32) if a.shape == (0,) else a for a in (rows, cols))
    if rows.ndim != 1 or rows.shape != cols.shape:
        raise ValueError(
            "from_blocks: rows and cols must be lists of one length, got shapes "
            f"{rows.shape} and {cols.shape}."
        )
    for name, index, limit in (("row", rows, grid[0]), ("column", cols, grid[1])):
        if not np.issubdtype(index.dtype, np.integer):
            raise TypeError(f"from_blocks: block {name}s must be ints, got {index.dtype}.")
        if not traced and index.size and not 0 <= index.min() <= index.max() < limit:
            raise ValueError(
                f"from_blocks: block {name}s must be from 0 to {limit - 1} for blocks of {format} "
                f"in shape {shape}, got {index.min()} to {index.max()}."
            )
    capacity = _check_capacity("from_blocks", capacity, len(rows), grid)
    if traced:
        # Before int32 can wrap an index around into the grid.
        rows = jnp.where((rows >= 0) & (rows < grid[0]), rows, OVERFLOW)
        cols = jnp.where((cols >= 0) & (cols < grid[1]), cols, OVERFLOW)
        order = jnp.lexsort((rows, cols))
    else:
        order = np.lexsort((rows, cols))
        places = cols[order].astype(np.int64) * grid[0] + rows[order]
        if (twice := np.flatnonzero(places[1:] == places[:-1])).size:
            place = places[twice[0]]
            raise ValueError(
                f"from_blocks: a block may be listed once, got block (row {place % grid[0]}, "
                f"column {place // grid[0]}) twice."
            )
    unused = capacity - len(order)
    rows = xp.pad(rows[order].astype(np.int32), (0, unused), constant_values=grid[0])
    cols = xp.pad(cols[order].astype(np.int32), (0, unused), constant_values=grid[1])
    return _pattern(rows, cols, shape, format)


def from_scores(scores, format, shape, num_blocks: int) -> BlockPattern:
    """The pattern that stores the `num_blocks` blocks of highest score, lower places first on ties.

    Args:
        scores: real, `[grid_rows, grid_cols]`, concrete or traced. NaN counts as highest, so that
            it is seen and not pruned away.
        format, shape: as in `from_grid`.
        num_blocks: how many, static.
    """
    shape, format = check_weight_shape("from_scores", shape, format)
    scores = _as_scores("from_scores", scores)
    grid = format.grid(shape)
    if tuple(scores.shape) != grid:
        raise ValueError(
            f"from_scores: one score per block, {grid} for blocks of {format} in shape {shape}, "
            f"got shape {tuple(scores.shape)}."
        )
    num_blocks = _check_capacity("from_scores", num_blocks, 0, grid)
    if num_blocks == 0:
        return from_blocks([], [], format, shape)
    ranks = _ranks(jnp.asarray(scores), jnp.zeros(grid, bool))
    return from_grid(_concrete(ranks < num_blocks), format, shape, capacity=num_blocks)


def random(key, format, shape, *, sparsity: float) -> BlockPattern:
    """A pattern of blocks drawn evenly without replacement.

    Args:
        key: a `jax.random` key, concrete or traced.
        format, shape: as in `from_grid`.
        sparsity: the share of blocks that are not stored; the number kept is exact.
    """
    shape, format = check_weight_shape("random", shape, format)
    grid = format.grid(shape)
    count = num_kept("random", math.prod(grid), sparsity)
    return from_scores(jax.random.uniform(key, grid), format, shape, count)


def full(format, shape) -> BlockPattern:
    """The pattern that stores every block."""
    shape, format = check_weight_shape("full", shape, format)
    return from_grid(np.ones(format.grid(shape), bool), format, shape)


def exchange(pattern: BlockPattern, keep_scores, grow_scores, count) -> BlockPattern:
    """The pattern after `count` stored blocks made room for as many others.

    One step of dynamic sparse training: SET grows at random (Mocanu et al. 2018), RigL where the
    dense gradient is largest (Evci et al. 2020). Shapes stay, so a jitted loop does not recompile.

    Args:
        pattern: concrete or traced, every place used.
        keep_scores: `[grid_rows, grid_cols]`; of the stored blocks the lowest are dropped.
        grow_scores: `[grid_rows, grid_cols]`; of the others the highest are grown.
        count: how many blocks change; an int or a traced scalar, at most the number of blocks
            stored and the number not stored (more is cut to that).

    Returns:
        A pattern of the same format, shape and capacity.
    """
    if not isinstance(pattern, BlockPattern):
        raise TypeError(f"exchange: expected a pattern, got {type(pattern).__name__}.")
    check_single("exchange", pattern)
    keep_scores = _as_scores("exchange", keep_scores)
    grow_scores = _as_scores("exchange", grow_scores)
    count = jnp.asarray(count)
    if count.ndim or not jnp.issubdtype(count.dtype, jnp.integer):
        raise TypeError(
            f"exchange: count is one integer, got {count.dtype} of shape {count.shape}. Round it "
            "with .astype(int)."
        )
    grid = pattern.grid
    for name, scores in (("keep_scores", keep_scores), ("grow_scores", grow_scores)):
        if tuple(scores.shape) != grid:
            raise ValueError(
                f"exchange: {name} must have one entry per block, {grid}, got shape "
                f"{tuple(scores.shape)}."
            )
    if pattern.capacity == 0:
        return pattern
    stored = pattern.grid_mask()
    num_stored = jnp.count_nonzero(stored)
    count = jnp.clip(count, 0, jnp.minimum(num_stored, stored.size - num_stored))
    kept = stored & (_ranks(keep_scores, ~stored) < num_stored - count)
    grown = ~stored & (_ranks(grow_scores, stored) < count)
    new = _concrete(kept | grown)
    new = from_grid(new, pattern.format, pattern.shape, capacity=pattern.capacity)
    # A pattern that lost blocks stays one that nothing takes.
    is_valid = pattern.is_valid()
    rows, cols = (jnp.where(is_valid, index, OVERFLOW) for index in new.indices)
    return dataclasses.replace(new, rows=rows, cols=cols)


def reduce_blocks(array, format: Block, how: str):
    """One number per block of an array's matrix view: "any", "sum" or "max" of its entries."""
    xp = jnp if is_traced(array) or isinstance(array, jax.Array) else np
    size_in, size_out = math.prod(array.shape[:-1]), array.shape[-1]
    grid = format.grid((size_in, size_out))
    block_in, block_out = format.shape
    edges = ((0, grid[0] * block_in - size_in), (0, grid[1] * block_out - size_out))
    tiles = xp.pad(array.reshape(size_in, size_out), edges)
    tiles = tiles.reshape(grid[0], block_in, grid[1], block_out)
    return getattr(tiles, how)(axis=(1, 3))


def as_array(array):
    """The array itself, or a host array of a list or a number."""
    return array if hasattr(array, "shape") and hasattr(array, "dtype") else np.asarray(array)


def _as_scores(function: str, scores):
    scores = as_array(scores)
    is_real = jnp.issubdtype(scores.dtype, jnp.floating) or jnp.issubdtype(
        scores.dtype, jnp.integer
    )
    if not is_real:
        raise TypeError(f"{function}: scores are real numbers, got {scores.dtype}.")
    return jnp.asarray(scores)


def _check_capacity(function: str, capacity, count: int, grid) -> int:
    if capacity is None:
        return count
    is_int = isinstance(capacity, (int, np.integer)) and not isinstance(capacity, bool)
    if not is_int or not count <= capacity <= math.prod(grid):
        raise ValueError(
            f"{function}: the number of blocks must be an int from {count} (how many there are) "
            f"to {math.prod(grid)} (all of the grid), got {capacity!r}."
        )
    return int(capacity)


def _rows_and_cols(xp, places, grid):
    """Grid positions of places counted down the columns; one past the end stores nothing."""
    height = max(1, grid[0])
    is_used = places < math.prod(grid)
    rows = xp.where(is_used, places % height, grid[0])
    cols = xp.where(is_used, places // height, grid[1])
    return rows.astype(np.int32), cols.astype(np.int32)


def _pattern(rows, cols, shape, format) -> BlockPattern:
    return BlockPattern(jnp.asarray(rows), jnp.asarray(cols), shape, format)


def _concrete(mask):
    """As a host array where it is known, so that errors can be raised here."""
    return mask if is_traced(mask) else np.asarray(mask)


def _falling(scores):
    """What sorts scores from the highest to the lowest, NaN first."""
    if jnp.issubdtype(scores.dtype, jnp.floating):
        return -jnp.where(jnp.isnan(scores), jnp.inf, scores)
    return ~scores  # not -scores, which overflows


def _ranks(scores, is_last):
    """For each entry of a grid, how many come before it in falling order.

    Marked entries come after all others; ties go to the entry that comes first down the columns.
    """
    keys = (_falling(scores).T.ravel(), is_last.T.ravel())
    order = jnp.lexsort(keys)
    ranks = jnp.zeros(order.shape, jnp.int32)
    ranks = ranks.at[order].set(jnp.arange(order.size, dtype=jnp.int32), unique_indices=True)
    return ranks.reshape(scores.shape[::-1]).T
