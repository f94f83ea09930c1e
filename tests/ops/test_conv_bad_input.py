"""What no convolution has is refused, with the rule, the value and a way out."""

import conv_cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen
from jax import lax
from jax.experimental import sparse
from machine import need

import jaxsparse as js
import jaxsparse.linen as js_linen
from jaxsparse.problems import ConvProblem

PLAIN = conv_cases.make(ConvProblem("bad", (6, 5), (3, 2), (4, 6), batch=(2,), sparsity=0.4), "3x2")
LINE = conv_cases.make(ConvProblem("bad_line", (6,), (3,), (4, 6), batch=(2,)), "unstructured")
X, W, DENSE = PLAIN.array("x"), PLAIN.weight(), jnp.float32(PLAIN.dense())
XT = jnp.ones((2, 3, 4, 6))  # for the weight's last axis
P = W.pattern
full = lambda *shape: js.SparseWeight(
    jnp.ones(int(np.prod(shape))), js.patterns.full("unstructured", shape)
)


def given(x, w, **options):
    return (x, w), options


BOTH = {
    # name: (arguments, the error, words that must appear in it), of conv and conv_transpose
    "x_none": (given(None, W), TypeError, ["x must be an array", "NoneType"]),
    "x_bool": (given(X > 0, W), TypeError, ["numbers", "bool"]),
    "x_rank": (given(X[0, 0], W), ValueError, ["space axis", "2", "(5, 4)"]),
    "x_dtype": (given(X.astype("bfloat16"), W), TypeError, ["bfloat16", "float32", "Cast"]),
    "x_channels": (given(X[..., :3], W), ValueError, ["takes 4 input channels", "last axis has 3"]),
    "w_none": (given(X, None), TypeError, ["w must be an array", "NoneType"]),
    "w_pattern": (given(X, P), TypeError, ["w must be an array", "BlockPattern"]),
    "w_matrix": (given(X, jnp.ones((4, 6))), ValueError, ["kernel axes", "(4, 6)", "matmul"]),
    "w_vector": (given(X, jnp.ones(4)), ValueError, ["kernel axes", "(4,)"]),
    "x_sparse": (given(W, W), TypeError, ["x must be an array", "SparseWeight", "todense()"]),
    "w_bcoo": (
        given(X, sparse.BCOO.fromdense(DENSE)),
        TypeError,
        ["w must be an array", "BCOO", "jaxsparse.fromsparse"],
    ),
    "w_four_axes": (
        given(jnp.ones((1,) * 6), full(1, 1, 1, 1, 1, 1)),
        NotImplementedError,
        ["one to three kernel axes", "4"],
    ),
    "w_no_taps": (given(X, jnp.ones((0, 2, 4, 6))), ValueError, ["taps", "(0, 2, 4, 6)"]),
    "w_values": (
        given(X, js.SparseWeight(W.values[1:], P)),
        ValueError,
        ["values must have shape"],
    ),
    "w_stacked": (
        given(X, jax.tree.map(lambda a: a[None], W)),
        ValueError,
        ["one pattern is needed", "jax.vmap"],
    ),
    "sum_of_nothing": (given(X, js.WeightSum(())), ValueError, ["no parts"]),
    "sum_of_shapes": (
        given(X, js.WeightSum((W, full(3, 2, 4, 7)))),
        ValueError,
        ["one shape", "(3, 2, 4, 7)"],
    ),
    "two_patterns": (given(X, W, pattern=P), ValueError, ["pattern", "Drop it"]),
    "pattern_shape": (
        given(X, DENSE, pattern=js.patterns.full("8x8", (3, 2, 4, 7))),
        ValueError,
        ["(3, 2, 4, 7)", "(3, 2, 4, 6)"],
    ),
    "pattern_type": (given(X, DENSE, pattern="8x8"), TypeError, ["pattern", "str"]),
    "strides_zero": (given(X, W, strides=0), ValueError, ["strides", "at least 1", "0"]),
    "strides_negative": (given(X, W, strides=(1, -1)), ValueError, ["strides", "(1, -1)"]),
    "strides_count": (given(X, W, strides=(1, 1, 1)), ValueError, ["strides", "2 axes"]),
    "strides_huge": (given(X, W, strides=2**31), ValueError, ["strides", "below 2**31"]),
    "strides_bool": (given(X, W, strides=True), TypeError, ["strides", "int", "True"]),
    "strides_bools": (given(X, W, strides=(2, True)), TypeError, ["strides", "int", "True"]),
    "dilation_bool": (given(X, W, kernel_dilation=True), TypeError, ["kernel_dilation", "True"]),
    "padding_bool": (given(X, W, padding=True), ValueError, ["padding", "int", "True"]),
    "padding_bools": (given(X, W, padding=((1, 1), (True, 1))), ValueError, ["padding", "True"]),
    "w_tuple": (given(X, (W, W)), TypeError, ["w must be an array", "a tuple", "WeightSum"]),
    "x_objects": (given(np.full((1, 5, 5, 4), None), W), TypeError, ["x", "numbers", "object"]),
    "strides_float": (given(X, W, strides=1.5), TypeError, ["strides", "int", "1.5"]),
    "strides_text": (given(X, W, strides="2"), TypeError, ["strides", "'2'"]),
    "kernel_dilation": (given(X, W, kernel_dilation=0), TypeError, ["kernel_dilation", "0"]),
    "kernel_dilation_huge": (
        given(X, W, kernel_dilation=2**31, padding=0),
        ValueError,
        ["kernel_dilation", "below 2**31", "2147483648"],
    ),
    "kernel_dilation_count": (
        given(X, W, kernel_dilation=(1,)),
        ValueError,
        ["kernel_dilation", "2 axes", "(1,)"],
    ),
    "padding_count": (given(X, W, padding=[(0, 0)]), ValueError, ["padding", "2 axes", "[(0, 0)]"]),
    "padding_triple": (given(X, W, padding=[(0, 0, 0)] * 2), ValueError, ["padding", "pair"]),
    "padding_float": (given(X, W, padding=0.5), ValueError, ["padding", "0.5"]),
    "padding_huge": (given(X, W, padding=2**40), ValueError, ["padding", "below 2**31"]),
    "padding_none": (given(X, W, padding=None), ValueError, ["padding", "None"]),
    "padding_eats_input": (
        given(X, W, padding=[(-4, -3), (0, 0)]),
        ValueError,
        ["negative padding", "(-4, -3)", "(6, 5)"],
    ),
    "groups_zero": (given(X, W, feature_group_count=0), ValueError, ["at least 1", "0"]),
    "groups_bool": (given(X, W, feature_group_count=True), TypeError, ["int", "True"]),
    "groups_float": (given(X, W, feature_group_count=1.0), TypeError, ["int", "1.0"]),
    "groups_divide_x": (
        given(X, W, feature_group_count=3),
        ValueError,
        ["divide the 4 channels of x", "feature_group_count=3"],
    ),
    "groups_divide_w": (
        given(X, jnp.ones((3, 2, 2, 5)), feature_group_count=2),
        ValueError,
        ["divide the weight's last axis", "(3, 2, 2, 5)"],
    ),
    "groups_channels": (
        given(X, W, feature_group_count=2),
        ValueError,
        ["takes 8 input channels", "4 in each of 2 groups"],
    ),
    "split_groups": (
        given(jnp.ones((2, 6, 8)), js.split_features(full(3, 4, 6), 2), feature_group_count=2),
        NotImplementedError,
        ["SplitWeight", "feature_group_count=2"],
    ),
    "precision": (given(X, W, precision="exact"), ValueError, ["exact"]),
    "preferred": (given(X, W, preferred_element_type="float33"), TypeError, ["float33"]),
    "preferred_integer": (
        given(X, W, preferred_element_type="int32"),
        TypeError,
        ["preferred_element_type", "int32 for float32"],
    ),
    "preferred_complex": (
        given(X, W, preferred_element_type="complex64"),
        TypeError,
        ["preferred_element_type", "complex64 for float32", "Cast the result"],
    ),
    "preferred_object": (given(X, W, preferred_element_type=object), TypeError, ["object"]),
    "preferred_short": (
        given(X, W, preferred_element_type="float8_e4m3fn"),
        TypeError,
        ["eight bits", "float8_e4m3fn for float32"],
    ),
    "preferred_integer_short": (
        given(X.astype("int32"), W.astype("int32"), preferred_element_type="int4"),
        TypeError,
        ["eight bits", "int4 for int32"],
    ),
    "implementation_array": (
        given(X, W, implementation=np.zeros(2)),
        ValueError,
        ["implementation is None", "array"],
    ),
    "grad_array": (given(X, W, grad=np.array(["exact"])), ValueError, ["grad is", "array"]),
    "strides_dict": (given(X, W, strides={1: 2, 3: 4}), TypeError, ["strides", "{1: 2, 3: 4}"]),
    "strides_set": (given(X, W, strides={1, 2}), TypeError, ["strides", "{1, 2}"]),
    "padding_overflows": (
        given(X, W, padding=2**30),
        ValueError,
        ["below 2**31", "(2147483652, 2147483652)", "less"],
    ),
    "implementation": (given(X, W, implementation="fast"), ValueError, ["'fast'", '"ffi"']),
    "grad": (given(X, W, grad="masked"), ValueError, ["'masked'", '"exact"']),
    "grad_dense": (given(X, W, grad="dense"), ValueError, ["not stored", "pattern=w.pattern"]),
    "ffi_dense": (given(X, DENSE, implementation="ffi"), ValueError, ["ffi", "fromdense"]),
    "ffi_integers": (
        given(X.astype("int32"), W.astype("int32"), implementation="ffi"),
        NotImplementedError,
        ["int32", "implementation=None"],
    ),
}
CONV = {
    "padding_name": (given(X, W, padding="FULL"), RuntimeError, ["SAME_LOWER", "'FULL'"]),
    "causal_image": (given(X, W, padding="CAUSAL"), ValueError, ["CAUSAL", "one space axis"]),
    "dilated_same": (
        given(X, W, input_dilation=2, padding="SAME"),
        ValueError,
        ["input dilation", "numbers", "(2, 2)", "conv_transpose"],
    ),
    "dilated_circular": (
        given(X, W, input_dilation=(1, 2), padding="CIRCULAR"),
        ValueError,
        ["numbers", "'CIRCULAR'"],
    ),
    "nothing_to_wrap": (
        given(X[:, :0], W, padding="CIRCULAR"),
        ValueError,
        ["CIRCULAR padding repeats inputs", "(0, 5)", "SAME"],
    ),
    "nothing_to_reflect": (
        given(X[:, :, :0], W, padding="REFLECT"),
        ValueError,
        ["REFLECT padding repeats inputs", "(6, 0)"],
    ),
    "input_dilation_overflows": (
        given(X, W, input_dilation=2**30, padding=0),
        ValueError,
        ["below 2**31", "(5368709121, 4294967297)", "Dilate"],
    ),
    "input_dilation_and_strides_overflow": (
        given(X, W, input_dilation=2**28, strides=2, padding=0),
        ValueError,
        ["places below 2**40", "(1342177281, 1073741825)"],
    ),
    "input_dilation": (given(X, W, input_dilation=0, padding=0), TypeError, ["input_dilation"]),
}
TRANSPOSED = {
    "padding_name": (given(X, W, padding="same"), ValueError, ["SAME, VALID", "'same'"]),
    "padding_lower": (given(X, W, padding="SAME_LOWER"), ValueError, ["'SAME_LOWER'"]),
    "padding_causal": (given(X, W, padding="CAUSAL"), ValueError, ["'CAUSAL'"]),
    "padding_reflect": (given(X, W, padding="REFLECT"), ValueError, ["'REFLECT'"]),
    "strides_overflow": (given(X, W, strides=2**30), ValueError, ["below 2**31", "stride"]),
    "nothing_to_wrap": (
        given(X[:, :0], W, padding="CIRCULAR"),
        ValueError,
        ["CIRCULAR padding repeats inputs", "(0, 5)"],
    ),
    "transpose_kernel": (
        given(XT, W, transpose_kernel=1),
        TypeError,
        ["transpose_kernel is a bool", "1"],
    ),
    "exchanged_channels": (
        given(X, W, transpose_kernel=True),
        ValueError,
        ["takes 6 input channels", "last axis has 4"],
    ),
    "output_padding": (
        given(X, W, strides=(2, 3), output_padding=2),
        ValueError,
        ["below the stride or the dilation", "(2, 2)", "(2, 3)"],
    ),
    "output_padding_unit": (given(X, W, output_padding=1), ValueError, ["output_padding=(1, 1)"]),
    "output_padding_negative": (
        given(X, W, strides=2, output_padding=-1),
        ValueError,
        ["output_padding", "at least 0"],
    ),
    "output_padding_circular": (
        given(X, W, strides=2, output_padding=1, padding="CIRCULAR"),
        ValueError,
        ["CIRCULAR", "output_padding=(1, 1)"],
    ),
    "output_padding_float": (
        given(X, W, strides=2, output_padding=0.5),
        TypeError,
        ["output_padding", "0.5"],
    ),
}
CASES = [
    (function, name, case)
    for function, table in (("conv", {**BOTH, **CONV}), ("conv_transpose", {**BOTH, **TRANSPOSED}))
    for name, case in table.items()
]


@pytest.mark.parametrize(
    ("function", "case"),
    [(function, case) for function, _, case in CASES],
    ids=[f"{function}-{name}" for function, name, _ in CASES],
)
@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_bad_input_is_refused_with_words_that_say_what(jit, function, case):
    ((x, w), options), error, words = case
    call = lambda x: getattr(js, function)(x, w, **options)
    with pytest.raises(error) as caught:
        (jax.jit(call) if jit and isinstance(x, jax.Array) else call)(x)
    for word in words:
        assert word in str(caught.value), str(caught.value)


# The same errors as lax and Flax ------------------------------------------------------------------

LAX = {
    "strides_count": {"strides": (1, 1, 1)},
    "padding_name": {"padding": "FULL"},
    "groups": {"feature_group_count": 3},
    "strides_zero": {"strides": (0, 0)},
    "dilation_zero": {"kernel_dilation": (0, 0)},
    "dilated_same": {"input_dilation": (2, 2), "padding": "SAME"},
}


def error_of(call) -> type[Exception]:
    try:
        call()
    except Exception as error:
        return type(error)
    return pytest.fail("expected an error")


@pytest.mark.parametrize("name", LAX)
def test_what_lax_refuses_is_refused_with_an_error_of_its_type(name):
    options = {"strides": (1, 1), "padding": "VALID", **LAX[name]}
    names = {
        "strides": "window_strides",
        "input_dilation": "lhs_dilation",
        "kernel_dilation": "rhs_dilation",
    }
    in_lax = {names.get(option, option): value for option, value in options.items()}
    in_lax["dimension_numbers"] = ("NHWC", "HWIO", "NHWC")
    expected = error_of(lambda: lax.conv_general_dilated(X, DENSE, **in_lax))
    with pytest.raises(expected):
        js.conv(X, W, **options)
    with pytest.raises(expected):
        js.conv_general_dilated(X, W, **in_lax)


@pytest.mark.parametrize("padding", ["SAME_LOWER", "CAUSAL", "REFLECT", "same", "FULL"])
def test_what_flax_refuses_is_refused_with_an_error_of_its_type(padding):
    layer = linen.ConvTranspose(6, (3, 2), (2, 2), padding=padding, use_bias=False)
    expected = error_of(lambda: layer.apply({"params": {"kernel": DENSE}}, X))
    with pytest.raises(expected):
        js.conv_transpose(X, W, strides=(2, 2), padding=padding)


def test_a_linen_layer_says_which_groups_do_not_divide_its_input_by_an_error_of_flax_type():
    layers = [module.Conv(6, (3, 2), feature_group_count=3) for module in (linen, js_linen)]
    layers[1] = layers[1].clone(format="unstructured")
    expected = error_of(lambda: layers[0].init(jax.random.key(0), X))
    with pytest.raises(expected, match="divide the 4 channels of the input.*feature_group_count=3"):
        layers[1].init(jax.random.key(0), X)


# Indices ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        lambda p: p.at[0].set(-1),
        lambda p: p.at[-1].set(10**6),
        lambda p: p[::-1],
        lambda p: p.at[1].set(p[0]),
    ],
    ids=["negative", "beyond", "falling", "twice"],
)
def test_places_out_of_order_or_range_are_refused_or_seen(change, path):
    layer = LINE
    pattern = layer.pattern.with_indices(change(layer.pattern.places))
    w = js.SparseWeight(layer.weight(garbage=False).values, pattern)
    call = jax.jit(lambda x, w: js.conv(x, w, implementation=path))
    if path == "xla":
        assert np.isnan(call(layer.array("x"), w)).all()
        return
    need("cpu_kernels")
    with pytest.raises((ValueError, jax.errors.JaxRuntimeError), match="place|order"):
        jax.block_until_ready(call(layer.array("x"), w))
