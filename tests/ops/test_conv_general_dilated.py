"""`conv_general_dilated` against lax, in any order of axes, and as what Flax layers convolve by."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from flax import linen, nnx
from jax import lax

import jaxsparse as js

# lhs, rhs and result; strides (2, 1), padding ((1, 2), (0, 1)), two feature groups.
LAYOUTS = [
    ("NHWC", "HWIO", "NHWC"),
    ("NCHW", "OIHW", "NCHW"),
    ("NHWC", "OHWI", "NCHW"),
    ("CWNH", "WOHI", "HNCW"),
    ("HWNC", "IOWH", "WHCN"),
]
OPTIONS = {
    "window_strides": (2, 1),
    "padding": ((1, 2), (0, 1)),
    "lhs_dilation": (1, 1),
    "rhs_dilation": (1, 2),
    "feature_group_count": 2,
}


def in_order(array, letters, given):
    """An array whose axes are `given`, as one whose axes are `letters`."""
    return jnp.float32(array.transpose([given.index(letter) for letter in letters]))


def operands(layout, rng):
    """lhs, a whole rhs, and its pattern for [*kernel, in, out] in the rhs's order of the kernel."""
    lhs = oracle.small_integers(rng, (2, 5, 6, 4))
    rhs = oracle.small_integers(rng, (3, 2, 2, 6))
    shape = rhs.transpose(["HWIO".index(letter) for letter in pattern_order(layout[1])]).shape
    pattern = js.patterns.random(jax.random.key(0), "unstructured", shape, sparsity=0.5)
    return in_order(lhs, layout[0], "NHWC"), in_order(rhs, layout[1], "HWIO"), pattern


def pattern_order(rhs_order):
    return "".join(letter for letter in rhs_order if letter in "HW") + "IO"


def restricted(rhs, pattern, order):
    """The whole rhs with zeros off the pattern."""
    return rhs * mask_of(pattern, order)


def mask_of(pattern, order):
    return in_order(np.asarray(pattern.mask()), order, pattern_order(order))


@pytest.mark.parametrize("layout", LAYOUTS, ids="-".join)
def test_axes_in_any_order_mean_what_they_do_in_lax(layout, rng, path):
    lhs, rhs, pattern = operands(layout, rng)
    ours = functools.partial(
        js.conv_general_dilated,
        dimension_numbers=layout,
        pattern=pattern,
        implementation=path,
        **OPTIONS,
    )
    theirs = functools.partial(lax.conv_general_dilated, dimension_numbers=layout, **OPTIONS)
    mask = mask_of(pattern, layout[1])
    whole = lambda lhs, rhs: theirs(lhs, rhs * mask)
    got, exact = (jax.jit(value_and_gradients(f))(lhs, rhs) for f in (ours, whole))
    for one, other in zip(got, exact, strict=True):
        oracle.equal_exactly(one, np.asarray(other))


def value_and_gradients(f):
    squares = lambda lhs, rhs: jnp.sum(f(lhs, rhs) ** 2)
    return lambda lhs, rhs: (f(lhs, rhs), *jax.grad(squares, (0, 1))(lhs, rhs))


def test_dimension_numbers_default_to_those_of_lax(rng, path):
    lhs, rhs, pattern = operands(("NCHW", "OIHW", "NCHW"), rng)
    y = js.conv_general_dilated(lhs, rhs, pattern=pattern, implementation=path, **OPTIONS)
    exact = lax.conv_general_dilated(lhs, restricted(rhs, pattern, "OIHW"), **OPTIONS)
    oracle.equal_exactly(y, np.asarray(exact))


@pytest.mark.parametrize("padding", ["SAME", "SAME_LOWER", "VALID", "same"])
def test_padding_by_name_means_what_it_does_in_lax(padding, rng, path):
    layout = ("NHWC", "HWIO", "NHWC")
    lhs, rhs, pattern = operands(layout, rng)
    options = {**OPTIONS, "padding": padding, "dimension_numbers": layout}
    y = js.conv_general_dilated(lhs, rhs, pattern=pattern, implementation=path, **options)
    exact = lax.conv_general_dilated(lhs, restricted(rhs, pattern, "HWIO"), **options)
    oracle.equal_exactly(y, np.asarray(exact))


def test_a_sparse_weight_is_taken_as_kernel_in_out(rng, path):
    layout = ("NCHW", "HWIO", "NCHW")
    lhs, rhs, pattern = operands(layout, rng)
    w = js.SparseWeight(pattern.gather(rhs), pattern)
    options = {**OPTIONS, "dimension_numbers": layout}
    exact = lax.conv_general_dilated(lhs, restricted(rhs, pattern, "HWIO"), **options)
    for weight in (w, js.WeightSum((w, w.with_values(-2 * w.values)))):
        y = js.conv_general_dilated(lhs, weight, implementation=path, **options)
        sign = 1 if weight is w else -1
        oracle.equal_exactly(y, sign * np.asarray(exact))


def test_without_pattern_it_is_lax_itself(rng):
    lhs, rhs, _ = operands(("NCHW", "OIHW", "NCHW"), rng)
    trace = lambda f: str(jax.make_jaxpr(functools.partial(f, **OPTIONS))(lhs, rhs))
    assert trace(js.conv_general_dilated) == trace(lax.conv_general_dilated)


# As the hook of Flax layers -----------------------------------------------------------------------


@pytest.mark.parametrize("padding", ["SAME", "CIRCULAR", ((1, 0), (2, 1))], ids=str)
@pytest.mark.parametrize("batch", [(), (2,), (2, 2)], ids=str)
def test_linen_conv_takes_it_with_a_pattern(batch, padding, rng, path):
    x = jnp.float32(oracle.small_integers(rng, (*batch, 5, 6, 4)))
    kernel = jnp.float32(oracle.small_integers(rng, (3, 2, 2, 6)))
    pattern = js.patterns.random(jax.random.key(0), "grouped:2", kernel.shape, sparsity=0.5)
    hook = functools.partial(js.conv_general_dilated, pattern=pattern, implementation=path)
    options = {"strides": (2, 1), "padding": padding, "feature_group_count": 2, "use_bias": False}
    make = functools.partial(linen.Conv, 6, (3, 2), **options)
    y = jax.jit(make(conv_general_dilated=hook).apply)({"params": {"kernel": kernel}}, x)
    exact = make().apply({"params": {"kernel": pattern.restrict(kernel)}}, x)
    oracle.equal_exactly(y, np.asarray(exact))


@pytest.mark.parametrize("preferred", [None, jnp.float32], ids=["default", "float32"])
def test_nnx_conv_takes_it_with_a_pattern(preferred, rng, path):
    x = jnp.bfloat16(oracle.small_integers(rng, (2, 7, 4)))
    kernel = jnp.bfloat16(oracle.small_integers(rng, (3, 4, 6)))
    pattern = js.patterns.random(jax.random.key(0), "4x2", kernel.shape, sparsity=0.5)
    hook = functools.partial(js.conv_general_dilated, pattern=pattern, implementation=path)
    ys = []
    for options in ({"conv_general_dilated": hook}, {}):
        layer = nnx.Conv(
            4,
            6,
            (3,),
            padding="CAUSAL",
            use_bias=False,
            param_dtype=jnp.bfloat16,
            preferred_element_type=preferred,
            rngs=nnx.Rngs(0),
            **options,
        )
        layer.kernel[...] = kernel if options else pattern.restrict(kernel)
        ys.append(layer(x))
    assert ys[0].dtype == ys[1].dtype
    oracle.equal_exactly(ys[0], np.asarray(ys[1], np.float64))


# Refusals -----------------------------------------------------------------------------------------

LHS, RHS, PATTERN = operands(("NHWC", "HWIO", "NHWC"), np.random.default_rng(0))
NUMBERS = ("NHWC", "HWIO", "NHWC")
WEIGHT = js.SparseWeight(PATTERN.gather(RHS), PATTERN)


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        ({"batch_group_count": 2}, NotImplementedError, ["batch groups", "batch_group_count=2"]),
        ({"padding": "CIRCULAR"}, RuntimeError, ["SAME_LOWER", "CIRCULAR"]),
        ({"padding": ((1, 2),)}, TypeError, ["explicit pads", "expected 2"]),
        ({"window_strides": (2,)}, ValueError, ["window_strides", "got 2 and 1"]),
        ({"rhs_dilation": (0, 1)}, TypeError, ["dilations", "positive", "(0, 1)"]),
        ({"lhs_dilation": (2, 1), "padding": "SAME"}, ValueError, ["padding", "transposed"]),
        ({"feature_group_count": 3}, ValueError, ["feature_group_count", "3 does not divide 4"]),
        ({"feature_group_count": 1}, ValueError, ["feature dimension size", "4 // 1 != 2"]),
        ({"pattern": js.patterns.full("8x8", (3, 2, 2, 7))}, ValueError, ["pattern is for"]),
        ({"lhs": WEIGHT}, NotImplementedError, ["the sparse operand is rhs"]),
        ({"lhs": LHS[0]}, TypeError, ["ndim to be equal"]),
        ({"lhs": LHS > 0}, TypeError, ["numbers", "bool"]),
        ({"lhs": LHS.astype("bfloat16")}, TypeError, ["bfloat16", "float32"]),
        ({"rhs": WEIGHT}, ValueError, ["got another", "Drop it"]),
        ({"pattern": "32x32"}, TypeError, ["pattern", "str"]),
        ({"implementation": "fast"}, ValueError, ["implementation", "'fast'"]),
        ({"grad": "fast"}, ValueError, ["grad", "'fast'"]),
        ({"pattern": None, "implementation": "ffi"}, ValueError, ["ffi", "pattern"]),
        (
            {"rhs": WEIGHT, "pattern": None, "dimension_numbers": None},
            NotImplementedError,
            ["SparseWeight", "[*kernel, in, out]", "HWIO"],
        ),
    ],
    ids=lambda changed: ",".join(changed) if isinstance(changed, dict) else "",
)
def test_bad_input_is_refused_with_words_that_say_what(changed, error, words):
    call = {"lhs": LHS, "rhs": RHS, "pattern": PATTERN, "dimension_numbers": NUMBERS, **OPTIONS}
    call.update(changed)
    with pytest.raises(error) as caught:
        js.conv_general_dilated(call.pop("lhs"), call.pop("rhs"), **call)
    for word in words:
        assert word in str(caught.value), str(caught.value)
