"""Axes that do not divide evenly over a mesh: the compiler pads them, and no padding may count."""

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from machine import need

import jaxsparse as js
from jaxsparse.problems import Problem


def layer(batch, unused=0):
    problem = Problem("uneven", (batch,), (64, 96), (8, 8), 0.5, "")
    return cases.make(problem, unused=unused)


def constrained(mesh, *axes):
    return lambda array: jax.lax.with_sharding_constraint(array, NamedSharding(mesh, P(*axes)))


@pytest.mark.parametrize("batch", [3, 6, 13])
def test_padding_of_an_uneven_batch_is_in_no_weight_gradient(batch):
    need("cpu_kernels")
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    case = layer(batch)
    x, g, w = case.array("x"), case.array("g"), case.weight()
    split = constrained(mesh, "data")

    @jax.jit
    def weight_grad(x, g):
        # What the compiler pads these with is no longer zero after the cosine.
        return js.sddmm(jnp.cos(split(x - 1)), jnp.cos(split(g)), w.pattern)

    whole = jnp.cos(x - 1), jnp.cos(g)
    expected = js.sddmm(*whole, w.pattern, implementation="xla")
    np.testing.assert_allclose(weight_grad(x, g), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stored", [3, 13, 43])
def test_padding_of_unevenly_split_blocks_is_no_block(stored):
    need("cpu_kernels")
    mesh = jax.make_mesh((4,), ("model",), axis_types=(AxisType.Auto,))
    case = layer(5)
    pattern = js.patterns.random(jax.random.key(1), "8x8", (64, 96), sparsity=1 - stored / 96)
    assert pattern.capacity == stored
    values = pattern.gather(jnp.ones((64, 96)))
    split = constrained(mesh, "model")

    @jax.jit
    def product(x, values, rows, cols):
        pattern_parts = js.BlockPattern(split(rows + 0), split(cols + 0), (64, 96), pattern.format)
        return js.matmul(x, js.SparseWeight(jnp.exp(split(values) - 1), pattern_parts))

    x = case.array("x")
    y = product(x, values, *pattern.indices)
    mask = np.asarray(pattern.mask(), np.float64)
    np.testing.assert_array_equal(y, np.asarray(x, np.float64) @ mask)
