"""Weights that are split ahead of time, so that a mesh can hold the parts on different devices."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.formats.pattern import Format, Pattern, check_usable
from jaxsparse.formats.weight import SparseWeight


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class SplitWeight:
    """A sparse weight in equal parts along its outputs or its inputs (tensor parallelism).

    Every leaf has the parts as its first axis: shard that axis over a mesh axis, and each device
    holds the blocks of its own features, with their indices, and nothing else.

    Attributes:
        values: `[parts, capacity, block_in, block_out]` for blocks.
        pattern: the parts' patterns, each for a part of the weight.
        features: "out" or "in", what is split. Static.

    Make one with `jaxsparse.split_features`.
    """

    values: Any
    pattern: Pattern
    features: str = dataclasses.field(metadata={"static": True})

    @property
    def num_parts(self) -> int:
        return self.values.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the whole weight."""
        *kernel, size_in, size_out = self.pattern.shape
        if self.features == "out":
            return *kernel, size_in, size_out * self.num_parts
        return *kernel, size_in * self.num_parts, size_out

    @property
    def dtype(self):
        return self.values.dtype

    def todense(self) -> jax.Array:
        """The whole weight as an array."""
        parts = jax.vmap(lambda values, pattern: pattern.scatter(values))(self.values, self.pattern)
        return jnp.concatenate(list(parts), axis=-1 if self.features == "out" else -2)

    def __repr__(self) -> str:
        if not hasattr(self.values, "shape"):
            return f"SplitWeight(values={self.values!r}, pattern={self.pattern!r})"
        return (
            f"SplitWeight({self.dtype}{list(self.shape)}, {self.pattern.format} "
            f"{self.pattern.format.noun}, "
            f"{self.num_parts} parts of the {self.features}puts)"
        )


def split_features(w: SparseWeight, num_parts: int, features: str = "out") -> SplitWeight:
    """The weight in equal parts along its outputs or inputs, for sharding over a mesh axis.

    Ops take the result like any weight. With the parts over a mesh axis, split
    outputs need no communication forward (each device makes its own features of the result) and one
    sum of the input gradient backward; split inputs need one sum of the result forward and nothing
    backward.

    Args:
        w: `[in, out]` or `[*kernel, in, out]`, known outside `jit`.
        num_parts: a whole number of blocks, or of groups of outputs, must be in each part.
        features: "out" or "in".

    Returns:
        A SplitWeight. Parts that store less than the fullest have unused places.

    Raises:
        ValueError: features that do not divide into parts of whole blocks; an unknown name.
    """
    if features not in ("out", "in"):
        raise ValueError(f'split_features: features is "out" or "in", got {features!r}.')
    if not isinstance(w, SparseWeight):
        raise TypeError(f"split_features: expected a SparseWeight, got {type(w).__name__}.")
    if isinstance(num_parts, bool) or not isinstance(num_parts, (int, np.integer)):
        raise TypeError(f"split_features: num_parts is an int, got {num_parts!r}.")
    num_parts = int(num_parts)
    check_usable("split_features", w.pattern)
    axis = 1 if features == "out" else 0
    extent, size = w.format.extent[axis], w.shape[axis - 2]
    if num_parts < 1 or size % (num_parts * extent):
        raise ValueError(
            f"split_features: each part must have whole {w.format.noun} of {extent} along the "
            f"{features}puts, got {size} {features}puts in {num_parts} parts. Use other parts or "
            f"{w.format.noun}."
        )
    shape = list(w.shape)
    shape[axis - 2] //= num_parts
    grid = w.format.grid(tuple(shape))
    rows, cols = (np.asarray(index) for index in w.pattern.spec().positions(*w.pattern.indices))
    is_used = cols < w.pattern.grid[1]
    # Rows count the channels of each tap after those of another; columns have no taps.
    per_part = max(1, shape[axis - 2] // extent)
    tap, inside = np.divmod(cols if axis else rows, per_part * num_parts)
    along, own = inside // per_part, tap * per_part + inside % per_part
    rows, cols = (rows, own) if axis else (own, cols)
    members = [np.flatnonzero(is_used & (along == part)) for part in range(num_parts)]
    capacity = max(map(len, members))
    slots = np.zeros((num_parts, capacity), np.int64)
    places = np.full((num_parts, capacity), grid[0] * grid[1])  # unused
    numbers = _numbers(w.format, tuple(shape))
    for part, stored in enumerate(members):
        slots[part, : len(stored)] = stored
        places[part, : len(stored)] = numbers[rows[stored], cols[stored]]
    orders = _orders_of_parts(w, num_parts, axis)
    parts = [
        w.format.pattern(place, tuple(shape), order)
        for place, order in zip(places, orders, strict=True)
    ]
    pattern = jax.tree.map(lambda *indices: jnp.stack(indices), *parts)
    unused = places == grid[0] * grid[1]
    unused = unused.reshape(*unused.shape, *[1] * (w.values.ndim - 1))
    values = jnp.where(unused, 0, w.values[slots])
    return SplitWeight(values.astype(w.dtype), pattern, features)


def _numbers(format: Format, shape: tuple[int, ...]) -> np.ndarray:
    """The place of each entry of the grid."""
    grid = format.grid(shape)
    total = grid[0] * grid[1]
    numbers = np.empty(total, np.int64)
    numbers[format.listed(np.arange(total).reshape(grid), shape)] = np.arange(total)
    return numbers.reshape(grid)


def _orders_of_parts(w: SparseWeight, num_parts: int, axis: int) -> list:
    """The outputs in the groups of each part, or None for formats that do not group them."""
    order = getattr(w.pattern, "order", None)
    if order is None or axis == 0:
        return [order] * num_parts
    size = w.shape[-1] // num_parts
    orders = np.asarray(order).reshape(num_parts, size) - size * np.arange(num_parts)[:, None]
    if not ((orders >= 0) & (orders < size)).all():
        raise ValueError(
            "split_features: each part must have whole groups, got a pattern that groups outputs "
            "of several parts together. Make it with the natural order."
        )
    return list(orders)
