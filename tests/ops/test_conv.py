"""Convolutions, transposed ones and their gradients against the definition, in every format."""

import contextlib
import dataclasses
import functools

import conv_cases
import jax
import numpy as np
import oracle
import pytest
from machine import need

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


@pytest.mark.parametrize("strides", [(1, 1), (2, 1), (2, 3)])
@every_format
def test_taps_that_see_no_input_take_no_part(format, strides, path):
    """However far they are from it: no kernel holds or visits the places between."""
    layer = conv_cases.make(problems.ConvProblem("far", (5, 4), (3, 3), (3, 6)), format)
    layer = dataclasses.replace(layer, values=np.where(layer.rows < 0, np.nan, 2.0))
    weight, x = layer.dense()[1, 1], layer.x[..., :: strides[0], :: strides[1], :]
    far = {"strides": strides, "kernel_dilation": 10**4, "implementation": path}

    def run(x, values):
        y = js.conv(x, layer.weight().with_values(values), **far)
        return y.sum(), y

    grads, y = jax.jit(jax.grad(run, (0, 1), has_aux=True))(layer.array("x"), layer.array("values"))
    oracle.equal_exactly(y, x @ weight)
    dx = np.zeros(layer.x.shape)
    dx[..., :: strides[0], :: strides[1], :] = weight.sum(1)
    dw = np.zeros((3, 3, 3, 6))
    dw[1, 1] = x.reshape(-1, 3).sum(0)[:, None]
    oracle.equal_exactly(grads[0], dx)
    oracle.equal_exactly(grads[1], layer.stored(dw))


# More columns of results than a million, and hardly a weight in any.
LONG = [
    problems.ConvProblem("stride", (1100, 1000), (3, 2), (1, 2), strides=(1100, 1000)),
    problems.ConvProblem("wide", (), (), (1_100_000, 2), batch=(3,), sparsity=0.9999),
]


@pytest.mark.parametrize("problem", LONG, ids=lambda problem: problem.name)
def test_kernels_compute_what_has_far_more_results_than_weights(problem):
    need("cpu_kernels")
    layer, (y, dx, dvalues) = results(problem, "unstructured", "float32", "ffi")
    oracle.equal_exactly(y, layer.y(), "y")
    oracle.equal_exactly(dx, layer.dx(), "dx")
    oracle.equal_exactly(dvalues, layer.dvalues(), "dvalues")


def test_kernels_take_more_channels_than_one_offset_reaches():
    """Offsets of packed channels have 32 bits, so that these are in two blocks."""
    need("cpu_kernels")
    features, rows = 17_000_000, np.r_[0, 7, 16_999_990, 16_999_999]
    coordinates = np.stack([rows, [0, 1, 0, 1]], 1)
    pattern = js.patterns.from_coordinates(coordinates, "unstructured", (features, 2))
    values = jax.numpy.float32([1, 2, 3, 4])  # by output, as the pattern lists them
    x = jax.numpy.zeros((1, features)).at[0, rows].set(jax.numpy.float32([5, 6, 7, 8]))

    y = js.matmul(x, js.SparseWeight(values, pattern), implementation="ffi")
    oracle.equal_exactly(y, [[5 * 1 + 7 * 2, 6 * 3 + 8 * 4]])
    dvalues = js.sddmm(x, jax.numpy.float32([[1, -1]]), pattern, implementation="ffi")
    oracle.equal_exactly(dvalues, [5, 7, -6, -8])


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
