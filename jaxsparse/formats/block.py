"""Block patterns: equal blocks over a weight's matrix view, of which only some are stored."""

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.core.bilinear import LinearMap
from jaxsparse.formats.pattern import (
    COPIED,
    INT32_MAX,
    OVERFLOW,
    Format,
    Pattern,
    WeightSpec,
    array_module,
    as_jax,
    batch_class,
    matrix_view,
)


@dataclasses.dataclass(frozen=True)
class Block(Format):
    """The block format: `Block((block_in, block_out))`, also written "32x32".

    Blocks count along the rows (inputs) and columns (outputs) of a weight's matrix view. Any sizes
    are right; 16, 32, 64 and 128 are the fast ones. Blocks need not divide the weight: the last row
    and column of blocks then reach over its edge, and what lies there is ignored.
    """

    shape: tuple[int, int]

    noun: ClassVar[str] = "blocks"

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

    @property
    def extent(self) -> tuple[int, int]:
        return self.shape

    def grid(self, weight_shape: tuple[int, ...]) -> tuple[int, int]:
        size_in, size_out = matrix_view(weight_shape)
        return -(-size_in // self.shape[0]), -(-size_out // self.shape[1])

    def listed(self, grid_array, weight_shape):
        return grid_array.T.ravel()

    def parts(self, rows, cols, weight_shape, order=None):
        block_in, block_out = self.shape
        place = cols // block_out * self.grid(weight_shape)[0] + rows // block_in
        return place, (rows % block_in, cols % block_out)

    def tiles(self, array, order=None):
        xp = array_module(array)
        size_in, size_out = matrix_view(array.shape)
        grid = self.grid(array.shape)
        (block_in, block_out) = self.shape
        edges = ((0, grid[0] * block_in - size_in), (0, grid[1] * block_out - size_out))
        tiles = xp.pad(array.reshape(size_in, size_out), edges)
        return tiles.reshape(grid[0], block_in, grid[1], block_out), (1, 3)

    def spread(self, grid_array, weight_shape, order=None) -> Any:
        xp = array_module(grid_array)
        (block_in, block_out), (size_in, size_out) = self.shape, matrix_view(weight_shape)
        whole = xp.repeat(xp.repeat(grid_array, block_in, axis=-2), block_out, axis=-1)
        return whole[..., :size_in, :size_out]

    def pattern(self, places, weight_shape, order=None) -> "BlockPattern":
        xp, grid = array_module(places), self.grid(weight_shape)
        height, is_used = max(1, grid[0]), places < math.prod(grid)
        rows = xp.where(is_used, places % height, grid[0]).astype(np.int32)
        cols = xp.where(is_used, places // height, grid[1]).astype(np.int32)
        return BlockPattern(as_jax(rows), as_jax(cols), tuple(weight_shape), self)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class BlockPattern(Pattern):
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

    @property
    def indices(self) -> tuple[Any, Any]:
        return self.rows, self.cols

    def with_indices(self, *indices, shape=None) -> "BlockPattern":
        rows, cols = indices
        return BlockPattern(rows, cols, self.shape if shape is None else shape, self.format)

    def lost_where(self, is_lost) -> "BlockPattern":
        return self.with_indices(*(jnp.where(is_lost, OVERFLOW, index) for index in self.indices))

    def spec(self) -> "BlockSpec":
        return BlockSpec(matrix_view(self.shape), self.format.shape)


@dataclasses.dataclass(frozen=True)
class BlockSpec(WeightSpec):
    """What is fixed about a weight in blocks."""

    weight_shape: tuple[int, int]  # (in, out), of the matrix view
    block_shape: tuple[int, int]  # (block_in, block_out)

    @property
    def name(self) -> str:
        return "block"

    @property
    def format(self) -> Block:
        return Block(self.block_shape)

    @property
    def copies(self) -> LinearMap:
        return block_copy

    @property
    def part_shape(self) -> tuple[int, int]:
        return self.block_shape

    def attributes(self) -> dict[str, Any]:
        return {}

    def unmeasured_break_even(self) -> float:
        # Small blocks leave most of a vector empty: on AVX-512, 4 x 4 at 5 % was near the point.
        return 1.0 if min(self.block_shape) >= 8 else 0.03

    def shape_class(self, batch: int) -> str:
        """Such as "batch<64,block>=32": kernels differ by these two more than by anything else."""
        smallest = min(self.block_shape)
        block_class = next((f"block>={n}" for n in (32, 16, 8, 4) if smallest >= n), "block<4")
        return f"{batch_class(batch)},{block_class}"

    @property
    def thin(self) -> int:
        return 12

    def is_valid(self, *indices) -> jax.Array:
        (rows, cols), grid = indices, self.grid
        is_used = cols < grid[1]
        in_range = (rows >= 0) & (cols >= 0) & jnp.where(is_used, rows < grid[0], cols == grid[1])
        before, after = cols[..., :-1], cols[..., 1:]
        is_next = (after > before) | ((after == before) & (rows[..., 1:] > rows[..., :-1]))
        return jnp.all(in_range) & jnp.all(is_next | ~is_used[..., 1:])

    def positions(self, *indices) -> tuple[jax.Array, jax.Array]:
        rows, cols = indices
        return rows, cols

    def coordinates(self, *indices) -> tuple[jax.Array, jax.Array]:
        rows, cols = (index[:, None, None] * n for index, n in zip(indices, self.block_shape))
        inside = np.indices(self.block_shape, np.int32, sparse=True)
        return rows + inside[0][None], cols + inside[1][None]

    def mask(self, *indices) -> jax.Array:
        return self.format.spread(self.grid_mask(*indices), self.weight_shape)

    def gather(self, matrix, *indices) -> jax.Array:
        (block_in, block_out), grid = self.block_shape, self.grid
        size_in, size_out = self.weight_shape
        edges = ((0, grid[0] * block_in - size_in), (0, grid[1] * block_out - size_out))
        tiles = jnp.pad(matrix, edges)
        tiles = tiles.reshape(grid[0], block_in, grid[1], block_out).swapaxes(1, 2)
        return tiles.at[indices].get(mode="fill", fill_value=0, unique_indices=True)

    def scatter(self, values, *indices) -> jax.Array:
        (block_in, block_out), grid = self.block_shape, self.grid
        size_in, size_out = self.weight_shape
        tiles = jnp.zeros((*grid, block_in, block_out), values.dtype)
        tiles = tiles.at[indices].set(values, mode="drop", unique_indices=True)
        whole = tiles.swapaxes(1, 2).reshape(grid[0] * block_in, grid[1] * block_out)
        return whole[:size_in, :size_out]


block_copy = LinearMap("block", BlockSpec.stored_values, {"cpu": COPIED})
