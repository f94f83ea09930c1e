"""Convolutional layers of both frameworks: Flax's own, with the kernel masked by the pattern."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from flax import linen as nn
from flax import nnx

import jaxsparse as js
import jaxsparse.linen as jlinen
import jaxsparse.nnx as jnnx

OURS = {"nnx": jnnx, "linen": jlinen}
FLAX = {"nnx": nnx, "linen": nn}
FORMATS = {
    "unstructured": {"format": "unstructured", "sparsity": 0.6},
    "grouped": {"format": "grouped:4", "sparsity": 0.5},
    "blocks": {"format": "3x4", "sparsity": 0.6},
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A layer: channels in and out, the shape of its inputs, and its other arguments."""

    layer: str
    channels: tuple[int, int]
    inputs: tuple[int, ...]
    kernel_size: Any
    options: dict = dataclasses.field(default_factory=dict)


CASES = {
    "plain": Case("Conv", (3, 8), (2, 6, 7, 3), (3, 3)),
    "strided": Case("Conv", (4, 6), (2, 7, 5, 4), (3, 2), {"strides": (2, 3), "use_bias": False}),
    "int_size": Case("Conv", (3, 8), (2, 4, 7, 3), 3, {"padding": "CAUSAL", "kernel_dilation": 2}),
    "unbatched": Case("Conv", (3, 4), (6, 6, 3), (2, 2), {"padding": "VALID"}),
    "circular": Case("Conv", (3, 4), (2, 5, 6, 3), (3, 4), {"padding": "CIRCULAR", "strides": 2}),
    "reflect": Case("Conv", (3, 4), (2, 5, 6, 3), (3, 3), {"padding": "REFLECT"}),
    "pairs": Case("Conv", (3, 4), (2, 5, 6, 3), (3, 3), {"padding": ((2, -1), (0, 3))}),
    "lower": Case("Conv", (3, 4), (2, 5, 6, 3), (2, 4), {"padding": "SAME_LOWER"}),
    "groups": Case("Conv", (6, 8), (2, 5, 5, 6), (3, 3), {"feature_group_count": 2}),
    "dilated_input": Case(
        "Conv", (3, 4), (2, 5, 4, 3), (3, 3), {"input_dilation": 2, "padding": 1}
    ),
    "volume": Case("Conv", (2, 4), (1, 4, 3, 5, 2), (2, 2, 2)),
    "up": Case("ConvTranspose", (4, 8), (2, 5, 4, 4), (4, 4), {"strides": (2, 2)}),
    "up_valid": Case("ConvTranspose", (4, 6), (2, 3, 4), 3, {"strides": 3, "padding": "VALID"}),
    "up_exchanged": Case(
        "ConvTranspose",
        (4, 8),
        (2, 5, 4, 4),
        (3, 3),
        {"strides": (2, 2), "transpose_kernel": True, "use_bias": False},
    ),
    "up_circular": Case(
        "ConvTranspose", (3, 4), (2, 5, 4, 3), (4, 3), {"strides": (2, 1), "padding": "CIRCULAR"}
    ),
    "up_dilated": Case(
        "ConvTranspose",
        (3, 4),
        (2, 5, 4, 3),
        (2, 2),
        {"kernel_dilation": 2, "padding": ((1, 2), (0, 1))},
    ),
}
both = pytest.mark.parametrize("framework", ["nnx", "linen"])
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
every_format = pytest.mark.parametrize("format", FORMATS)


class Layer:
    """A layer of either framework: its parameters, its pattern, and a function of the former."""

    def __init__(self, framework: str, case: Case, *, ours=True, **options):
        cls = getattr((OURS if ours else FLAX)[framework], case.layer)
        options = case.options | options
        self.x = jnp.ones(case.inputs)
        if framework == "nnx":
            self.model = cls(*case.channels, case.kernel_size, rngs=nnx.Rngs(0), **options)
            graph, params, rest = nnx.split(self.model, nnx.Param, ...)
            self.params = nnx.to_pure_dict(params)
            self.pattern = self.model.pattern if ours else None

            def apply(params, x):
                state = nnx.State({name: nnx.Param(value) for name, value in params.items()})
                return nnx.merge(graph, state, rest)(x)
        else:
            self.module = cls(case.channels[1], case.kernel_size, **options)
            self.variables = self.module.init(jax.random.key(0), self.x)
            self.params = self.variables["params"]
            self.pattern = self.variables.get("sparsity", {}).get("pattern")
            rest = {k: v for k, v in self.variables.items() if k != "params"}

            def apply(params, x):
                return self.module.apply({"params": params, **rest}, x)

        self.apply = apply
        self.mask = np.ones(self.params["kernel"].shape, bool)
        if self.pattern is not None:
            self.mask = np.asarray(self.pattern.mask())


def integers(rng, layer):
    trees = jax.tree.map(lambda p: oracle.small_integers(rng, p.shape), (layer.params, layer.x))
    return jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), trees)


def masked(layer, params):
    return params | {"kernel": jnp.where(layer.mask, params["kernel"], 0)}


@every_case
@both
def test_without_a_format_a_layer_is_that_of_flax(framework, case, rng):
    ours, flax = Layer(framework, case), Layer(framework, case, ours=False)
    jax.tree.map(np.testing.assert_array_equal, dict(ours.params), dict(flax.params))
    x = jnp.asarray(rng.normal(size=case.inputs), jnp.float32)
    np.testing.assert_array_equal(ours.apply(ours.params, x), flax.apply(flax.params, x))


# Options are read the same way for every format; two cases of each direction have them all.
CASES_AND_FORMATS = [
    pytest.param(case, format, id=f"{name}-{format}")
    for name, case in CASES.items()
    for format in FORMATS
    if format == "unstructured" or name in ("plain", "groups", "up", "up_exchanged")
]


@pytest.mark.parametrize(("case", "format"), CASES_AND_FORMATS)
@both
def test_layer_is_that_of_flax_with_a_masked_kernel(framework, case, format, rng):
    """Same weights from the same seed; results and gradients equal on integers."""
    options = {"bias_init": jax.nn.initializers.normal()}
    ours = Layer(framework, case, **options, **FORMATS[format])
    flax = Layer(framework, case, ours=False, **options)
    assert jax.tree.structure(dict(ours.params)) == jax.tree.structure(dict(flax.params))
    assert 0.2 < ours.mask.mean() < 0.8
    jax.tree.map(np.testing.assert_array_equal, dict(ours.params), dict(masked(ours, flax.params)))
    params, x = integers(rng, ours)
    expected = flax.apply(masked(ours, params), x)
    oracle.equal_exactly(ours.apply(params, x), expected, "y")
    g = jnp.asarray(oracle.small_integers(rng, expected.shape), jnp.float32)

    def gradients(apply):
        return jax.jit(jax.grad(lambda p, x: (apply(p, x) * g).sum(), (0, 1)))(params, x)

    got = gradients(ours.apply)
    wanted = gradients(lambda p, x: flax.apply(masked(ours, p), x))
    jax.tree.map(lambda a, b: oracle.equal_exactly(a, b, "gradient"), got, wanted)


@every_format
@pytest.mark.parametrize("case", [CASES["groups"], CASES["up_exchanged"]], ids=["down", "up"])
@both
def test_packed_layers_compute_the_same_and_come_back(framework, case, format, rng):
    layer = Layer(framework, case, **FORMATS[format])
    x = jnp.asarray(rng.normal(size=case.inputs), jnp.float32)
    if framework == "nnx":
        whole, packed = layer.model, jnnx.pack(layer.model)
        back = jnnx.unpack(packed)
        assert packed.is_packed
        assert packed.kernel.shape == layer.pattern.values_shape
        results = [jax.jit(lambda m, x: m(x))(m, x) for m in (whole, packed, back)]
        np.testing.assert_array_equal(back.kernel[...], whole.kernel[...])
    else:
        whole, packed = layer.variables, jlinen.pack(layer.variables)
        back = jlinen.unpack(packed)
        assert packed["params"]["kernel"].shape == layer.pattern.values_shape
        results = [jax.jit(layer.module.apply)(v, x) for v in (whole, packed, back)]
        np.testing.assert_array_equal(back["params"]["kernel"], whole["params"]["kernel"])
    for other in results[1:]:
        np.testing.assert_allclose(other, results[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("is_packed", [False, True])
@both
def test_mask_argument_and_pattern_combine(framework, is_packed, rng):
    case = CASES["plain"]
    mask = jnp.asarray(rng.integers(0, 2, (3, 3, 3, 8)), jnp.float32)
    layer = Layer(framework, case, mask=mask, format="unstructured", sparsity=0.5)
    flax = Layer(framework, case, ours=False, mask=mask)
    x = jnp.asarray(oracle.small_integers(rng, case.inputs), jnp.float32)
    expected = flax.apply(masked(layer, dict(flax.params)), x)
    if framework == "nnx":
        y = (jnnx.pack(layer.model) if is_packed else layer.model)(x)
    else:
        variables = jlinen.pack(layer.variables) if is_packed else layer.variables
        y = layer.module.apply(variables, x)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


@both
def test_a_mask_of_another_shape_is_refused_as_in_flax(framework):
    def use():
        layer = Layer(framework, CASES["plain"], mask=jnp.ones((2, 3, 3, 8)), format="unstructured")
        return layer.apply(layer.params, layer.x)

    with pytest.raises(ValueError, match="Mask needs to have the same shape as weights"):
        use()


@pytest.mark.parametrize("padding", ["SAME", "CIRCULAR", ((1, 2), (0, 1))])
@both
def test_a_convolution_of_the_user_gets_what_flax_gives_it(framework, padding, rng):
    calls = []

    def hook(*args, **kwargs):
        calls.append((args, kwargs))
        return jax.lax.conv_general_dilated(*args, **kwargs)

    case = dataclasses.replace(CASES["plain"], options={"padding": padding, "strides": 2})
    layer = Layer(framework, case, conv_general_dilated=hook, **FORMATS["unstructured"])
    flax = Layer(framework, case, ours=False, conv_general_dilated=hook)
    x = jnp.asarray(oracle.small_integers(rng, case.inputs), jnp.float32)
    calls.clear()
    params = masked(layer, dict(flax.params))
    np.testing.assert_array_equal(layer.apply(params, x), flax.apply(params, x))
    (args, kwargs), (flax_args, flax_kwargs) = calls
    assert args[2] == flax_args[2]
    as_given = lambda pad: pad if isinstance(pad, str) else tuple(pad)
    assert as_given(args[3]) == as_given(flax_args[3])
    kwargs.setdefault("out_sharding", None)
    flax_kwargs.setdefault("out_sharding", None)
    assert kwargs == flax_kwargs
    np.testing.assert_array_equal(args[0], flax_args[0])
    np.testing.assert_array_equal(args[1], flax_args[1])


@pytest.mark.parametrize("dtypes", [("float32", "bfloat16"), ("int32", "float32")])
@pytest.mark.parametrize("preferred", [None, "float32"])
@both
def test_dtypes_follow_flax(framework, dtypes, preferred):
    case, (inputs, params) = CASES["up"], dtypes
    options = {"param_dtype": params}
    if preferred is not None:
        options |= {"preferred_element_type": preferred, "dtype": "bfloat16"}
    x = jnp.ones(case.inputs, inputs)
    with jax.numpy_dtype_promotion("standard"):
        layer = Layer(framework, case, **options, **FORMATS["unstructured"])
        flax = Layer(framework, case, ours=False, **options)
        assert layer.apply(layer.params, x).dtype == flax.apply(flax.params, x).dtype


@both
def test_the_pattern_changes_between_steps_without_compiling_again(framework, rng):
    case = CASES["plain"]
    layer = Layer(framework, case, **FORMATS["unstructured"])
    x = jnp.asarray(oracle.small_integers(rng, case.inputs), jnp.float32)
    shape = layer.params["kernel"].shape
    traces = 0

    def step(state, pattern):
        nonlocal traces
        traces += 1
        if framework == "nnx":
            graph, arrays = state
            model = nnx.merge(graph, arrays)
            model.set_pattern(pattern)
            return (graph, nnx.state(model)), model(x)
        variables = {**state, "sparsity": {"pattern": pattern}}
        variables = jlinen.apply_patterns(variables)
        return variables, layer.module.apply(variables, x)

    step = jax.jit(step, static_argnums=()) if framework == "linen" else nnx.jit(step)
    state = nnx.split(layer.model) if framework == "nnx" else layer.variables
    for seed in range(3):
        scores = jnp.asarray(np.random.default_rng(seed).random(shape))
        pattern = js.fromdense(scores, "unstructured", sparsity=0.6).pattern
        state, y = step(state, pattern)
        kernel = state[1]["kernel"][...] if framework == "nnx" else state["params"]["kernel"]
        assert not np.asarray(kernel)[~np.asarray(pattern.mask())].any()
        flax = Layer(framework, case, ours=False)
        np.testing.assert_allclose(
            y, flax.apply(dict(flax.params) | {"kernel": kernel}, x), rtol=1e-5, atol=1e-5
        )
    assert traces == 1


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"sparsity": 0.5}, ValueError, "sparsity needs a format"),
        ({"format": "8x8x8"}, ValueError, "format"),
        ({"format": "unstructured", "sparsity": 2}, ValueError, "sparsity"),
        (
            {"pattern": js.patterns.full("unstructured", (27, 8))},
            ValueError,
            r"must be for a weight of shape \(3, 3, 3, 8\).*got one for shape \(27, 8\)",
        ),
        ({"format": "unstructured", "padding": "CAUSAL"}, ValueError, "CAUSAL"),
        ({"format": "unstructured", "padding": "SOME"}, RuntimeError, "a padding is named"),
    ],
)
@both
def test_layers_refuse_options_that_make_no_sense(framework, options, error, message):
    def use():
        layer = Layer(framework, CASES["plain"], **options)
        return layer.apply(layer.params, layer.x)

    with pytest.raises(error, match=message):
        use()
