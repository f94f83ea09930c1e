"""Convolutions of random geometry, against the definition and, as a second opinion, lax."""

import contextlib

import conv_cases
import jax
import jax.numpy as jnp
import numpy as np
import oracle
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from machine import need
from random_convs import problems, quiet

import jaxsparse as js
from jaxsparse.problems import ConvProblem

formats = st.sampled_from(["unstructured", "grouped:2", "grouped:8", "1x1", "3x2", "8x8"])


def value_and_gradients(layer, dtype, path):
    w = layer.weight(dtype)

    def run(x, values, g):
        product = lambda x, v: layer.convolve(x, w.with_values(v), implementation=path)
        y, pull_back = jax.vjp(product, x, values)
        return y, *pull_back(g)

    return jax.jit(run)(layer.array("x", dtype), w.values, layer.array("g", dtype))


def check(problem, format, dtype, path, unused):
    layer = conv_cases.make.__wrapped__(problem, format, unused=unused)
    with jax.enable_x64(True) if dtype == "float64" else contextlib.nullcontext():
        y, dx, dvalues = jax.tree.map(np.asarray, value_and_gradients(layer, dtype, path))
    oracle.equal_exactly(y, layer.y(), "y")
    oracle.equal_exactly(dx, layer.dx(), "dx")
    oracle.equal_exactly(dvalues, layer.dvalues(), "dvalues")
    return layer, y


@settings(quiet, max_examples=100)
@given(problems(), formats, st.sampled_from(["float32", "float64"]), st.integers(0, 2))
def test_random_convolutions_and_gradients_equal_definition_by_kernels(
    problem, format, dtype, unused
):
    need("cpu_kernels")
    check(problem, format, dtype, "ffi", unused)


@settings(quiet, max_examples=15)
@given(problems(), formats, st.integers(0, 2))
def test_random_convolutions_and_gradients_equal_definition_and_lax_in_plain_jax(
    problem, format, unused
):
    layer, y = check(problem, format, "float32", "xla", unused)
    if problem.transposed and problem.feature_group_count > 1:
        return  # lax has none
    rank = len(problem.kernel)
    letters = "DHW"[-rank:]
    layout = (f"N{letters}C", f"{letters}IO", f"N{letters}C")
    x = jnp.float32(layer.x.reshape(-1, *problem.space, problem.features[0]))
    convolve = lax.conv_transpose if problem.transposed else lax.conv_general_dilated
    groups = {} if problem.transposed else {"feature_group_count": problem.feature_group_count}
    exact = convolve(
        x,
        jnp.float32(layer.dense()),
        problem.strides,
        problem.padding,
        rhs_dilation=problem.kernel_dilation,
        dimension_numbers=layout,
        **groups,
    )
    oracle.equal_exactly(y, np.asarray(exact).reshape(y.shape))


def test_the_weight_of_random_problems_has_what_its_pattern_says():
    """Guards the tests above: problems without weights prove nothing."""
    layer = conv_cases.make(ConvProblem("guard", (5,), (3,), (4, 6), sparsity=0.5), "grouped:4")
    np.testing.assert_array_equal(layer.weight(garbage=False).todense(), layer.dense())
    assert np.count_nonzero(layer.dense()) > 10
    assert isinstance(layer.pattern, js.ColumnPattern)
