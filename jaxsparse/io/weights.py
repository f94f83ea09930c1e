"""What is in a checkpoint, without the model that it is of: weights by name, and their patterns."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.formats.pattern import Pattern
from jaxsparse.formats.split import SplitWeight
from jaxsparse.formats.weight import WeightSum
from jaxsparse.io.dense import kernel_of, read
from jaxsparse.io.entries import entries_of
from jaxsparse.layers import kernel as kernels


@dataclasses.dataclass(frozen=True)
class Weight:
    """An array of two axes or more, and its pattern if it has one.

    Attributes:
        name: of the dense array.
        entry: of what is stored of it.
        value: that: the dense array, or values only.
        shape: of the dense array.
        pattern_entry: of the pattern, or None.
        pattern: itself, or None.
        is_packed: whether `value` holds values only.
    """

    name: str
    entry: str
    value: Any
    shape: tuple[int, ...]
    pattern_entry: str | None = None
    pattern: Pattern | None = None
    is_packed: bool = False

    def whole(self) -> jax.Array:
        """The dense array."""
        if not self.is_packed:
            return jnp.asarray(self.value)
        assert self.pattern is not None
        lead = len(self.pattern.group)
        packed = kernels.PackedPattern(self.pattern, self.shape[lead:])
        return kernels.unpack(self.value, packed)[0]


def tree_of(function: str, path) -> Any:
    """The tree of a checkpoint of any kind, as `weights_of` takes it.

    Sums of weights and weights in parts, which have no pattern of their own, are dense in it.
    """
    tree = read(function, path)
    is_whole = lambda leaf: isinstance(leaf, (WeightSum, SplitWeight))
    return jax.tree.map(
        lambda leaf: leaf.todense() if is_whole(leaf) else leaf, tree, is_leaf=is_whole
    )


def weights_of(tree) -> Iterator[Weight]:
    """The weights of a tree; patterns of which no kernel is known are left out."""
    entries = entries_of("load", tree)
    sparse = {}
    for name, value in entries.values.items():
        if isinstance(value, Pattern):
            try:
                kernel = kernel_of("load", name, entries)
            except ValueError:  # such as those in a pruner's state
                continue
            sparse[kernel.entry] = kernel
    for name, value in entries.values.items():
        if name in sparse:
            yield Weight(value=value, **sparse[name]._asdict())
        elif not isinstance(value, Pattern) and np.ndim(value) >= 2:
            yield Weight(name, name, value, tuple(np.shape(value)))
