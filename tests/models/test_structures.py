"""Models of every structure: sparse, packed and dense again they compute one thing, and say so."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from flax_networks import assert_close, make_linen, make_nnx

import jaxsparse as js
import jaxsparse.linen as jslinen
import jaxsparse.nnx as jsnnx
from jaxsparse import pruning

X = jax.random.normal(jax.random.key(3), (4, 16))
IMAGE = jax.random.normal(jax.random.key(4), (2, 5, 5, 4))
run = nnx.jit(lambda model, x: model(x))


# NNX ----------------------------------------------------------------------------------------------


class Stack(nnx.Module):
    """Three layers that `nnx.vmap` has stacked."""

    def __init__(self, rngs):
        @nnx.split_rngs(splits=3)
        @nnx.vmap
        def make(rngs):
            return nnx.Linear(16, 16, rngs=rngs)

        self.layers = make(rngs)


class Ensemble(Stack):
    def __call__(self, x):
        return nnx.vmap(lambda layer, x: layer(x), in_axes=(0, None))(self.layers, x)


class Deep(Stack):
    def __call__(self, x):
        return nnx.scan(lambda x, layer: (jnp.tanh(layer(x)), None))(x, self.layers)[0]


class Recomputed(Stack):
    def __call__(self, x):
        step = nnx.remat(lambda x, layer: jnp.tanh(layer(x)))
        return nnx.scan(lambda x, layer: (step(x, layer), None))(x, self.layers)[0]


NNX = {
    "nnx.vmap": (Ensemble, X, 1),
    "nnx.scan": (Deep, X, 1),
    "nnx.remat": (Recomputed, X, 1),
    "linear": (lambda rngs: nnx.Linear(16, 16, rngs=rngs), X, 1),
    "linear_general": (
        lambda rngs: nnx.LinearGeneral((4, 4), (4, 4), axis=(-2, -1), rngs=rngs),
        X.reshape(4, 4, 4),
        1,
    ),
    "conv": (lambda rngs: nnx.Conv(4, 8, (3, 3), rngs=rngs), IMAGE, 1),
    "conv_transpose": (lambda rngs: nnx.ConvTranspose(4, 8, (3, 3), rngs=rngs), IMAGE, 1),
}


def assert_every_layer_is_sparse(report, count):
    """No fallback is silent: every layer is named, and says which way it runs."""
    assert len(report) == count
    for row in report:
        assert row.format == "4x4"
        assert row.path_taken in ("ffi", "xla", "dense")
        assert row.reason


@pytest.mark.parametrize("name", NNX)
def test_an_nnx_model_is_the_same_sparse_packed_and_dense_again(name):
    make, x, count = NNX[name]
    model = make_nnx(make)
    sparse, summary = js.sparsify(model, js.Rule(".*", "4x4", sparsity=0.5))
    packed, _ = js.pack(sparse)
    dense = js.densify(packed)
    assert len(summary.sparse) == count
    assert nnx.graphdef(dense) == nnx.graphdef(model)
    expected = run(dense, x)
    for one in (sparse, packed):
        assert_close(run(one, x), expected)
        assert_every_layer_is_sparse(js.report(one, x), count)
    assert np.abs(expected - run(model, x)).max() > 0.1  # it is not the model that was given


class Bypassed(nnx.Module):
    """The kernel of one layer is used without a call; another has a product of the user's."""

    def __init__(self, rngs):
        product = lambda *args, **options: jax.lax.dot_general(*args, **options)
        self.taken = nnx.Linear(16, 16, rngs=rngs)
        self.hooked = nnx.Linear(16, 16, dot_general=product, rngs=rngs)
        self.called = nnx.Linear(16, 16, rngs=rngs)

    def __call__(self, x):
        return self.called(self.hooked(x @ self.taken.kernel[...]))


def test_layers_that_the_code_runs_dense_are_named_with_the_reason():
    sparse, _ = js.sparsify(make_nnx(Bypassed), js.Rule(".*", "4x4", sparsity=0.5))
    report = js.report(sparse, X)
    assert {row.path: row.path_taken != "none" for row in report} == {
        "taken": False,
        "hooked": False,
        "called": True,
    }
    assert report["taken"].reason == "the sample does not reach it"
    assert report["hooked"].reason == "a product of the user's takes the whole kernel"


# Linen --------------------------------------------------------------------------------------------


class LinenEnsemble(nn.Module):
    @nn.compact
    def __call__(self, x):
        axes = {"params": 0, "sparsity": 0}
        options = {"in_axes": None, "axis_size": 3, "split_rngs": {"params": True}}
        return nn.vmap(nn.Dense, variable_axes=axes, **options)(16)(x)


class Step(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return jnp.tanh(nn.Dense(16)(x)), None


class LinenDeep(nn.Module):
    collections: tuple[str, ...] = ("params", "sparsity")
    step: type = Step

    @nn.compact
    def __call__(self, x):
        axes = dict.fromkeys(self.collections, 0)
        layers = nn.scan(self.step, variable_axes=axes, split_rngs={"params": True}, length=3)
        return layers()(x, None)[0]


class LinenContainers(nn.Module):
    def setup(self):
        self.several = [nn.Dense(16), nn.Dense(16)]
        self.named = {"a": nn.Dense(16), "b": (nn.Dense(16), nn.Dense(16))}
        self.in_turn = nn.Sequential([nn.Dense(16), nn.relu, nn.remat(nn.Dense)(16)])

    def __call__(self, x):
        for layer in (*self.several, self.named["a"], *self.named["b"]):
            x = layer(x)
        return self.in_turn(x)


class LinenTied(nn.Module):
    def setup(self):
        self.first = nn.Dense(16)
        self.again = self.first

    def __call__(self, x):
        return self.again(self.first(x))


LINEN = {
    "nn.vmap": (LinenEnsemble(), X, 1),
    "nn.scan": (LinenDeep(), X, 1),
    "nn.remat": (LinenDeep(step=nn.remat(Step)), X, 1),
    "containers": (LinenContainers(), X, 7),
    "tied": (LinenTied(), X, 1),
    "dense": (nn.Dense(16), X, 1),
    "dense_general": (nn.DenseGeneral((4, 4), axis=(-2, -1)), X.reshape(4, 4, 4), 1),
    "conv": (nn.Conv(8, (3, 3)), IMAGE, 1),
    "conv_transpose": (nn.ConvTranspose(8, (3, 3)), IMAGE, 1),
}


@pytest.mark.parametrize("name", LINEN)
def test_a_linen_model_is_the_same_sparse_packed_and_dense_again(name):
    model, x, count = LINEN[name]
    given = make_linen(model, x)
    sparse, variables, summary = js.sparsify(model, js.Rule(".*", "4x4", sparsity=0.5), given, x)
    _, packed, _ = js.pack(sparse, variables)
    back, dense = js.densify(sparse, packed)
    assert len(summary.sparse) == count
    assert back == model
    assert jax.tree.structure(dense) == jax.tree.structure(given)
    expected, apply = jax.jit(model.apply)(dense, x), jax.jit(sparse.apply)
    for one in (variables, packed):
        assert_close(apply(one, x), expected)
        assert_every_layer_is_sparse(js.report(sparse, one, x), count)


def test_packed_variables_without_the_collection_are_refused_by_name():
    model = LinenTied()
    sparse, variables, _ = js.sparsify(
        model, js.Rule(".*", "4x4", sparsity=0.5), make_linen(model, X), X
    )
    _, packed, _ = js.pack(sparse, variables)
    with pytest.raises(ValueError, match='collection "sparsity" holds the pattern of first'):
        sparse.apply({"params": packed["params"]}, X)


def test_a_loop_that_does_not_pass_the_collection_on_is_refused_by_name():
    model = LinenDeep(collections=("params",))
    with pytest.raises(ValueError, match='Dense_0.*list "sparsity" in variable_axes'):
        js.sparsify(model, js.Rule(".*", "4x4", sparsity=0.5), make_linen(model, X), X)


STACKED = make_linen(LinenDeep(), X)
BAD = {
    "unknown path": (js.Rule("nowhere", "4x4"), None, "'nowhere', which matches none.*Layers are"),
    "too large a block": (js.Rule(".*", "32x32"), None, '32x32 for .*format "16x16" or "unstr'),
    "mask of one layer for a stack": (
        js.Rule(".*", "4x4"),
        {"ScanStep_0/Dense_0": np.ones((16, 16), bool)},
        r"\(3, 16, 16\) for 'ScanStep_0/Dense_0', got \(16, 16\)",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_a_sentence(case):
    rule, masks, words = BAD[case]
    with pytest.raises(ValueError, match=words):
        js.sparsify(LinenDeep(), rule, STACKED, X, masks=masks)


# Loops, and layers that are sparse already --------------------------------------------------------


def names_compared(run):
    with js.check() as checked:
        run()
    members = {row.member.rpartition("_")[0] for row in checked.rows}
    assert len(members) > 1, "forward and backward"
    return {row.name for row in checked.rows}


@pytest.mark.parametrize("name", ["nnx.vmap", "nnx.scan", "nnx.remat"])
def test_a_check_names_layers_of_nnx_in_loops_forward_and_backward(name):
    make, x, _ = NNX[name]
    sparse, _ = js.sparsify(make_nnx(make), js.Rule(".*", "4x4", sparsity=0.5))
    loss = lambda model, x: (model(x) ** 2).sum()
    assert names_compared(lambda: nnx.jit(nnx.grad(loss))(sparse, x)) == {"layers"}


@pytest.mark.parametrize("name", ["nn.vmap", "nn.scan", "nn.remat"])
def test_a_check_names_layers_of_linen_in_loops_forward_and_backward(name):
    model, x, _ = LINEN[name]
    model, variables, summary = js.sparsify(
        model, js.Rule(".*", "4x4", sparsity=0.5), make_linen(model, x), x
    )
    loss = lambda params: (model.apply({**variables, "params": params}, x) ** 2).sum()
    names = names_compared(lambda: jax.jit(jax.grad(loss))(variables["params"]))
    assert names == {row.path for row in summary.sparse}


class Mixed(nnx.Module):
    """One layer is sparse by the model's own code; None stands among its members."""

    def __init__(self, rngs):
        self.own = jsnnx.Linear(16, 16, format="4x4", sparsity=0.75, rngs=rngs)
        self.nothing = None
        self.mixture = nnx.data((nnx.Linear(16, 16, rngs=rngs), None))

    def __call__(self, x):
        return self.mixture[0](self.own(x))


class LinenMixed(nn.Module):
    def setup(self):
        self.own = jslinen.Dense(16, format="4x4", sparsity=0.75)
        self.nothing = None
        self.mixture = (nn.Dense(16), None)

    def __call__(self, x):
        return self.mixture[0](self.own(x))


def test_layers_that_nnx_models_make_sparse_themselves_stay_so_and_are_named():
    sparse, summary = js.sparsify(Mixed(nnx.Rngs(0)), js.Rule(".*", "4x4", sparsity=0.5))
    assert summary["own"].reason == "it is sparse already"
    assert summary["own"].density == 0.25
    with js.check() as checked:
        sparse(X)
    assert {row.name for row in checked.rows} == {"own", "mixture/0"}


def test_layers_that_linen_models_make_sparse_themselves_stay_so_through_densify():
    model = LinenMixed()
    given = model.init(jax.random.key(0), X)
    sparse, variables, summary = js.sparsify(model, js.Rule(".*", "4x4", sparsity=0.5), given, X)
    assert summary["own"].reason == "it is sparse already"
    expected = sparse.apply(variables, X)
    for one in (variables, js.pack(sparse, variables)[1]):
        back, dense = js.densify(sparse, one)
        assert back == model
        assert jax.tree.structure(dense) == jax.tree.structure(given)
        assert_close(back.apply(dense, X), expected)


# Wrong orders of calls ----------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["sparse", "packed"])
def test_what_is_sparse_already_is_not_made_sparse_again_silently(form):
    rule = js.Rule(".*", "4x4", sparsity=0.5)
    sparse, _ = js.sparsify(make_nnx(Deep), rule)
    one = js.pack(sparse)[0] if form == "packed" else sparse
    with pytest.raises(ValueError, match=r"matches none; it matches layers \(it is sparse already"):
        js.sparsify(one, rule)
    sparse, variables, _ = js.sparsify(LinenDeep(), rule, STACKED, X)
    one = js.pack(sparse, variables)[1] if form == "packed" else variables
    with pytest.raises(ValueError, match=r"matches ScanStep_0/Dense_0 \(it is sparse already"):
        js.sparsify(sparse, rule, one, X)


def test_packing_twice_changes_nothing():
    rule = js.Rule(".*", "4x4", sparsity=0.5)
    once, _ = js.pack(js.sparsify(make_nnx(Deep), rule)[0])
    twice, _ = js.pack(once)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(twice), nnx.state(once))
    model, variables, _ = js.pack(*js.sparsify(LinenDeep(), rule, STACKED, X)[:2])
    _, again, _ = js.pack(model, variables)
    jax.tree.map(np.testing.assert_array_equal, again, variables)


def test_variables_without_their_patterns_are_not_packed_as_dense_ones():
    model, variables, _ = js.sparsify(LinenDeep(), js.Rule(".*", "4x4", sparsity=0.5), STACKED, X)
    with pytest.raises(
        ValueError, match="holds the pattern of ScanStep_0/Dense_0, got variables w"
    ):
        js.pack(model, {"params": variables["params"]})


def test_shapes_in_place_of_kernels_get_a_sentence():
    rule = js.Rule(".*", "4x4", sparsity=0.5)
    with pytest.raises(ValueError, match="got the shape of one only for 'layers'"):
        js.sparsify(nnx.eval_shape(lambda: Deep(nnx.Rngs(0))), rule)
    shapes = jax.eval_shape(LinenDeep().init, jax.random.key(0), X)
    with pytest.raises(ValueError, match="got the shape of one only for 'ScanStep_0/Dense_0'"):
        js.sparsify(LinenDeep(), rule, shapes, X)
    made = nnx.eval_shape(lambda: js.sparsify(Deep(nnx.Rngs(0)), rule)[0])
    assert made.layers.pattern.values_shape == (3, 8, 4, 4)


def test_pruning_a_model_without_patterns_gets_a_sentence():
    with pytest.raises(ValueError, match="must have sparse layers, got one without"):
        jsnnx.start_pruning(pruning.rigl(end=100), make_nnx(Deep), key=jax.random.key(0))
