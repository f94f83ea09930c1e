"""Scores against their definitions, on networks small enough to differentiate by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from jaxsparse import pruning

X = np.random.default_rng(1).standard_normal((5, 3))


@pytest.fixture
def params(rng):
    return {
        "first": jnp.asarray(rng.standard_normal((3, 4)), "float32"),
        "last": jnp.asarray(rng.standard_normal((4, 2)), "float32"),
    }


def loss(params):
    hidden = jnp.tanh(jnp.asarray(X, "float32") @ params["first"])
    return jnp.sum((hidden @ params["last"]) ** 2)


def assert_trees_close(a, b, rtol=1e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-5), a, b)


def test_magnitude_is_the_absolute_value(params):
    assert_trees_close(pruning.magnitude(params), jax.tree.map(np.abs, params), rtol=0)


def test_gradient_snip_and_movement_equal_their_definitions(params):
    grads = jax.grad(loss)(params)
    definitions = {
        pruning.gradient: lambda w, g: np.abs(g),
        pruning.snip: lambda w, g: np.abs(np.asarray(w) * g),
        pruning.movement: lambda w, g: -np.asarray(w) * g,
    }
    for score, definition in definitions.items():
        assert_trees_close(score(params, grads), jax.tree.map(definition, params, grads))


@pytest.mark.parametrize("score", [pruning.gradient, pruning.snip, pruning.movement])
def test_scores_of_gradients_say_that_there_are_none(score, params):
    with pytest.raises(ValueError, match=rf"{score.__name__}: the gradients .* got None"):
        score(params, None)


def test_snip_is_the_change_of_the_loss_without_the_weight(params):
    """To first order, so for a weight that is nearly zero."""
    small = {**params, "last": params["last"].at[1, 1].set(1e-3)}
    without = {**params, "last": params["last"].at[1, 1].set(0)}
    score = pruning.snip(small, jax.grad(loss)(small))["last"][1, 1]
    np.testing.assert_allclose(score, abs(loss(small) - loss(without)), rtol=0.1)


def test_grasp_is_the_weight_times_hessian_times_gradient(params):
    flat, rebuild = ravel_pytree(params)
    hessian = np.asarray(jax.hessian(lambda w: loss(rebuild(w)))(flat), np.float64)
    gradient = np.asarray(jax.grad(lambda w: loss(rebuild(w)))(flat), np.float64)
    expected = np.asarray(flat) * (hessian @ gradient)
    got, _ = ravel_pytree(pruning.grasp(loss, params))
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-3)


def test_grasp_keeps_what_gradient_flow_needs(params):
    """Half the squared gradient falls most without the weight of highest score."""
    flow = lambda w: sum(jnp.sum(g**2) for g in jax.tree.leaves(jax.grad(loss)(w)))
    scores = pruning.grasp(loss, params)["last"]
    shrunk = {
        index: flow({**params, "last": params["last"].at[index].multiply(0.999)})
        for index in np.ndindex(4, 2)
    }
    assert min(shrunk, key=shrunk.get) == np.unravel_index(jnp.argmax(scores), (4, 2))


def test_synflow_is_what_flows_through_a_weight(params):
    """In a linear network: the products of absolute weights on all paths through it."""
    output = lambda w: jnp.ones((1, 3)) @ w["first"] @ w["last"]
    first, last = (np.abs(params[name]) for name in ("first", "last"))
    paths = first[:, :, None] * last[None]
    scores = pruning.synflow(output, params)
    assert_trees_close(scores, {"first": paths.sum(2), "last": paths.sum(0)})


def test_synflow_conserves_flow_between_layers(params):
    scores = pruning.synflow(lambda w: jnp.ones((1, 3)) @ w["first"] @ w["last"], params)
    np.testing.assert_allclose(scores["first"].sum(0), scores["last"].sum(1), rtol=1e-5)


def test_random_scores_come_from_the_key_and_differ_between_leaves():
    params = {"a": jnp.zeros((4, 5)), "b": jnp.zeros((4, 5))}
    once, again = (pruning.random(jax.random.key(3), params) for _ in range(2))
    other = pruning.random(jax.random.key(4), params)
    assert_trees_close(once, again, rtol=0)
    assert (once["a"] != other["a"]).all()
    assert (once["a"] != once["b"]).all()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_scores_of_half_precision_do_not_vanish(dtype):
    small = {"w": jnp.full((2, 2), 1e-4, dtype)}
    assert (pruning.snip(small, small)["w"] > 0).all()
    assert pruning.magnitude(small)["w"].dtype == jnp.float32


def test_scores_work_inside_jit(params):
    def all_scores(params):
        grads = jax.grad(loss)(params)
        return (
            pruning.magnitude(params),
            pruning.snip(params, grads),
            pruning.grasp(loss, params),
            pruning.synflow(lambda w: w["first"] @ w["last"], params),
        )

    assert_trees_close(jax.jit(all_scores)(params), all_scores(params), rtol=1e-4)
