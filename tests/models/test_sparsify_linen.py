"""Substitution in Linen models."""

import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.core import FrozenDict, meta
from flax_networks import (
    IMAGES,
    TOKENS,
    LinenResNet,
    LinenTransformer,
    assert_close,
    make_linen,
)

import jaxsparse as js
import jaxsparse.linen as jlinen

X = jax.random.normal(jax.random.key(3), (4, 16))
RULE = js.Rule(".*", "8x8", sparsity=0.5)

MODELS = {
    "resnet": (
        LinenResNet(),
        IMAGES,
        [js.Rule("stem|.*skip", "unstructured", sparsity=0.5), js.Rule("head", None), RULE],
        [f"LinenResidual_0/{name}" for name in ("CheckpointConv_0", "Conv_0", "skip")]
        + ["stem", "up"],
        ["head"],
    ),
    "transformer": (
        LinenTransformer(),
        TOKENS,
        [js.Rule(r"blocks/(attention/\w+|up)", "4x8", sparsity=0.75)],
        [f"blocks/attention/{name}" for name in ("key", "out", "query", "value")] + ["blocks/up"],
        ["blocks/down", "embedding", "head"],
    ),
}


@pytest.fixture(scope="module", params=MODELS)
def case(request):
    model, x, rules, sparse, dense = MODELS[request.param]
    variables = make_linen(model, x)
    return (model, variables, *js.sparsify(model, rules, variables, x), x, sparse, dense)


def at(tree, path):
    for name in filter(None, path.split("/")):
        tree = tree[name]
    return tree


def run(model, variables, x):
    return jax.jit(model.apply)(variables, x)


def pruned(variables, new, summary):
    """The variables of the dense model with zeros where `new` stores nothing."""
    result = jax.tree.map(lambda leaf: leaf, dict(variables))  # new dicts all the way down
    for layer in summary.sparse:
        weights = at(result["params"], layer.path)
        pattern = at(new["sparsity"], layer.path)["pattern"]
        mask = np.asarray(pattern.mask()).reshape(layer.shape)
        weights["kernel"] = jnp.where(mask, weights["kernel"], 0.0)
    return result


def test_a_sparse_model_computes_what_the_pruned_one_does(case):
    model, variables, sparse, new, summary, x, _, _ = case
    assert_close(run(sparse, new, x), run(model, pruned(variables, new, summary), x))


def test_every_sparse_layer_runs_a_sparse_op_under_its_path(case):
    model, _, sparse, new, _, x, paths, _ = case
    calls = js.explain(sparse.apply, new, x)
    names = [call.name.removeprefix(f"{type(model).__name__}/") for call in calls]
    assert len(names) == len(paths)
    for path in paths:
        assert any(path in name for name in names), names


def test_the_summary_names_every_layer_and_why_it_is_dense(case):
    _, variables, _, new, summary, _, paths, dense = case
    assert sorted(layer.path for layer in summary.sparse) == sorted(paths)
    assert sorted(layer.path for layer in summary.dense) == sorted(dense)
    for layer in summary.sparse:
        pattern = at(new["sparsity"], layer.path)["pattern"]
        assert (layer.density, layer.format) == (pattern.density, str(pattern.format))
        assert layer.shape == at(variables["params"], layer.path)["kernel"].shape
    for layer in summary:
        assert layer.reason
        assert f"{layer.path} " in str(summary)


def test_the_variables_that_were_given_stay_as_they_are(case):
    model, variables, _, _, _, x, _, _ = case
    jax.tree.map(np.testing.assert_array_equal, variables, make_linen(model, x))


def test_densify_goes_back_to_the_model_and_its_variables(case):
    model, variables, sparse, new, summary, _, _, _ = case
    expected = pruned(variables, new, summary)
    for given in (new, jlinen.pack(new)):
        back, dense = js.densify(sparse, given)
        assert type(back) is type(model)
        assert back == model
        jax.tree.map(np.testing.assert_array_equal, dense, expected)


def test_packed_variables_compute_the_same(case):
    _, _, sparse, new, _, x, _, _ = case
    assert_close(run(sparse, jlinen.pack(new), x), run(sparse, new, x))


def test_gotcha_15_gradients_of_parameters_do_not_see_patterns(case):
    _, _, sparse, new, summary, x, _, _ = case
    rest = {name: value for name, value in new.items() if name != "params"}
    loss = lambda params: (sparse.apply({"params": params, **rest}, x) ** 2).mean()
    grads = jax.jit(jax.grad(loss))(new["params"])
    for layer in summary.sparse:
        kernel = np.asarray(at(grads, layer.path)["kernel"])
        pattern = at(new["sparsity"], layer.path)["pattern"]
        mask = np.asarray(pattern.mask()).reshape(kernel.shape)
        assert kernel[mask].any()
        assert not kernel[~mask].any()


# What can be done with a sparse model -------------------------------------------------------------


class Encoder(nn.Module):
    """Methods besides `__call__`, one of which is not even called by it."""

    width: int = 16

    def setup(self):
        self.first = nn.Dense(self.width)
        self.second = nn.Dense(self.width, use_bias=False)

    def __call__(self, x):
        return self.second(jnp.tanh(self.first(x)))

    def encode(self, x):
        return self.first(x)


@pytest.fixture(scope="module")
def encoder():
    model = Encoder()
    variables = model.init(jax.random.key(0), X)
    sparse, new, _ = js.sparsify(model, RULE, variables, X)
    return model, sparse, new, js.densify(sparse, new)[1]


def half(module, x):
    return module.encode(x) / 2


class Parent(nn.Module):
    child: nn.Module

    @nn.compact
    def __call__(self, x):
        return self.child(x) + nn.Dense(16)(x)


class CalledTwice(nn.Module):
    @nn.compact
    def __call__(self, x):
        layer = nn.Dense(16)
        return layer(nn.jit(nn.Dense)(16)(layer(x)))


@pytest.mark.parametrize(
    "use",
    {
        "a method's name": lambda model, v: model.apply(v, X, method="encode"),
        "a method": lambda model, v: model.apply(v, X, method=Encoder.encode),
        "a function": lambda model, v: model.apply(v, X, method=half),
        "a lambda": lambda model, v: model.apply(v, X, method=lambda m, x: m(x) + m.encode(x)),
        "bind": lambda model, v: model.bind(v).encode(X),
        "clone": lambda model, v: model.clone().apply(v, X),
        "deepcopy": lambda model, v: copy.deepcopy(model).apply(v, X),
        "pickle": lambda model, v: pickle.loads(pickle.dumps(model)).apply(v, X),
        "remat": lambda model, v: jax.checkpoint(model.apply)(v, X),
        "static": lambda model, v: jax.jit(lambda m, v: m.apply(v, X), static_argnums=0)(model, v),
        "intermediates": lambda model, v: model.apply(
            v, X, capture_intermediates=True, mutable=["intermediates"]
        )[1]["intermediates"]["first"]["__call__"][0],
    }.items(),
    ids=lambda use: use[0],
)
def test_a_sparse_model_takes_its_layers_in_every_use(encoder, use):
    model, sparse, new, dense = encoder
    assert_close(use[1](sparse, new), use[1](model, dense))
    assert js.explain(lambda v: use[1](sparse, v), new)


def test_init_makes_the_variables_of_the_dense_model(encoder):
    model, sparse, _, _ = encoder
    made, expected = (m.init(jax.random.key(0), X) for m in (sparse, model))
    jax.tree.map(np.testing.assert_array_equal, made, expected)


def test_sparse_models_of_one_kind_are_equal_and_hash_alike(encoder):
    model, sparse, _, dense = encoder
    again, _, _ = js.sparsify(model, RULE, dense, X)
    assert again == sparse
    assert hash(again) == hash(sparse)
    assert sparse != model
    assert sparse.clone() == sparse


def test_a_function_that_was_jitted_before_is_not_taken_from_the_cache(encoder):
    """A context manager around a dense model would meet the program traced without it."""
    model, sparse, new, dense = encoder
    apply = jax.jit(lambda model, v: model.apply(v, X), static_argnums=0)
    apply(model, dense)
    assert len(js.explain(lambda v: apply(sparse, v), new)) == 2


def test_a_sparse_model_may_be_a_part_of_another_model(encoder):
    model, sparse, new, dense = encoder
    parent = Parent(sparse)
    variables = parent.init(jax.random.key(1), X)
    variables = {
        "params": {**variables["params"], "child": new["params"]},
        "sparsity": {"child": new["sparsity"]},
    }
    expected = Parent(model).apply({"params": {**variables["params"], "child": dense["params"]}}, X)
    assert_close(parent.apply(variables, X), expected)
    assert len(js.explain(parent.apply, variables, X)) == 2
    with pytest.raises(ValueError, match='"sparsity" holds the pattern of first'):
        parent.apply({"params": variables["params"]}, X)


def test_layers_that_are_called_twice_or_jitted_inside_share_their_pattern():
    model = CalledTwice()
    variables = model.init(jax.random.key(0), X)
    sparse, new, summary = js.sparsify(model, RULE, variables, X)
    assert len(summary.sparse) == 2
    assert len(js.explain(sparse.apply, new, X)) == 3
    assert_close(sparse.apply(new, X), model.apply(js.densify(sparse, new)[1], X))


def test_the_model_itself_may_be_the_layer():
    model = nn.Dense(16)
    variables = model.init(jax.random.key(0), X)
    sparse, new, summary = js.sparsify(model, js.Rule("", "8x8", sparsity=0.5), variables, X)
    assert isinstance(sparse, nn.Dense)
    assert [row.path for row in summary.sparse] == [""]
    assert len(js.explain(sparse.apply, new, X)) == 1
    assert_close(sparse.apply(new, X), model.apply(js.densify(sparse, new)[1], X))
    assert js.densify(sparse, new)[0] == model


def test_a_model_can_be_made_sparser_in_two_steps(encoder):
    model, _, _, _ = encoder
    variables = model.init(jax.random.key(0), X)
    one, new, _ = js.sparsify(model, js.Rule("first", "8x8", sparsity=0.5), variables, X)
    both, new, summary = js.sparsify(one, js.Rule("second", "4x4", sparsity=0.5), new, X)
    assert summary["first"].reason == "it is sparse already"
    assert len(js.explain(both.apply, new, X)) == 2
    assert js.densify(both, new)[0] == model


# A dense layer is never a surprise ----------------------------------------------------------------


class Special(nn.Dense):
    @nn.compact
    def __call__(self, inputs):
        return super().__call__(inputs) * 2


class Various(nn.Module):
    def setup(self):
        self.special = Special(16)
        self.einsum = nn.Einsum((16, 16), "bi,io->bo")
        self.plain = nn.Dense(16)
        self.ours = jlinen.Dense(16)
        self.sparse = jlinen.Dense(16, format="4x4", sparsity=0.25)
        self.unused = nn.Dense(16)

    def __call__(self, x):
        if self.is_initializing():
            self.unused(x)
        return self.sparse(self.ours(self.plain(self.einsum(self.special(x)))))


def test_only_exact_types_that_the_sample_reaches_are_replaced():
    model = Various()
    variables = model.init(jax.random.key(0), X)
    sparse, new, summary = js.sparsify(model, RULE, variables, X)
    assert {row.path: (row.format, row.reason) for row in summary} == {
        "special": (None, "it is a subclass of Dense, which may compute something else"),
        "einsum": (None, "Einsum has no sparse form"),
        "plain": ("8x8", "rule '.*'"),
        "ours": ("8x8", "rule '.*'"),
        "sparse": ("4x4", "it is sparse already"),
        "unused": (None, "the sample does not reach it"),
    }
    assert len(js.explain(sparse.apply, new, X)) == 3


def test_without_the_collection_a_sparse_model_raises(encoder):
    _, sparse, new, dense = encoder
    for variables in (dense, {"params": new["params"], "sparsity": {}}):
        with pytest.raises(ValueError, match='collection "sparsity" holds the pattern of first'):
            sparse.apply(variables, X)


def test_a_scan_that_does_not_pass_the_collection_on_is_refused():
    model = LinenTransformer(collections=("params",))
    variables = make_linen(model, TOKENS)
    with pytest.raises(ValueError, match='blocks/up.*list "sparsity" in variable_axes'):
        js.sparsify(model, js.Rule("blocks/up", "8x8", sparsity=0.5), variables, TOKENS)


def test_stacked_layers_get_one_pattern_each_of_one_size(rng):
    model = LinenTransformer()
    variables = make_linen(model, TOKENS)
    mask = np.zeros((2, 16, 32), bool)
    mask[0, :4], mask[1, 3, 5] = True, True
    sparse, new, _ = js.sparsify(
        model, js.Rule("blocks/up", "unstructured"), variables, TOKENS, masks={"blocks/up": mask}
    )
    pattern = new["sparsity"]["blocks"]["up"]["pattern"]
    assert pattern.indices[0].shape == (2, 128)
    np.testing.assert_array_equal(pattern.mask(), mask)
    assert_close(run(sparse, new, TOKENS), run(model, js.densify(sparse, new)[1], TOKENS))


class Mapped(nn.Module):
    @nn.compact
    def __call__(self, x):
        axes = {"params": 1, "sparsity": 0}
        dense = nn.vmap(nn.Dense, in_axes=0, variable_axes=axes, split_rngs={"params": True})
        return dense(16)(x)


def test_layers_must_be_stacked_along_the_first_axis():
    model, x = Mapped(), jnp.ones((3, 4, 16))
    variables = model.init(jax.random.key(0), x)
    with pytest.raises(ValueError, match=r'stacked along the first.*\(16, 3, 16\).*"params": 0'):
        js.sparsify(model, RULE, variables, x)


# Forms of variables, and bad input ----------------------------------------------------------------


def test_frozen_variables_stay_frozen_and_boxes_stay_boxes():
    init = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
    model = nn.Sequential([nn.Dense(16, kernel_init=init)])
    variables = FrozenDict(model.init(jax.random.key(0), X))
    sparse, new, _ = js.sparsify(model, RULE, variables, X)
    kernel = new["params"]["layers_0"]["kernel"]
    assert isinstance(new, FrozenDict)
    assert isinstance(kernel, meta.AxisMetadata)
    assert kernel.names == (None, "model")
    assert int((kernel.value == 0).sum()) == 128
    assert len(js.explain(sparse.apply, new, X)) == 1
    assert isinstance(js.densify(sparse, new)[1], FrozenDict)


def test_the_sample_may_be_shapes_and_take_keywords():
    model = LinenResNet()
    x = jax.ShapeDtypeStruct(IMAGES.shape, IMAGES.dtype)
    variables = make_linen(model, IMAGES)
    sparse, new, _ = js.sparsify(model, RULE_FOR_UP, variables, x, train=True)
    apply = lambda new: sparse.apply(new, IMAGES, train=True, mutable=["batch_stats"])
    y, changed = jax.eval_shape(apply, new)
    assert y.shape == (2, 10)
    assert set(changed) == {"batch_stats"}


RULE_FOR_UP = js.Rule("up", "8x8", sparsity=0.5)
DENSE = nn.Dense(16)
VARIABLES = {"params": {"kernel": jnp.ones((16, 16)), "bias": jnp.ones(16)}}
BAD = {
    "no sample": (lambda: js.sparsify(DENSE, RULE, VARIABLES), ValueError, "got no sample"),
    "no variables": (lambda: js.sparsify(DENSE, RULE), ValueError, "got NoneType"),
    "no params": (lambda: js.sparsify(DENSE, RULE, {"a": 1}, X), ValueError, r"got \['a'\]"),
    "bound": (
        lambda: js.sparsify(DENSE.bind(VARIABLES), RULE, VARIABLES, X),
        ValueError,
        "unbound",
    ),
    "unused rule": (
        lambda: js.sparsify(DENSE, js.Rule("a", "8x8"), VARIABLES, X),
        ValueError,
        "Layers are ''",
    ),
    "mask's shape": (
        lambda: js.sparsify(DENSE, RULE, VARIABLES, X, masks={"": np.ones((4, 4), bool)}),
        ValueError,
        r"\(16, 16\) for '', got \(4, 4\)",
    ),
    "format": (
        lambda: js.sparsify(DENSE, js.Rule("", "32x16"), VARIABLES, X),
        ValueError,
        'format "16x16" or "unstructured"',
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_a_sentence(case):
    call, error, words = BAD[case]
    with pytest.raises(error, match=words):
        call()
