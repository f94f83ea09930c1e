"""Layers on meshes with explicit axes, where every operation must know how its arrays are split.

A pattern sees a kernel as a whole. A kernel that is split over devices is gathered for its product,
and its gradient is split again; on automatic meshes the compiler does the same unasked.
"""

import functools
from collections.abc import Iterable

import jax
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec


def _parts(array) -> tuple:
    """For each axis, the explicit mesh axes that split it, or None."""
    parts = tuple(jax.typeof(array).sharding.spec)
    return parts + (None,) * (array.ndim - len(parts))


def _placed(array, parts: tuple, mesh):
    if _parts(array) == parts:
        return array
    return jax.sharding.reshard(array, NamedSharding(mesh, PartitionSpec(*parts)))


def gathered(array, axes: Iterable[int]):
    """The array with these axes whole on every device."""
    axes, parts = set(axes), _parts(array)
    parts = tuple(None if i in axes else part for i, part in enumerate(parts))
    return _placed(array, parts, jax.typeof(array).sharding.mesh)


def placed_like(tree, other, num_axes: int | None = None):
    """The arrays with their first axes, by default all, split over devices as those of `other`."""
    first, mesh = _parts(other)[:num_axes], jax.typeof(other).sharding.mesh
    return jax.tree.map(
        lambda array: _placed(array, first + _parts(array)[len(first) :], mesh), tree
    )


def sharding_of_product(x, kernel, dimension_numbers):
    """What `lax.dot_general` would give its result for a split kernel; None if it is not split.

    Raises:
        jax.errors.ShardingTypeError: as `lax.dot_general`, where the result could be split in
            several ways and the caller must say which.
    """
    if not any(_parts(kernel)):
        return None
    product = functools.partial(lax.dot_general, dimension_numbers=dimension_numbers)
    return jax.eval_shape(product, x, kernel).sharding
