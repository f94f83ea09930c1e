"""Convolutions, transposed ones and their gradients against the definition, in every format."""

import contextlib
import functools

import conv_cases
import jax
import numpy as np
import oracle
import pytest

import jaxsparse as js
from jaxsparse import problems

# Plain JAX computes with the whole weight, whatever its format: one format for each problem.
FORMATS_OF = {
    problem.name: conv_cases.FORMATS[i % len(conv_cases.FORMATS)]
    for i, problem in enumerate(problems.SMALL_CONVS)
}
# Where everything is uneven, for what does not depend on the geometry.
HARD = ("strides_unequal", "three_groups_stride2", "up_padded")
CASES = [
    pytest.param(problem, format, dtype, path, id=f"{problem}-{format}-{dtype}-{path}")
    for problem in problems.SMALL_CONVS
    for format in conv_cases.FORMATS
    for dtype in ("float32", "bfloat16", "float16", "float64")
    for path in ("ffi", "xla")
    if dtype == "float32" or problem.name in HARD
    if path == "ffi" or format == FORMATS_OF[problem.name]
]
every_case = pytest.mark.parametrize(
    ("problem", "format", "dtype", "path"), CASES, indirect=["path"]
)
every_format = pytest.mark.parametrize("format", conv_cases.FORMATS)


def x64_for(dtype):
    return jax.enable_x64(True) if dtype == "float64" else contextlib.nullcontext()


def value_and_gradients(layer, w, x, g, **options):
    """y, dx and dvalues."""

    @jax.jit
    def run(x, values, indices, g):
        pattern = layer.pattern.with_indices(*indices)
        product = lambda x, values: layer.convolve(x, js.SparseWeight(values, pattern), **options)
        y, pull_back = jax.vjp(product, x, values)
        return y, *pull_back(g)

    return jax.tree.map(np.asarray, run(x, w.values, w.pattern.indices, g))


@functools.lru_cache(maxsize=8)
def results(problem, format, dtype, path, draw=oracle.small_integers, unused=0):
    """The layer, and what the library returns for it."""
    layer = conv_cases.make(problem, format, draw, unused=unused).rounded(dtype)
    with x64_for(dtype):
        w = layer.weight(dtype)
        x, g = layer.array("x", dtype), layer.array("g", dtype)
        return layer, value_and_gradients(layer, w, x, g, implementation=path)


# Structure: on small integers nothing is rounded --------------------------------------------------


@every_case
def test_conv_and_gradients_equal_definition_on_integers(problem, format, dtype, path):
    draw = functools.partial(oracle.small_integers, largest=1)
    layer, (y, dx, dvalues) = results(problem, format, dtype, path, draw)
    assert y.dtype.name == dx.dtype.name == dvalues.dtype.name == dtype
    oracle.equal_exactly(y, layer.y(), "y")
    oracle.equal_exactly(dx, layer.dx(), "dx")
    oracle.equal_exactly(dvalues, layer.dvalues(), "dvalues")


@every_format
def test_unused_places_of_a_pattern_add_nothing(format, path):
    for problem in HARD:
        layer, (y, dx, dvalues) = results(problem, format, "float32", path, unused=3)
        assert np.isnan(layer.values[-1]).all()
        oracle.equal_exactly(y, layer.y(), "y")
        oracle.equal_exactly(dx, layer.dx(), "dx")
        oracle.equal_exactly(dvalues, layer.dvalues(), "dvalues")


# Rounding: every element within the forward error of a dot product --------------------------------


@pytest.mark.parametrize(
    ("problem", "format", "dtype", "path"),
    [case for case in CASES if case.values[-1] == "ffi" or case.values[0].name in HARD],
    indirect=["path"],
)
def test_conv_and_gradients_round_like_a_dot_product(problem, format, dtype, path):
    layer, (y, dx, dvalues) = results(problem, format, dtype, path, oracle.normals)
    bounds = layer.magnitudes()
    oracle.rounds_like_a_dot_product(y, layer.y(), bounds.y(), "y")
    oracle.rounds_like_a_dot_product(dx, layer.dx(), bounds.dx(), "dx")
    oracle.rounds_like_a_dot_product(dvalues, layer.dvalues(), bounds.dvalues(), "dvalues")
