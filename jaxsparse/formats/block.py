"""Block patterns: equal blocks over a weight's matrix view, of which only some are stored."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

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
@dataclasses.dataclass(frozen=True, repr=False)
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
    has a fixed capacity that it need not fill.
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
        return _block_copy.gather(self.spec(), matrix, *self.indices)

    def scatter(self, values: jax.Array) -> jax.Array:
        """The dense array with these values in the stored blocks and zero elsewhere."""
        matrix = _block_copy.scatter(self.spec(), values, *self.indices)
        return jnp.reshape(matrix, self.shape)

    def grid_mask(self) -> jax.Array:
        """`bool[grid_rows, grid_cols]`: which blocks are stored."""
        return jnp.zeros(self.grid, bool).at[self.rows, self.cols].set(True, mode="drop")

    def mask(self) -> jax.Array:
        """Bool, of the weight's shape: where weights may be non-zero."""
        block_in, block_out = self.format.shape
        rows, cols = matrix_view(self.shape)
        whole = jnp.repeat(jnp.repeat(self.grid_mask(), block_in, axis=0), block_out, axis=1)
        return whole[:rows, :cols].reshape(self.shape)

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

    def density(self, stored: int) -> float:
        grid_rows, grid_cols = Block(self.block_shape).grid(self.weight_shape)
        return stored / max(1, grid_rows * grid_cols)

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


def _tiles(spec: BlockSpec, matrix: jax.Array) -> jax.Array:
    """`[grid_rows, grid_cols, block_in, block_out]`, with zeros over the edge."""
    grid = Block(spec.block_shape).grid(spec.weight_shape)
    (block_in, block_out), (size_in, size_out) = spec.block_shape, spec.weight_shape
    edges = ((0, grid[0] * block_in - size_in), (0, grid[1] * block_out - size_out))
    padded = jnp.pad(matrix, edges)
    return padded.reshape(grid[0], block_in, grid[1], block_out).swapaxes(1, 2)


def _gather_reference(spec: BlockSpec, matrix, rows, cols):
    tiles = _tiles(spec, matrix)
    values = tiles.at[rows, cols].get(mode="fill", fill_value=0, unique_indices=True)
    return _nan_if_invalid(values, rows)


_block_copy = LinearMap("block", _gather_reference, {"cpu": None})


def dense_matrix(spec: BlockSpec, values, rows, cols) -> jax.Array:
    """The weight as a whole, in plain JAX: what references compute with."""
    grid = Block(spec.block_shape).grid(spec.weight_shape)
    (block_in, block_out), (size_in, size_out) = spec.block_shape, spec.weight_shape
    tiles = jnp.zeros((*grid, block_in, block_out), values.dtype)
    values = _nan_if_invalid(values, rows)  # for the gradient by them; the next, for all others
    tiles = tiles.at[rows, cols].set(values, mode="drop", unique_indices=True)
    tiles = _nan_if_invalid(tiles, rows)
    whole = tiles.swapaxes(1, 2).reshape(grid[0] * block_in, grid[1] * block_out)
    return whole[:size_in, :size_out]


def _nan_if_invalid(array, rows):
    """NaN everywhere for a pattern that lost blocks (rows are negative), so that it is seen."""
    if not jnp.issubdtype(array.dtype, jnp.inexact):
        return array
    # A factor, not a choice: the derivatives are NaN as well.
    return array * jnp.where(jnp.any(rows < 0), jnp.nan, 1).astype(array.dtype)
