"""Convolutions of random geometry, against the definition and, as a second opinion, lax."""

import contextlib

import conv_cases
import jax
import jax.numpy as jnp
import numpy as np
import oracle
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax import lax
from machine import need

import jaxsparse as js
from jaxsparse.problems import ConvProblem


@st.composite
def problems(draw):
    """Any convolution with few and small numbers."""
    rank = draw(st.integers(1, 3))
    each = lambda low, high: tuple(draw(st.integers(low, high)) for _ in range(rank))
    largest = {1: 9, 2: 5, 3: 3}[rank]
    space, kernel = each(1, largest), each(1, min(4, largest))
    strides, dilation = each(1, 3), each(1, 2)
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    features = tuple(groups * draw(st.integers(1, 4)) for _ in range(2))
    transposed = draw(st.booleans())
    if draw(st.booleans()):
        padding = draw(st.sampled_from(["SAME", "VALID"]))
    else:
        padding = tuple(
            (draw(st.integers(-1, 3)), draw(st.integers(-1 if n > 1 else 0, 3)))
            if n > 2
            else (draw(st.integers(0, 3)), draw(st.integers(0, 3)))
            for n in space
        )
    return ConvProblem(
        f"random{draw(st.integers(0, 10**6))}",
        space,
        kernel,
        features,
        strides,
        padding,
        dilation,
        groups,
        transposed,
        batch=draw(st.sampled_from([(), (1,), (3,), (2, 2)])),
        sparsity=draw(st.sampled_from([0.0, 0.5, 0.9, 1.0])),
    )


formats = st.sampled_from(["unstructured", "grouped:2", "grouped:8", "1x1", "3x2", "8x8"])
quiet = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)


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
