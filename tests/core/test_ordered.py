"""Convolutions in the order in which XLA's CPU backend is fast are the same convolutions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxsparse as js
from jaxsparse.core.dispatch import equations
from jaxsparse.core.ordered import in_order

LAST = lax.ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))


def _operands(x_shape, w_shape):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in (x_shape, w_shape)]


def _convolutions(function, *args):
    jaxpr = jax.make_jaxpr(function)(*args).jaxpr
    return [e.eqn for e in equations(jaxpr) if e.eqn.primitive is lax.conv_general_dilated_p]


@pytest.mark.parametrize("argument", [0, 1])
@pytest.mark.parametrize("groups", [1, 2])
def test_derivatives_come_in_order_and_are_the_same(argument, groups):
    x, w = _operands((2, 7, 6, 4), (3, 2, 4 // groups, 6))

    def loss(x, w):
        y = lax.conv_general_dilated(
            x, w, (2, 1), "SAME", dimension_numbers=LAST, feature_group_count=groups
        )
        return jnp.sum(jnp.sin(y))

    gradient = jax.grad(loss, argument)
    assert any(e.params["dimension_numbers"] != LAST for e in _convolutions(gradient, x, w))
    found = _convolutions(in_order(gradient), x, w)
    assert found
    assert all(e.params["dimension_numbers"] == LAST for e in found)
    np.testing.assert_allclose(in_order(gradient)(x, w), gradient(x, w), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", [("NCHW", "OIHW", "NCHW"), ("CWNH", "WIHO", "HNWC")])
def test_any_order_of_axes_is_brought_into_this_one(form):
    x, w = _operands((2, 5, 6, 3), (3, 3, 3, 4))
    # The same numbers, with the axes of `form`.
    x = jnp.transpose(x, ["NHWC".index(axis) for axis in form[0]])
    w = jnp.transpose(w, ["HWIO".index(axis) for axis in form[1]])
    convolved = lambda x, w: lax.conv_general_dilated(x, w, (1, 2), "VALID", dimension_numbers=form)
    assert [e.params["dimension_numbers"] for e in _convolutions(in_order(convolved), x, w)] == [
        LAST
    ]
    np.testing.assert_allclose(in_order(convolved)(x, w), convolved(x, w), rtol=1e-5, atol=1e-5)


def test_what_is_compiled_apart_is_reached():
    x, w = _operands((1, 5, 5, 3), (3, 3, 3, 4))
    first = ("NCHW", "OIHW", "NCHW")
    convolved = jax.jit(
        lambda x, w: lax.conv_general_dilated(
            x.transpose(0, 3, 1, 2),
            w.transpose(3, 2, 0, 1),
            (1, 1),
            "SAME",
            dimension_numbers=first,
        )
    )
    (found,) = _convolutions(in_order(convolved), x, w)
    assert found.params["dimension_numbers"] == LAST


def test_several_results_stay_several():
    both = in_order(lambda x: (x + 1, x * 2))(jnp.arange(3.0))
    np.testing.assert_array_equal(both[0], [1, 2, 3])
    np.testing.assert_array_equal(both[1], [0, 2, 4])


def test_gradients_that_run_dense_inside_a_loop_are_in_order():
    # XLA's pass that does this for other programs does not reach into loops.
    x, w = _operands((2, 8, 8, 16), (3, 3, 16, 16))
    weight = js.fromdense(w, "unstructured", sparsity=0.1)

    def step(values, _):
        loss = lambda v: jnp.sum(js.conv(x, weight.with_values(v), implementation="dense") ** 2)
        return values - 1e-3 * jax.grad(loss)(values), None

    run = jax.jit(lambda values: lax.scan(step, values, None, length=2)[0])
    text = run.lower(weight.values).as_text()
    forms = [line.split("dim_numbers = ")[1].split(", window")[0] for line in text.splitlines()
             if "stablehlo.convolution" in line]  # fmt: skip
    assert len(forms) >= 2
    assert set(forms) == {"[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]"}
