"""Weights of PyTorch give PyTorch's numbers here; those are in `torch_numbers.json`."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from flax import nnx

import jaxsparse as js
import jaxsparse.linen as jlinen
import jaxsparse.nnx as jnnx

RECORDED = json.loads(pathlib.Path(__file__).with_name("torch_numbers.json").read_text())
CONVOLUTIONS = {name: case for name, case in RECORDED.items() if name != "linear"}
TRANSPOSED = {name: case for name, case in RECORDED.items() if case["transposed"]}


def each(cases):
    return pytest.mark.parametrize("case", cases.values(), ids=cases)


def array(case, name):
    entry = case[name]
    return np.array(entry["numbers"], np.float32).reshape(entry["shape"])


def channels_last(a):
    return np.moveaxis(a, 1, -1)


def imported(case, name="w", transposed=None):
    transposed = case["transposed"] if transposed is None else transposed
    groups = case["options"].get("groups", 1)
    return js.weight_from_torch(
        array(case, name), transposed=transposed, feature_group_count=groups
    )


def options_of(case, **more):
    """PyTorch's options under the names they have here."""
    given = case["options"]
    kernel = case["w"]["shape"][2:]
    padding = given.get("padding", [0] * len(kernel))
    dilation = given.get("dilation", [1] * len(kernel))
    around = [(p, p) for p in padding]
    if case["transposed"]:
        edges = [d * (k - 1) - p for d, k, p in zip(dilation, kernel, padding)]
        extra = given.get("output_padding", [0] * len(kernel))
        around = [(edge, edge + more) for edge, more in zip(edges, extra)]
    return {
        "strides": tuple(given.get("stride", [1] * len(kernel))),
        "padding": around,
        "kernel_dilation": tuple(dilation),
        **more,
    }


def product(case, x, w, **more):
    if not case["w"]["shape"][2:]:
        return js.matmul(x, w)
    op = js.conv_transpose if case["transposed"] else js.conv
    groups = case["options"].get("groups", 1)
    return op(x, w, **options_of(case, feature_group_count=groups, **more))


def equals_torch(y, case):
    oracle.equal_exactly(y, channels_last(array(case, "y")), "y")


@each(RECORDED)
def test_a_dense_weight_gives_the_results_and_gradients_of_pytorch(case):
    x, w = channels_last(array(case, "x")), imported(case)
    equals_torch(product(case, x, w), case)
    dw = jax.grad(lambda w: (product(case, x, w) ** 2).sum() / 2)(w)
    oracle.equal_exactly(dw, imported(case, "dw"), "dw")


@each(RECORDED)
def test_a_pruned_weight_gives_the_results_of_pytorch_and_stores_none_of_its_zeros(case):
    x, w = channels_last(array(case, "x")), imported(case)
    sparse = js.fromdense(w, "unstructured")
    assert sparse.values.size == np.count_nonzero(array(case, "w"))
    equals_torch(product(case, x, sparse), case)

    def loss(values):
        return (product(case, x, sparse.with_values(values)) ** 2).sum() / 2

    got = sparse.with_values(jax.grad(loss)(sparse.values)).todense()
    expected = np.where(np.asarray(sparse.pattern.mask()), imported(case, "dw"), 0)
    oracle.equal_exactly(got, expected, "dw")


@each(TRANSPOSED)
def test_a_transposed_weight_read_as_that_of_a_convolution_is_a_transpose_kernel(case):
    x, w = channels_last(array(case, "x")), imported(case, transposed=False)
    equals_torch(product(case, x, w, transpose_kernel=True), case)


@each(TRANSPOSED)
def test_output_padding_is_that_of_pytorch(case):
    x, w = channels_last(array(case, "x")), imported(case)
    extra = case["options"].get("output_padding")
    options = options_of(case, feature_group_count=case["options"].get("groups", 1))
    options["padding"] = [(low, low) for low, _ in options["padding"]]
    equals_torch(js.conv_transpose(x, w, output_padding=extra, **options), case)


@pytest.mark.parametrize("layers", [jnnx, jlinen], ids=["nnx", "linen"])
@each({name: case for name, case in CONVOLUTIONS.items() if name != "up_groups"})
def test_layers_with_a_weight_of_pytorch_give_its_results(layers, case):
    """Flax's ConvTranspose has no groups, so neither has ours."""
    x, w = channels_last(array(case, "x")), imported(case)
    cls = layers.ConvTranspose if case["transposed"] else layers.Conv
    options = options_of(case, use_bias=False, pattern=js.fromdense(w, "unstructured").pattern)
    if not case["transposed"]:
        options["feature_group_count"] = case["options"].get("groups", 1)
    kernel, channels = w.shape[:-2], (x.shape[-1], w.shape[-1])
    if layers is jnnx:
        layer = cls(*channels, kernel, rngs=nnx.Rngs(0), **options)
        layer.kernel[...] = w
        equals_torch(layer(x), case)
        equals_torch(jnnx.pack(layer)(x), case)
    else:
        layer = cls(channels[1], kernel, **options)
        variables = {**layer.init(jax.random.key(0), x), "params": {"kernel": w}}
        equals_torch(layer.apply(variables, x), case)
        equals_torch(layer.apply(jlinen.pack(variables), x), case)


@pytest.mark.parametrize(
    ("weight", "options", "error", "message"),
    [
        (np.ones(3), {}, ValueError, r"must have axes \[out, in, \*kernel\].*\(3,\)"),
        (
            np.ones((3, 4)),
            {"transposed": True},
            ValueError,
            r"must have axes \[in, out, \*kernel\]",
        ),
        (
            np.ones((3, 4, 2)),
            {"transposed": True, "feature_group_count": 2},
            ValueError,
            r"must divide the weight's first axis, got feature_group_count=2.*\(3, 4, 2\)",
        ),
        (np.ones((3, 4, 2)), {"feature_group_count": 0}, ValueError, "must divide"),
        (np.ones((3, 4, 2)), {"feature_group_count": 1.0}, TypeError, "is an int, got 1.0"),
        ([["a", "b"]], {}, TypeError, "must hold numbers"),
    ],
)
def test_what_is_no_weight_of_pytorch_is_refused(weight, options, error, message):
    with pytest.raises(error, match=f"weight_from_torch: .*{message}"):
        js.weight_from_torch(weight, **options)


def test_an_imported_weight_shares_no_memory_with_its_source():
    source = np.ones((1, 1, 3), np.float32)
    w = js.weight_from_torch(source)
    source[:] = 7
    np.testing.assert_array_equal(w, np.ones((3, 1, 1)))


def test_dtypes_stay():
    for dtype in ("float16", "bfloat16", "int32"):
        assert js.weight_from_torch(jnp.ones((2, 3, 3, 3), dtype)).dtype == dtype


# And back -----------------------------------------------------------------------------------------


@each(RECORDED)
def test_weights_go_back_to_pytorch_dense_or_sparse_as_they_came(case):
    options = {
        "transposed": case["transposed"],
        "feature_group_count": case["options"].get("groups", 1),
    }
    w = imported(case)
    for form in (w, js.fromdense(w, "unstructured"), js.with_residual(w, "grouped:2")):
        back = js.weight_to_torch(form, **options)
        assert back.flags.c_contiguous
        np.testing.assert_array_equal(back, array(case, "w"))


def test_bfloat16_goes_to_pytorch_as_float32():
    w = jnp.arange(6, dtype="bfloat16").reshape(2, 3)
    back = js.weight_to_torch(w)
    assert back.dtype == np.float32
    np.testing.assert_array_equal(back, np.arange(6).reshape(2, 3).T)


def test_weights_that_no_layer_of_pytorch_has_are_refused():
    w = jnp.ones((3, 4, 6))
    for function, error, words in (
        (lambda: js.weight_to_torch(w[0, 0]), ValueError, r"axes \[\*kernel, in, out\] or \[in, o"),
        (lambda: js.weight_to_torch(w[0], transposed=True), ValueError, r"axes \[\*kernel, in, o"),
        (lambda: js.weight_to_torch(w, feature_group_count=4), ValueError, "last axis, got feat"),
        (lambda: js.weight_to_torch(w, feature_group_count=2.0), TypeError, "an int, got 2.0"),
        (lambda: js.weight_to_torch(w > 0), TypeError, "hold numbers, got dtype bool"),
        (lambda: jax.jit(js.weight_to_torch)(w), ValueError, "traced. Call it outside jit"),
    ):
        with pytest.raises(error, match=words):
            function()
