"""Layers on sparse inputs equal Flax's layers of the same parameters, and pass masks on."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from flax import linen as nn
from flax import nnx

import jaxsparse as js
import jaxsparse.linen as jslinen
import jaxsparse.nnx as jsnnx

OPTIONS = {
    "conv": (False, {"strides": 2, "padding": "VALID"}),
    "groups": (False, {"feature_group_count": 2, "kernel_dilation": 2, "use_bias": False}),
    "transposed": (True, {"strides": (2, 2), "transpose_kernel": True}),
}


def sparse_input(share=0.2):
    rng = np.random.default_rng(0)
    mask = rng.random((2, 8, 7)) < share
    return jnp.float32(oracle.small_integers(rng, (2, 8, 7, 4)) * mask[..., None]), mask


def nnx_layers(transposed, options):
    theirs = nnx.ConvTranspose if transposed else nnx.Conv
    ours = jsnnx.MaskedConvTranspose if transposed else jsnnx.MaskedConv
    return [
        make(4, 6, (3, 3), rngs=nnx.Rngs(0), bias_init=nnx.initializers.ones, **options)
        for make in (ours, theirs)
    ]


@pytest.mark.parametrize("name", OPTIONS)
def test_nnx_layer_has_the_parameters_and_the_result_of_flax(name):
    ours, theirs = nnx_layers(*OPTIONS[name])
    state, expected = nnx.state(ours, nnx.Param), nnx.state(theirs, nnx.Param)
    assert jax.tree.structure(state) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(one, other)
    ours.kernel[...] = theirs.kernel[...] = jnp.round(8 * theirs.kernel[...])
    x, _ = sparse_input()
    oracle.equal_exactly(ours(x), np.asarray(theirs(x), np.float64))


@pytest.mark.parametrize("name", OPTIONS)
def test_linen_layer_has_the_parameters_and_the_result_of_flax(name):
    transposed, options = OPTIONS[name]
    ours = jslinen.MaskedConvTranspose if transposed else jslinen.MaskedConv
    theirs = nn.ConvTranspose if transposed else nn.Conv
    x, _ = sparse_input()
    variables = theirs(6, (3, 3), **options).init(jax.random.key(0), x)
    of_ours = ours(6, (3, 3), **options).init(jax.random.key(0), x)
    jax.tree.map(np.testing.assert_array_equal, of_ours, variables)
    variables["params"]["kernel"] = jnp.round(8 * variables["params"]["kernel"])
    y = ours(6, (3, 3), **options).apply(variables, x)
    expected = theirs(6, (3, 3), **options).apply(variables, x)
    oracle.equal_exactly(y, np.asarray(expected, np.float64))


def test_gradients_of_a_layer_are_those_of_flax():
    ours, theirs = nnx_layers(*OPTIONS["conv"])
    ours.kernel[...] = theirs.kernel[...] = jnp.round(8 * theirs.kernel[...])
    x, _ = sparse_input()
    loss = lambda layer, x: jnp.sum(layer(x) ** 2)
    one, other = (nnx.grad(loss, argnums=(0, 1))(layer, x) for layer in (ours, theirs))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        oracle.equal_exactly(a, np.asarray(b, np.float64))


@pytest.mark.parametrize("threshold", [None, 0.7], ids=["measured", "0.7"])
@pytest.mark.parametrize("name", ["conv", "transposed"])
def test_an_empty_sample_yields_the_bias(name, threshold):
    transposed, options = OPTIONS[name]
    ours, _ = nnx_layers(transposed, {**options})
    ours.threshold = threshold
    x, _ = sparse_input()
    oracle.equal_exactly(ours(x.at[0].set(0))[0], np.ones(ours(x)[0].shape))
    oracle.equal_exactly(ours(0 * x), np.ones(ours(x).shape))


@pytest.mark.parametrize("given", [False, True], ids=["found", "given"])
def test_a_submanifold_layer_adds_its_bias_at_active_places_only(given):
    x, mask = sparse_input()
    layer = jsnnx.MaskedConv(
        4, 6, (3, 3), rngs=nnx.Rngs(0), bias_init=nnx.initializers.ones, submanifold=True
    )
    layer.kernel[...] = jnp.round(8 * layer.kernel[...])
    dense = nnx.Conv(4, 6, (3, 3), rngs=nnx.Rngs(0), bias_init=nnx.initializers.ones)
    dense.kernel[...] = layer.kernel[...]
    y = layer(x, jnp.asarray(mask)) if given else layer(x)
    oracle.equal_exactly(y, np.asarray(dense(x), np.float64) * mask[..., None])
    assert layer.output_mask(mask) is mask


@pytest.mark.parametrize("name", OPTIONS)
def test_the_mask_of_the_output_is_what_an_active_place_reaches(name):
    transposed, options = OPTIONS[name]
    options = {**options, "use_bias": False, "kernel_init": nnx.initializers.ones}
    make = jsnnx.MaskedConvTranspose if transposed else jsnnx.MaskedConv
    layer = make(4, 6, (3, 3), rngs=nnx.Rngs(0), **options)
    x, mask = sparse_input(0.05)
    reached = np.asarray(layer(abs(x))) > 0
    np.testing.assert_array_equal(layer.output_mask(jnp.asarray(mask)), reached[..., 0])


@pytest.mark.parametrize("strides", [1, 2, (3, 2)])
@pytest.mark.parametrize("transpose_kernel", [False, True])
def test_the_mask_of_a_transposed_output_wraps_around_as_the_output_does(strides, transpose_kernel):
    layer = jsnnx.MaskedConvTranspose(
        4,
        6,
        (3, 3),
        strides,
        padding="CIRCULAR",
        transpose_kernel=transpose_kernel,
        use_bias=False,
        kernel_init=nnx.initializers.ones,
        rngs=nnx.Rngs(0),
    )
    x, mask = sparse_input(0.05)
    reached = np.asarray(layer(abs(x))) > 0
    np.testing.assert_array_equal(layer.output_mask(jnp.asarray(mask)), reached[..., 0])


def test_a_mask_goes_from_layer_to_layer():
    first = jsnnx.MaskedConv(4, 6, (3, 3), strides=2, rngs=nnx.Rngs(0))
    second = jsnnx.MaskedConv(6, 5, (3, 3), rngs=nnx.Rngs(1))
    x, mask = sparse_input(0.05)
    mask = jnp.asarray(mask)
    hidden, reached = first(x, mask), first.output_mask(mask)
    np.testing.assert_allclose(second(hidden, reached), second(hidden), rtol=1e-6, atol=1e-6)


def test_a_layer_that_is_given_a_mask_takes_the_bias_of_the_one_before_as_zero():
    ones = nnx.initializers.ones
    first = jsnnx.MaskedConv(4, 6, (3, 3), rngs=nnx.Rngs(0), bias_init=ones)
    second = jsnnx.MaskedConv(6, 5, (3, 3), rngs=nnx.Rngs(1))
    x, mask = jnp.zeros((1, 9, 9, 4)).at[0, 1, 1].set(1), jnp.zeros((1, 9, 9), bool)
    hidden, reached = first(x), first.output_mask(mask.at[0, 1, 1].set(True))
    assert int(reached.sum()) == 9
    assert int(js.active_places(hidden).sum()) == 81
    expected = second(jnp.where(reached[..., None], hidden, 0))
    np.testing.assert_allclose(second(hidden, reached), expected, rtol=1e-6, atol=1e-6)
    assert not np.allclose(expected, second(hidden))
    first.submanifold = True  # has no bias there
    hidden = first(x)
    np.testing.assert_array_equal(js.active_places(hidden)[..., None], x[..., :1] > 0)


def test_linen_layers_pass_masks_within_a_model():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x, mask):
            first = jslinen.MaskedConv(6, (3, 3), strides=2, use_bias=False)
            x, mask = first(x, mask), first.output_mask(mask)
            return jslinen.MaskedConvTranspose(3, (2, 2), strides=(2, 2))(x, mask), mask

    x, mask = sparse_input()
    (y, reached), _ = Model().init_with_output(jax.random.key(0), x, jnp.asarray(mask))
    assert y.shape == (2, 8, 8, 3)
    assert reached.shape == (2, 4, 4)


def test_another_convolution_is_refused():
    with pytest.raises(ValueError, match="conv_general_dilated"):
        jsnnx.MaskedConv(
            4, 6, (3, 3), rngs=nnx.Rngs(0), conv_general_dilated=jax.lax.conv_general_dilated
        )
    layer = jslinen.MaskedConv(6, (3, 3), conv_general_dilated=lambda *a, **k: None)
    with pytest.raises(ValueError, match="conv_general_dilated"):
        layer.init(jax.random.key(0), sparse_input()[0])
