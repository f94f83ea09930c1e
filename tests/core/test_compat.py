"""Whether what `core/compat.py` works around is still there. A failure here is good news."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental.custom_partitioning import SdyShardingRule, custom_partitioning
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxsparse.core import compat

VERSION = tuple(int(part) for part in jax.__version__.split(".")[:2])


def summed_over_devices(psum):
    """The column sums of x, as a partitioned call whose parts are added up by `psum`."""

    @custom_partitioning
    def call(x):
        return x.sum(0)

    def partition(mesh, operands, result):
        axis = operands[0].sharding.spec[0]
        part = lambda x: psum(x.sum(0), (axis,)) if axis else x.sum(0)
        return mesh, part, NamedSharding(mesh, P(None)), (NamedSharding(mesh, P(axis, None)),)

    rule = SdyShardingRule(
        (("i", "j"),), (("j",),), reduction_factors=("i",), need_replication_factors=("j",)
    )
    call.def_partition(partition, sharding_rule=rule)
    return call


def column_sums(kind, psum):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        x = jax.device_put(jnp.arange(32.0).reshape(8, 4), NamedSharding(mesh, P("data")))
        return np.asarray(jax.jit(summed_over_devices(psum))(x))


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
def test_psum_in_partition_sums_over_devices(kind):
    sums = column_sums(kind, compat.psum_in_partition)
    np.testing.assert_array_equal(sums, np.arange(32).reshape(8, 4).sum(0))


def test_psum_of_jax_in_a_partition_body_still_fails_under_an_explicit_mesh():
    """Once it does not, `psum_in_partition` can go."""
    if VERSION < (0, 11):
        column_sums(AxisType.Explicit, lax.psum)
        return
    with pytest.raises(jax.errors.JaxRuntimeError, match="Unsupported reduction computation"):
        column_sums(AxisType.Explicit, lax.psum)


def test_vary_alike_changes_nothing_outside_shard_map():
    a, b = jnp.ones(2), jnp.zeros(3)
    assert all(x is y for x, y in zip(compat.vary_alike(a, b), (a, b), strict=True))


def test_vary_alike_marks_whole_arrays_inside_shard_map():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    seen = []

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=(P("data"), P()), out_specs=P("data"))
    def mark(split, whole):
        seen.extend(set(jax.typeof(a).manual_axis_type.varying) for a in (split, whole))
        marked = compat.vary_alike(split, whole)
        seen.extend(set(jax.typeof(a).manual_axis_type.varying) for a in marked)
        return split

    mark(jnp.ones(8), jnp.ones(3))
    assert seen == [{"data"}, set(), {"data"}, {"data"}]


def test_gradient_of_what_vary_alike_marks_is_summed_over_devices():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=(P("data"), P()), out_specs=P("data"))
    def scale(split, whole):
        split, whole = compat.vary_alike(split, whole)
        return split * whole

    gradient = jax.grad(lambda w: scale(jnp.arange(8.0), w).sum())(jnp.ones(1))
    np.testing.assert_array_equal(gradient, [28])
