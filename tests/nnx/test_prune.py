"""Pruners on NNX models do what they do on trees of parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxsparse as js
import jaxsparse.nnx as jnnx
from jaxsparse import pruning

X = jax.random.normal(jax.random.key(1), (4, 16))


class Model(nnx.Module):
    """A sparse layer, a tied one that is used twice, a dense one."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.first = jnnx.Linear(16, 32, rngs=rngs, format="8x8", sparsity=0.5)
        self.middle = nnx.List([jnnx.Linear(32, 32, rngs=rngs, format="8x8", sparsity=0.5)])
        self.again = self.middle[0]
        self.last = nnx.Linear(32, 4, rngs=rngs)

    def __call__(self, x):
        x = jnp.tanh(self.again(jnp.tanh(self.middle[0](jnp.tanh(self.first(x))))))
        return self.last(x)


def loss_of(model, x):
    return jnp.mean((model(x) - 1) ** 2)


@pytest.fixture(autouse=True)
def _promotion():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # for optax
        yield


PRUNERS = {
    "rigl": lambda: pruning.rigl(end=9, every=2, fraction=0.5),
    "set": lambda: pruning.set_(every=2, fraction=0.5),
    "gradual": lambda: pruning.gradual(pruning.cubic(0.75, end=6), every=2),
}


@pytest.mark.parametrize("make", PRUNERS.values(), ids=PRUNERS)
def test_a_pruner_does_the_same_on_a_model_as_on_its_parameters(make):
    pruner, adam, traces = make(), optax.adam(0.1), []
    model = Model()
    optimizer = nnx.Optimizer(model, adam, wrt=nnx.Param)
    state = jnnx.start_pruning(pruner, model, key=jax.random.key(2))

    # The same with a tree: the model is a function of its parameters and patterns.
    first, middle = model.first.pattern, model.middle[0].pattern
    of = lambda layer: {"w": layer.kernel[...], "b": layer.bias[...]}
    params = {"first": of(model.first), "middle": of(model.middle[0]), "last": of(model.last)}
    patterns = {
        "first": {"w": first, "b": None},
        "middle": {"w": middle, "b": None},
        "last": {"w": None, "b": None},
    }

    def function(params, x):
        dense = lambda p, x: js.matmul(x, p["w"]) + p["b"]
        x = jnp.tanh(dense(params["middle"], jnp.tanh(dense(params["first"], x))))
        return jnp.mean((dense(params["last"], jnp.tanh(dense(params["middle"], x))) - 1) ** 2)

    plain_opt = adam.init(params)
    plain = pruner.init(params, key=jax.random.key(2), patterns=patterns)

    @nnx.jit
    def step(model, optimizer, state):
        traces.append(None)
        optimizer.update(model, nnx.grad(loss_of)(model, X))
        return jnnx.prune(pruner, model, optimizer, state, lambda model: loss_of(model, X))

    @jax.jit
    def plain_step(params, opt_state, state):
        stored = lambda p: pruning.apply_patterns(p, state.patterns)
        grads = jax.grad(lambda p: function(stored(p), X))(params)
        updates, opt_state = adam.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        return pruner.update(params, opt_state, state, jax.grad(lambda p: function(p, X)))

    for _ in range(7):
        state = step(model, optimizer, state)
        params, plain_opt, plain = plain_step(params, plain_opt, plain)
        for layer, name in ((model.first, "first"), (model.middle[0], "middle")):
            mask = np.asarray(layer.pattern.mask())
            assert not np.asarray(layer.kernel[...])[~mask].any()
            if make is PRUNERS["set"]:
                continue  # what is drawn depends on the order of the leaves
            np.testing.assert_array_equal(mask, plain.patterns[name]["w"].mask())
            np.testing.assert_allclose(layer.kernel[...], params[name]["w"], rtol=1e-4, atol=1e-5)
    assert len(traces) == 1
    assert model.again is model.middle[0]
    assert (np.asarray(model.first.pattern.mask()) != np.asarray(first.mask())).any()


def test_a_packed_model_is_refused():
    with pytest.raises(ValueError, match="start_pruning: patterns change where .* got .*packed"):
        jnnx.start_pruning(PRUNERS["rigl"](), jnnx.pack(Model()))
