"""Both frameworks' layers: what Flax's layers do, they do; and what is sparse about them is so."""

import inspect

import flax_layers
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from flax import linen as nn
from flax import nnx
from flax_layers import KINDS, Layer

import jaxsparse as js
import jaxsparse.linen as jlinen
import jaxsparse.nnx as jnnx

OPTIONS = {
    "dense": {},
    "full": {"format": js.Block((5, 7))},
    "sparse": {"format": "4x8", "sparsity": 0.6},
    "single": {"format": "unstructured", "sparsity": 0.6},
    "groups": {"format": "grouped:6", "sparsity": 0.6},
}
both = pytest.mark.parametrize("framework", ["nnx", "linen"])
every_kind = pytest.mark.parametrize("kind", KINDS)
every_option = pytest.mark.parametrize("option", OPTIONS)


def integers(rng, layer):
    params = jax.tree.map(lambda p: oracle.small_integers(rng, p.shape), layer.params)
    x = oracle.small_integers(rng, layer.kind.inputs)
    return jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), (params, x))


# Parameters ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (jnnx.Linear, nnx.Linear),
        (jnnx.LinearGeneral, nnx.LinearGeneral),
        (jlinen.Dense, nn.Dense),
        (jlinen.DenseGeneral, nn.DenseGeneral),
        (jnnx.Conv, nnx.Conv),
        (jnnx.ConvTranspose, nnx.ConvTranspose),
        (jlinen.Conv, nn.Conv),
        (jlinen.ConvTranspose, nn.ConvTranspose),
    ],
)
def test_layers_have_flax_arguments_first_and_their_defaults(ours, theirs):
    has, wanted = (inspect.signature(cls.__init__).parameters for cls in (ours, theirs))
    added = ["format", "sparsity", "pattern", "grad", "implementation"]
    names = [name for name in has if name not in added]
    assert names == list(wanted)
    for name in names:
        assert has[name].kind == wanted[name].kind
        ours_default, theirs_default = has[name].default, wanted[name].default
        if inspect.isfunction(theirs_default):  # such as initializers, which are made anew
            assert ours_default.__code__ is theirs_default.__code__
        else:
            assert ours_default == theirs_default
    assert all(has[name].kind is inspect.Parameter.KEYWORD_ONLY for name in added)
    assert issubclass(ours, theirs)


@pytest.mark.parametrize(
    ("kind", "option"),
    # Compiled operation by operation, as Flax's own: other formats for one kind.
    [(k, o) for k in KINDS for o in OPTIONS if k == "linear" or o not in ("single", "groups")],
)
@both
def test_initial_weights_are_those_of_flax_on_the_pattern_and_zero_elsewhere(
    framework, kind, option
):
    options = {"jit": False, "bias_init": jax.nn.initializers.normal()}
    ours = Layer(framework, kind, **options, **OPTIONS[option])
    flax = Layer(framework, kind, ours=False, **options)
    assert jax.tree.structure(ours.params) == jax.tree.structure(flax.params)
    np.testing.assert_array_equal(ours.params["bias"], flax.params["bias"])
    expected = np.where(ours.mask(), flax.params["kernel"], 0)
    np.testing.assert_array_equal(ours.params["kernel"], expected)


@both
def test_initial_pattern_stores_the_blocks_of_largest_norm(framework):
    layer = Layer(framework, "batched", format="4x8", sparsity=0.6)
    kernel = np.float64(Layer(framework, "batched", ours=False).params["kernel"])
    assert layer.pattern.rows.shape == (2, 12)
    for blocks, rows, cols in zip(
        kernel.reshape(2, 6, 4, 5, 8), *map(np.asarray, layer.pattern.indices)
    ):
        norms = np.sqrt((blocks**2).sum(axis=(1, 3)))
        largest = np.sort(norms.ravel())[-12:]
        np.testing.assert_array_equal(np.sort(norms[rows, cols]), largest)


@both
def test_a_given_pattern_is_the_initial_one(framework):
    pattern = js.patterns.random(jax.random.key(3), "4x8", (24, 40), sparsity=0.6)
    layer = Layer(framework, "general", pattern=pattern)
    np.testing.assert_array_equal(layer.pattern.rows, pattern.rows)
    np.testing.assert_array_equal(layer.pattern.cols, pattern.cols)
    kernel = np.asarray(layer.params["kernel"])
    assert not kernel[~layer.mask()].any()
    assert kernel[layer.mask()].all()


def test_other_layers_of_an_nnx_model_draw_the_same_numbers():
    def model(cls, **options):
        rngs = nnx.Rngs(0)
        first = cls(24, 40, rngs=rngs, **options)
        return first, nnx.Linear(40, 8, rngs=rngs), rngs.params(), rngs.dropout()

    sparse, dense = model(jnnx.Linear, **OPTIONS["sparse"]), model(nnx.Linear)
    np.testing.assert_array_equal(sparse[1].kernel[...], dense[1].kernel[...])
    assert sparse[2] == dense[2]
    assert sparse[3] == dense[3]


# Forward and backward -----------------------------------------------------------------------------


@every_kind
@every_option
@both
def test_layer_equals_definition_on_integers(framework, kind, option, rng):
    layer = Layer(framework, kind, **OPTIONS[option])
    params, x = integers(rng, layer)
    expected = layer.definition(params["kernel"], params["bias"], x)
    oracle.equal_exactly(layer.apply(params, x), expected, "y")


@pytest.mark.parametrize("grad", ["sparse", "exact", "dense"])
@every_kind
@both
def test_gradients_are_where_grad_says(framework, kind, grad, rng):
    layer = Layer(framework, kind, grad=grad, **OPTIONS["sparse"])
    params, x = integers(rng, layer)
    g = oracle.small_integers(rng, layer.apply(params, x).shape)
    loss = lambda params, x: (layer.apply(params, x) * jnp.asarray(g, x.dtype)).sum()
    dparams, dx = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, x)
    inputs_axes, rest = layer.kind.einsum.split(",")
    kernel_axes, result_axes = rest.split("->")
    dense = np.einsum(f"{inputs_axes},{result_axes}->{kernel_axes}", np.float64(x), g)
    expected = dense if grad == "dense" else dense * layer.mask()
    oracle.equal_exactly(dparams["kernel"], expected, "dkernel")
    masked = np.float64(params["kernel"]) * layer.mask()
    expected = np.einsum(f"{result_axes},{kernel_axes}->{inputs_axes}", g, masked)
    oracle.equal_exactly(dx, expected, "dx")


@both
def test_grad_exact_is_differentiable_forward(framework, rng):
    layer = Layer(framework, "general", grad="exact", **OPTIONS["sparse"])
    params, x = integers(rng, layer)
    y, dy = jax.jvp(lambda x: layer.apply(params, x), (x,), (x,))
    bias = np.asarray(params["bias"], np.float64)
    oracle.equal_exactly(dy, np.float64(y) - bias, "dy")


@both
def test_without_sparse_options_the_program_is_that_of_flax(framework):
    ours, flax = (Layer(framework, "general", ours=ours) for ours in (True, False))
    programs = [
        str(jax.make_jaxpr(layer.apply)(layer.params, layer.inputs)) for layer in (ours, flax)
    ]
    assert programs[0] == programs[1]


@both
def test_nan_off_the_pattern_is_not_seen(framework):
    layer = Layer(framework, "linear", **OPTIONS["sparse"])
    dirty = jnp.where(layer.mask(), layer.params["kernel"], jnp.nan)
    y = layer.apply({**layer.params, "kernel": dirty}, layer.inputs)
    np.testing.assert_array_equal(y, layer.apply(layer.params, layer.inputs))


# dtype, param_dtype, inputs, preferred -> result. Where the first is None, Flax promotes.
DTYPES = [
    (None, "float32", "bfloat16", None, "float32"),
    (None, "float32", "int32", None, "float32"),
    (None, "bfloat16", "float16", None, "float32"),
    (None, "bfloat16", "bfloat16", None, "bfloat16"),
    ("bfloat16", "float32", "float32", None, "bfloat16"),
    ("float16", "float32", "bfloat16", None, "float16"),
    ("bfloat16", "float32", "float32", "float32", "float32"),
    (None, "complex64", "float32", None, "complex64"),
]


@pytest.mark.parametrize("option", ["dense", "sparse"])
@pytest.mark.parametrize(
    ("framework", "dtype", "param_dtype", "inputs", "preferred", "result"),
    [("nnx", *row) for row in DTYPES]
    + [("linen", *row) for row in DTYPES if row[3] is None],  # flax.linen.Dense has no such option
)
def test_result_has_the_dtype_of_flax(
    framework, dtype, param_dtype, inputs, preferred, result, option
):
    options = {"dtype": dtype, "param_dtype": jnp.dtype(param_dtype)}
    if preferred:
        options["preferred_element_type"] = preferred

    def run(ours, **sparse):
        x = jnp.ones((5, 24), inputs)
        layer = Layer(framework, "linear", ours=ours, jit=False, inputs=x, **options, **sparse)
        return layer.params["kernel"], layer.apply(layer.params, x)

    with jax.numpy_dtype_promotion("standard"):
        for kernel, y in (
            jax.eval_shape(lambda: run(True, **OPTIONS[option])),
            jax.eval_shape(lambda: run(False)),
        ):
            assert kernel.dtype == param_dtype
            assert y.dtype == result


@both
def test_the_layers_own_promotion_is_called(framework):
    called = []

    def promote_nnx(arrays, *, dtype):
        called.append(dtype)
        return tuple(a.astype(jnp.bfloat16) for a in arrays)

    promote = promote_nnx if framework == "nnx" else lambda *a, dtype: promote_nnx(a, dtype=dtype)
    layer = Layer(framework, "linear", promote_dtype=promote, **OPTIONS["sparse"])
    called.clear()
    assert layer.apply(layer.params, layer.inputs).dtype == jnp.bfloat16
    assert called == [None]


# Products of the user -----------------------------------------------------------------------------


@pytest.mark.parametrize("grad", ["sparse", "dense"])
@pytest.mark.parametrize("argument", ["dot_general", "dot_general_cls"])
@both
def test_a_product_of_the_user_gets_the_masked_kernel(framework, argument, grad, rng):
    seen = []

    def product(x, kernel, dimension_numbers, precision=None, **others):
        seen.append((kernel, sorted(others)))
        return jax.lax.dot_general(x, kernel, dimension_numbers, precision)

    given = {argument: product if argument == "dot_general" else lambda: product}
    options = {"jit": False, "grad": grad, **OPTIONS["sparse"]}
    layer = Layer(framework, "general", **given, **options)
    params, x = integers(rng, layer)
    seen.clear()
    y = layer.apply(params, x)
    ((kernel, others),) = seen
    np.testing.assert_array_equal(kernel, np.where(layer.mask(), params["kernel"], 0))
    assert others == (["out_sharding"] if framework == "nnx" else [])
    oracle.equal_exactly(y, layer.definition(params["kernel"], params["bias"], x), "y")
    dkernel = jax.grad(lambda p: layer.apply(p, x).sum())(params)["kernel"]
    dense = np.broadcast_to(np.float64(x).sum((0, 2))[..., None, None], dkernel.shape)
    oracle.equal_exactly(dkernel, dense if grad == "dense" else dense * layer.mask(), "dkernel")


# Errors -------------------------------------------------------------------------------------------

PATTERN = js.patterns.full("8x8", (24, 40))


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"sparsity": 0.5}, ValueError, "sparsity needs a format, got sparsity=0.5"),
        ({"format": "8x8", "sparsity": 1.5}, ValueError, "from 0 to 1, got 1.5"),
        ({"format": "8by8"}, ValueError, "a name is"),
        ({"format": 8.0}, TypeError, "expected a format"),
        ({"pattern": PATTERN, "sparsity": 0.5}, ValueError, "Give one of them"),
        ({"pattern": PATTERN, "format": "4x8"}, ValueError, "must be that of the pattern, 8x8"),
        ({"pattern": "8x8"}, TypeError, "pattern is a Pattern, got str"),
        (
            {"pattern": js.patterns.full("8x8", (24, 48))},
            ValueError,
            r"must be for a weight of shape \(24, 40\).*got one for shape \(24, 48\)",
        ),
        ({"format": "8x8", "grad": "none"}, ValueError, "got 'none'"),
        ({"format": "8x8", "implementation": "cuda"}, ValueError, "got 'cuda'"),
        ({"implementation": "ffi"}, ValueError, "needs a sparse weight, got format=None"),
    ],
)
@pytest.mark.parametrize("kind", ["linear", "general"])
@both
def test_layers_refuse_options_that_make_no_sense(framework, kind, options, error, says):
    with pytest.raises(error, match=says) as caught:
        Layer(framework, kind, **options)
    names = {"nnx": ("Linear", "LinearGeneral"), "linen": ("Dense", "DenseGeneral")}[framework]
    name = names[kind != "linear"]
    assert str(caught.value).startswith((f"{name}: ", "format: "))


def test_mask_of_these_tests_agrees_with_the_library():
    layer = Layer("nnx", "batched", **OPTIONS["sparse"])
    mask = jax.vmap(lambda p: p.mask())(layer.pattern)
    np.testing.assert_array_equal(layer.mask(), mask.reshape(layer.mask().shape))
    assert flax_layers.mask_of(PATTERN, (24, 40)).all()
