"""Making patterns from masks, lists, scores or at random; on the host or in `jit`."""

import math
import operator
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

from jaxsparse.formats.block import Block
from jaxsparse.formats.columns import Grouped
from jaxsparse.formats.parse import as_format
from jaxsparse.formats.pattern import (
    INT32_MAX,
    OVERFLOW,
    Format,
    Pattern,
    as_jax,
    check_pattern,
    check_single,
    matrix_view,
)


def is_traced(*arrays) -> bool:
    """Whether any of these is known only inside a transformation."""
    return any(isinstance(array, Tracer) for array in arrays)


def check_weight_shape(function: str, shape, format) -> tuple[tuple[int, ...], Format]:
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
    total = math.prod(format.grid(sizes))
    if total >= INT32_MAX:
        raise ValueError(
            f"{function}: {format.noun} are numbered with int32, got {total} {format.noun} of "
            f"{format} in shape {sizes}. Use larger ones."
        )
    return sizes, format


def check_order(function: str, order, shape, format: Format):
    """The outputs in the slots of groups, with those that are none, or None for the natural order.

    Raises:
        ValueError: not every output once, or the format has no groups.
        TypeError: not ints.
    """
    if order is None:
        return None
    if not isinstance(format, Grouped):
        raise ValueError(
            f"{function}: order says which outputs form a group, got one for the format {format}. "
            "Leave it out."
        )
    order = as_array(order)
    if order.ndim != 1 or not np.issubdtype(order.dtype, np.integer):
        raise TypeError(
            f"{function}: order is a list of outputs, got {order.dtype} of shape {order.shape}."
        )
    natural = format.default_order(shape)
    size_out = shape[-1]
    if order.shape == (size_out,):
        xp = jnp if is_traced(order) else np
        order = xp.concatenate([order.astype(np.int32), natural[size_out:]])
    if order.shape != natural.shape or not (
        is_traced(order) or np.array_equal(np.sort(order), natural)
    ):
        raise ValueError(
            f"{function}: order must have each of the {size_out} outputs once, and {size_out} in "
            f"the slots of the {natural.size} that are left, got {np.shape(order)} entries. Make "
            "one with jaxsparse.patterns.similar_outputs."
        )
    return order


def num_kept(function: str, total: int, sparsity) -> int:
    """How many of `total` parts stay at this sparsity, rounded to the nearest."""
    is_number = isinstance(sparsity, (int, float, np.number)) and not isinstance(sparsity, bool)
    if not is_number or not 0 <= sparsity <= 1:
        raise ValueError(
            f"{function}: sparsity is the share of zeros, from 0 to 1, got {sparsity!r}."
        )
    return round((1 - float(sparsity)) * total)


def from_grid(grid_mask, format, shape, *, capacity: int | None = None, order=None) -> Pattern:
    """The pattern that stores the parts where `grid_mask` is true.

    A format cuts the matrix view of a weight, `[prod(kernel) * in, out]`, into the parts of a grid:
    blocks; single weights ("unstructured"); the weights that a group of outputs has for one input
    ("grouped:8").

    Args:
        grid_mask: `bool[grid_rows, grid_cols]`, one entry per part.
        format: such as `Block((32, 32))` or "32x32".
        shape: the weight's shape, `(in, out)` or `(*kernel, in, out)`.
        capacity: how many parts there is room for; by default as many as are true. Needed for a
            traced mask. If a traced mask has more, the pattern is unusable on purpose: kernels
            refuse it, and elsewhere results are NaN.
        order: for groups, the outputs in the order in which they form groups; by default
            neighbours do.

    Raises:
        ValueError: shapes that do not fit, a capacity that is missing or too small.
        TypeError: the mask is not bool.
    """
    shape, format = check_weight_shape("from_grid", shape, format)
    grid_mask = as_array(grid_mask)
    grid = format.grid(shape)
    if tuple(grid_mask.shape) != grid:
        raise ValueError(
            f"from_grid: the mask must have one entry per part, {grid} for {format} {format.noun} "
            f"in shape {shape}, got shape {tuple(grid_mask.shape)}."
        )
    if grid_mask.dtype != bool:
        raise TypeError(f"from_grid: the mask must be bool, got {grid_mask.dtype}.")
    order = check_order("from_grid", order, shape, format)
    listed = format.listed(_concrete(grid_mask), shape)
    return from_listed("from_grid", listed, format, shape, capacity, order)


def from_mask(mask, format, *, capacity: int | None = None, order=None) -> Pattern:
    """The pattern that stores every part in which `mask` is true somewhere.

    Args:
        mask: bool, of the weight's shape.
        format, capacity, order: as in `from_grid`.
    """
    mask = as_array(mask)
    if mask.dtype != bool:
        raise TypeError(f"from_mask: the mask must be bool, got {mask.dtype}.")
    shape, format = check_weight_shape("from_mask", mask.shape, format)
    order = check_order("from_mask", order, shape, format)
    listed = format.listed(format.reduce(_concrete(mask), "any", order), shape)
    return from_listed("from_mask", listed, format, shape, capacity, order)


def from_blocks(rows, cols, format, shape, *, capacity: int | None = None) -> Pattern:
    """The pattern that stores the listed blocks, in any order.

    Args:
        rows, cols: ints, one entry per block: its place in the grid of blocks, counted along the
            weight's inputs and along its outputs.
        format, shape: as in `from_grid`, for a format of blocks.
        capacity: room for this many blocks; by default as many as are listed.

    Raises:
        ValueError: a block outside the grid or listed twice (lists known outside `jit`; inside,
            the kernels refuse such a pattern when they run).
        TypeError: the lists are not ints.
    """
    shape, format = check_weight_shape("from_blocks", shape, format)
    if not isinstance(format, Block):
        raise ValueError(
            f"from_blocks: the format must be blocks, got {format}. Use from_coordinates."
        )
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
        _check_ints("from_blocks", f"block {name}s", index)
        if not traced and index.size and not 0 <= index.min() <= index.max() < limit:
            raise ValueError(
                f"from_blocks: block {name}s must be from 0 to {limit - 1} for blocks of {format} "
                f"in shape {shape}, got {index.min()} to {index.max()}."
            )
    capacity = _check_capacity("from_blocks", capacity, len(rows), format, shape)
    end = math.prod(grid)
    if traced:
        # Before int32 can wrap an index around into the grid.
        is_inside = (rows >= 0) & (rows < grid[0]) & (cols >= 0) & (cols < grid[1])
        places = jnp.where(is_inside, cols.astype(jnp.int32) * grid[0] + rows, OVERFLOW)
        places = jnp.sort(places.astype(jnp.int32))
    else:
        places = np.sort(cols.astype(np.int64) * grid[0] + rows)
        if (twice := np.flatnonzero(places[1:] == places[:-1])).size:
            place = places[twice[0]]
            raise ValueError(
                f"from_blocks: a block may be listed once, got block (row {place % grid[0]}, "
                f"column {place // grid[0]}) twice."
            )
    places = xp.pad(places, (0, capacity - len(places)), constant_values=end)
    return format.pattern(places, shape)


def from_coordinates(
    coordinates, format, shape, *, capacity: int | None = None, order=None
) -> Pattern:
    """The pattern that stores the listed weights, and whatever shares a part with one of them.

    Args:
        coordinates: ints, `[count, axes]`: one row per weight, an index for each axis of `shape`;
            in any order.
        format, shape, order: as in `from_grid`.
        capacity: room for this many parts. Needed for traced coordinates. If these need more, or
            are outside the weight, the pattern is unusable on purpose, as in `from_grid`.

    Raises:
        ValueError: a weight outside the shape or listed twice (coordinates known outside `jit`;
            inside, one that is listed twice is stored once).
        TypeError: the coordinates are not ints.
    """
    shape, format = check_weight_shape("from_coordinates", shape, format)
    order = check_order("from_coordinates", order, shape, format)
    coordinates = as_array(coordinates)
    if coordinates.size == 0 and coordinates.ndim < 2:
        coordinates = np.zeros((0, len(shape)), np.int32)
    _check_ints("from_coordinates", "coordinates", coordinates)
    if coordinates.ndim != 2 or coordinates.shape[1] != len(shape):
        raise ValueError(
            f"from_coordinates: one row with {len(shape)} indices per weight is needed for shape "
            f"{shape}, got coordinates of shape {coordinates.shape}."
        )
    traced = is_traced(coordinates)
    coordinates = coordinates if traced else np.asarray(coordinates, np.int64)
    axes = [coordinates[:, axis] for axis in range(len(shape))]
    xp = jnp if traced else np
    is_inside = xp.ones(len(coordinates), bool)
    for index, size in zip(axes, shape, strict=True):
        is_inside = is_inside & (index >= 0) & (index < size)
    if not traced and not is_inside.all():
        outside = coordinates[np.argmin(is_inside)]
        raise ValueError(
            f"from_coordinates: coordinates must be inside the shape {shape}, got "
            f"{tuple(outside.tolist())}."
        )
    rows = xp.zeros(len(coordinates), coordinates.dtype)
    for index, size in zip(axes[:-1], shape[:-1], strict=True):
        rows = rows * size + index
    if not traced:
        weights = np.sort(rows * shape[-1] + axes[-1])
        if (twice := np.flatnonzero(weights[1:] == weights[:-1])).size:
            weight = np.unravel_index(weights[twice[0]], shape)
            raise ValueError(
                f"from_coordinates: a weight may be listed once, got {tuple(map(int, weight))} "
                "twice."
            )
    places = format.parts(rows, axes[-1], shape, order)[0]
    if traced:
        places = jnp.where(is_inside, places, OVERFLOW)
    return from_places("from_coordinates", places, format, shape, capacity, order)


def from_rows(indices, format, shape, *, order=None) -> Pattern:
    """The pattern that stores the listed inputs of every output: column compaction.

    Args:
        indices: ints: rows of the matrix view, `np.ravel_multi_index((*tap, channel), shape[:-1])`,
            in any order. Formats with taller parts store the parts that these rows meet.
        format, shape, order: as in `from_grid`. "grouped:<out>", with all outputs in one group,
            keeps each index once.

    Raises:
        ValueError: a row outside the weight or listed twice; traced indices.
        TypeError: the indices are not ints.
    """
    shape, format = check_weight_shape("from_rows", shape, format)
    if is_traced(indices):
        raise ValueError("from_rows: the indices are traced. Call it outside jit.")
    indices = np.asarray(indices)
    indices = np.zeros(0, np.int32) if indices.shape == (0,) else indices
    if indices.ndim != 1:
        raise ValueError(f"from_rows: one list of rows is needed, got shape {indices.shape}.")
    _check_ints("from_rows", "rows", indices)
    size_in, _ = matrix_view(shape)
    if indices.size and not 0 <= indices.min() <= indices.max() < size_in:
        raise ValueError(
            f"from_rows: rows must be from 0 to {size_in - 1} for shape {shape}, got "
            f"{indices.min()} to {indices.max()}."
        )
    unique, counts = np.unique(indices, return_counts=True)
    if (counts > 1).any():
        raise ValueError(
            f"from_rows: a row may be listed once, got {unique[counts > 1][0]} twice. Use "
            "np.unique."
        )
    grid_mask = np.zeros(format.grid(shape), bool)
    grid_mask[unique // format.extent[0]] = True
    return from_grid(grid_mask, format, shape, order=order)


def from_scores(scores, format, shape, num_parts: int, *, order=None) -> Pattern:
    """The pattern that stores the `num_parts` parts of highest score, lower places first on ties.

    Args:
        scores: real, `[grid_rows, grid_cols]`, concrete or traced. NaN counts as highest, so that
            it is seen and not pruned away.
        format, shape, order: as in `from_grid`.
        num_parts: how many, static.
    """
    shape, format = check_weight_shape("from_scores", shape, format)
    order = check_order("from_scores", order, shape, format)
    scores = _as_scores("from_scores", scores)
    grid = format.grid(shape)
    if tuple(scores.shape) != grid:
        raise ValueError(
            f"from_scores: one score per part, {grid} for {format} {format.noun} in shape {shape}, "
            f"got shape {tuple(scores.shape)}."
        )
    num_parts = _check_capacity("from_scores", num_parts, 0, format, shape)
    listed = format.listed(scores, shape)
    none = np.zeros(listed.shape, bool)  # known, so that nothing can be lost
    stored = highest(listed, None, num_parts) if num_parts else none
    return from_listed("from_scores", stored, format, shape, num_parts, order)


def random(key, format, shape, *, sparsity: float, order=None) -> Pattern:
    """A pattern of parts drawn evenly without replacement.

    Args:
        key: a `jax.random` key, concrete or traced.
        format, shape, order: as in `from_grid`.
        sparsity: the share of parts that are not stored; the number kept is exact.
    """
    shape, format = check_weight_shape("random", shape, format)
    grid = format.grid(shape)
    count = num_kept("random", math.prod(grid), sparsity)
    return from_scores(jax.random.uniform(key, grid), format, shape, count, order=order)


def full(format, shape, *, order=None) -> Pattern:
    """The pattern that stores every part."""
    shape, format = check_weight_shape("full", shape, format)
    return from_grid(np.ones(format.grid(shape), bool), format, shape, order=order)


def exchange(pattern: Pattern, keep_scores, grow_scores, count) -> Pattern:
    """The pattern after `count` stored parts made room for as many others.

    One step of dynamic sparse training: SET grows at random (Mocanu et al. 2018), RigL where the
    dense gradient is largest (Evci et al. 2020). Shapes stay, so a jitted loop does not recompile.

    Args:
        pattern: concrete or traced, every place used.
        keep_scores: `[grid_rows, grid_cols]`; of the stored parts the lowest are dropped.
        grow_scores: `[grid_rows, grid_cols]`; of the others the highest are grown.
        count: how many parts change; an int or a traced scalar, at most the number of parts
            stored and the number not stored (more is cut to that).

    Returns:
        A pattern of the same format, shape and capacity, with the same groups of outputs.
    """
    check_pattern("exchange", pattern)
    check_single("exchange", pattern)
    keep_scores = _as_scores("exchange", keep_scores)
    grow_scores = _as_scores("exchange", grow_scores)
    count = jnp.asarray(count)
    if count.ndim or not jnp.issubdtype(count.dtype, jnp.integer):
        raise TypeError(
            f"exchange: count is one integer, got {count.dtype} of shape {count.shape}. Round it "
            "with .astype(int)."
        )
    format, shape, grid = pattern.format, pattern.shape, pattern.grid
    for name, scores in (("keep_scores", keep_scores), ("grow_scores", grow_scores)):
        if tuple(scores.shape) != grid:
            raise ValueError(
                f"exchange: {name} must have one entry per part, {grid}, got shape "
                f"{tuple(scores.shape)}."
            )
    if pattern.capacity == 0:
        return pattern
    stored = _concrete(format.listed(pattern.grid_mask(), shape))
    num_stored = stored.sum()
    count = jnp.clip(count, 0, jnp.minimum(num_stored, stored.size - num_stored))
    count = _concrete(count)
    kept = highest(format.listed(keep_scores, shape), stored, num_stored - count)
    grown = highest(format.listed(grow_scores, shape), ~stored, count)
    order = getattr(pattern, "order", None)
    new = from_listed("exchange", kept | grown, format, shape, pattern.capacity, order)
    # A pattern that lost parts stays one that nothing takes.
    return new.lost_where(~pattern.is_valid())


def stack(patterns: Sequence[Pattern], lead: tuple[int, ...]) -> Pattern:
    """Patterns of one format, shape and capacity as one, with indices `[*lead, capacity]`.

    The only one itself, where `lead` is empty.
    """
    if not lead:
        return patterns[0]
    indices = (np.stack(index) for index in zip(*(p.indices for p in patterns)))
    return patterns[0].with_indices(*(as_jax(i.reshape(*lead, *i.shape[1:])) for i in indices))


def as_array(array):
    """The array itself, or a host array of a list or a number."""
    return array if hasattr(array, "shape") and hasattr(array, "dtype") else np.asarray(array)


def from_places(
    function: str, places, format: Format, shape, capacity: int | None, order
) -> Pattern:
    """The pattern of the parts at these places, each stored once however often it is listed."""
    end = math.prod(format.grid(shape))
    if not is_traced(places):
        return _of_rising(function, np.unique(places), format, shape, capacity, order)
    capacity = _needed_capacity(function, capacity, format, shape)
    places = jnp.unique(places.astype(jnp.int32), size=capacity + 1, fill_value=end)
    is_lost = (places[-1] != end) | (places[0] < 0)
    return format.pattern(places[:-1], shape, order).lost_where(is_lost)


def from_listed(
    function: str, stored, format: Format, shape, capacity: int | None, order
) -> Pattern:
    """The pattern of the parts whose entry in the list of all is true."""
    end = math.prod(format.grid(shape))
    if not is_traced(stored):
        # Not through `from_places`, which sorts: half the time of a pattern of many single weights.
        return _of_rising(function, np.flatnonzero(stored), format, shape, capacity, order)
    capacity = _needed_capacity(function, capacity, format, shape)
    places = jnp.nonzero(stored, size=capacity, fill_value=end)[0]
    is_lost = jnp.count_nonzero(stored) > capacity
    return format.pattern(places, shape, order).lost_where(is_lost)


def _of_rising(
    function: str, places, format: Format, shape, capacity: int | None, order
) -> Pattern:
    """The pattern of the parts at these places, known here, which rise."""
    capacity = _check_capacity(function, capacity, len(places), format, shape)
    end = math.prod(format.grid(shape))
    places = np.pad(places, (0, capacity - len(places)), constant_values=end)
    return format.pattern(places, shape, order)


def _as_scores(function: str, scores):
    scores = as_array(scores)
    is_real = jnp.issubdtype(scores.dtype, jnp.floating) or jnp.issubdtype(
        scores.dtype, jnp.integer
    )
    if not is_real:
        raise TypeError(f"{function}: scores are real numbers, got {scores.dtype}.")
    return _concrete(scores)


def _check_ints(function: str, what: str, index) -> None:
    if not np.issubdtype(index.dtype, np.integer):
        flat = " Use np.flatnonzero of a mask." if index.dtype == bool and index.ndim == 1 else ""
        raise TypeError(f"{function}: {what} must be ints, got {index.dtype}.{flat}")


def _needed_capacity(function: str, capacity, format: Format, shape) -> int:
    """The capacity of a pattern made in `jit`."""
    if capacity is None:
        raise ValueError(
            f"{function}: inside jit the number of {format.noun} must be fixed, got capacity=None. "
            "Say how many there is room for."
        )
    # Without a single place there would be none to mark an overflow in.
    at_least = min(1, math.prod(format.grid(shape)))
    return _check_capacity(function, capacity, at_least, format, shape)


def _check_capacity(function: str, capacity, count: int, format: Format, shape) -> int:
    if capacity is None:
        return count
    total = math.prod(format.grid(shape))
    is_int = isinstance(capacity, (int, np.integer)) and not isinstance(capacity, bool)
    if not is_int or not count <= capacity <= total:
        raise ValueError(
            f"{function}: the number of {format.noun} must be an int from {count} (how many there "
            f"are) to {total} (all of the grid), got {capacity!r}."
        )
    return int(capacity)


def _concrete(array):
    """As a host array where it is known, so that errors can be raised here."""
    return array if is_traced(array) else np.asarray(array)


def highest(scores, eligible, count):
    """Where the `count` highest scores are, of those that are eligible; on ties the first ones.

    Args:
        scores: `[entries]`; NaN is highest.
        eligible: `bool[entries]`, at least `count` of them true; None for all.
        count: an int or a traced scalar.
    """
    keys = _rising_keys(scores)
    xp = jnp if is_traced(keys, eligible, count) else np
    is_eligible = xp.ones(keys.shape, bool) if eligible is None else eligible
    if xp is np:
        candidates = keys[is_eligible]
        least = np.partition(candidates, -count)[-count] if count > 0 else keys.dtype.type(0)
    else:
        # The largest number that enough keys reach, bit by bit: no sort, and `count` may be traced.
        bits = 8 * keys.dtype.itemsize

        def try_bit(i, least):
            larger = least | (keys.dtype.type(1) << (bits - 1 - i).astype(keys.dtype))
            is_reached = jnp.count_nonzero(is_eligible & (keys >= larger)) >= count
            return jnp.where(is_reached, larger, least)

        least = lax.fori_loop(0, bits, try_bit, jnp.zeros((), keys.dtype))
    above = is_eligible & (keys > least)
    ties = is_eligible & (keys == least)
    if xp is np and count == 0:
        return np.zeros(keys.shape, bool)
    left = count - above.sum()
    if xp is np and ties.sum() == left:  # no need to count them one by one
        return above | ties
    return above | (ties & (xp.cumsum(ties) <= left))


def _rising_keys(scores):
    """Unsigned ints in the order of the scores; NaN last, zeros alike."""
    xp = jnp if is_traced(scores) else np
    if jnp.issubdtype(scores.dtype, jnp.unsignedinteger):
        return scores if scores.dtype.itemsize >= 4 else scores.astype(np.uint32)
    if jnp.issubdtype(scores.dtype, jnp.integer):
        wide = scores if scores.dtype.itemsize >= 4 else scores.astype(np.int32)
        unsigned = np.dtype(f"uint{8 * wide.dtype.itemsize}")
        return wide.view(unsigned) ^ unsigned.type(1 << (8 * wide.dtype.itemsize - 1))
    wide = scores if scores.dtype.itemsize >= 4 else scores.astype(np.float32)
    wide = xp.where(xp.isnan(wide), wide.dtype.type(np.inf), wide)
    unsigned = np.dtype(f"uint{8 * wide.dtype.itemsize}")
    sign = unsigned.type(1 << (8 * wide.dtype.itemsize - 1))
    bits = wide.view(unsigned)
    bits = xp.where(bits == sign, unsigned.type(0), bits)  # -0 as 0
    return xp.where(bits & sign != 0, ~bits, bits | sign)
