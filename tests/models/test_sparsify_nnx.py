"""Substitution in NNX models."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax_layers import mask_of
from flax_networks import IMAGES, TOKENS, ResNet, Transformer, assert_close, make_nnx

import jaxsparse as js
import jaxsparse.nnx as jnnx
from jaxsparse.nnx.sparsity import sparse_layers

X = jax.random.normal(jax.random.key(3), (4, 16))
RULE = js.Rule(".*", "8x8", sparsity=0.5)
run = nnx.jit(lambda model, x: model(x))

MODELS = {
    "resnet": (
        ResNet,
        IMAGES,
        [js.Rule("stem|.*skip", "unstructured", sparsity=0.5), js.Rule("head", None), RULE],
        ["blocks/0/conv1", "blocks/0/conv2", "blocks/0/skip", "stem", "up"],
        ["head"],
    ),
    "transformer": (
        Transformer,
        TOKENS,
        [js.Rule(r"blocks/.*/(attention/\w+|mlp/layers/0)", "4x8", sparsity=0.75)],
        [f"blocks/first/attention/{name}" for name in ("key", "out", "query", "value")]
        + ["blocks/first/mlp/layers/0"],
        ["blocks/first/mlp/layers/2", "embedding", "head"],
    ),
}


@pytest.fixture(scope="module", params=MODELS)
def case(request):
    make, x, rules, sparse, dense = MODELS[request.param]
    model = make_nnx(make)
    return (model, *js.sparsify(model, rules), x, sparse, dense)


def linear(size_in=16, size_out=16, seed=0):
    return nnx.Linear(size_in, size_out, rngs=nnx.Rngs(seed))


def at(model, path):
    for name in path.split("/"):
        model = model[int(name)] if name.isdigit() else getattr(model, name)
    return model


def pruned(model, sparse):
    """The dense model with zeros where the layers of the sparse one store nothing."""
    model = nnx.clone(model)
    dense = dict(nnx.iter_modules(model))
    for path, layer, _ in sparse_layers(sparse):
        kernel = dense[path].kernel
        mask = np.asarray(layer.pattern.mask()).reshape(kernel.shape)
        kernel.set_value(jnp.where(mask, kernel.get_value(), 0.0))
    return model


def test_a_sparse_model_computes_what_the_pruned_one_does(case):
    model, sparse, _, x, _, _ = case
    assert_close(run(sparse, x), run(pruned(model, sparse), x))


def test_every_sparse_layer_runs_a_sparse_op_under_its_path(case):
    _, sparse, _, x, paths, _ = case
    assert sorted(call.name for call in js.explain(lambda x: sparse(x), x)) == sorted(paths)


def test_the_summary_names_every_layer_and_why_it_is_dense(case):
    model, sparse, summary, _, paths, dense = case
    assert sorted(layer.path for layer in summary.sparse) == sorted(paths)
    assert sorted(layer.path for layer in summary.dense) == sorted(dense)
    for layer in summary.sparse:
        pattern = at(sparse, layer.path).pattern
        assert layer.density == pattern.density < 1
        assert layer.format == str(pattern.format)
        assert layer.shape == at(model, layer.path).kernel.shape
    for layer in summary:
        assert layer.reason
        assert f"{layer.path} " in str(summary)


def test_the_model_that_was_given_stays_as_it_is(case):
    model, sparse, _, _, _, _ = case
    fresh = make_nnx(type(model))
    assert nnx.graphdef(model) == nnx.graphdef(fresh)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(model), nnx.state(fresh))
    theirs = {id(v) for _, v in nnx.iter_graph(model) if isinstance(v, nnx.Variable)}
    assert not theirs & {id(v) for _, v in nnx.iter_graph(sparse) if isinstance(v, nnx.Variable)}


def test_densify_goes_back_to_the_graph_of_the_dense_model(case):
    model, sparse, _, _, _, _ = case
    expected = pruned(model, sparse)
    for one in (sparse, jnnx.pack(sparse)):
        back = js.densify(one)
        assert nnx.graphdef(back) == nnx.graphdef(model)
        jax.tree.map(np.testing.assert_array_equal, nnx.state(back), nnx.state(expected))


def test_a_packed_model_computes_the_same(case):
    _, sparse, _, x, _, _ = case
    assert_close(run(jnnx.pack(sparse), x), run(sparse, x))


def test_parameters_have_the_names_and_shapes_of_the_dense_model(case):
    model, sparse, _, _, _, _ = case
    shapes = lambda model: nnx.to_pure_dict(jax.tree.map(jnp.shape, nnx.state(model, nnx.Param)))
    assert shapes(sparse) == shapes(model)


def test_a_training_step_keeps_zeros_and_moves_the_rest(case):
    _, sparse, _, x, paths, _ = case
    sparse = nnx.clone(sparse)
    optimizer = nnx.Optimizer(sparse, optax.sgd(1e-2, momentum=0.9), wrt=nnx.Param)
    before = np.asarray(at(sparse, paths[0]).kernel[...])

    @nnx.jit
    def step(model, optimizer, x):
        grads = nnx.grad(lambda model: (model(x) ** 2).mean())(model)
        optimizer.update(model, grads)

    step(sparse, optimizer, x)
    for _, layer, _ in sparse_layers(sparse):
        kernel = np.asarray(layer.kernel[...])
        assert not kernel[~np.asarray(layer.pattern.mask()).reshape(kernel.shape)].any()
    assert (np.asarray(at(sparse, paths[0]).kernel[...]) != before).any()


# Where layers may be ------------------------------------------------------------------------------


class Pair(NamedTuple):
    left: nnx.Module
    right: nnx.Module


class Containers(nnx.Module):
    def __init__(self):
        self.attribute = linear()
        self.list = nnx.List([linear(), linear()])
        self.dict = nnx.Dict(inner=linear())
        self.sequential = nnx.Sequential(linear(), jnp.tanh, linear())
        self.tuple = nnx.data((linear(), linear()))
        self.plain = nnx.data([linear(), {"deep": linear()}])
        self.pair = nnx.data(Pair(linear(), linear()))

    def __call__(self, x):
        layers = [self.attribute, *self.list, self.dict["inner"], self.sequential, *self.tuple]
        for layer in [*layers, self.plain[0], self.plain[1]["deep"], *self.pair]:
            x = layer(x)
        return x


def test_layers_in_containers_of_every_kind_are_replaced():
    model = Containers()
    sparse, summary = js.sparsify(model, RULE)
    assert len(summary.sparse) == 12
    assert not summary.dense
    assert len(js.explain(lambda x: sparse(x), X)) == 12
    assert isinstance(sparse.pair, Pair)
    assert isinstance(sparse.plain[1], dict)
    assert {"plain/1/deep", "pair/0", "tuple/1"} <= {layer.path for layer in summary}
    assert nnx.graphdef(js.densify(sparse)) == nnx.graphdef(model)


def test_the_model_itself_may_be_the_layer():
    layer = linear()
    sparse, summary = js.sparsify(layer, js.Rule("", "8x8", sparsity=0.5))
    assert type(sparse) is jnnx.Linear
    assert type(layer) is nnx.Linear
    assert [row.path for row in summary] == [""]
    assert "(root)" in str(summary)
    assert type(js.densify(sparse)) is nnx.Linear


class Tied(nnx.Module):
    def __init__(self):
        self.first = linear()
        self.again = self.first
        self.kernel_only = linear(seed=1)
        self.kernel_only.kernel = self.first.kernel

    def __call__(self, x):
        return self.kernel_only(self.again(self.first(x)))


def test_tied_layers_and_tied_kernels_stay_tied():
    sparse, summary = js.sparsify(Tied(), RULE)
    assert sparse.again is sparse.first
    assert sparse.kernel_only.kernel is sparse.first.kernel
    assert sparse.kernel_only.sparsity is sparse.first.sparsity
    assert len(summary) == 2
    packed = jnnx.pack(sparse)
    assert packed.kernel_only.kernel is packed.first.kernel
    assert_close(packed(X), sparse(X))


class TiedEmbedding(nnx.Module):
    def __init__(self):
        self.embed = nnx.Embed(24, 16, rngs=nnx.Rngs(0))
        self.head = linear(24, 16)
        self.head.kernel = self.embed.embedding
        self.other = linear()


def test_a_kernel_that_something_else_uses_stays_dense_and_the_summary_says_so():
    sparse, summary = js.sparsify(TiedEmbedding(), RULE)
    assert type(sparse.head) is nnx.Linear
    assert summary["head"].reason == "its kernel is shared with 'embedding' of a Embed"
    assert summary["embed"].reason == "Embed has no sparse form"


class Child(nnx.Linear):
    def __call__(self, inputs):
        return super().__call__(inputs) * 2


class Subclasses(nnx.Module):
    def __init__(self):
        self.lora = nnx.LoRALinear(16, 16, lora_rank=2, rngs=nnx.Rngs(0))
        self.child = Child(16, 16, rngs=nnx.Rngs(0))
        self.plain = linear()


def test_gotcha_13_only_exact_types_are_replaced():
    sparse, summary = js.sparsify(Subclasses(), RULE)
    assert [type(m) for m in (sparse.lora, sparse.child)] == [nnx.LoRALinear, Child]
    assert type(sparse.plain) is jnnx.Linear
    for path in ("lora", "child"):
        assert summary[path].reason == (
            "it is a subclass of Linear, which may compute something else"
        )


def test_a_layer_that_is_sparse_already_keeps_its_pattern():
    layer = jnnx.Linear(16, 16, rngs=nnx.Rngs(0), format="4x4", sparsity=0.25)
    model = nnx.List([layer, linear()])
    sparse, summary = js.sparsify(model, RULE)
    assert summary["0"].reason == "it is sparse already"
    assert (summary["0"].format, summary["0"].density) == ("4x4", 0.75)
    np.testing.assert_array_equal(sparse[0].pattern.rows, layer.pattern.rows)
    _, again = js.sparsify(jnnx.pack(sparse), [])
    assert [row.shape for row in again] == [(16, 16)] * 2


def test_a_layer_of_ours_that_is_dense_becomes_sparse():
    model = nnx.List([jnnx.Linear(16, 16, rngs=nnx.Rngs(0))])
    sparse, summary = js.sparsify(model, RULE)
    assert sparse[0].pattern.density == summary["0"].density == 0.5


@pytest.mark.parametrize("format", ["unstructured", "4x2", "grouped:4"])
def test_substitution_compiles_nothing(format):
    """Each new shape would take XLA some 20 ms, which was most of the time of small layers."""
    compiled, sizes = [], (14, 22, 30)  # that nothing else has
    make = lambda rngs: nnx.List([nnx.Linear(n, n + 4, rngs=rngs) for n in sizes])
    model = make_nnx(make)
    listener = lambda event, seconds, **_: compiled.append(event) if "compile" in event else None
    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        js.sparsify(model, js.Rule(".*", format, sparsity=0.5))
        assert not compiled
        jax.jit(lambda x: x + 1)(np.ones(len(format), np.float32))
        assert compiled  # the listener hears
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)


# Lifted transformations ---------------------------------------------------------------------------


class Stacked(nnx.Module):
    """Layers that `nnx.vmap` made and `nnx.scan` runs, one by one under `nnx.remat`."""

    def __init__(self):
        @nnx.split_rngs(splits=3)
        @nnx.vmap
        def make(rngs):
            return nnx.Linear(16, 16, rngs=rngs)

        self.layers = make(nnx.Rngs(0))

    def __call__(self, x):
        @nnx.scan
        def body(x, layer):
            return jnp.tanh(nnx.remat(type(layer).__call__)(layer, x)), None

        return body(x, self.layers)[0]


@pytest.mark.parametrize(
    ("format", "given"), [("8x8", "sparsity"), ("unstructured", "mask"), ("grouped:4", "mask")]
)
def test_gotcha_12_stacked_layers_get_one_pattern_each_of_one_size(format, given, rng):
    model = Stacked()
    if given == "sparsity":
        sparse, summary = js.sparsify(model, js.Rule("layers", format, sparsity=0.5))
        capacity = round(0.5 * np.prod(sparse.layers.pattern.grid))
    else:  # as many entries as the layer that needs most of them
        mask = np.zeros((3, 16, 16), bool)
        mask[0, :4], mask[1, 8:, 8:], mask[2, 9, 5] = True, True, True
        sparse, summary = js.sparsify(model, js.Rule("layers", format), masks={"layers": mask})
        capacity = {"8x8": 2, "unstructured": 64, "grouped:4": 16}[format]
        model.layers.kernel[...] = model.layers.kernel[...] * mask.astype(np.float32)
    pattern = sparse.layers.pattern
    assert pattern.indices[0].shape == (3, capacity)
    assert summary["layers"].shape == (3, 16, 16)
    assert len({mask.tobytes() for mask in np.asarray(pattern.mask())}) > 1
    assert_close(run(sparse, X), run(pruned(model, sparse), X))
    assert_close(run(jnnx.pack(sparse), X), run(sparse, X))


def test_substitution_works_inside_jit_and_eval_shape():
    """Copied attributes would carry the trace that made the old layer."""

    @nnx.jit
    def make():
        return js.sparsify(nnx.List([linear()]), RULE)[0]

    expected, _ = js.sparsify(nnx.List([linear()]), RULE)
    made = make()
    np.testing.assert_array_equal(made[0].pattern.rows, expected[0].pattern.rows)
    np.testing.assert_array_equal(made[0].kernel[...] != 0, expected[0].kernel[...] != 0)
    assert nnx.eval_shape(make)[0].kernel.shape == (16, 16)


def test_gotcha_10_a_sparse_model_works_in_tree_mode():
    sparse, _ = js.sparsify(nnx.List([linear(), linear(seed=1)]), RULE)
    run = lambda model, x: model[1](model[0](x))
    assert_close(nnx.jit(run, graph=False)(sparse, X), run(sparse, X))


# Rules and masks ----------------------------------------------------------------------------------


def test_the_first_rule_that_matches_decides():
    model = nnx.Dict(a=linear(), b=linear(), c=linear())
    rules = [js.Rule("a", "4x4", sparsity=0.75), js.Rule("b", None), RULE]
    _, summary = js.sparsify(model, rules)
    found = {row.path: (row.format, row.density, row.reason) for row in summary}
    assert found == {
        "a": ("4x4", 0.25, "rule 'a'"),
        "b": (None, 1.0, "rule 'b': dense"),
        "c": ("8x8", 0.5, "rule '.*'"),
    }


def test_paths_are_matched_as_a_whole():
    _, summary = js.sparsify(
        nnx.Dict(fc=linear(), fc1=linear()), js.Rule("fc", "8x8", sparsity=0.5)
    )
    assert summary["fc1"].reason == "no rule matches"


@pytest.mark.parametrize("types", [nnx.Conv, "Conv", ("Conv", nnx.ConvTranspose)], ids=str)
def test_rules_can_be_for_types(types):
    _, summary = js.sparsify(
        make_nnx(ResNet), js.Rule(".*", "unstructured", sparsity=0.5, module_types=types)
    )
    kinds = {row.kind for row in summary.sparse}
    assert kinds == ({"Conv", "ConvTranspose"} if isinstance(types, tuple) else {"Conv"})


def test_without_a_sparsity_what_is_zero_is_left_out():
    layer = linear()
    kernel = jnp.where(jnp.arange(16)[:, None] < 8, layer.kernel[...], 0.0)
    layer.kernel[...] = kernel
    sparse, _ = js.sparsify(layer, js.Rule("", "unstructured"))
    assert sparse.pattern.capacity == 128
    np.testing.assert_array_equal(sparse.kernel[...], kernel)


@pytest.mark.parametrize("nested", [False, True])
def test_masks_say_which_weights_are_stored(nested, rng):
    model = nnx.Dict(a=nnx.Dict(b=linear()), c=linear())
    mask = rng.random((16, 16)) < 0.3
    masks = {"a": {"b": {"kernel": jnp.asarray(mask)}}} if nested else {"a/b": mask}
    sparse, summary = js.sparsify(model, js.Rule("a/.*", "4x4", sparsity=0.5), masks=masks)
    kernel = np.asarray(sparse["a"]["b"].kernel[...])
    np.testing.assert_array_equal(kernel != 0, mask)
    stored = mask.reshape(4, 4, 4, 4).any((1, 3))
    np.testing.assert_array_equal(sparse["a"]["b"].pattern.grid_mask(), stored)
    assert summary["a/b"].density == stored.mean()


def test_rules_say_how_layers_differentiate_and_run():
    rule = js.Rule(".*", "8x8", sparsity=0.5, grad="dense", implementation="xla")
    sparse, _ = js.sparsify(linear(), rule)
    grads = nnx.grad(lambda layer: layer(X).sum())(sparse)
    off = ~mask_of(sparse.pattern, (16, 16))
    assert np.asarray(grads.kernel[...])[off].any()
    assert {call.path for call in js.explain(lambda x: sparse(x), X)} == {"xla"}


MODEL = nnx.Dict(a=linear(), b=linear(16, 4), embed=nnx.Embed(8, 4, rngs=nnx.Rngs(0)))
BAD = {
    "no match": (
        lambda: js.sparsify(MODEL, js.Rule("A", "8x8")),
        ValueError,
        "'A'.*Layers are 'a'",
    ),
    "no layer": (
        lambda: js.sparsify(MODEL, js.Rule("embed", "8x8")),
        ValueError,
        r"it matches embed \(Embed has no sparse form\)",
    ),
    "shadowed": (
        lambda: js.sparsify(MODEL, [js.Rule(".*", None), js.Rule("a", "8x8")]),
        ValueError,
        r"rule 'a', all of whose layers go to rule '\.\*'",
    ),
    "too large a block": (
        lambda: js.sparsify(MODEL, js.Rule("b", "8x8")),
        ValueError,
        r"8x8 for 'b'.*\(16, 4\).*format \"8x4\" or \"unstructured\"",
    ),
    "too wide a group": (
        lambda: js.sparsify(MODEL, js.Rule("b", "grouped:8")),
        ValueError,
        'format "grouped:4"',
    ),
    "mask's shape": (
        lambda: js.sparsify(MODEL, RULE, masks={"a": np.ones((16, 4), bool)}),
        ValueError,
        r"\(16, 16\) for 'a', got \(16, 4\)",
    ),
    "mask's dtype": (
        lambda: js.sparsify(MODEL, RULE, masks={"a": np.ones((16, 16))}),
        TypeError,
        "bool, got float64 for 'a'",
    ),
    "mask's path": (
        lambda: js.sparsify(
            MODEL, js.Rule("a", "8x8", sparsity=0.5), masks={"c": np.ones((16, 16), bool)}
        ),
        ValueError,
        "got one for 'c'. Layers are 'a', 'b'",
    ),
    "mask of a dense layer": (
        lambda: js.sparsify(
            MODEL, js.Rule("a", "8x8", sparsity=0.5), masks={"b": np.ones((16, 4), bool)}
        ),
        ValueError,
        "which a rule makes sparse, got one for 'b'",
    ),
    "traced zeros": (
        lambda: nnx.jit(lambda m: js.sparsify(m, js.Rule("a", "8x8"))[0])(MODEL),
        ValueError,
        "'a' are stored must be known",
    ),
    "variables": (lambda: js.sparsify(MODEL, RULE, {"params": {}}), TypeError, "Leave them out"),
    "sample": (lambda: js.sparsify(MODEL, RULE, None, X), TypeError, "needs no sample"),
    "no rule": (lambda: js.sparsify(MODEL, ["8x8"]), TypeError, "got '8x8'"),
    "no model": (lambda: js.sparsify(np.ones(3), RULE), TypeError, "got ndarray"),
    "no model to densify": (lambda: js.densify("model"), TypeError, "densify: .*got str"),
    "expression": (lambda: js.Rule("(", "8x8"), ValueError, r"got '\('"),
    "path": (lambda: js.Rule(3, "8x8"), TypeError, "got 3"),
    "sparsity": (lambda: js.Rule("", "8x8", sparsity=1.5), ValueError, "Rule: sparsity .*1.5"),
    "format": (lambda: js.Rule("", "8by8"), ValueError, "got '8by8'"),
    "sparsity of nothing": (lambda: js.Rule("", None, sparsity=0.5), ValueError, "needs a format"),
    "grad": (lambda: js.Rule("", "8x8", grad="none"), ValueError, "got 'none'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_a_sentence(case):
    call, error, words = BAD[case]
    with pytest.raises(error, match=words):
        call()
