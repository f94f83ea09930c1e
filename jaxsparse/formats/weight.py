"""Sparse weights: values, and a pattern that says where they are."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxsparse.formats.pattern import Pattern, check_pattern


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class SparseWeight:
    """A weight of which only some entries are stored. A pytree; only `values` is differentiable.

    Attributes:
        values: the stored weights; `[capacity, block_in, block_out]` for blocks, `[capacity]` for
            single weights, `[capacity, width]` for groups of outputs.
        pattern: where they are. Integers, in a subtree of their own.

    Make one with `jaxsparse.fromdense`, or from values and a pattern of `jaxsparse.patterns`.
    `jax.grad` over a whole SparseWeight meets integer leaves: differentiate by `values`,
    `jax.grad(lambda v: loss(w.with_values(v)))(w.values)`, or use `jaxsparse.split`.
    """

    values: Any
    pattern: Pattern

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

    def with_pattern(self, pattern: Pattern) -> "SparseWeight":
        """The same weight on another pattern, of any format: shared entries keep their values.

        Entries that only the new pattern has are zero; those that it lacks are dropped. Both
        patterns may be traced, and their capacities may differ.

        Raises:
            ValueError: the patterns are for weights of different shapes.
        """
        check_pattern("with_pattern", pattern)
        if pattern.shape != self.shape:
            raise ValueError(
                f"with_pattern: the pattern must be for a weight of shape {self.shape}, got one "
                f"for {pattern.shape}."
            )
        return SparseWeight(pattern.gather(self.todense()), pattern)

    def __repr__(self) -> str:
        is_pattern = isinstance(self.pattern, Pattern)
        if not (is_pattern and getattr(self.pattern.indices[0], "shape", None)):  # no arrays inside
            return f"SparseWeight(values={self.values!r}, pattern={self.pattern!r})"
        stored, total = self.pattern.capacity, self.pattern.grid[0] * self.pattern.grid[1]
        dtype = getattr(self.values, "dtype", "?")
        return (
            f"SparseWeight({dtype}{list(self.shape)}, {self.format} {self.format.noun}, "
            f"{stored} of {total}, density={self.density:.3g})"
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class WeightSum:
    """A weight that is the sum of sparse weights, such as blocks and single weights beside them.

    Ops return the sum of what they return for each part. Parts may store the same entries.

    Attributes:
        parts: SparseWeights of one shape and dtype, at least one.

    Make one with `jaxsparse.with_residual`, which loses nothing.
    """

    parts: tuple[SparseWeight, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight it stands for."""
        return self.parts[0].shape

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def dtype(self) -> jnp.dtype:
        return self.parts[0].dtype

    @property
    def density(self) -> float:
        """Stored over all. Static: what two parts store counts twice."""
        return sum(part.density for part in self.parts)

    @property
    def nbytes(self) -> int:
        """Bytes of values and indices."""
        return sum(part.nbytes for part in self.parts)

    def todense(self) -> jax.Array:
        """The weight as an array of shape `shape`."""
        return functools.reduce(jnp.add, (part.todense() for part in self.parts))

    def astype(self, dtype) -> "WeightSum":
        """The same weight with values of another dtype."""
        return WeightSum(tuple(part.astype(dtype) for part in self.parts))

    def __repr__(self) -> str:
        return f"WeightSum({', '.join(map(repr, self.parts))})"


def check_sum(function: str, w: WeightSum) -> None:
    """Raises unless the parts are sparse weights that can be added."""
    parts = w.parts
    if not isinstance(parts, tuple) or not all(isinstance(p, SparseWeight) for p in parts):
        raise TypeError(f"{function}: a WeightSum has a tuple of SparseWeights, got {parts!r}.")
    kinds = {(part.shape, jnp.dtype(part.dtype).name) for part in parts}
    if len(kinds) != 1:
        raise ValueError(
            f"{function}: the parts of a WeightSum must have one shape and dtype, got "
            f"{sorted(kinds) or 'no parts'}."
        )


def check_values(function: str, values, pattern: Pattern) -> None:
    """Raises unless values have the shape that the pattern places."""
    if tuple(values.shape) != tuple(pattern.values_shape):
        raise ValueError(
            f"{function}: values must have shape {pattern.values_shape}, one part per place of "
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
