"""Activations as tiles: which squares of each channel hold anything, and what."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("indices", "values", "count"),
    meta_fields=("shape", "block"),
)
@dataclasses.dataclass(frozen=True)
class ActivationTiles:
    """The tiles of `x [batch, *space, channels]` that have a nonzero.

    Attributes:
        indices: int32 `[capacity, 2 + axes of space]`: sample, channel and the tile along each
            axis, in this order ascending. Unused ones have sample `batch`, and come last.
        values: `[capacity, *block]`; zero over the edge of space and in unused tiles.
        count: int32, how many tiles have a nonzero. Above the capacity, the last ones are missing.
        shape: of `x`.
        block: the sizes of a tile.
    """

    indices: jax.Array
    values: jax.Array
    count: jax.Array
    shape: tuple[int, ...]
    block: tuple[int, ...]

    @property
    def grid(self) -> tuple[int, ...]:
        """How many tiles each axis of space has; the last one may reach over the edge."""
        return tuple(-(-n // b) for n, b in zip(self.shape[1:-1], self.block, strict=True))

    @property
    def density(self) -> jax.Array:
        """The share of all tiles that have a nonzero."""
        return self.count / max(1, self.shape[0] * self.shape[-1] * math.prod(self.grid))

    def todense(self) -> jax.Array:
        """`x`, but for tiles beyond the capacity, which are zero."""
        batch, *_, channels = self.shape
        tiles = jnp.zeros((batch, channels, *self.grid, *self.block), self.values.dtype)
        tiles = tiles.at[tuple(self.indices.T)].set(self.values, mode="drop")
        rank = len(self.block)
        pairs = [(2 + i, 2 + rank + i) for i in range(rank)]
        order = (0, *itertools.chain(*pairs), 1)
        sizes = (g * b for g, b in zip(self.grid, self.block, strict=True))
        whole = tiles.transpose(order).reshape(batch, *sizes, channels)
        return whole[tuple(map(slice, self.shape))]


def activation_tiles(
    x, *, block: int | Sequence[int] = 4, capacity: int | None = None
) -> ActivationTiles:
    """Cuts the space of each sample and channel into tiles and keeps those with a nonzero.

    `tiles.todense()` is `x` again. NaN is a nonzero.

    Args:
        x: `[batch, *space, channels]`, with one or more axes of space.
        block: the size of a tile, an int or one for each axis of space.
        capacity: how many tiles there is room for: needed inside `jit`. None: as many as there are.

    Raises:
        ValueError: an `x` without space, sizes that are not positive ints, a capacity that is no
            number of tiles, none inside `jit`.
    """
    x = jnp.asarray(x)
    rank = x.ndim - 2
    if rank < 1:
        raise ValueError(
            f"activation_tiles: x is [batch, *space, channels], got x.shape={x.shape}."
        )
    is_size = lambda n: isinstance(n, (int, np.integer)) and not isinstance(n, bool)
    sizes = tuple(block) if isinstance(block, (Sequence, np.ndarray)) else (block,) * rank
    if len(sizes) != rank or not all(is_size(size) and size > 0 for size in sizes):
        raise ValueError(
            f"activation_tiles: block is a positive int, or one for each of {rank} axes of space, "
            f"got block={block!r}."
        )
    sizes = tuple(map(int, sizes))
    if capacity is not None and not (is_size(capacity) and capacity >= 0):
        raise ValueError(
            f"activation_tiles: capacity counts tiles, an int from 0 on, or None, got {capacity!r}."
        )
    if capacity is None and isinstance(x, Tracer):
        raise ValueError(
            "activation_tiles: inside jit the number of tiles must be known, got capacity=None. "
            "Give a capacity."
        )
    batch, *space, channels = x.shape
    grid = tuple(-(-n // b) for n, b in zip(space, sizes, strict=True))
    edges = [(0, g * b - n) for g, b, n in zip(grid, sizes, space, strict=True)]
    padded = jnp.pad(x, [(0, 0), *edges, (0, 0)])
    split = padded.reshape(batch, *itertools.chain(*zip(grid, sizes)), channels)
    order = (0, 2 * rank + 1, *range(1, 2 * rank, 2), *range(2, 2 * rank + 1, 2))
    tiles = split.transpose(order)  # [batch, channels, *grid, *block]
    is_kept = (tiles != 0).any(tuple(range(2 + rank, 2 + 2 * rank)))
    count = jnp.sum(is_kept, dtype=jnp.int32)
    size = int(count) if capacity is None else capacity
    places = jnp.nonzero(is_kept, size=size, fill_value=batch)
    indices = jnp.stack(places, -1).astype(jnp.int32)
    if tiles.size:
        values = tiles.at[places].get(mode="fill", fill_value=0)
    else:
        values = jnp.zeros((size, *sizes), x.dtype)
    return ActivationTiles(indices, values, count, tuple(x.shape), sizes)
