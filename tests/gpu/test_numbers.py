"""Every kernel computes the definition, in every dtype, over shapes at which kernels go wrong."""

import functools

import cases
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

import jaxsparse as js
from jaxsparse.problems import SMALL, Problem

# Above the tiles and rings of the kernels, with blocks of every tile and lists of every length.
LARGE = (
    Problem("square_128", (300,), (512, 384), (128, 128), 0.6, "more rows than two tiles"),
    Problem("square_64", (257,), (640, 512), (64, 64), 0.7, "a tile and one row"),
    Problem("square_32", (128,), (1024, 256), (32, 32), 0.8, "lists longer than a ring"),
    Problem("square_16", (65,), (512, 512), (16, 16), 0.9, "many short lists"),
    Problem("wide", (100,), (256, 512), (32, 128), 0.6, "blocks that lie"),
    Problem("tall", (100,), (512, 256), (128, 32), 0.6, "blocks that stand"),
    Problem("unaligned", (33,), (250, 190), (32, 32), 0.5, "rows that are no multiple of 16 bytes"),
    Problem("one_row", (1,), (1024, 1024), (64, 64), 0.8, "a row of x"),
    Problem("many_rows", (5000,), (128, 128), (64, 64), 0.5, "a batch that dW must split"),
    Problem("one_column", (64,), (2048, 64), (64, 64), 0.0, "one heavy column"),
    Problem("many_tiles", (1100,), (512, 2560), (64, 64), 0.8, "more tiles than multiprocessors"),
    Problem("edge_128", (260,), (512, 456), (64, 128), 0.5, "a tile over the edge of the weight"),
)
every_problem = pytest.mark.parametrize("problem", [*SMALL, *LARGE], ids=str)
every_dtype = pytest.mark.parametrize("dtype", cases.DTYPES)


@functools.cache
def layer_of(problem, draw):
    return cases.make(problem, draw, unused=3)


def passes(weight, x, g, **options):
    """The product and both its gradients, by kernels, compiled."""

    def run(x, values):
        y = lambda x, values: js.matmul(
            x, weight.with_values(values), implementation="ffi", **options
        )
        result, pull = jax.vjp(y, x, values)
        return result, *pull(g)

    return jax.jit(run)(x, weight.values)


def few_integers(rng, shape):
    """Ones among zeros, so that sums of thousands of products are integers that bfloat16 has."""
    return oracle.small_integers(rng, shape, 1) * (rng.random(shape) < 0.2)


def reals(rng, shape):
    """Of both signs and not near zero: a product of two is no subnormal float16."""
    return rng.uniform(0.5, 2, shape) * rng.choice([-1, 1], shape)


@every_dtype
@every_problem
def test_products_and_gradients_equal_the_definition_on_integers(problem, dtype):
    with jax.enable_x64(dtype == "float64"):
        draw = oracle.small_integers if problem in SMALL else few_integers
        layer = layer_of(problem, draw)
        weight = layer.weight(dtype)
        y, dx, dw = passes(weight, layer.array("x", dtype), layer.array("g", dtype))
        oracle.equal_exactly(y, layer.y(), "y")
        oracle.equal_exactly(dx, layer.dx(), "dx")
        oracle.equal_exactly(dw, layer.dvalues(), "dw")


@every_dtype
@pytest.mark.parametrize("problem", LARGE, ids=str)
def test_products_and_gradients_round_like_dot_products(problem, dtype):
    with jax.enable_x64(dtype == "float64"):
        layer = layer_of(problem, reals).rounded(dtype)
        sizes = layer.magnitudes()
        results = passes(
            layer.weight(dtype),
            layer.array("x", dtype),
            layer.array("g", dtype),
            precision="highest",
        )
        exact = layer.y(), layer.dx(), layer.dvalues()
        bounds = sizes.y(), sizes.dx(), sizes.dvalues()
        for got, want, bound, what in zip(results, exact, bounds, ("y", "dx", "dw"), strict=True):
            oracle.rounds_like_a_dot_product(got, want, bound, what)


@pytest.mark.parametrize("problem", LARGE, ids=str)
def test_float32_by_default_rounds_like_tf32(problem):
    layer = layer_of(problem, reals).rounded("float32")
    sizes = layer.magnitudes()
    results = passes(layer.weight(), layer.array("x"), layer.array("g"))
    exact = layer.y(), layer.dx(), layer.dvalues()
    bounds = sizes.y(), sizes.dx(), sizes.dvalues()
    tf32 = 2.0**-11 / oracle.UNIT["float32"]  # each factor is rounded to eleven bits
    for got, want, bound, what in zip(results, exact, bounds, ("y", "dx", "dw"), strict=True):
        oracle.rounds_like_a_dot_product(got, want, bound, what, slack=2.5 * tf32)


@every_dtype
@pytest.mark.parametrize("problem", LARGE[:4], ids=str)
def test_the_same_inputs_give_the_same_bits(problem, dtype):
    with jax.enable_x64(dtype == "float64"):
        layer = layer_of(problem, reals)
        arguments = layer.weight(dtype), layer.array("x", dtype), layer.array("g", dtype)
        for one, other in zip(passes(*arguments), passes(*arguments), strict=True):
            np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


@pytest.mark.parametrize("problem", LARGE[:4], ids=str)
def test_a_float32_result_of_bfloat16_is_not_rounded(problem):
    layer = layer_of(problem, reals).rounded("bfloat16")
    weight = layer.weight("bfloat16")
    product = functools.partial(js.matmul, preferred_element_type=jnp.float32, implementation="ffi")
    y = jax.jit(product)(layer.array("x", "bfloat16"), weight)
    assert y.dtype == jnp.float32
    oracle.rounds_like_a_dot_product(y, layer.y(), layer.magnitudes().y())
