"""Ops on sparse inputs equal the dense definition, whatever is skipped and whoever decides it."""

import contextlib
import functools
import inspect
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import oracle_conv
import pytest
from machine import compiled, need

import jaxsparse as js

LAYERS = {
    # space, channels, kernel, and the options of the op
    "2d": ((7, 6), (4, 5), (3, 3), {}),
    "2d_wide": ((9, 8), (6, 34), (3, 3), {}),
    "2d_stride": ((9, 8), (8, 6), (3, 2), {"strides": (2, 1), "padding": "VALID"}),
    "2d_dilation_groups": ((9, 8), (6, 9), (2, 3), {"kernel_dilation": 2, "groups": 3}),
    "1d_uneven": ((9,), (17, 33), (4,), {"strides": 2, "padding": ((2, 1),)}),
    "3d_even": ((4, 4, 5), (3, 7), (2, 2, 3), {}),
    "transposed": ((5, 4), (6, 20), (4, 4), {"strides": 2, "transposed": True}),
    "transposed_uneven": (
        (4, 3),
        (3, 6),
        (3, 2),
        {"strides": (3, 2), "padding": "VALID", "groups": 3, "transposed": True},
    ),
}
MASKS = {
    "empty": lambda y, x: np.zeros((7, 6), bool),
    "full": lambda y, x: np.ones((7, 6), bool),
    "one_pixel": lambda y, x: (y == 3) & (x == 2),
    "borders": lambda y, x: (y == 0) | (y == 6) | (x == 0) | (x == 5),
    "checkerboard": lambda y, x: (y + x) % 2 == 0,
    "clustered": lambda y, x: (y < 3) & (x > 2),
}


def per_axis(value, rank):
    return (value,) * rank if isinstance(value, int) else value


class Layer:
    """Small integers with some places all zero, what the op makes of them, and the definition."""

    def __init__(self, name, active=0.4, seed=0):
        self.space, channels, self.kernel, options = LAYERS[name]
        rng, rank = np.random.default_rng(seed), len(self.kernel)
        options = {"strides": 1, "padding": "SAME", "kernel_dilation": 1, **options}
        self.transposed = options.pop("transposed", False)
        self.groups = options.pop("groups", 1)
        strides, dilation = (per_axis(options[key], rank) for key in ("strides", "kernel_dilation"))
        self.strides = strides
        self.options = {**options, "feature_group_count": self.groups}
        pads = options["padding"]
        space = self.space
        if self.transposed:
            pads = oracle_conv.transposed_pads(self.kernel, strides, dilation, pads == "SAME")
            space = [(n - 1) * s + 1 for n, s in zip(space, strides)]
            strides = (1,) * rank
        elif pads == "SAME":
            pads = oracle_conv.same_pads(space, self.kernel, strides, dilation)
        elif pads == "VALID":
            pads = [(0, 0)] * rank
        self.seen = oracle_conv.geometry(space, self.kernel, strides, pads, dilation, self.groups)
        self.mask = rng.random((2, *self.space)) < active
        self.x = oracle.small_integers(rng, (2, *self.space, channels[0])) * self.mask[..., None]
        self.w = oracle.small_integers(rng, (*self.kernel, channels[0] // self.groups, channels[1]))
        self.g = oracle.small_integers(rng, (2, *self.seen.y_space, channels[1]))

    def op(self, x, w, **options):
        function = js.masked_conv_transpose if self.transposed else js.masked_conv
        return function(x, w, **self.options, **options)

    def arrays(self, dtype="float32"):
        return tuple(jnp.asarray(a, dtype) for a in (self.x, self.w, self.g))

    def definition(self, x, w, g):
        """The result and both gradients, of the dense op."""
        wide = oracle_conv.spread(x, self.strides) if self.transposed else x
        dx = oracle_conv.input_grad(g, w, self.seen)
        if self.transposed:
            steps = tuple(slice(None, None, s) for s in self.strides)
            dx = dx[(slice(None), *steps)]
        y = oracle_conv.forward(wide, w, self.seen)
        return y, dx, oracle_conv.weight_grad(wide, g, self.seen)


def both_gradients(op, **options):
    """The result and both gradients of an op, as one jitted function of (x, w, g)."""

    def run(x, w, g):
        y, pull = jax.vjp(functools.partial(op, **options), x, w)
        return y, *pull(g)

    return jax.jit(run)


def all_equal(got, exact):
    for what, one, other in zip(("y", "dx", "dw"), got, exact, strict=True):
        oracle.equal_exactly(one, other, what)


# The definition -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYERS)
def test_masked_conv_and_gradients_equal_the_dense_definition_on_integers(name, path):
    layer = Layer(name)
    got = both_gradients(layer.op, implementation=path)(*layer.arrays())
    all_equal(got, layer.definition(layer.x, layer.w, layer.g))


@pytest.mark.parametrize("name", ["2d", "2d_dilation_groups", "transposed"])
def test_a_given_mask_counts_the_rest_as_zero_and_its_gradient_as_none(name, path):
    layer = Layer(name)
    x, w, g = layer.arrays()
    x = jnp.where(layer.mask[..., None], x, jnp.nan)  # must not be looked at
    got = both_gradients(layer.op, implementation=path, mask=jnp.asarray(layer.mask))(x, w, g)
    y, dx, dw = layer.definition(layer.x, layer.w, layer.g)
    all_equal(got, (y, dx * layer.mask[..., None], dw))


@pytest.mark.parametrize("name", ["2d", "transposed"])
def test_masked_gradient_is_the_true_one_at_active_places_and_zero_elsewhere(name, path):
    layer = Layer(name)
    got = both_gradients(layer.op, implementation=path, grad="masked")(*layer.arrays())
    y, dx, dw = layer.definition(layer.x, layer.w, layer.g)
    all_equal(got, (y, dx * layer.mask[..., None], dw))


@pytest.mark.parametrize("mask", MASKS)
def test_submanifold_results_and_gradients_are_those_of_active_places(mask, path):
    layer = Layer("2d")
    layer.mask = np.broadcast_to(MASKS[mask](*np.mgrid[:7, :6]), (2, 7, 6))
    rng = np.random.default_rng(1)
    layer.x = oracle.small_integers(rng, layer.x.shape) * layer.mask[..., None]
    run = submanifold(path)
    y, dx, dw = layer.definition(layer.x, layer.w, layer.g * layer.mask[..., None])
    all_equal(run(*layer.arrays()), (y * layer.mask[..., None], dx, dw))


@functools.cache
def submanifold(path):
    return both_gradients(Layer("2d").op, implementation=path, submanifold=True)


@pytest.mark.parametrize("mask", MASKS)
def test_masks_of_every_shape_equal_the_definition(mask, path):
    layer = Layer("2d")
    active = np.broadcast_to(MASKS[mask](*np.mgrid[:7, :6]), (2, 7, 6))
    rng = np.random.default_rng(1)
    x = oracle.small_integers(rng, layer.x.shape)
    got = with_mask(path)(jnp.float32(x), jnp.float32(layer.w), active, jnp.float32(layer.g))
    y, dx, dw = layer.definition(x * active[..., None], layer.w, layer.g)
    all_equal(got, (y, dx * active[..., None], dw))


@functools.cache
def with_mask(path):
    def run(x, w, mask, g):
        op = functools.partial(Layer("2d").op, mask=mask, implementation=path)
        y, pull = jax.vjp(op, x, w)
        return y, *pull(g)

    return jax.jit(run)


@pytest.mark.parametrize("padding", ["CIRCULAR", "REFLECT", "SAME_LOWER"])
def test_padding_that_repeats_inputs_repeats_the_mask_too(padding, path):
    layer = Layer("2d")
    x, w, _ = layer.arrays()
    options = {"padding": padding, "mask": jnp.asarray(layer.mask), "submanifold": True}
    y = js.masked_conv(x, w, implementation=path, **options)
    expected = np.asarray(js.conv(x, w, padding=padding), np.float64)
    oracle.equal_exactly(y, expected * layer.mask[..., None])


@pytest.mark.parametrize("strides", [1, 2])
def test_input_dilation_equals_that_of_conv(strides, path):
    layer = Layer("2d")
    x, w, _ = layer.arrays()
    options = {"padding": ((1, 2), (0, 1)), "input_dilation": (2, 3), "strides": strides}
    y = js.masked_conv(x, w, implementation=path, mask=jnp.asarray(layer.mask), **options)
    oracle.equal_exactly(y, np.asarray(js.conv(x, w, **options), np.float64))


@pytest.mark.parametrize("options", [{"padding": "CIRCULAR"}, {"output_padding": 1}])
@pytest.mark.parametrize("transpose_kernel", [False, True])
def test_transposed_options_equal_those_of_conv_transpose(options, transpose_kernel, path):
    layer = Layer("2d")
    x, w, _ = layer.arrays()
    w = jnp.swapaxes(w, -1, -2) if transpose_kernel else w
    options = {**options, "strides": 2, "transpose_kernel": transpose_kernel}
    expected = both_gradients(js.conv_transpose, **options)
    g = jnp.round(5 * jnp.sin(jnp.arange(2 * 15 * 13 * 5.0))).reshape(2, 15, 13, 5)
    g = g[:, :14, :12] if "padding" in options else g
    got = both_gradients(js.masked_conv_transpose, implementation=path, **options)(x, w, g)
    all_equal(got, [np.asarray(a, np.float64) for a in expected(x, w, g)])


@pytest.mark.parametrize("batch", [1, 63, 64, 65])
def test_batches_and_outputs_beyond_every_block_equal_the_definition(batch, rng, path):
    """Even taps, images smaller than these, more outputs than a thousand."""
    x = oracle.small_integers(rng, (batch, 1, 2, 3)) * (rng.random((batch, 1, 2, 1)) < 0.5)
    w = oracle.small_integers(rng, (2, 4, 3, 1030 if batch == 1 else 5))
    g = oracle.small_integers(rng, (batch, 1, 2, w.shape[-1]))
    seen = oracle_conv.geometry((1, 2), (2, 4), (1, 1), [(0, 1), (1, 2)], (1, 1))
    got = both_gradients(js.masked_conv, implementation=path)(*map(jnp.float32, (x, w, g)))
    all_equal(
        got,
        (
            oracle_conv.forward(x, w, seen),
            oracle_conv.input_grad(g, w, seen),
            oracle_conv.weight_grad(x, g, seen),
        ),
    )


def test_a_zero_gradient_and_an_input_that_needs_none_are_no_special_case(path):
    layer = Layer("2d")
    x, w, g = layer.arrays()
    op = functools.partial(layer.op, implementation=path)
    for gradient in jax.vjp(op, x, w)[1](0 * g):
        oracle.equal_exactly(gradient, np.zeros(gradient.shape))
    (dw,) = jax.vjp(lambda w: op(x, w), w)[1](g)
    oracle.equal_exactly(dw, layer.definition(layer.x, layer.w, layer.g)[2])


def test_masked_matmul_and_gradients_equal_the_dense_product(rng, path):
    rows = rng.random((2, 5)) < 0.4
    x = oracle.small_integers(rng, (2, 5, 7)) * rows[..., None]
    w, g = oracle.small_integers(rng, (7, 35)), oracle.small_integers(rng, (2, 5, 35))
    run = both_gradients(js.masked_matmul, implementation=path)
    got = run(*(jnp.float32(a) for a in (x, w, g)))
    all_equal(got, (x @ w, g @ w.T, np.einsum("bni,bno->io", x, g)))
    y = js.masked_matmul(jnp.float32(x + 1), jnp.float32(w), mask=jnp.asarray(rows))
    oracle.equal_exactly(y, ((x + 1) * rows[..., None]) @ w)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_masked_conv_rounds_like_a_dot_product(dtype, rng, path):
    layer = Layer("2d_wide")
    with jax.enable_x64(dtype == "float64"):
        x = jnp.asarray(oracle.normals(rng, layer.x.shape) * layer.mask[..., None], dtype)
        w = jnp.asarray(oracle.normals(rng, layer.w.shape), dtype)
        g = jnp.asarray(oracle.normals(rng, layer.g.shape), dtype)
        got = both_gradients(layer.op, implementation=path, grad="masked")(x, w, g)
        exact = [np.asarray(a, np.float64) for a in (x, w, g)]
        results = layer.definition(*exact)
        sizes = layer.definition(*map(abs, exact))
        for one, result, size in zip(got, results, sizes, strict=True):
            if one.shape == x.shape:
                result = result * layer.mask[..., None]
            oracle.rounds_like_a_dot_product(one, result, size)


def test_more_channels_than_are_multiplied_at_once_equal_the_definition(rng, path):
    x = oracle.small_integers(rng, (1, 4, 3, 515)) * (rng.random((1, 4, 3, 1)) < 0.5)
    w = oracle.small_integers(rng, (2, 2, 515, 3))
    y = js.masked_conv(jnp.float32(x), jnp.float32(w), implementation=path)
    seen = oracle_conv.geometry((4, 3), (2, 2), (1, 1), [(0, 1), (0, 1)], (1, 1))
    oracle.equal_exactly(y, oracle_conv.forward(x, w, seen))


@pytest.mark.parametrize("dtype", ["int32", "complex64"])
def test_numbers_without_kernels_run_in_plain_jax(dtype):
    layer = Layer("transposed")
    x, w, _ = layer.arrays(dtype)
    y = layer.op(x, w, mask=jnp.asarray(layer.mask))
    expected, _, _ = layer.definition(layer.x, layer.w, layer.g)
    assert y.dtype == dtype
    oracle.equal_exactly(np.real(np.asarray(y)).astype(np.float64), expected)


# Who decides --------------------------------------------------------------------------------------


def with_zeros(share, rng, size=(1, 10, 10, 4)):
    """Integers of which exactly this share is zero, in places of their own."""
    x = oracle.small_integers(rng, size)
    x.reshape(-1)[rng.permutation(x.size)[: round(share * x.size)]] = 0
    return x


def is_sparse(x, **options):
    """Whether zeros were skipped: an infinite weight makes NaN of a zero that is multiplied."""
    w = jnp.full((1, 1, x.shape[-1], 1), jnp.inf)
    x = jnp.concatenate([jnp.float32(x), jnp.zeros((1, 1, 10, x.shape[-1]))], 1)
    return not bool(jnp.isnan(js.masked_conv(x, w, **options)[0, -1]).any())


@pytest.mark.parametrize("share", [0, 0.69, 0.7, 0.71, 1])
@pytest.mark.parametrize(
    "name",
    ["2d", "2d_stride", "2d_dilation_groups", "1d_uneven", "transposed", "transposed_uneven"],
)
def test_gradients_at_every_share_of_zeros_equal_the_definition(name, share, rng):
    need("cpu_kernels")
    layer = Layer(name)
    layer.x = with_zeros(share, rng, layer.x.shape)
    got = deciding(name)(*layer.arrays())
    all_equal(got, layer.definition(layer.x, layer.w, layer.g))


@functools.cache
def deciding(name):
    return both_gradients(Layer(name).op, threshold=0.7)


@pytest.mark.parametrize(
    ("zeros", "threshold", "expected"),
    [(59, 0.7, False), (60, 0.7, True), (61, 0.7, True), (0, 0.0, True), (89, 1, False)],
)
def test_exactly_the_threshold_of_zeros_is_enough(zeros, threshold, expected, rng):
    need("cpu_kernels")
    # Of 100 numbers, ten are zeros already: 60 more make seven tenths.
    x = with_zeros(0, rng, (1, 9, 10, 1))
    x.reshape(-1)[:zeros] = 0
    assert is_sparse(x, threshold=threshold) == expected


@pytest.mark.parametrize("channels", [(2, 64), (64, 2)], ids=["more", "fewer"])
def test_every_derivative_of_a_submanifold_is_decided_by_the_same_zeros(channels, rng):
    """Whose places are given by the nonzeros of x, be there more channels of y or fewer."""
    need("cpu_kernels")
    x = np.zeros((1, 10, 10, channels[0]))
    x[0, :3] = oracle.small_integers(rng, (3, 10, channels[0]))  # seven tenths are zero
    w, g = jnp.ones((3, 3, *channels)), jnp.ones((1, 10, 10, channels[1]))
    op = functools.partial(js.masked_conv, submanifold=True, threshold=0.7)
    for more, expected in ((0, True), (1, False)):
        x[0, 4, 0, 0] = more
        with js.decisions() as taken:
            jax.vjp(op, jnp.float32(x), w)[1](g)
        assert {d.member: d.is_sparse for d in taken} == {
            "masked_conv_forward": expected,
            "masked_conv_input_grad": expected,
            "masked_conv_weight_grad": expected,
        }


@pytest.mark.parametrize("places", [2**20 - 1, 2**20], ids=["below", "above"])
def test_counts_whose_sum_needs_more_than_32_bits_are_compared_exactly(places):
    from jaxsparse.ops import masked

    of = 2**11 + 4095  # more than any digit of twelve bits
    counts = jnp.full(places, of, jnp.int32)
    at_most = lambda counts, share: bool(masked._is_at_most(counts, share, of))
    assert places * of > 2**32
    assert at_most(counts, Fraction(1))
    assert not at_most(counts, Fraction(places * of - 1, places * of))
    half = counts.at[: places // 2].set(0)
    sum_of_half = (places - places // 2) * of
    assert at_most(half, Fraction(sum_of_half, places * of))
    assert not at_most(half, Fraction(sum_of_half - 1, places * of))


def test_with_a_mask_places_are_counted(rng):
    need("cpu_kernels")
    x = with_zeros(0, rng, (1, 9, 10, 1))
    mask = np.zeros((1, 10, 10), bool)
    mask[0, :3] = True
    assert is_sparse(x, mask=jnp.asarray(mask), threshold=0.7)
    mask[0, 4, 0] = True
    assert not is_sparse(x, mask=jnp.asarray(mask), threshold=0.7)


def test_strict_implementations_do_what_they_say(rng):
    need("cpu_kernels")
    assert is_sparse(with_zeros(0, rng, (1, 9, 10, 1)), implementation="ffi")
    empty = np.zeros((1, 9, 10, 1))
    assert not is_sparse(empty, implementation="dense")
    assert not is_sparse(empty, implementation="xla")


def convolutions(text):
    return text.count(" convolution(") + text.count("__ynn_fusion")


def test_the_sparse_side_never_runs_the_dense_convolution():
    need("cpu_kernels")
    layer = Layer("2d")
    strict = compiled(functools.partial(layer.op, implementation="ffi"), *layer.arrays()[:2])
    assert convolutions(strict.as_text()) == 0
    either = compiled(layer.op, *layer.arrays()[:2]).as_text()
    assert convolutions(either) == 1
    assert either.count(" conditional(") == 1
    assert either.count("places_conv_forward") == 1


def test_under_vmap_one_decision_is_made_and_one_side_runs(rng):
    need("cpu_kernels")
    layer = Layer("2d")
    x = jnp.float32(oracle.small_integers(rng, (3, *layer.x.shape)) * layer.mask[..., None])
    w = jnp.float32(layer.w)
    mapped = jax.vmap(layer.op, (0, None))
    text = compiled(mapped, x, w).as_text()
    assert text.count(" conditional(") == 1
    assert text.count("places_conv_forward") == 1
    assert " select(" not in text
    for one, expected in zip(mapped(x, w), x, strict=True):
        oracle.equal_exactly(one, layer.definition(expected, layer.w, layer.g)[0])


@pytest.mark.parametrize(("share", "expected"), [(0.69, False), (0.7, True)])
def test_what_was_decided_can_be_read_back(share, expected, rng):
    need("cpu_kernels")
    layer = Layer("2d")
    x, w, _ = layer.arrays()
    x = jnp.float32(with_zeros(share, rng, (2, 10, 10, 4)))
    with js.decisions() as taken:
        op = lambda w: js.masked_conv(x, w, threshold=0.7)
        jax.vjp(op, w)[1](jnp.ones((2, 10, 10, 5)))
    assert [(d.member, d.is_sparse) for d in taken] == [
        ("masked_conv_forward", expected),
        ("masked_conv_weight_grad", expected),
    ]
    with js.decisions() as taken:
        jax.block_until_ready(jax.jit(jax.vmap(layer.op, (0, None)))(x[None], w))
    assert len(taken) == 1


def test_explain_says_by_what_it_is_decided():
    layer = Layer("2d")
    x, w, g = layer.arrays()
    need("cpu_kernels")

    def reasons(**options):
        op = functools.partial(layer.op, **options)
        calls = js.explain(lambda x, w: jax.vjp(op, x, w)[1](g), x, w)
        assert {c.member: c.path for c in calls}["masked_conv_input_grad"] == "dense"
        return {call.member: call.reason for call in calls}

    assert "from 0.7 zeros on" in reasons(threshold=0.7)["masked_conv_forward"]
    measured = reasons()
    assert "decided when it runs" in measured["masked_conv_forward"]
    for member in ("masked_conv_forward", "masked_conv_weight_grad"):
        assert "active places or" in measured[member]


@pytest.mark.parametrize("how", ["ffi", "sparse", None])
def test_a_gradient_that_skips_nothing_is_said_to_be_dense_whatever_is_asked_for(how):
    need("cpu_kernels")
    layer = Layer("2d")
    x, w, g = layer.arrays()
    implementation = how if how == "ffi" else None
    both = both_gradients(layer.op, implementation=implementation)
    with js.mode("sparse") if how == "sparse" else contextlib.nullcontext():
        paths = {call.member: call.path for call in js.explain(both, x, w, g)}
        text = compiled(both, x, w, g).as_text()
        with js.check() as checked:
            both(x, w, g)
    assert paths == {
        "masked_conv_forward": "ffi",
        "masked_conv_weight_grad": "ffi",
        "masked_conv_input_grad": "dense",
    }
    assert "places_conv_input_grad" not in text
    ways = {row.member: (row.way, row.why) for row in checked.rows}
    assert ways["masked_conv_forward"][0] == ways["masked_conv_weight_grad"][0] == "ffi"
    way, why = ways["masked_conv_input_grad"]
    assert (way, why) == ("none", "a gradient that is wanted everywhere skips nothing")
    masked = functools.partial(layer.op, implementation=implementation, grad="masked")
    assert {call.path for call in js.explain(both_gradients(masked), x, w, g)} <= {"ffi"}


def test_ops_and_layers_have_one_default_threshold():
    from jaxsparse import linen, nnx

    makers = (js.masked_conv, js.masked_conv_transpose, js.masked_matmul)
    makers += (nnx.MaskedConv, nnx.MaskedConvTranspose, linen.MaskedConv, linen.MaskedConvTranspose)
    makers = [maker.__init__ if isinstance(maker, type) else maker for maker in makers]
    parameters = [inspect.signature(maker).parameters["threshold"] for maker in makers]
    assert {parameter.default for parameter in parameters} == {None}


def test_single_zeros_decide_where_the_kernel_skips_them(rng):
    need("cpu_kernels")
    x = jnp.float32(with_zeros(0.95, rng, (2, 10, 10, 64)))  # of every place something is left
    w, g = jnp.ones((3, 3, 64, 64)), jnp.ones((2, 10, 10, 64))

    def decided(**options):
        with js.decisions() as taken:
            jax.vjp(functools.partial(js.masked_conv, **options), x, w)[1](g)
        return {d.member.removeprefix("masked_conv_"): d.is_sparse for d in taken}

    assert decided() == {"forward": True, "weight_grad": True}
    restricted = {"forward": True, "input_grad": False, "weight_grad": True}
    assert decided(grad="masked") == restricted
    assert set(decided(submanifold=True).values()) == {False}


@pytest.mark.parametrize(("groups", "is_sparse"), [(1, True), (64, False)])
def test_single_zeros_do_not_decide_with_few_channels_in_a_group(groups, is_sparse, rng):
    need("cpu_kernels")
    x = jnp.float32(with_zeros(0.99, rng, (1, 8, 8, 64)))  # of about every second place
    kernel = jnp.ones((3, 3, 64 // groups, 64))
    with js.decisions() as taken:
        js.masked_conv(x, kernel, feature_group_count=groups)
    assert [decision.is_sparse for decision in taken] == [is_sparse]


def test_gradients_read_all_numbers_at_places_that_the_input_makes_active(rng):
    """The counts of a submanifold are of x: what else is read there may have more nonzeros."""
    need("cpu_kernels")
    active = rng.random((1, 8, 8)) < 0.3
    x = jnp.float32(rng.standard_normal((1, 8, 8, 4)) * active[..., None])
    kernel = jnp.ones((3, 3, 4, 64)).at[1, 1, 0, 5].set(jnp.inf)
    op = functools.partial(js.masked_conv, submanifold=True, implementation="ffi")
    y, pull = jax.vjp(lambda x: op(x, kernel), x)
    gradient = np.asarray(pull(jnp.ones_like(y).at[..., 5].set(0))[0])
    assert np.isnan(gradient[active, 0]).all()  # 0 * inf, as in the dense convolution
    assert np.isfinite(gradient[..., 1:]).all()


# Transformations and devices ----------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"submanifold": True}], ids=["exact", "submanifold"])
def test_derivatives_do_not_look_at_the_zeros_of_tangents(options):
    """A tangent has numbers where x has none, and its own places decide what is skipped."""
    layer = Layer("2d")
    x, w, _ = layer.arrays()
    op = functools.partial(layer.op, threshold=0, **options)
    _, ours = jax.jvp(op, (x, w), (jnp.float32(1) + x, w))
    mask = layer.mask[..., None] if options else 1
    y = layer.definition(layer.x, layer.w, layer.g)[0]
    dy = layer.definition(layer.x + 1, layer.w, layer.g)[0]
    oracle.equal_exactly(ours, (y + dy) * mask)


def test_second_derivatives_scan_and_remat_equal_those_of_the_dense_op():
    layer = Layer("2d")
    x, w = jnp.sign(layer.arrays()[0]), jnp.sign(layer.arrays()[1])[..., :4]

    def gradients(op):
        def loss(x, w):
            step = jax.checkpoint(lambda x, _: (op(x, w), None))
            return jnp.sum(jax.lax.scan(step, x, None, length=2)[0])

        pull = lambda x, w: jax.grad(loss, (0, 1))(x, w)
        return jax.jit(lambda x, w: jax.jvp(pull, (x, w), (x, w)))(x, w)

    ours, theirs = gradients(layer.op), gradients(js.conv)
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        oracle.equal_exactly(one, np.asarray(other, np.float64))


@pytest.mark.parametrize("kind", ["auto", "explicit", "shard_map"])
def test_on_several_devices_results_are_those_of_one(kind):
    layer = Layer("2d")
    x, w, g = (jnp.concatenate([a] * 2) if a.ndim == 4 and a.shape[0] == 2 else a
               for a in layer.arrays())  # fmt: skip
    run = both_gradients(layer.op)
    expected = [np.asarray(a, np.float64) for a in run(x, w, g)]
    axis = jax.sharding.AxisType.Explicit if kind == "explicit" else jax.sharding.AxisType.Auto
    mesh = jax.make_mesh((2,), ("data",), axis_types=(axis,))
    spec = jax.sharding.PartitionSpec("data")
    if kind == "shard_map":
        part = jax.shard_map(layer.op, mesh=mesh, in_specs=(spec, None), out_specs=spec)
        all_equal(both_gradients(part)(x, w, g), expected)
        return
    place = lambda a, spec: jax.device_put(a, jax.sharding.NamedSharding(mesh, spec))
    with jax.set_mesh(mesh):
        got = run(place(x, spec), place(w, jax.sharding.PartitionSpec()), place(g, spec))
    all_equal(got, expected)


EMPTY = {
    "batch": ((0, 5, 6, 4), {}),
    "rows": ((2, 0, 6, 4), {}),
    "columns_that_padding_makes": ((2, 5, 0, 4), {"padding": ((1, 1), (2, 2))}),
    "results": ((2, 1, 1, 4), {"padding": "VALID"}),
    "channels": ((2, 5, 6, 0), {}),
}


@pytest.mark.parametrize("is_masked", [False, True])
@pytest.mark.parametrize("function", [js.masked_conv, js.masked_conv_transpose])
@pytest.mark.parametrize("name", EMPTY)
def test_axes_of_size_zero_have_results_and_gradients(name, function, is_masked, path):
    shape, options = EMPTY[name]
    x, w = jnp.ones(shape), jnp.ones((3, 3, shape[-1], 5))
    mask = jnp.ones(shape[:-1], bool) if is_masked else None

    def results(implementation):
        op = functools.partial(function, mask=mask, implementation=implementation, **options)
        y, pull = jax.vjp(op, x, w)
        return y, *pull(jnp.ones_like(y))

    for got, expected in zip(results(path), results("dense"), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_one_empty_sample_and_an_empty_batch_are_zero():
    layer = Layer("2d")
    x, w, _ = layer.arrays()
    y = deciding_forward()(x.at[1].set(0), w)
    oracle.equal_exactly(y[1], np.zeros(y[1].shape))
    oracle.equal_exactly(y[0], layer.definition(layer.x, layer.w, layer.g)[0][0])
    oracle.equal_exactly(deciding_forward()(x * 0, w), np.zeros(y.shape))
    assert layer.op(x[:0], w).shape == (0, *y.shape[1:])


@functools.cache
def deciding_forward():
    return jax.jit(Layer("2d").op)


def test_nan_and_infinity_at_active_places_propagate_as_in_the_dense_op(path):
    layer = Layer("2d")
    x, w, _ = layer.arrays()
    for bad in (jnp.nan, jnp.inf):
        spoiled = x.at[0, 3, 3].set(bad)
        ours = layer.op(spoiled, w, implementation=path)
        np.testing.assert_array_equal(ours, js.conv(spoiled, w))


@pytest.mark.parametrize("bad", [jnp.inf, jnp.nan])
def test_check_knows_that_what_is_skipped_multiplies_nothing(bad):
    need("cpu_kernels")
    layer = Layer("2d", active=0.2)
    x, w, _ = layer.arrays()
    x, w = x.at[0].set(0), w.at[0, 0, 0, 0].set(bad)  # a sample without anything
    with js.check() as checked:
        y = layer.op(x, w, threshold=0)
    assert not jnp.isnan(y[0]).any()
    assert jnp.isnan(layer.op(x, w, implementation="dense")[0]).any()
    assert any(row.way == "ffi" and row.runs for row in checked.rows)
    assert not checked.bad


def test_check_compares_the_kernel_where_there_are_too_few_zeros_too(monkeypatch):
    need("cpu_kernels")
    from jaxsparse.ops import masked

    layer = Layer("2d")
    x, w, _ = layer.arrays()
    run = masked.nonzeros
    monkeypatch.setattr(masked, "nonzeros", lambda x: run(x).at[0].set(0))
    y = jax.jit(lambda x, w: layer.op(x, w, threshold=1))(x, w)
    oracle.equal_exactly(y, layer.definition(layer.x, layer.w, layer.g)[0])  # XLA's op ran
    with pytest.raises(ArithmeticError, match="masked_conv_forward"), js.check():
        layer.op(x, w, threshold=1)


def test_check_forgives_no_infinity_that_meets_a_zero_of_the_kernel(monkeypatch):
    need("cpu_kernels")
    from jaxsparse.ops import masked

    layer = Layer("2d", active=1)
    x, w, _ = layer.arrays()
    x = x.at[0, 3, 3].set(0).at[0, 3, 3, 0].set(jnp.inf)  # nothing else at that place
    w = w.at[:, :, 0].set(0)  # NaN in the dense op
    with js.check():
        layer.op(x, w, threshold=0)
    run = masked.nonzeros
    monkeypatch.setattr(masked, "nonzeros", lambda x: run(x).at[0, 3, 3].set(0))
    with pytest.raises(ArithmeticError, match="masked_conv_forward"), js.check():
        layer.op(x, w, threshold=0)


def test_check_finds_a_wrong_result_of_a_sparse_input(monkeypatch):
    need("cpu_kernels")
    from jaxsparse.ops import masked

    layer = Layer("2d", active=0.2)
    x, w, _ = layer.arrays()
    run = masked.nonzeros  # a place that counts as zero though it is not
    monkeypatch.setattr(masked, "nonzeros", lambda x: run(x).at[0].set(0))
    with pytest.raises(ArithmeticError, match="masked_conv_forward"), js.check():
        layer.op(x, w, threshold=0)


# Bad input ----------------------------------------------------------------------------------------

X, W = jnp.ones((2, 7, 6, 4)), jnp.ones((3, 3, 4, 5))
MASK = jnp.ones((2, 7, 6), bool)
BAD = {
    "mask_shape": ({"mask": MASK[:, 1:]}, ValueError, ["mask", "(2, 7, 6)", "(2, 6, 6)"]),
    "mask_dtype": ({"mask": MASK.astype(jnp.float32)}, TypeError, ["mask", "bool", "float32"]),
    "mask_none_array": ({"mask": True}, TypeError, ["mask", "bool"]),
    "threshold_above": ({"threshold": 1.5}, ValueError, ["threshold", "from 0 to 1", "1.5"]),
    "threshold_nan": ({"threshold": float("nan")}, ValueError, ["threshold", "nan"]),
    "threshold_text": ({"threshold": "0.7"}, TypeError, ["threshold", "'0.7'"]),
    "threshold_bool": ({"threshold": True}, TypeError, ["threshold", "True"]),
    "submanifold_stride": (
        {"submanifold": True, "strides": 2},
        ValueError,
        ["submanifold", "(7, 6)", "(4, 3)", "stride 1"],
    ),
    "submanifold_int": ({"submanifold": 1}, TypeError, ["submanifold", "bool"]),
    "grad": ({"grad": "sparse"}, ValueError, ["grad", '"masked"', "'sparse'"]),
    "implementation": ({"implementation": "cpu"}, ValueError, ["implementation", "'cpu'"]),
    "padding": ({"padding": "FULL"}, RuntimeError, ["masked_conv", "FULL"]),
    "grad_array": ({"grad": jnp.ones(2)}, ValueError, ["grad", '"masked"']),
    "preferred": (
        {"preferred_element_type": jnp.int32},
        TypeError,
        ["preferred_element_type", "int32", "float32", "Cast"],
    ),
    "threshold_array": ({"threshold": jnp.float32(0.7)}, TypeError, ["threshold", "Python"]),
}


@pytest.mark.parametrize("name", BAD)
def test_masked_conv_refuses_what_is_wrong_and_says_why(name):
    options, error, words = BAD[name]
    with pytest.raises(error) as caught:
        js.masked_conv(X, W, **options)
    assert all(word in str(caught.value) for word in ("masked_conv", *words)), caught.value


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: js.masked_conv(X, W[..., :3, :]), ValueError, ["3 input channels"]),
        (lambda: js.masked_conv(X[0, 0], W), ValueError, ["space axis"]),
        (lambda: js.masked_conv(X, W.astype(jnp.bfloat16)), TypeError, ["kernel", "bfloat16"]),
        (lambda: js.masked_conv(X, js.fromdense(W[0, 0], "unstructured")), TypeError, ["kernel"]),
        (lambda: js.masked_matmul(X, W), ValueError, ["two axes"]),
        (lambda: js.masked_matmul(X, W[0, 0, :3]), ValueError, ["3 input features"]),
        (lambda: js.masked_conv_transpose(X, W, transpose_kernel=1), TypeError, ["bool"]),
        (
            lambda: js.masked_conv_transpose(X, W, padding="CIRCULAR", strides=2, output_padding=1),
            ValueError,
            ["masked_conv_transpose", "CIRCULAR", "output_padding=(1, 1)"],
        ),
        (
            lambda: js.masked_matmul(X, W[0, 0], mask=MASK[0]),
            ValueError,
            ["masked_matmul", "(2, 7, 6)", "(7, 6)", "Broadcast"],
        ),
        (lambda: js.masked_matmul(X, W[0, 0], mask=MASK[0, 0, 0]), ValueError, ["mask.shape=()"]),
        (lambda: js.active_places(1.0), ValueError, ["active_places", "()", "x[..., None]"]),
        (lambda: js.output_mask(X[..., 0], (3, 3)), TypeError, ["output_mask", "float32"]),
        (lambda: js.output_mask(MASK, (0, 3)), ValueError, ["output_mask", "(0, 3)"]),
        (lambda: js.output_mask(MASK, (2.5, 3)), TypeError, ["output_mask", "(2.5, 3)"]),
        (lambda: js.output_mask(MASK[0, 0], (3, 3)), ValueError, ["kernel_size", "(6,)"]),
        (lambda: js.output_mask(MASK, (3, 3), transposed=1), TypeError, ["transposed", "1"]),
        (
            lambda: js.output_mask(MASK, (3, 3), feature_group_count=2),
            TypeError,
            ["output_mask", "strides, padding", "feature_group_count"],
        ),
    ],
)
def test_arrays_that_do_not_fit_are_refused(call, error, words):
    with pytest.raises(error) as caught:
        call()
    assert all(word in str(caught.value) for word in words), caught.value
