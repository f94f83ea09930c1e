"""Packing whole models, and taking out channels that do nothing."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from flax_networks import (
    IMAGES,
    TOKENS,
    LinenResNet,
    LinenTransformer,
    ResNet,
    Transformer,
    assert_close,
    make_linen,
    make_nnx,
)

import jaxsparse as js
import jaxsparse.linen as jlinen
import jaxsparse.nnx as jnnx

run = nnx.jit(lambda model, x: model(x))
RULE = js.Rule(r".*(Conv_0|conv1|up|stem|layers/0)", "unstructured", sparsity=0.75)


def integers(tree, seed=0):
    """The arrays of a tree as small integers, none of them zero: sums of products are exact."""
    rng = np.random.default_rng(seed)
    draw = lambda a: rng.integers(1, 4, a.shape) * rng.choice([-1, 1], a.shape)
    is_float = lambda a: jnp.issubdtype(a.dtype, jnp.floating)
    return jax.tree.map(lambda a: jnp.asarray(draw(a), a.dtype) if is_float(a) else a, tree)


# Values only --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("make", "x"), [(ResNet, IMAGES), (Transformer, TOKENS)], ids=["r", "t"])
def test_an_nnx_model_is_packed_and_every_layer_has_a_row(make, x):
    sparse, before = js.sparsify(make_nnx(make), RULE)
    packed, summary = js.pack(sparse)
    assert_close(run(packed, x), run(sparse, x))
    assert [row.path for row in summary] == [row.path for row in before]
    for row in summary:
        assert row.shape == before[row.path].shape
        assert (row.format, row.density) == (before[row.path].format, before[row.path].density)
        is_dense = row.format is None
        assert ("values only" in row.reason) != is_dense
        assert not is_dense or "no pattern" in row.reason or "no sparse form" in row.reason
    assert {row.path: row.path_taken != "none" for row in js.report(packed, x)} == {
        row.path: row.format is not None for row in summary
    }


@pytest.mark.parametrize(
    ("model", "x"), [(LinenResNet(), IMAGES), (LinenTransformer(), TOKENS)], ids=["r", "t"]
)
def test_a_linen_model_is_packed_and_every_layer_has_a_row(model, x):
    rule = js.Rule(RULE.path, "8x8" if x is TOKENS else "unstructured", sparsity=0.5)
    sparse, variables, before = js.sparsify(model, rule, make_linen(model, x), x)
    same, packed, summary = js.pack(sparse, variables)
    assert same is sparse
    apply = jax.jit(sparse.apply)
    assert_close(apply(packed, x), apply(variables, x))
    assert sorted(row.path for row in summary) == sorted(row.path for row in before)
    for row in summary:
        assert row.shape == before[row.path].shape
        assert (row.format, row.density) == (before[row.path].format, before[row.path].density)
    report = js.report(sparse, packed, x)
    assert {row.path: row.path_taken != "none" for row in report} == {
        row.path: row.format is not None for row in summary
    }
    again = js.sparsify(sparse, [], packed, x)[2]
    assert {row.path: row.shape for row in again} == {row.path: row.shape for row in before}


def test_packing_twice_changes_nothing():
    sparse, _ = js.sparsify(make_nnx(ResNet), RULE)
    once, _ = js.pack(sparse)
    twice, _ = js.pack(once)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(twice), nnx.state(once))


# Channels that do nothing -------------------------------------------------------------------------


def make_empty(kernel, *, outputs=(), inputs=()):
    kernel = np.array(kernel)
    kernel[..., list(outputs)] = 0
    kernel[..., list(inputs), :] = 0
    return jnp.asarray(kernel)


def relu_mlp(between=nnx.relu, sizes=(6, 8, 5), **options):
    """Layers of small integers; outputs 1 and 4 of the first are empty, their biases negative."""

    def make(rngs):
        layers = [nnx.Linear(n, m, rngs=rngs, **options) for n, m in itertools.pairwise(sizes)]
        return nnx.Sequential(layers[0], between, *layers[1:])

    model = make_nnx(make)
    nnx.update(model, integers(nnx.state(model)))
    first = model.layers[0]
    first.kernel[...] = make_empty(first.kernel[...], outputs=(1, 4))
    if first.bias is not None:
        first.bias[...] = first.bias[...].at[jnp.array([1, 4])].set(-2)
    return model


X = jnp.asarray(np.random.default_rng(1).integers(-3, 4, (4, 6)), jnp.float32)


def sizes(summary):
    return {row.path: row.shape for row in summary}


def assert_same(model, packed, *x):
    jax.tree.map(np.testing.assert_array_equal, run(packed, *x), run(model, *x))


def test_outputs_without_weights_go_where_their_bias_comes_to_zero():
    model = relu_mlp()
    packed, summary = js.pack(model, X, remove_empty=True)
    assert sizes(summary) == {"layers/0": (6, 6), "layers/2": (6, 5)}
    assert "2 of 8 outputs removed" in summary["layers/0"].reason
    assert "2 of 8 inputs removed" in summary["layers/2"].reason
    assert (packed.layers[0].out_features, packed.layers[2].in_features) == (6, 6)
    assert_same(model, packed, X)
    assert model.layers[0].kernel.shape == (6, 8)


@pytest.mark.parametrize(
    "between",
    {
        "bias": lambda x: x,
        "sigmoid": nnx.sigmoid,
        "cosine": lambda x: jnp.cos(nnx.relu(x)),
        "shifted": lambda x: nnx.relu(x) + 1,
    }.items(),
    ids=lambda pair: pair[0],
)
def test_outputs_without_weights_stay_where_their_bias_comes_to_something(between):
    model = relu_mlp(between[1])
    packed, summary = js.pack(model, X, remove_empty=True)
    assert packed.layers[0].kernel.shape == (6, 8)
    assert "2 outputs without weights stay, as their biases" in summary["layers/0"].reason
    assert_same(model, packed, X)


def test_a_positive_bias_behind_relu_stays():
    model = relu_mlp()
    model.layers[0].bias[...] = model.layers[0].bias[...].at[4].set(2)
    packed, summary = js.pack(model, X, remove_empty=True)
    assert sizes(summary) == {"layers/0": (6, 7), "layers/2": (7, 5)}
    assert_same(model, packed, X)


def test_without_a_bias_outputs_go_behind_what_keeps_zero():
    model = relu_mlp(jnp.tanh, use_bias=False)
    packed, summary = js.pack(model, X, remove_empty=True)
    assert sizes(summary) == {"layers/0": (6, 6), "layers/2": (6, 5)}
    assert_close(run(packed, X), run(model, X))


def test_outputs_that_nobody_has_a_weight_for_go_whatever_they_are():
    model = relu_mlp(lambda x: jnp.cos(x) + 1)
    model.layers[2].kernel[...] = make_empty(model.layers[2].kernel[...], inputs=(1, 2, 7))
    packed, summary = js.pack(model, X, remove_empty=True)
    assert sizes(summary) == {"layers/0": (6, 5), "layers/2": (5, 5)}
    assert_close(run(packed, X), run(model, X))


def test_what_only_fed_channels_that_went_goes_with_them():
    model = relu_mlp(sizes=(6, 8, 5, 3))
    last = model.layers[3]
    last.kernel[...] = make_empty(last.kernel[...], inputs=(0, 3))
    middle = model.layers[2]
    kernel = np.array(middle.kernel[...])
    kernel[6, [1, 2, 4]] = 0  # output 6 of the first feeds what nobody takes
    middle.kernel[...] = jnp.asarray(kernel)
    packed, summary = js.pack(model, X, remove_empty=True)
    assert sizes(summary) == {"layers/0": (6, 5), "layers/2": (5, 3), "layers/3": (3, 3)}
    assert_same(model, packed, X)


def test_inputs_from_outside_stay_and_the_summary_says_so():
    model = relu_mlp()
    model.layers[0].kernel[...] = make_empty(model.layers[0].kernel[...], inputs=(2,))
    model.layers[2].kernel[...] = make_empty(model.layers[2].kernel[...], outputs=(3,))
    packed, summary = js.pack(model, X, remove_empty=True)
    assert "1 inputs without weights stay, as they come from elsewhere" in (
        summary["layers/0"].reason
    )
    assert "1 outputs without weights stay, as the model returns it" in summary["layers/2"].reason
    assert_same(model, packed, X)


def test_one_channel_always_stays():
    model = relu_mlp()
    model.layers[0].kernel[...] = jnp.zeros((6, 8))
    model.layers[0].bias[...] = -jnp.ones(8)
    packed, summary = js.pack(model, X, remove_empty=True)
    assert sizes(summary) == {"layers/0": (6, 1), "layers/2": (1, 5)}
    assert_same(model, packed, X)


class Images(nnx.Module):
    """A residual network of small integers with what may lie between convolutions."""

    def __init__(self, rngs):
        self.stem = nnx.Conv(3, 8, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(8, use_running_average=True, rngs=rngs)
        self.inner = nnx.Conv(8, 6, (3, 3), rngs=rngs)
        self.outer = nnx.ConvTranspose(6, 8, (2, 2), (2, 2), transpose_kernel=True, rngs=rngs)
        self.head = nnx.Linear(8, 5, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.stem(x)))
        y = nnx.relu(self.inner(nnx.max_pool(x, (2, 2), (2, 2), padding="SAME")))
        x = nnx.relu(x + nnx.remat(lambda m, y: m(y))(self.outer, y))
        return self.head((nn.pool(x, 0.0, jax.lax.add, (2, 2), (2, 2), "VALID") / 4).mean((1, 2)))


def emptied_images():
    model = make_nnx(Images)
    nnx.update(model, integers(nnx.state(model)))
    model.norm.var[...] = jnp.ones(8)
    stem, inner, outer = model.stem, model.inner, model.outer
    stem.kernel[...] = make_empty(stem.kernel[...], outputs=(0, 2, 5))
    model.norm.bias[...] = jnp.full(8, -9.0)  # below what their biases, normalized, come to
    inner.kernel[...] = make_empty(inner.kernel[...], outputs=(1, 4))
    inner.bias[...] = -jnp.ones(6)
    outer.kernel[...] = make_empty(outer.kernel[...], inputs=(0, 2, 3))  # these are its outputs
    outer.bias[...] = -jnp.abs(outer.bias[...])
    return model


def test_batch_normalization_pooling_remat_and_branches_lose_their_channels():
    model = emptied_images()
    x = jnp.asarray(np.random.default_rng(2).integers(-2, 3, (2, 8, 8, 3)), jnp.float32)
    packed, summary = js.pack(model, x, remove_empty=True)
    assert sizes(summary) == {
        "stem": (3, 3, 3, 6),
        "inner": (3, 3, 6, 4),
        "outer": (2, 2, 6, 4),
        "head": (6, 5),
    }
    assert packed.norm.num_features == packed.norm.scale.shape[0] == 6
    assert_close(run(packed, x), run(model, x))
    assert model.norm.scale.shape == (8,)


@pytest.mark.parametrize("format", ["unstructured", "4x2", "grouped:4"])
def test_sparse_layers_lose_channels_and_keep_their_format(format):
    model = relu_mlp()
    kernel = np.array(model.layers[0].kernel[...])
    kernel[:4, 5:] = 0
    model.layers[0].kernel[...] = jnp.asarray(kernel)
    sparse, _ = js.sparsify(model, js.Rule(".*", format))
    for given in (sparse, jnnx.pack(sparse)):
        packed, summary = js.pack(given, X, remove_empty=True)
        assert sizes(summary) == {"layers/0": (6, 6), "layers/2": (6, 5)}
        assert summary["layers/0"].format == format
        assert packed.layers[0].is_packed
        assert type(packed.layers[2]) is nnx.Linear  # nothing is left out of it
        assert_same(model, packed, X)


def test_groups_of_outputs_in_an_order_of_their_own_lose_outputs_and_stay_together():
    model, order = relu_mlp(), np.array([7, 5, 0, 6, 2, 3, 1, 4])
    kernel = np.array(model.layers[0].kernel[...])
    kernel[3:, order[:4]], kernel[:3, order[4:]] = 0, 0
    model.layers[0].kernel[...] = jnp.asarray(kernel)
    pattern = js.fromdense(kernel, "grouped:4", order=order).pattern
    layer = jnnx.Linear(6, 8, rngs=nnx.Rngs(0), pattern=pattern)
    nnx.update(layer, nnx.state(model.layers[0]))
    sparse = nnx.Sequential(layer, nnx.relu, model.layers[2])
    packed, _ = js.pack(sparse, X, remove_empty=True)
    assert packed.layers[0].pattern.capacity == 6  # three inputs for each of two groups
    assert_same(model, packed, X)


# What stays, whatever it is -----------------------------------------------------------------------


class Returned(nnx.Module):
    def __init__(self, model):
        self.model = model

    def __call__(self, x):
        first, relu, second = self.model.layers
        y = relu(first(x))
        return second(y) + y.sum(-1, keepdims=True)


class Twice(Returned):
    def __call__(self, x):
        first, relu, second = self.model.layers
        return second(relu(first(x))) + second(relu(first(x + 1)))


class Counted(Returned):
    """The same equations, but for a number that is that of channels."""

    def __call__(self, x):
        first, relu, second = self.model.layers
        y = relu(first(x))
        return second(y * y.shape[-1])


class Written(Returned):
    """A size that is written into the code."""

    def __call__(self, x):
        first, relu, second = self.model.layers
        return second(relu(first(x)) + jnp.zeros((4, 8)))


class Chosen(Returned):
    def __call__(self, x):
        first, relu, second = self.model.layers
        y = relu(first(x))
        return second(y if y.shape[-1] == 8 else -y)


class Scaled(Returned):
    """A vector of its own, which two places use."""

    def __init__(self, model):
        super().__init__(model)
        self.scale = nnx.Param(jnp.arange(8.0))

    def __call__(self, x):
        first, relu, second = self.model.layers
        return second(relu(first(x)) * self.scale[...][None]) + self.scale[...].sum()


class TiedTo(Returned):
    def __init__(self, model):
        super().__init__(model)
        self.other = nnx.Linear(6, 8, rngs=nnx.Rngs(0))
        self.other.kernel = model.layers[0].kernel

    def __call__(self, x):
        return self.model(x), self.other(x)


class Looped(Returned):
    def __call__(self, x):
        first, relu, second = self.model.layers
        return jax.lax.map(lambda x: second(relu(first(x))), x)


class Sorted(Returned):
    def __call__(self, x):
        first, relu, second = self.model.layers
        return second(jnp.sort(relu(first(x)), -1))


STAYS = {
    Returned: "reduce_sum takes it",
    Twice: "called more than once",
    Counted: "code outside of layers depends on how many",
    Written: "code outside of layers depends on how many",
    Chosen: "code outside of layers depends on how many",
    Scaled: "something else uses the same parameters",
    TiedTo: "something else uses the same parameters",
    Looped: "it runs in a loop, or not at all",
    Sorted: "sort takes it",
}


@pytest.mark.parametrize("make", STAYS, ids=lambda make: make.__name__)
def test_channels_stay_where_more_than_their_layers_depends_on_them(make):
    model = make(relu_mlp())
    packed, summary = js.pack(model, X, remove_empty=True)
    row = summary["model/layers/0"]
    assert row.shape == (6, 8)
    assert "2 outputs without weights stay" in row.reason
    assert STAYS[make] in row.reason
    assert_same(model, packed, X)


def test_one_group_that_must_stay_does_not_hold_up_another():
    model = nnx.Sequential(relu_mlp(), nnx.relu, Counted(relu_mlp(sizes=(5, 8, 5))))
    packed, summary = js.pack(model, X, remove_empty=True)
    assert summary["layers/0/layers/0"].shape == (6, 6)
    assert summary["layers/2/model/layers/0"].shape == (5, 8)
    assert_same(model, packed, X)


def test_layers_of_other_kinds_stay_whole_and_the_summary_says_why():
    hook = lambda *args, **options: jax.lax.dot_general(*args, **options)

    def make(rngs):
        return nnx.Sequential(
            nnx.Conv(8, 8, (3, 3), feature_group_count=2, rngs=rngs),
            nnx.Linear(8, 8, dot_general=hook, rngs=rngs),
            nnx.LinearGeneral(8, (2, 4), rngs=rngs),
        )

    _, summary = js.pack(make_nnx(make), jnp.ones((1, 4, 4, 8)), remove_empty=True)
    assert "groups of channels" in summary["layers/0"].reason
    assert "product of the user's" in summary["layers/1"].reason
    assert "several axes" in summary["layers/2"].reason


def general_mlp():
    """`relu_mlp` of layers over any axes, here over the last."""
    of = relu_mlp()

    def make(rngs):
        return nnx.Sequential(
            nnx.LinearGeneral(6, 8, rngs=rngs), nnx.relu, nnx.LinearGeneral(8, (5,), rngs=rngs)
        )

    model = make_nnx(make)
    nnx.update(model, nnx.state(of, nnx.Param))
    return model


@pytest.mark.parametrize("form", ["dense", "sparse", "packed"])
def test_general_layers_over_one_axis_lose_channels(form):
    model = general_mlp()
    if form != "dense":
        model, _ = js.sparsify(model, js.Rule(".*", "2x2"))
    given = js.pack(model)[0] if form == "packed" else model
    packed, summary = js.pack(given, X, remove_empty=True)
    assert sizes(summary) == {"layers/0": (6, 6), "layers/2": (6, 5)}
    assert_same(model, packed, X)
    again, _ = js.pack(packed, X, remove_empty=True)
    assert_same(model, again, X)


@pytest.mark.parametrize("form", ["dense", "sparse", "packed"])
def test_general_layers_of_linen_over_one_axis_lose_channels(form):
    state = nnx.to_pure_dict(nnx.state(relu_mlp(), nnx.Param))["layers"]
    variables = {"params": {"layers_0": state[0], "layers_2": state[2]}}
    model = nn.Sequential([nn.DenseGeneral(8), nn.relu, nn.DenseGeneral((5,), axis=(-1,))])
    expected = model.apply(variables, X)
    if form != "dense":
        model, variables, _ = js.sparsify(model, js.Rule(".*", "2x2"), variables, X)
    if form == "packed":
        model, variables, _ = js.pack(model, variables)
    smaller, packed, summary = js.pack(model, variables, X, remove_empty=True)
    assert sizes(summary) == {"layers_0": (6, 6), "layers_2": (6, 5)}
    np.testing.assert_array_equal(smaller.apply(packed, X), expected)


@pytest.mark.parametrize("axis", [(-2, -1), -2])
def test_general_layers_over_other_axes_stay_whole(axis):
    x = jnp.ones((1, 8, 8))
    inputs = (8, 8) if isinstance(axis, tuple) else 8

    def make(rngs):
        hidden = nnx.Linear(8, 8, rngs=rngs)
        return nnx.Sequential(hidden, nnx.LinearGeneral(inputs, 4, axis=axis, rngs=rngs))

    model = make_nnx(make)
    model.layers[0].kernel[...] = make_empty(model.layers[0].kernel[...], outputs=(1,))
    model.layers[0].bias[...] = jnp.zeros(8)
    packed, summary = js.pack(model, x, remove_empty=True)
    assert summary["layers/0"].shape == (8, 8)
    assert "several axes" in summary["layers/1"].reason
    assert_same(model, packed, x)
    network = nn.Sequential([nn.Dense(8), nn.DenseGeneral(4, axis=axis)])
    variables = network.init(jax.random.key(0), x)
    _, _, summary = js.pack(network, variables, x, remove_empty=True)
    assert "several axes" in summary["layers_1"].reason


# Linen --------------------------------------------------------------------------------------------


class LinenImages(nn.Module):
    """The network of `Images`."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(8, (3, 3), name="stem")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=True, name="norm")(x))
        y = nn.max_pool(x, (2, 2), (2, 2), padding="SAME")
        y = nn.relu(nn.remat(nn.Conv)(6, (3, 3), name="inner")(y))
        y = nn.ConvTranspose(8, (2, 2), (2, 2), transpose_kernel=True, name="outer")(y)
        x = nn.pool(nn.relu(x + y), 0.0, jax.lax.add, (2, 2), (2, 2), "VALID") / 4
        return nn.Dense(5, name="head")(x.mean((1, 2)))


@pytest.fixture(scope="module")
def linen_images():
    of = emptied_images()
    state = nnx.to_pure_dict(nnx.state(of))
    stats = {name: state["norm"].pop(name) for name in ("mean", "var")}
    x = jnp.asarray(np.random.default_rng(2).integers(-2, 3, (2, 8, 8, 3)), jnp.float32)
    return LinenImages(), {"params": state, "batch_stats": {"norm": stats}}, x


@pytest.mark.parametrize("given", ["dense", "packed"])
def test_linen_models_lose_channels(linen_images, given):
    model, variables, x = linen_images
    expected = jax.jit(model.apply)(variables, x)
    if given != "dense":
        model, variables, _ = js.sparsify(model, js.Rule(".*", "unstructured"), variables, x)
    if given == "packed":
        variables = jlinen.pack(variables)
    smaller, new, summary = js.pack(model, variables, x, remove_empty=True)
    assert sizes(summary) == {
        "stem": (3, 3, 3, 6),
        "inner": (3, 3, 6, 4),
        "outer": (2, 2, 6, 4),
        "head": (6, 5),
    }
    assert new["batch_stats"]["norm"]["mean"].shape == (6,)
    assert_close(jax.jit(smaller.apply)(new, x), expected)
    assert {row.path for row in js.report(smaller, new, x)} == set(sizes(summary))
    again = js.pack(smaller, new, x, remove_empty=True)[2]
    assert sizes(again) == sizes(summary)
    sparse, sparse_variables, _ = js.sparsify(
        smaller, js.Rule(".*", "unstructured", sparsity=0.5), new, x
    )
    sparse, sparse_variables, _ = js.pack(sparse, sparse_variables, x, remove_empty=True)
    for one in ((smaller, new), (sparse, sparse_variables)):
        with pytest.raises(ValueError, match="densify: .*out of which pack took channels"):
            js.densify(*one)


# Bad input ----------------------------------------------------------------------------------------

MODEL = make_nnx(ResNet)
BAD = {
    "no model": (lambda: js.pack(3), TypeError, "pack: a model is .*got int"),
    "no variables": (lambda: js.pack(nn.Dense(3)), ValueError, "pack: .*got NoneType"),
    "no sample": (lambda: js.pack(MODEL, remove_empty=True), ValueError, "got no sample"),
    "no sample for linen": (
        lambda: js.pack(nn.Dense(3), {"params": {}}, remove_empty=True),
        ValueError,
        "got no sample",
    ),
    "sample": (lambda: js.pack(MODEL, IMAGES), TypeError, "remove_empty=False"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_a_sentence(case):
    call, error, words = BAD[case]
    with pytest.raises(error, match=words):
        call()
