"""Sparse weights: values, and a pattern that says where they are."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxsparse.formats.block import BlockPattern


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class SparseWeight:
    """A weight of which only some entries are stored. A pytree; only `values` is differentiable.

    Attributes:
        values: the stored weights; `[capacity, block_in, block_out]` for blocks.
        pattern: where they are. Integers, in a subtree of their own.

    Make one with `jaxsparse.fromdense`, or from values and a pattern of `jaxsparse.patterns`.
    `jax.grad` over a whole SparseWeight meets integer leaves: differentiate by `values`,
    `jax.grad(lambda v: loss(w.with_values(v)))(w.values)`, or use `jaxsparse.split`.
    """

    values: Any
    pattern: BlockPattern

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight it stands for, not of what is stored."""
        return self.pattern.shape

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def dtype(self) -> jnp.dtype:
        return self.values.dtype

    @property
    def format(self):
        """How it is stored, such as `Block((32, 32))`."""
        return self.pattern.format

    @property
    def density(self) -> float:
        """Stored over all. Static: inside `jit` a pattern's capacity counts as stored."""
        return self.pattern.density

    @property
    def nbytes(self) -> int:
        """Bytes of values and indices."""
        return self.values.nbytes + self.pattern.nbytes

    def todense(self) -> jax.Array:
        """The weight as an array of shape `shape`, with zeros where nothing is stored."""
        return self.pattern.scatter(self.values)

    def astype(self, dtype) -> "SparseWeight":
        """The same weight with values of another dtype."""
        return dataclasses.replace(self, values=self.values.astype(dtype))

    def with_values(self, values) -> "SparseWeight":
        """The same pattern with other values.

        Raises:
            ValueError: `values` has another shape than the pattern places.
        """
        values = jnp.asarray(values)
        check_values("with_values", values, self.pattern)
        return dataclasses.replace(self, values=values)

    def with_pattern(self, pattern: BlockPattern) -> "SparseWeight":
        """The same weight on another pattern of the same format: shared blocks keep their values.

        Blocks that only the new pattern has are zero; blocks that it lacks are dropped. Both
        patterns may be traced, and their capacities may differ.

        Raises:
            ValueError: the patterns are for weights of different shapes.
        """
        if not isinstance(pattern, BlockPattern):
            raise TypeError(f"with_pattern: expected a pattern, got {type(pattern).__name__}.")
        if pattern.shape != self.shape:
            raise ValueError(
                f"with_pattern: the pattern must be for a weight of shape {self.shape}, got one "
                f"for {pattern.shape}."
            )
        return SparseWeight(pattern.gather(self.todense()), pattern)

    def __repr__(self) -> str:
        is_pattern = isinstance(self.pattern, BlockPattern)
        if not (is_pattern and getattr(self.pattern.rows, "shape", None)):  # not arrays of blocks
            return f"SparseWeight(values={self.values!r}, pattern={self.pattern!r})"
        stored, total = self.pattern.capacity, self.pattern.grid[0] * self.pattern.grid[1]
        dtype = getattr(self.values, "dtype", "?")
        return (
            f"SparseWeight({dtype}{list(self.shape)}, {self.format} blocks, "
            f"{stored} of {total}, density={self.density:.3g})"
        )


def check_values(function: str, values, pattern: BlockPattern) -> None:
    """Raises unless values have the shape that the pattern places."""
    if tuple(values.shape) != tuple(pattern.values_shape):
        raise ValueError(
            f"{function}: values must have shape {pattern.values_shape}, one block per place of "
            f"the pattern, got {tuple(values.shape)}."
        )


def split(tree):
    """Splits a tree into what can be trained and the rest.

    Floating-point leaves stay in the first result, all others in the second; None takes the place
    of what is in the other. `jax.grad` and optax then see floats only, whatever integers the tree
    holds (patterns, step counters, random keys).

    Args:
        tree: any pytree, with SparseWeights or other mixtures of floats and integers.

    Returns:
        `(trainable, rest)`; `merge(trainable, rest)` gives the tree back.
    """
    is_float = jax.tree.map(lambda leaf: jnp.issubdtype(jnp.result_type(leaf), jnp.inexact), tree)
    trainable = jax.tree.map(lambda leaf, keep: leaf if keep else None, tree, is_float)
    rest = jax.tree.map(lambda leaf, drop: None if drop else leaf, tree, is_float)
    return trainable, rest


def merge(trainable, rest):
    """The tree that `split` split, from its two parts."""
    return jax.tree.map(
        lambda a, b: b if a is None else a, trainable, rest, is_leaf=lambda leaf: leaf is None
    )
