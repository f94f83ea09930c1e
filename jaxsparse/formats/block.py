"""Block patterns: equal blocks over a weight's matrix view, of which only some are stored."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxsparse.core.bilinear import LinearMap

INT32_MAX = np.iinfo(np.int32).max


@dataclasses.dataclass(frozen=True)
class Block:
    """The block format: `Block((block_in, block_out))`, also written "32x32".

    Blocks count along the rows (inputs) and columns (outputs) of a weight's matrix view. Any sizes
    are right; 16, 32, 64 and 128 are the fast ones. Blocks need not divide the weight: the last row
    and column of blocks then reach over its edge, and what lies there is ignored.
    """

    shape: tuple[int, int]

    def __post_init__(self):
        given: Any = self.shape
        is_size = isinstance(given, (int, np.integer)) and not isinstance(given, bool)
        sizes: tuple = ()
        if is_size:
            sizes = (given, given)
        elif isinstance(given, (tuple, list)):
            sizes = tuple(given)
        is_valid = len(sizes) == 2 and all(
            isinstance(n, (int, np.integer)) and not isinstance(n, bool) and 0 < n <= INT32_MAX
            for n in sizes
        )
        if not is_valid:
            raise ValueError(
                f"Block: a block shape is two positive ints (block_in, block_out), got {given!r}. "
                "Write, for example, Block((32, 32))."
            )
        object.__setattr__(self, "shape", tuple(int(n) for n in sizes))

    def __str__(self) -> str:
        return f"{self.shape[0]}x{self.shape[1]}"

    def grid(self, weight_shape: tuple[int, ...]) -> tuple[int, int]:
        """How many blocks lie along the rows and the columns of a weight of this shape."""
        size_in, size_out = matrix_view(weight_shape)
        return -(-size_in // self.shape[0]), -(-size_out // self.shape[1])


def matrix_view(weight_shape: tuple[int, ...]) -> tuple[int, int]:
    """`(prod(kernel) * in, out)`: the shape as which patterns see a weight `[*kernel, in, out]`."""
    return math.prod(weight_shape[:-1]), weight_shape[-1]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class BlockPattern:
    """Which blocks of a weight are stored: block `k` sits at grid position `(rows[k], cols[k])`.

    Make patterns with `jaxsparse.patterns`, which checks and sorts; this class does not, because
    JAX also rebuilds it around things that are not arrays.

    Attributes:
        rows: `int32[*group, capacity]`, counted along the weight's inputs.
        cols: `int32[*group, capacity]`, counted along its outputs.
        shape: the weight's shape, `(in, out)` or `(*kernel, in, out)`. Static.
        format: the block shape. Static.

    Blocks are in order of (column, row), each once. A place that stores nothing has row and column
    equal to the grid's sizes, one past the last, and comes at the end: a pattern made inside `jit`
    has a fixed capacity that it need not fill. Kernels refuse any other pattern; in plain JAX it
    makes all results NaN.

    Group axes are for patterns stacked over `vmap` or `scan`; ops outside of these take none.
    """

    rows: Any
    cols: Any
    shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    format: Block = dataclasses.field(metadata={"static": True})

    # Sizes, all static -------------------------------------------------------------------------

    @property
    def capacity(self) -> int:
        """How many blocks there is room for."""
        return self.rows.shape[-1]

    @property
    def grid(self) -> tuple[int, int]:
        """How many blocks would tile the weight, along its rows and columns."""
        return self.format.grid(self.shape)

    @property
    def density(self) -> float:
        """Stored over all blocks, unused places counted as stored. Static."""
        return self.spec().density(self.capacity)

    @property
    def values_shape(self) -> tuple[int, ...]:
        """The shape of the values that this pattern places."""
        return (*self.rows.shape, *self.format.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the indices."""
        return self.rows.nbytes + self.cols.nbytes

    def spec(self, precision=None) -> "BlockSpec":
        """What ops need to know of this pattern that no array says."""
        return BlockSpec(matrix_view(self.shape), self.format.shape, precision)

    @property
    def indices(self) -> tuple[Any, Any]:
        """The index operands of the ops."""
        return self.rows, self.cols

    # To and from dense arrays ------------------------------------------------------------------

    def gather(self, dense: jax.Array) -> jax.Array:
        """The values of the stored blocks of `dense`, `[capacity, block_in, block_out]`."""
        check_same_shape("gather", dense, self.shape)
        matrix = jnp.reshape(dense, matrix_view(self.shape))
        return block_copy.gather(self.spec(), matrix, *self.indices)

    def scatter(self, values: jax.Array) -> jax.Array:
        """The dense array with these values in the stored blocks and zero elsewhere."""
        matrix = block_copy.scatter(self.spec(), values, *self.indices)
        return jnp.reshape(matrix, self.shape)

    def restrict(self, dense: jax.Array) -> jax.Array:
        """`dense` with exact zeros where nothing is stored, NaN there or not."""
        check_same_shape("restrict", dense, self.shape)
        matrix = jnp.reshape(dense, matrix_view(self.shape))
        return jnp.reshape(restricted_matrix(self.spec(), matrix, *self.indices), self.shape)

    def grid_mask(self) -> jax.Array:
        """`bool[*group, grid_rows, grid_cols]`: which blocks are stored."""
        function = functools.partial(_grid_mask, self.grid)
        for _ in range(self.rows.ndim - 1):
            function = jax.vmap(function)
        return function(self.rows, self.cols)

    def mask(self) -> jax.Array:
        """Bool, `[*group, *shape]`: where weights may be non-zero."""
        whole = _spread(self.spec(), self.grid_mask())
        return whole.reshape(*self.rows.shape[:-1], *self.shape)

    def is_valid(self) -> jax.Array:
        """Bool scalar: whether the indices are as they must be; if not, kernels refuse them."""
        return _is_valid(self.grid, *self.indices)

    def __repr__(self) -> str:
        capacity = (getattr(self.rows, "shape", None) or ("?",))[-1]
        total = math.prod(self.grid)
        return f"BlockPattern({self.format} blocks, {capacity} of {total}, shape={self.shape})"


@dataclasses.dataclass(frozen=True)
class BlockSpec:
    """What is fixed about an op with a block pattern before any array is seen."""

    weight_shape: tuple[int, int]  # (in, out), of the matrix view
    block_shape: tuple[int, int]  # (block_in, block_out)
    precision: Any = None  # for the reference on platforms where it matters

    def inner(self, kind: str) -> tuple[int, ...]:
        return {
            "x": self.weight_shape[:1],
            "w": self.block_shape,
            "y": self.weight_shape[1:],
            "dense": self.weight_shape,
        }[kind]

    def attributes(self) -> dict[str, Any]:
        return {}

    def density(self, stored: int) -> float:
        grid_rows, grid_cols = Block(self.block_shape).grid(self.weight_shape)
        return stored / max(1, grid_rows * grid_cols)

    def unmeasured_break_even(self) -> float:
        # Small blocks leave most of a vector empty: on AVX-512, 4 x 4 at 5 % was near the point.
        return 1.0 if min(self.block_shape) >= 8 else 0.03

    def shape_class(self, batch: int) -> str:
        """Such as "batch<64,block>=32": kernels differ by these two more than by anything else."""
        batch_class = next((f"batch<{n}" for n in (8, 64) if batch < n), "batch>=64")
        smallest = min(self.block_shape)
        block_class = next((f"block>={n}" for n in (32, 16, 8) if smallest >= n), "block<8")
        return f"{batch_class},{block_class}"


def check_same_shape(function: str, array, shape: tuple[int, ...]) -> None:
    """Raises unless `array` has the weight's shape."""
    if tuple(array.shape) != tuple(shape):
        raise ValueError(
            f"{function}: the pattern is for a weight of shape {shape}, got {tuple(array.shape)}. "
            "Make a pattern for this shape."
        )


def check_single(function: str, pattern: BlockPattern) -> None:
    """Raises where patterns are stacked, which only `vmap` and `scan` take apart."""
    if len(pattern.rows.shape) != 1:
        raise ValueError(
            f"{function}: one pattern is needed, with indices [capacity], got stacked ones "
            f"of shape {pattern.rows.shape}. Map over them with jax.vmap."
        )


def check_usable(function: str, pattern: BlockPattern) -> None:
    """Raises unless this is a single pattern, known here, that kernels would take."""
    if any(isinstance(index, Tracer) for index in pattern.indices):
        raise ValueError(f"{function}: the pattern is traced. Call it outside jit.")
    check_single(function, pattern)
    if not pattern.is_valid():
        raise ValueError(
            f"{function}: the pattern is not usable: its blocks are out of order or range, or it "
            "was made inside jit with too small a capacity. Make it with jaxsparse.patterns."
        )


def _tiles(spec: BlockSpec, matrix: jax.Array) -> jax.Array:
    """`[grid_rows, grid_cols, block_in, block_out]`, with zeros over the edge."""
    grid = Block(spec.block_shape).grid(spec.weight_shape)
    (block_in, block_out), (size_in, size_out) = spec.block_shape, spec.weight_shape
    edges = ((0, grid[0] * block_in - size_in), (0, grid[1] * block_out - size_out))
    padded = jnp.pad(matrix, edges)
    return padded.reshape(grid[0], block_in, grid[1], block_out).swapaxes(1, 2)


def _gather_reference(spec: BlockSpec, matrix, rows, cols):
    # Twice: for the scatter, which is the transpose of this, and for the values.
    tiles = _tiles(spec, _nan_if_invalid(spec, matrix, rows, cols))
    values = tiles.at[rows, cols].get(mode="fill", fill_value=0, unique_indices=True)
    return _nan_if_invalid(spec, values, rows, cols)


# Plain copies, of everything that XLA stores in whole bytes.
_COPIED = frozenset(
    f"{kind}{bits}"
    for kind, widths in (
        ("int", (8, 16, 32, 64)),
        ("uint", (8, 16, 32, 64)),
        ("float", (16, 32, 64)),
        ("complex", (64, 128)),
    )
    for bits in widths
) | {"bfloat16"}

block_copy = LinearMap("block", _gather_reference, {"cpu": _COPIED})


def dense_matrix(spec: BlockSpec, values, rows, cols) -> jax.Array:
    """The weight as a whole, in plain JAX: what references compute with."""
    grid = Block(spec.block_shape).grid(spec.weight_shape)
    (block_in, block_out), (size_in, size_out) = spec.block_shape, spec.weight_shape
    tiles = jnp.zeros((*grid, block_in, block_out), values.dtype)
    # Twice: for the gradient by the values, and for whatever else is computed from the weight.
    values = _nan_if_invalid(spec, values, rows, cols)
    tiles = tiles.at[rows, cols].set(values, mode="drop", unique_indices=True)
    tiles = _nan_if_invalid(spec, tiles, rows, cols)
    whole = tiles.swapaxes(1, 2).reshape(grid[0] * block_in, grid[1] * block_out)
    return whole[:size_in, :size_out]


def restricted_matrix(spec: BlockSpec, matrix, rows, cols) -> jax.Array:
    """A weight that is stored whole, with zeros off the pattern."""
    grid = Block(spec.block_shape).grid(spec.weight_shape)
    mask = _spread(spec, _grid_mask(grid, rows, cols))
    kept = jnp.where(mask, matrix, jnp.zeros((), matrix.dtype))
    return _nan_if_invalid(spec, kept, rows, cols)


def _grid_mask(grid, rows, cols):
    return jnp.zeros(grid, bool).at[rows, cols].set(True, mode="drop")


def _spread(spec: BlockSpec, per_block):
    """One entry per block, as one per entry of the weight's matrix view."""
    (block_in, block_out), (size_in, size_out) = spec.block_shape, spec.weight_shape
    whole = jnp.repeat(jnp.repeat(per_block, block_in, axis=-2), block_out, axis=-1)
    return whole[..., :size_in, :size_out]


def _is_valid(grid, rows, cols):
    is_used = cols < grid[1]
    in_range = (rows >= 0) & (cols >= 0) & jnp.where(is_used, rows < grid[0], cols == grid[1])
    before, after = cols[..., :-1], cols[..., 1:]
    is_next = (after > before) | ((after == before) & (rows[..., 1:] > rows[..., :-1]))
    return jnp.all(in_range) & jnp.all(is_next | ~is_used[..., 1:])


def _nan_if_invalid(spec: BlockSpec, array, rows, cols):
    """NaN (or the least integer) everywhere for a pattern that kernels would refuse: it is seen."""
    is_valid = _is_valid(Block(spec.block_shape).grid(spec.weight_shape), rows, cols)
    if jnp.issubdtype(array.dtype, jnp.integer):  # the nearest to NaN that integers have
        return jnp.where(is_valid, array, jnp.iinfo(array.dtype).min)
    if not jnp.issubdtype(array.dtype, jnp.inexact):
        return array
    # A factor, not a choice: the derivatives are NaN as well.
    return array * jnp.where(is_valid, 1, jnp.nan).astype(array.dtype)
