"""Sparse inputs of random geometry, masks and zeros, against the definition."""

import dataclasses
import functools

import conv_cases
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
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


@settings(quiet, max_examples=30)
@given(problems(), st.integers(15, 40), st.integers(15, 70), st.integers(0, 100))
def test_random_weight_gradients_with_channels_for_lists_equal_the_definition(
    problem, inputs, outputs, seed
):
    """Of single zeros. With fewer channels the kernel takes whole places."""
    need("cpu_kernels")
    groups = problem.feature_group_count
    features = (groups * inputs, groups * outputs)
    problem = dataclasses.replace(problem, features=features, batch=(24,))
    layer = conv_cases.make.__wrapped__(problem, "unstructured")
    zeros = np.random.default_rng(seed).random(layer.x.shape) < 0.1
    layer = layer.with_x(layer.x * zeros)
    function = js.masked_conv_transpose if problem.transposed else js.masked_conv

    @jax.jit
    def gradient(x, w, g):
        op = functools.partial(function, x, implementation="ffi", **layer.options)
        return jax.vjp(op, w)[1](g)[0]

    arrays = layer.array("x"), jnp.float32(layer.dense()), layer.array("g")
    oracle.equal_exactly(gradient(*arrays), layer.dw(), "dw")


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_single_zeros_meet_no_infinity_in_the_weight_gradient(transposed, dtype, rng):
    need("cpu_kernels")
    x = oracle.small_integers(rng, (2, 12, 11, 40)) * (rng.random((2, 12, 11, 40)) < 0.1)
    function = js.masked_conv_transpose if transposed else js.masked_conv
    op = functools.partial(function, jnp.asarray(x, dtype), strides=2)
    w = jnp.ones((3, 3, 40, 48), dtype)
    g = jnp.ones(jax.eval_shape(op, w).shape, dtype).at[1, 3, 4, 5].set(jnp.inf)

    def gradient(**options):
        pull_back = jax.vjp(functools.partial(op, **options), w)[1]
        return np.asarray(pull_back(g)[0], np.float64)

    dense, sparse = gradient(implementation="dense"), gradient(implementation="ffi")
    assert np.isnan(dense[..., 5]).any()
    assert not np.isnan(sparse).any()
    is_met = np.isinf(sparse)
    assert is_met.any()
    assert np.array_equal(is_met, np.isinf(dense))
    np.testing.assert_array_equal(sparse[..., :5], dense[..., :5])


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
