"""Products with weights in parts, each of which may be on its own devices: see `SplitWeight`."""

from collections.abc import Callable

import jax
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxsparse.core import partition
from jaxsparse.ops import arguments


def over_results(product: Callable) -> Callable:
    """`product(x, values, *indices)` in parts; each makes its own features of the result."""

    def in_parts(x, values, *indices):
        mapped = (None, 0, *[0] * len(indices))
        y = jax.vmap(product, mapped, x.ndim - 1)(x, values, *indices)
        return _merge_last_axes(y)

    return in_parts


def over_operands(product: Callable) -> Callable:
    """`product(x, values, *indices)` in parts; each makes a summand, of its own features of `x`."""

    def in_parts(x, values, *indices):
        parts = _split_last_axis(x, values.shape[0])
        y = jax.vmap(product, (x.ndim - 1, 0, *[0] * len(indices)))(parts, values, *indices)
        return y.astype(arguments.sum_dtype(x.dtype)).sum(0).astype(x.dtype)

    return in_parts


def _merge_last_axes(y):
    """The last two axes as one, which stays split over devices as the first of them was."""
    shape = (*y.shape[:-2], y.shape[-2] * y.shape[-1])
    return lax.reshape(y, shape, out_sharding=_explicit_sharding(y, lambda spec: spec[:-1]))


def _split_last_axis(x, parts):
    """The last axis as two, the first of which stays split over devices as it was."""
    shape = (*x.shape[:-1], parts, x.shape[-1] // parts)
    return lax.reshape(x, shape, out_sharding=_explicit_sharding(x, lambda spec: (*spec, None)))


def _explicit_sharding(x, change):
    """The sharding that explicit mode needs to be told of; None where there is none to tell."""
    sharding = jax.typeof(x).sharding
    if sharding.mesh.empty or AxisType.Explicit not in sharding.mesh.axis_types:
        return None
    return NamedSharding(sharding.mesh, PartitionSpec(*change(partition.spec_of(sharding, x.ndim))))
