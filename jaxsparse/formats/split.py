"""Weights that are split ahead of time, so that a mesh can hold the parts on different devices."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.formats.block import BlockPattern, check_usable
from jaxsparse.formats.weight import SparseWeight


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class SplitWeight:
    """A sparse weight in equal parts along its outputs or its inputs (tensor parallelism).

    Every leaf has the parts as its first axis: shard that axis over a mesh axis, and each device
    holds the blocks of its own features, with their indices, and nothing else.

    Attributes:
        values: `[parts, capacity, block_in, block_out]`.
        pattern: the parts' patterns, each for a part of the weight.
        features: "out" or "in", what is split. Static.

    Make one with `jaxsparse.split_features`.
    """

    values: Any
    pattern: BlockPattern
    features: str = dataclasses.field(metadata={"static": True})

    @property
    def num_parts(self) -> int:
        return self.values.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the whole weight."""
        size_in, size_out = self.pattern.shape
        if self.features == "out":
            return size_in, size_out * self.num_parts
        return size_in * self.num_parts, size_out

    @property
    def dtype(self):
        return self.values.dtype

    def todense(self) -> jax.Array:
        """The whole weight as an array."""
        parts = jax.vmap(lambda values, pattern: pattern.scatter(values))(self.values, self.pattern)
        return jnp.concatenate(list(parts), axis=1 if self.features == "out" else 0)

    def __repr__(self) -> str:
        if not hasattr(self.values, "shape"):
            return f"SplitWeight(values={self.values!r}, pattern={self.pattern!r})"
        return (
            f"SplitWeight({self.dtype}{list(self.shape)}, {self.pattern.format} blocks, "
            f"{self.num_parts} parts of the {self.features}puts)"
        )


def split_features(w: SparseWeight, num_parts: int, features: str = "out") -> SplitWeight:
    """The weight in equal parts along its outputs or inputs, for sharding over a mesh axis.

    `jaxsparse.matmul` takes the result like any weight. With the parts over a mesh axis, split
    outputs need no communication forward (each device makes its own features of the result) and one
    sum of the input gradient backward; split inputs need one sum of the result forward and nothing
    backward.

    Args:
        w: `[in, out]`, known outside `jit`.
        num_parts: a whole number of blocks must be in each part.
        features: "out" or "in".

    Returns:
        A SplitWeight. Parts with fewer blocks than the fullest have unused places.

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
    if len(w.shape) != 2:
        raise ValueError(f"split_features: a weight [in, out] is needed, got shape {w.shape}.")
    check_usable("split_features", w.pattern)
    axis = 1 if features == "out" else 0
    block, size = w.format.shape[axis], w.shape[axis]
    if num_parts < 1 or size % (num_parts * block):
        raise ValueError(
            f"split_features: each part must have whole blocks of {block} along the {features}puts,"
            f" got {size} {features}puts in {num_parts} parts. Use other parts or blocks."
        )
    rows, cols = (np.asarray(index) for index in w.pattern.indices)
    grid = list(w.pattern.grid)
    grid[axis] //= num_parts
    along = cols if axis else rows
    is_used = cols < w.pattern.grid[1]
    members = [
        np.flatnonzero(is_used & (along // max(1, grid[axis]) == part)) for part in range(num_parts)
    ]
    capacity = max(map(len, members))
    slots = np.full((num_parts, capacity), -1)
    for part, places in enumerate(members):
        slots[part, : len(places)] = places
    part_index = np.arange(num_parts)[:, None] * grid[axis]
    shifted = [rows[slots], cols[slots]]
    shifted[axis] = shifted[axis] - part_index
    unused = slots < 0
    new_rows, new_cols = (
        jnp.asarray(np.where(unused, end, index), jnp.int32)
        for index, end in zip(shifted, grid, strict=True)
    )
    shape = list(w.shape)
    shape[axis] //= num_parts
    values = jnp.where(unused[..., None, None], 0, w.values[np.maximum(slots, 0)])
    pattern = BlockPattern(new_rows, new_cols, tuple(shape), w.format)
    return SplitWeight(values.astype(w.dtype), pattern, features)
