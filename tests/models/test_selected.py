"""What scores select becomes sparse models: single weights, blocks, groups, and N of M weights."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from flax_networks import assert_close, make_linen, make_nnx

import jaxsparse as js
import jaxsparse.linen as jslinen
import jaxsparse.nnx as jsnnx
from jaxsparse import pruning

KERNELS = "conv/kernel", "up/kernel", "linear/kernel"
IMAGES = jax.random.normal(jax.random.key(1), (2, 4, 4, 8))


class Net(nnx.Module):
    """A layer of each type; the last, whose outputs have two axes, stays dense."""

    def __init__(self, rngs):
        self.conv = nnx.Conv(8, 8, (3, 3), rngs=rngs)
        self.up = nnx.ConvTranspose(8, 8, (2, 2), (2, 2), rngs=rngs)
        self.linear = nnx.Linear(8, 16, rngs=rngs)
        self.general = nnx.LinearGeneral((8, 16), (4, 4), axis=(-2, -1), rngs=rngs)

    def __call__(self, x):
        return self.general(nnx.relu(self.linear(self.up(nnx.relu(self.conv(x))))))


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(8, (3, 3), name="conv")(x))
        x = nn.ConvTranspose(8, (2, 2), (2, 2), name="up")(x)
        x = nn.relu(nn.Dense(16, name="linear")(x))
        return nn.DenseGeneral((4, 4), axis=(-2, -1), name="general")(x)


def kept(scores, format):
    """Patterns of half of the parts, and rules for a model of them."""
    stored = "unstructured" if format == "2:4" else format
    rules = [js.Rule("general", None), js.Rule(".*", stored)]
    given = lambda name, leaf: stored if name in KERNELS else None
    if format == "2:4":
        return pruning.select_n_m(scores, 2, 4, format=given), rules
    return pruning.select(scores, sparsity=0.5, format=given), rules


def assert_holds(kernel, format):
    """Half of the weights are stored, and as many in any four inputs of one tap where 2:4 says."""
    kernel = np.asarray(kernel)
    assert (kernel != 0).sum() == kernel.size // 2
    if format == "2:4":
        *taps, size_in, size_out = kernel.shape
        fours = (kernel != 0).reshape(*taps, size_in // 4, 4, size_out)
        assert (fours.sum(-2) == 2).all()


every_format = pytest.mark.parametrize("format", ["unstructured", "4x4", "grouped:4", "2:4"])


@every_format
def test_an_nnx_model_takes_selected_patterns_and_keeps_them_in_training(format):
    model = make_nnx(Net)
    weights = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    patterns, rules = kept(pruning.magnitude(weights), format)
    sparse, summary = js.sparsify(model, rules, masks=patterns)
    assert [row.density for row in summary.sparse] == [0.5] * 3
    optimizer = nnx.Optimizer(sparse, optax.sgd(0.1), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        optimizer.update(model, nnx.grad(lambda model: (model(IMAGES) ** 2).mean())(model))
        jsnnx.apply_patterns(model)

    before = sparse.linear.kernel[...]
    step(sparse, optimizer)
    assert (before != sparse.linear.kernel[...]).any()
    for layer in (sparse.conv, sparse.up, sparse.linear):
        assert_holds(layer.kernel[...], format)
    packed, _ = js.pack(sparse)
    assert_close(packed(IMAGES), sparse(IMAGES))


@every_format
def test_a_linen_model_takes_selected_patterns(format):
    model = LinenNet()
    given = make_linen(model, IMAGES)
    patterns, rules = kept(pruning.magnitude(given["params"]), format)
    sparse, variables, summary = js.sparsify(model, rules, given, IMAGES, masks=patterns)
    assert [row.density for row in summary.sparse] == [0.5] * 3
    for name in ("conv", "up", "linear"):
        assert_holds(variables["params"][name]["kernel"], format)
    packed = jslinen.pack(variables)
    assert_close(sparse.apply(packed, IMAGES), model.apply({"params": variables["params"]}, IMAGES))


def test_stacked_biases_and_scales_are_no_weights():
    """Those of layers in a loop have two axes."""
    leaves = {"kernel": (3, 8, 8), "bias": (3, 8), "scale": (3, 8)}
    scores = {"layers": {name: jnp.ones(shape) for name, shape in leaves.items()}}
    selected = pruning.select(scores, sparsity=0.5, format="4x4")["layers"]
    pruner = pruning.rigl(sparsity=0.5, format="4x4", end=1000)
    started = pruner.init(scores, key=jax.random.key(0)).patterns["layers"]
    for patterns in (selected, started):
        assert {name for name, pattern in patterns.items() if pattern is not None} == {"kernel"}
