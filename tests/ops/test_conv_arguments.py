"""Every argument of `conv` and `conv_transpose`, on small integers, against the definition."""

import dataclasses
import functools

import conv_cases
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import oracle_conv
import pytest
from flax import linen

import jaxsparse as js
from jaxsparse.problems import ConvProblem

# Plain JAX computes with the whole weight, whatever its format.
every_format = pytest.mark.parametrize(
    ("format", "path"),
    [*((format, "ffi") for format in conv_cases.FORMATS), (conv_cases.FORMATS[0], "xla")],
    indirect=["path"],
)

PLAIN = ConvProblem("arguments", (6, 5), (3, 2), (4, 6), batch=(2,), sparsity=0.4)
GROUPED = ConvProblem(
    "arguments_grouped", (6, 5), (3, 2), (4, 6), batch=(2,), sparsity=0.4, feature_group_count=2
)
LINE = ConvProblem("arguments_line", (7,), (3,), (4, 6), batch=(2,), sparsity=0.4)
CUBE = ConvProblem("arguments_cube", (3, 4, 3), (2, 1, 2), (4, 6), batch=(2,), sparsity=0.4)


def layer_of(problem, format="unstructured"):
    return conv_cases.make(problem, format)


def jitted(function, *arrays, **options):
    return jax.jit(functools.partial(function, **options))(*arrays)


def forward(layer, pads, strides=None, dilation=None, x=None):
    """The definition, for numbers around the input of a layer."""
    problem, x = layer.problem, layer.x if x is None else x
    space = x.shape[-1 - len(problem.kernel) : -1]
    ones = (1,) * len(problem.kernel)
    geometry = oracle_conv.geometry(
        space,
        problem.kernel,
        strides or ones,
        pads,
        dilation or ones,
        problem.feature_group_count,
    )
    return oracle_conv.forward(x, layer.dense(), geometry)


# Padding ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "pads"),
    [
        ("VALID", [(0, 0), (0, 0)]),
        ("valid", [(0, 0), (0, 0)]),
        (0, [(0, 0), (0, 0)]),
        (2, [(2, 2), (2, 2)]),
        ((1, 0), [(1, 1), (0, 0)]),
        ([1, (0, 3)], [(1, 1), (0, 3)]),
        (((1, 2), (0, 3)), [(1, 2), (0, 3)]),
        (np.array([1, 0]), [(1, 1), (0, 0)]),
        (((-1, 2), (1, -2)), [(-1, 2), (1, -2)]),
        (-1, [(-1, -1), (-1, -1)]),
    ],
    ids=str,
)
def test_padding_by_numbers_is_zeros_around_the_input(given, pads, path):
    layer = layer_of(PLAIN)
    y = jitted(js.conv, layer.array("x"), layer.weight(), padding=given, implementation=path)
    oracle.equal_exactly(y, forward(layer, pads))


@pytest.mark.parametrize("pads", [(4, -3), (-3, 4), (3, -3), (5, -2)], ids=str)
@pytest.mark.parametrize("size", [0, 1, 3])
def test_one_side_may_take_away_what_the_other_pads(size, pads, path):
    layer = layer_of(ConvProblem("taken", (size,), (4,), (2, 3), (3,), (pads,), batch=(2,)))
    if size + sum(pads) < 0:
        with pytest.raises(ValueError, match="negative padding"):
            layer.convolve(layer.array("x"), layer.weight())
        return
    run = lambda x: layer.convolve(x, layer.weight(), implementation=path)
    y, pull_back = jax.vjp(run, layer.array("x"))
    oracle.equal_exactly(y, layer.y())
    oracle.equal_exactly(pull_back(layer.array("g"))[0], layer.dx())


def test_padding_of_a_transposed_convolution_may_be_an_array(path):
    layer = layer_of(dataclasses.replace(PLAIN, name="arguments_up", transposed=True))
    convolve = functools.partial(js.conv_transpose, implementation=path, kernel_dilation=(1, 2))
    x, w = layer.array("x"), layer.weight()
    pairs = [(2, 1), (0, 3)]
    oracle.equal_exactly(
        convolve(x, w, padding=np.array(pairs)), np.asarray(convolve(x, w, padding=pairs))
    )


@pytest.mark.parametrize("name", ["SAME", "SAME_LOWER", "same"])
@pytest.mark.parametrize("strides", [(1, 1), (2, 3)], ids=str)
@pytest.mark.parametrize("dilation", [(1, 1), (2, 3)], ids=str)
def test_padding_by_name_gives_an_output_for_every_stride(name, strides, dilation, path):
    layer = layer_of(PLAIN)
    options = {"strides": strides, "kernel_dilation": dilation, "padding": name}
    y = jitted(js.conv, layer.array("x"), layer.weight(), implementation=path, **options)
    is_lower = name == "SAME_LOWER"
    pads = oracle_conv.same_pads((6, 5), (3, 2), strides, dilation, lower=is_lower)
    oracle.equal_exactly(y, forward(layer, pads, strides, dilation))


@pytest.mark.parametrize(("name", "mode"), [("CIRCULAR", "wrap"), ("REFLECT", "reflect")])
@pytest.mark.parametrize("dilation", [(1, 1), (2, 1)], ids=str)
@pytest.mark.parametrize("problem", [PLAIN, GROUPED], ids=str)
def test_padding_by_inputs_from_inside_fills_as_numpy_does(problem, name, mode, dilation, path):
    layer = layer_of(problem)
    options = {
        "strides": (2, 1),
        "kernel_dilation": dilation,
        "padding": name,
        "feature_group_count": problem.feature_group_count,
    }
    y = jitted(js.conv, layer.array("x"), layer.weight(), implementation=path, **options)
    x = oracle_conv.fill(layer.x, problem.kernel, dilation, mode)
    oracle.equal_exactly(y, forward(layer, [(0, 0)] * 2, (2, 1), dilation, x))


@pytest.mark.parametrize("dilation", [1, 3])
def test_causal_padding_sees_no_later_input(dilation, path):
    layer = layer_of(LINE)
    options = {"padding": "CAUSAL", "kernel_dilation": dilation}
    y = jitted(js.conv, layer.array("x"), layer.weight(), implementation=path, **options)
    oracle.equal_exactly(y, forward(layer, [(2 * dilation, 0)], dilation=(dilation,)))


# Dilated inputs -----------------------------------------------------------------------------------


@pytest.mark.parametrize("strides", [(1, 1), (2, 3)], ids=str)
@pytest.mark.parametrize("pads", [((1, 2), (0, 3)), ((-1, 1), (2, -2))], ids=str)
@pytest.mark.parametrize("problem", [PLAIN, GROUPED], ids=str)
@every_format
def test_input_dilation_puts_zeros_between_inputs(format, problem, pads, strides, path):
    layer = layer_of(problem, format)
    options = {
        "strides": strides,
        "padding": pads,
        "input_dilation": (3, 2),
        "kernel_dilation": (1, 2),
        "feature_group_count": problem.feature_group_count,
    }
    y = jitted(js.conv, layer.array("x"), layer.weight(), implementation=path, **options)
    x = oracle_conv.spread(layer.x, (3, 2))
    oracle.equal_exactly(y, forward(layer, pads, strides, (1, 2), x))


# Transposed convolutions --------------------------------------------------------------------------


def transposed_weight(layer):
    """The same weight as `[*kernel, in, out]` with taps forward, from `[*kernel, out, in]`."""
    return oracle_conv.forward_weight(layer.dense(), layer.problem.feature_group_count)


@pytest.mark.parametrize("padding", ["SAME", "VALID", ((2, 1), (0, 4))], ids=str)
@pytest.mark.parametrize("groups", [1, 2])
@every_format
def test_transpose_kernel_is_the_input_gradient_of_conv(format, groups, padding, path):
    # As conv's own weight: [*kernel, out // groups, in].
    layer = layer_of(GROUPED if groups == 2 else PLAIN, format)
    strides, dilation = (2, 3), (1, 2)
    x = oracle.small_integers(np.random.default_rng(1), (2, 3, 2, 6))
    y = jitted(
        js.conv_transpose,
        jnp.float32(x),
        layer.weight(),
        strides=strides,
        padding=padding,
        kernel_dilation=dilation,
        transpose_kernel=True,
        feature_group_count=groups,
        implementation=path,
    )
    pads = padding
    if isinstance(padding, str):
        is_same = padding == "SAME"
        pads = oracle_conv.transposed_pads((3, 2), strides, dilation, is_same)
    exact = oracle_conv.transposed(x, transposed_weight(layer), strides, pads, dilation, groups)
    oracle.equal_exactly(y, exact)


@pytest.mark.parametrize("output_padding", [None, 1, (2, 1)], ids=str)
@pytest.mark.parametrize("padding", [(0, 0), (1, 0), (2, 2)], ids=str)
@pytest.mark.parametrize("groups", [1, 2])
def test_output_padding_and_padding_mean_what_they_do_in_pytorch(
    groups, padding, output_padding, path
):
    layer = layer_of(GROUPED if groups == 2 else PLAIN)
    strides, dilation, kernel = (3, 2), (1, 2), (3, 2)
    x = oracle.small_integers(np.random.default_rng(1), (2, 3, 2, 6))
    y = jitted(
        js.conv_transpose,
        jnp.float32(x),
        layer.weight(),
        strides=strides,
        padding=[d * (k - 1) - p for d, k, p in zip(dilation, kernel, padding)],
        kernel_dilation=dilation,
        output_padding=output_padding,
        transpose_kernel=True,
        feature_group_count=groups,
        implementation=path,
    )
    # PyTorch has [in, out // groups, *kernel], ours with transpose_kernel [*kernel, out // groups,
    # in].
    more = {None: (0, 0), 1: (1, 1)}.get(output_padding, output_padding)
    w = layer.dense().transpose(3, 2, 0, 1)
    exact = oracle_conv.torch_transposed(x, w, strides, padding, more, dilation, groups)
    oracle.equal_exactly(y, exact)


@pytest.mark.parametrize("transpose_kernel", [False, True])
@pytest.mark.parametrize("strides", [(1, 1), (2, 3)], ids=str)
def test_circular_padding_of_a_transposed_conv_is_that_of_flax(strides, transpose_kernel, path):
    layer = layer_of(PLAIN)
    features, size_in = (4, 6) if transpose_kernel else (6, 4)
    x = oracle.small_integers(np.random.default_rng(1), (2, 4, 3, size_in))
    flax_layer = linen.ConvTranspose(
        features,
        (3, 2),
        strides,
        "CIRCULAR",
        use_bias=False,
        transpose_kernel=transpose_kernel,
        precision="highest",
    )
    variables = {"params": {"kernel": jnp.float32(layer.dense())}}
    exact = jax.jit(flax_layer.apply)(variables, jnp.float32(x))
    y = jitted(
        js.conv_transpose,
        jnp.float32(x),
        layer.weight(),
        strides=strides,
        padding="CIRCULAR",
        transpose_kernel=transpose_kernel,
        implementation=path,
    )
    oracle.equal_exactly(y, np.asarray(exact))


# Forms of weights ---------------------------------------------------------------------------------


@pytest.mark.parametrize("transposed", [False, True], ids=["conv", "conv_transpose"])
@every_format
def test_a_weight_stored_dense_multiplies_on_its_pattern_only(format, transposed, path):
    problem = ConvProblem(
        "stored_dense", (5, 4), (3, 2), (4, 6), (2, 1), transposed=transposed, batch=(2,)
    )
    layer = layer_of(problem, format)
    off = jnp.asarray(~np.asarray(layer.pattern.mask()))
    w = jnp.where(off, jnp.nan, layer.array("clean_dense"))
    product = functools.partial(layer.convolve, pattern=layer.pattern, implementation=path)
    y, dx, dw = jax.jit(lambda x, w, g: (product(x, w), *jax.vjp(product, x, w)[1](g)))(
        layer.array("x"), w, layer.array("g")
    )
    oracle.equal_exactly(y, layer.y())
    oracle.equal_exactly(dx, layer.dx())
    oracle.equal_exactly(dw, np.where(off, 0, layer.dw()))


@pytest.mark.parametrize("transposed", [False, True], ids=["conv", "conv_transpose"])
def test_a_sum_of_weights_gives_the_sum_of_their_results(transposed, path):
    problem = ConvProblem("sum", (5, 4), (3, 2), (4, 6), (2, 1), transposed=transposed, batch=(2,))
    layers = [layer_of(problem, format) for format in conv_cases.FORMATS]
    total = js.WeightSum(tuple(layer.weight() for layer in layers))
    y = jax.jit(functools.partial(layers[0].convolve, implementation=path))(
        layers[0].array("x"), total
    )
    exact = sum(layer.with_x(layers[0].x).y() for layer in layers)
    oracle.equal_exactly(y, exact)


@pytest.mark.parametrize("transposed", [False, True], ids=["conv", "conv_transpose"])
def test_a_weight_without_pattern_is_convolved_dense(transposed):
    problem = ConvProblem(
        "dense", (5, 4), (3, 2), (4, 6), (2, 1), transposed=transposed, batch=(2,)
    )
    layer = layer_of(problem)
    y = jax.jit(layer.convolve)(layer.array("x"), layer.array("clean_dense"))
    oracle.equal_exactly(y, layer.y())


def test_spaces_of_one_to_three_axes_take_any_batch(path):
    for problem in (LINE, PLAIN, CUBE):
        layer = layer_of(problem)
        x = np.stack([layer.x, -layer.x, 2 * layer.x], 1)
        y = jitted(js.conv, jnp.float32(x), layer.weight(), padding="VALID", implementation=path)
        oracle.equal_exactly(y, forward(layer, [(0, 0)] * len(problem.kernel), x=x))


# Dtypes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["int32", "int8"])
@pytest.mark.parametrize("transposed", [False, True], ids=["conv", "conv_transpose"])
def test_integers_are_convolved_in_plain_jax(transposed, dtype):
    problem = ConvProblem(
        "ints",
        (5, 4),
        (3, 2),
        (4, 6),
        (2, 1),
        transposed=transposed,
        feature_group_count=2,
        batch=(2,),
    )
    layer = layer_of(problem)
    y = jax.jit(layer.convolve)(layer.array("x", dtype), layer.weight(dtype, garbage=False))
    assert y.dtype == dtype
    np.testing.assert_array_equal(np.asarray(y, np.float64), layer.y())


@pytest.mark.parametrize(
    ("dtype", "preferred", "bound"),
    [("bfloat16", "float32", "float32"), ("float32", "bfloat16", "bfloat16")],
)
def test_preferred_element_type_is_the_dtype_of_the_result(dtype, preferred, bound, path):
    layer = conv_cases.make(PLAIN, "unstructured", oracle.normals).rounded(dtype)
    y = jitted(
        js.conv,
        layer.array("x", dtype),
        layer.weight(dtype),
        padding="VALID",
        preferred_element_type=preferred,
        implementation=path,
    )
    assert y.dtype == preferred
    pads = [(0, 0), (0, 0)]
    exact, magnitude = forward(layer, pads), forward(layer.magnitudes(), pads)
    oracle.rounds_like_a_dot_product(np.asarray(y).astype(bound), exact, magnitude)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_short_floats_are_summed_in_float32(dtype, path):
    """1000 ones and then 1000 times -1: in the dtype itself the sum would stop at 256 or 2048."""
    one = jnp.ones((), dtype)
    values = jnp.where(jnp.arange(6000) < 5000, one, -one)
    w = js.SparseWeight(values, js.patterns.full("unstructured", (3, 2000, 1)))
    y = js.conv(jnp.ones((3, 2000), dtype), w, padding="VALID", implementation=path)
    np.testing.assert_array_equal(np.asarray(y, np.float64), [[4000]])


# Gradient contracts -------------------------------------------------------------------------------


@pytest.mark.parametrize("transposed", [False, True], ids=["conv", "conv_transpose"])
@pytest.mark.parametrize("grad", ["sparse", "dense"])
@every_format
def test_gradients_hold_what_the_contract_says(format, grad, transposed, path):
    problem = ConvProblem(
        "contract",
        (5, 4),
        (3, 2),
        (4, 6),
        (2, 1),
        transposed=transposed,
        batch=(2,),
        feature_group_count=2,
    )
    layer = layer_of(problem, format)
    product = functools.partial(
        layer.convolve, pattern=layer.pattern, implementation=path, grad=grad
    )
    dx, dw = jax.jit(lambda x, w, g: jax.vjp(product, x, w)[1](g))(
        layer.array("x"), layer.array("clean_dense"), layer.array("g")
    )
    oracle.equal_exactly(dx, layer.dx())
    stored = np.asarray(layer.pattern.mask())
    oracle.equal_exactly(dw, layer.dw() if grad == "dense" else np.where(stored, layer.dw(), 0))


def test_forward_mode_behind_a_contract_names_the_way_out(path):
    layer = layer_of(PLAIN)
    f = lambda x: js.conv(x, layer.weight(), grad="sparse", implementation=path)
    with pytest.raises(TypeError, match='conv: forward-mode.*grad="exact"'):
        jax.jvp(f, (layer.array("x"),), (layer.array("x"),))
