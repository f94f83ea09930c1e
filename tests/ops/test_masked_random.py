"""Sparse inputs of random geometry, masks and zeros, against the definition."""

import dataclasses

import conv_cases
import jax
import jax.numpy as jnp
import numpy as np
import oracle
from hypothesis import given, settings
from hypothesis import strategies as st
from machine import need
from random_convs import problems, quiet

import jaxsparse as js


def _mask(problem, layer, share, seed):
    """Active places, of the batch and space of x."""
    space = layer.x.shape[:-1]
    return np.random.default_rng(seed).random(space) < share


def _results(layer, x, mask, path, **options):
    problem = layer.problem
    function = js.masked_conv_transpose if problem.transposed else js.masked_conv
    w = jnp.float32(layer.dense())

    def run(x, w, g, mask):
        op = lambda x, w: function(x, w, mask=mask, implementation=path, **layer.options, **options)
        y, pull_back = jax.vjp(op, x, w)
        return y, *pull_back(g)

    mask = None if mask is None else jnp.asarray(mask)
    return jax.jit(run)(jnp.float32(x), w, layer.array("g"), mask)


@settings(quiet, max_examples=60)
@given(
    problems(),
    st.sampled_from([0.0, 0.2, 0.6, 1.0]),
    st.sampled_from(["found", "given", "numbers"]),
    st.integers(0, 100),
)
def test_random_sparse_inputs_and_gradients_equal_the_definition_by_kernels(
    problem, share, kind, seed
):
    need("cpu_kernels")
    layer = conv_cases.make.__wrapped__(problem, "unstructured")
    active = _mask(problem, layer, share, seed)[..., None]
    zeros = active
    if kind == "numbers":
        zeros = np.random.default_rng(seed).random(layer.x.shape) < share
    x = layer.x if kind == "given" else layer.x * zeros
    layer = layer.with_x(layer.x * zeros)
    y, dx, dw = _results(layer, x, active[..., 0] if kind == "given" else None, "ffi")
    oracle.equal_exactly(y, layer.y(), "y")
    oracle.equal_exactly(dx, layer.dx() * (active if kind == "given" else 1), "dx")
    oracle.equal_exactly(dw, layer.dw(), "dw")


@settings(quiet, max_examples=25)
@given(problems(), st.sampled_from([0.1, 0.5]), st.integers(0, 100))
def test_random_submanifolds_are_the_dense_results_at_active_places(problem, share, seed):
    need("cpu_kernels")
    ones = (1,) * len(problem.kernel)
    problem = dataclasses.replace(problem, strides=ones, padding="SAME")  # keeps the sizes of space
    layer = conv_cases.make.__wrapped__(problem, "unstructured")
    active = _mask(problem, layer, share, seed)[..., None]
    layer = layer.with_x(layer.x * active)
    y, dx, dw = _results(layer, layer.x, active[..., 0], "ffi", submanifold=True)
    seen = dataclasses.replace(layer, g=layer.g * active)
    oracle.equal_exactly(y, layer.y() * active, "y")
    oracle.equal_exactly(dx, seen.dx() * active, "dx")
    oracle.equal_exactly(dw, seen.dw(), "dw")


def test_nothing_jumps_where_the_decision_changes(rng):
    """As one number goes to zero, the other side takes over, with the same results."""
    need("cpu_kernels")
    x = oracle.normals(rng, (1, 6, 5, 8))
    x.reshape(-1)[rng.permutation(x.size)[: x.size * 7 // 10 - 1]] = 0  # one zero too few
    last = tuple(np.argwhere(x)[0])
    w, g = oracle.normals(rng, (3, 3, 8, 7)), oracle.normals(rng, (1, 6, 5, 7))

    @jax.jit
    def run(x, w, g):
        op = lambda x, w: js.masked_conv(x, w, threshold=0.7)
        y, pull_back = jax.vjp(op, x, w)
        return y, *pull_back(g)

    results, sides = {}, {}
    for size in (1e-3, 1e-6, 0):
        x[last] = size
        with js.decisions() as taken:
            results[size] = jax.block_until_ready(run(*(jnp.float32(a) for a in (x, w, g))))
        sides[size] = {one.is_sparse for one in taken}
    assert sides == {1e-3: {False}, 1e-6: {False}, 0: {True}}
    for near, far in zip(results[0], results[1e-6], strict=True):
        np.testing.assert_allclose(near, far, rtol=1e-4, atol=1e-4)
    assert not np.allclose(results[0][2], results[1e-3][2], rtol=0, atol=1e-7)  # the test can fail
