"""Layers with single weights and with groups of outputs: they train, change, pack and are saved."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from flax import linen as nn
from flax import nnx, serialization
from flax_layers import mask_of

import jaxsparse as js
import jaxsparse.linen as jlinen
import jaxsparse.nnx as jnnx

SHAPE = (12, 20)
ORDER = np.random.default_rng(0).permutation(20)
PATTERNS = {
    "unstructured": functools.partial(js.patterns.random, format="unstructured", shape=SHAPE),
    "grouped": functools.partial(js.patterns.random, format="grouped:8", shape=SHAPE, order=ORDER),
}
every_format = pytest.mark.parametrize("make", PATTERNS.values(), ids=PATTERNS)


def drawn(make, seed):
    return make(jax.random.key(seed), sparsity=0.5)


def numbers(rng):
    kernel, x, g = (
        oracle.small_integers(rng, shape) for shape in (SHAPE, (5, SHAPE[0]), (5, SHAPE[1]))
    )
    return kernel, x, g, [jnp.float32(a) for a in (kernel, x, g)]


@every_format
@pytest.mark.parametrize("grad", ["sparse", "dense"])
def test_an_nnx_step_with_a_new_pattern_is_that_of_the_masked_kernel(make, grad, rng):
    layer = jnnx.Linear(*SHAPE, use_bias=False, rngs=nnx.Rngs(0), pattern=drawn(make, 0), grad=grad)
    kernel, x, g, (w, x_array, g_array) = numbers(rng)
    traces = []

    @nnx.jit
    def step(layer, w, x, g, pattern):
        traces.append(None)
        layer.kernel[...] = w
        layer.set_pattern(pattern)

        def loss(layer):
            y = layer(x)
            return jnp.vdot(y, g), y

        gradients, y = nnx.grad(loss, has_aux=True)(layer)
        gradient = gradients["kernel"][...]
        layer.kernel[...] -= gradient
        jnnx.apply_patterns(layer)
        return y, gradient

    for seed in (1, 2):
        pattern = drawn(make, seed)
        y, gradient = step(layer, w, x_array, g_array, pattern)
        mask = mask_of(pattern, SHAPE)
        oracle.equal_exactly(y, x @ (kernel * mask))
        oracle.equal_exactly(gradient, x.T @ g * (mask | (grad == "dense")))
        oracle.equal_exactly(layer.kernel[...], (kernel - x.T @ g) * mask)
    assert len(traces) == 1


@every_format
def test_a_linen_step_is_that_of_the_masked_kernel(make, rng):
    pattern = drawn(make, 0)
    layer = jlinen.Dense(SHAPE[1], use_bias=False, pattern=pattern)
    kernel, x, g, (w, x_array, g_array) = numbers(rng)
    variables = layer.init(jax.random.key(0), x_array)
    run = lambda w: layer.apply({**variables, "params": {"kernel": w}}, x_array)
    y, pull_back = jax.vjp(run, w)
    mask = mask_of(pattern, SHAPE)
    oracle.equal_exactly(y, x @ (kernel * mask))
    oracle.equal_exactly(pull_back(g_array)[0], x.T @ g * mask)


@every_format
def test_packed_layers_store_the_values_and_compute_the_same(make, rng):
    pattern = drawn(make, 0)
    layer = jnnx.Linear(*SHAPE, rngs=nnx.Rngs(0), pattern=pattern)
    kernel, x, _, (w, x_array, _) = numbers(rng)
    layer.kernel[...] = w
    jnnx.apply_patterns(layer)
    packed = jnnx.pack(layer)
    assert packed.kernel[...].shape == pattern.values_shape
    oracle.equal_exactly(packed(x_array), x @ (kernel * mask_of(pattern, SHAPE)))
    np.testing.assert_array_equal(jnnx.unpack(packed).kernel[...], layer.kernel[...])
    module = jlinen.Dense(SHAPE[1], use_bias=False, pattern=pattern)
    variables = module.init(jax.random.key(0), x_array)
    variables = jlinen.pack(jlinen.apply_patterns({**variables, "params": {"kernel": w}}))
    assert variables["params"]["kernel"].shape == pattern.values_shape
    oracle.equal_exactly(module.apply(variables, x_array), x @ (kernel * mask_of(pattern, SHAPE)))


@every_format
def test_patterns_and_weights_survive_flax_serialization(make):
    pattern = drawn(make, 0)
    w = js.SparseWeight(pattern.gather(jnp.ones(SHAPE)), pattern)
    for value in (pattern, w, js.WeightSum((w, w))):
        like = jax.tree.map(jnp.zeros_like, value)
        again = serialization.from_bytes(like, serialization.to_bytes(value))
        assert jax.tree.structure(again) == jax.tree.structure(value)
        jax.tree.map(np.testing.assert_array_equal, again, value)


@every_format
def test_layers_with_patterns_compare_and_hash_by_content(make):
    layer = functools.partial(jlinen.Dense, SHAPE[1])
    copy = jax.tree.map(lambda a: jnp.array(a, copy=True), drawn(make, 0))
    assert layer(pattern=drawn(make, 0)) == layer(pattern=copy)
    assert hash(layer(pattern=drawn(make, 0))) == hash(layer(pattern=copy))
    assert layer(pattern=drawn(make, 0)) != layer(pattern=drawn(make, 1))


@every_format
def test_the_products_of_flax_layers_take_the_pattern(make, rng):
    kernel, x, _, (w, x_array, _) = numbers(rng)
    pattern = drawn(make, 0)
    product = functools.partial(js.dot_general, pattern=pattern)
    layer = nn.Dense(SHAPE[1], use_bias=False, dot_general=product)
    y = layer.apply({"params": {"kernel": w}}, x_array)
    oracle.equal_exactly(y, x @ (kernel * mask_of(pattern, SHAPE)))


def test_a_pattern_for_another_kernel_is_refused():
    pattern = js.patterns.full("unstructured", (12, 21))
    with pytest.raises(ValueError, match="must be for a weight of shape"):
        jnnx.Linear(*SHAPE, rngs=nnx.Rngs(0), pattern=pattern)
