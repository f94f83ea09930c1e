"""Checkpoints give back every bit, or say what does not fit; zeros take no room."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import jaxsparse as js
import jaxsparse.io as jio
import jaxsparse.nnx as jnnx
from jaxsparse import pruning
from jaxsparse.formats.pattern import OVERFLOW


def weight(format="unstructured", shape=(24, 16), sparsity=0.5, seed=0, **options):
    drawn = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return js.fromdense(drawn, format, sparsity=sparsity, **options)


def stacked(format, number=3):
    each = [weight(format, seed=i).pattern for i in range(number)]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)


def bits(leaf):
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf).tobytes()


def assert_same(a, b):
    """The same structure, types, static parts and bits."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
        assert (x.shape, x.dtype, bits(x)) == (y.shape, y.dtype, bits(y))


TREES = {
    "unstructured": lambda: {"w": weight()},
    "blocks": lambda: {"w": weight("8x4")},
    "uneven blocks": lambda: {"w": weight("7x5")},
    "groups in an order of their own": lambda: {
        "w": weight("grouped:4", order=np.random.default_rng(1).permutation(16))
    },
    "kernel": lambda: {"w": weight(shape=(3, 8, 16))},
    "few weights, as a list": lambda: {"w": weight(sparsity=0.99)},
    "sum": lambda: {"w": js.with_residual(weight().todense(), "grouped:4")},
    "split": lambda: {"w": js.split_features(weight(), 2)},
    "stacked patterns": lambda: {"blocks": stacked("8x4"), "groups": stacked("grouped:4")},
    "nothing stored": lambda: {"w": weight(sparsity=1.0)},
    "everything stored": lambda: {"w": weight(sparsity=0.0)},
    "capacity to spare": lambda: {
        "w": js.fromdense(np.eye(8, dtype=np.float32), "unstructured", capacity=20)
    },
    "lists": lambda: {"a": [weight(), {"b": [jnp.ones(2), weight("8x4")]}]},
    "one weight": lambda: weight(),
    "dtypes": lambda: {
        str(dtype): jnp.arange(6).astype(dtype).reshape(2, 3)
        for dtype in ("bool", "int8", "uint32", "bfloat16", "float16", "complex64")
    },
    "signed zeros and NaN": lambda: {
        "w": jnp.array([0.0, -0.0, jnp.nan, 0, 0, 0, 0, 0, 0, 0, 1e-42], jnp.float32)
    },
    "empty and zero": lambda: {"a": jnp.ones((0, 3)), "b": jnp.zeros((4, 4)), "c": jnp.zeros(())},
    "random key": lambda: {"key": jax.random.key(3)},
}
each_tree = pytest.mark.parametrize("make", TREES.values(), ids=TREES)


@each_tree
def test_a_tree_comes_back_through_arrays_and_json(make):
    arrays, manifest = jio.to_arrays(make())
    manifest = json.loads(json.dumps(manifest))
    assert_same(jio.from_arrays(arrays, manifest), make())
    assert_same(jio.from_arrays(arrays, manifest, make()), make())
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), make())
    assert_same(jio.from_arrays(arrays, manifest, shapes), make())


@pytest.mark.parametrize(
    "name", ["lists", "stacked patterns", "one weight", "empty and zero", "nothing stored"]
)
def test_a_tree_comes_back_from_a_folder(name, tmp_path):
    jio.save(tmp_path / "saved", TREES[name]())
    assert_same(jio.load(tmp_path / "saved"), TREES[name]())
    assert_same(jio.load(tmp_path / "saved", TREES[name]()), TREES[name]())


@each_tree
def test_a_tree_comes_back_from_safetensors(make, tmp_path):
    jio.to_safetensors(tmp_path / "saved", make())
    assert_same(jio.from_safetensors(tmp_path / "saved"), make())


@jax.numpy_dtype_promotion("standard")  # Optax relies on it
def test_training_goes_on_from_a_checkpoint_as_if_it_had_not_stopped(tmp_path):
    params = {"w": jnp.asarray(weight().todense()), "b": jnp.ones(16)}
    adam, pruner = optax.adam(0.1), pruning.rigl(0.5, format="8x4", every=2, end=9)
    loss = lambda p: jnp.sum((p["w"].sum(0) + p["b"]) ** 2)

    @jax.jit
    def step(state):
        params, opt_state, prune_state = state
        updates, opt_state = adam.update(jax.grad(loss)(params), opt_state, params)
        params = optax.apply_updates(params, updates)
        return pruner.update(params, opt_state, prune_state, jax.grad(loss))

    fresh = params, adam.init(params), pruner.init(params, key=jax.random.key(1))
    half = step(step(step(fresh)))
    jio.save(tmp_path / "half", half)
    assert_same(step(step(jio.load(tmp_path / "half", fresh))), step(step(half)))


class Net(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(16, 32, rngs=rngs), nnx.Conv(2, 32, (3,), rngs=rngs)])
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.layers[1](self.dropout(self.layers[0](x)).reshape(-1, 16, 2))


RULES = [
    js.Rule("layers/0", "8x8", sparsity=0.5),
    js.Rule("layers/1", "unstructured", sparsity=0.8),
]


def net(seed=0, sparsity=0.5):
    rules = [js.Rule("layers/0", "8x8", sparsity=sparsity), RULES[1]]
    return js.sparsify(Net(nnx.Rngs(seed)), rules)[0]


@pytest.mark.parametrize("form", ["stored dense", "packed", "dense"])
def test_an_nnx_model_comes_back_and_the_target_stays(form, tmp_path):
    make = {
        "stored dense": net,
        "packed": lambda seed=0: jnnx.pack(net(seed)),
        "dense": lambda seed=0: Net(nnx.Rngs(seed)),
    }[form]
    model, target = make(), make(1)
    before = jax.tree.map(jnp.copy, nnx.state(target))
    jio.save(tmp_path / "model", model)
    loaded = jio.load(tmp_path / "model", target)
    assert type(loaded) is type(model)
    assert_same(nnx.state(loaded), nnx.state(model))
    assert_same(nnx.state(target), before)
    x = jnp.ones((2, 16))
    np.testing.assert_array_equal(loaded(x), model(x))


def test_linen_variables_come_back(tmp_path):
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(8)(nn.relu(nn.Dense(32)(x)))

    x = jnp.ones((2, 16))
    variables = Model().init(jax.random.key(0), x)
    rule = js.Rule("Dense_0", "8x8", sparsity=0.5)
    model, variables, _ = js.sparsify(Model(), rule, variables, x)
    jio.save(tmp_path / "v", variables)
    loaded = jio.load(tmp_path / "v", variables)
    assert_same(loaded, variables)
    np.testing.assert_array_equal(model.apply(loaded, x), model.apply(variables, x))


def test_arrays_go_where_those_of_the_target_are(tmp_path):
    mesh = jax.make_mesh((8,), ("d",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("d"))
    array = jax.device_put(jnp.arange(16.0), sharding)
    jio.save(tmp_path / "a", {"a": array})
    assert jio.load(tmp_path / "a", {"a": array})["a"].sharding == sharding


# Room ---------------------------------------------------------------------------------------------


def size_of(path: pathlib.Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


@pytest.mark.parametrize("form", ["stored dense", "packed", "safetensors"])
def test_a_model_with_90_percent_zeros_takes_at_most_a_fifth_of_the_dense_one(form, tmp_path):
    model = nnx.Linear(768, 1024, rngs=nnx.Rngs(0))
    sparse, _ = js.sparsify(model, js.Rule("", "unstructured", sparsity=0.9))
    sparse = jnnx.pack(sparse) if form == "packed" else sparse
    save = jio.to_safetensors if form == "safetensors" else jio.save
    save(tmp_path / "dense", model)
    save(tmp_path / "sparse", sparse)
    if form == "safetensors":
        sizes = [(tmp_path / name).stat().st_size for name in ("sparse", "dense")]
    else:
        sizes = [size_of(tmp_path / name) for name in ("sparse", "dense")]
    assert sizes[0] < 0.2 * sizes[1]


# What does not fit --------------------------------------------------------------------------------


def changed(manifest, name, **facts):
    entries = {**manifest["entries"], name: {**manifest["entries"][name], **facts}}
    return {**manifest, "entries": entries}


def test_a_checkpoint_with_another_number_of_blocks_is_refused_or_taken_whole(tmp_path):
    saved, target = jnnx.pack(net(sparsity=0.75)), jnnx.pack(net(seed=1))
    jio.save(tmp_path / "model", saved)
    with pytest.raises(ValueError, match="room for 4 blocks in the target, got 2 in the .*any_cap"):
        jio.load(tmp_path / "model", target)
    loaded = jio.load(tmp_path / "model", target, any_capacity=True)
    assert_same(nnx.state(loaded), nnx.state(saved))


REFUSED = {
    "shape": ({"w": jnp.ones(3)}, {"w": jnp.ones(4)}, r"'w' must have the target's shape, \(4,\)"),
    "dtype": (
        {"w": jnp.ones(3)},
        {"w": jnp.ones(3, jnp.bfloat16)},
        "'w' must have the target's dtype, bfloat16, got float32",
    ),
    "format": (
        {"w": weight("8x4")},
        {"w": weight("4x8")},
        "the pattern 'w/pattern' must have the target's format, 4x8, got 8x4",
    ),
    "weight shape": (
        {"w": weight(shape=(24, 16))},
        {"w": weight(shape=(16, 24))},
        r"pattern 'w/pattern' must have the target's shape, \[16, 24\], got \[24, 16\]",
    ),
    "missing": ({"a": jnp.ones(1)}, {"a": jnp.ones(1), "b": jnp.ones(1)}, "got 'b', which the t"),
    "left over": ({"a": jnp.ones(1), "b": jnp.ones(1)}, {"a": jnp.ones(1)}, "got 'b', which the c"),
    "a weight for an array": ({"w": weight()}, {"w": jnp.ones(3)}, "'w' must be stored as in the"),
    "a pattern for an array": (
        {"w": weight().pattern},
        {"w": jnp.ones(3)},
        "'w' must be an array as in the target, got a pattern",
    ),
    "an array for a pattern": (
        {"w": jnp.ones(3)},
        {"w": weight().pattern},
        "'w' must be a pattern as in the target, got an array",
    ),
}


@pytest.mark.parametrize(("tree", "like", "words"), REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("any_capacity", [False, True], ids=["strict", "any capacity"])
def test_a_checkpoint_that_does_not_fit_is_refused(tree, like, words, any_capacity):
    with pytest.raises(ValueError, match=words):
        jio.from_arrays(*jio.to_arrays(tree), like, any_capacity=any_capacity)


def test_a_packed_model_does_not_load_into_one_stored_dense(tmp_path):
    with pytest.raises(ValueError, match="must be stored as in the target, plain, got PackedPat"):
        jio.from_arrays(*jio.to_arrays(jnnx.pack(net())), net())


def test_a_pattern_of_another_checkpoint_is_noticed():
    arrays, manifest = jio.to_arrays({"w": weight(seed=0)})
    others, _ = jio.to_arrays({"w": weight(seed=1)})
    with pytest.raises(ValueError, match="'w/pattern' must be those that its manifest .*fingerp"):
        jio.from_arrays({**arrays, "w/pattern": others["w/pattern"]}, manifest)


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("w/pattern", {"shape": [16, 24]}),
        ("w/pattern", {"format": "8x4"}),
        ("w/values", {"shape": [4, 48]}),
    ],
    ids=["shape", "format", "values"],
)
def test_a_changed_manifest_is_noticed(name, facts):
    arrays, manifest = jio.to_arrays({"w": weight()})
    with pytest.raises(ValueError, match="fingerprint must be that of its entries"):
        jio.from_arrays(arrays, changed(manifest, name, **facts))


def test_values_that_are_lost_are_noticed():
    arrays, manifest = jio.to_arrays({"w": weight()})
    with pytest.raises(ValueError, match="'w/values' must be those that its manifest describes"):
        jio.from_arrays({"w/pattern": arrays["w/pattern"]}, manifest)


def test_a_pattern_that_lost_parts_is_not_saved():
    pattern = weight("8x4").pattern
    lost = pattern.with_indices(*(jnp.full_like(i, OVERFLOW) for i in pattern.indices))
    with pytest.raises(ValueError, match="a pattern must be usable"):
        jio.to_arrays({"w": lost})


def test_what_is_traced_is_not_saved():
    with pytest.raises(ValueError, match="'w' is traced"):
        jax.jit(lambda w: jio.to_arrays({"w": w}))(jnp.ones(3))
    with pytest.raises(ValueError, match="'w/pattern' is traced"):
        jax.jit(lambda p: jio.to_arrays({"w": {"pattern": p}}))(weight().pattern)


def test_what_is_no_array_is_not_saved():
    with pytest.raises(TypeError, match="got <U5 for 'name'"):
        jio.to_arrays({"name": "three"})


def test_names_that_would_be_the_same_are_refused():
    with pytest.raises(ValueError, match="a name of its own, got 'a/b' twice"):
        jio.to_arrays({"a": {"b": jnp.ones(1)}, "a/b": jnp.ones(1)})


def test_a_checkpoint_is_replaced_only_when_asked(tmp_path):
    jio.save(tmp_path / "a", {"a": jnp.ones(1)})
    with pytest.raises(ValueError, match="the folder must be new.*overwrite=True"):
        jio.save(tmp_path / "a", {"a": jnp.zeros(1)})
    jio.save(tmp_path / "a", {"b": jnp.ones(2)}, overwrite=True)
    assert list(jio.load(tmp_path / "a")) == ["b"]


def test_paths_that_hold_no_checkpoint_are_refused(tmp_path):
    with pytest.raises(ValueError, match="a checkpoint is a folder, got .*nowhere"):
        jio.load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="without a manifest"):
        jio.load(tmp_path)
    (tmp_path / "text").write_text("text")
    with pytest.raises(ValueError, match="must be a safetensors file"):
        jio.from_safetensors(tmp_path / "text")
    with pytest.raises(ValueError, match="a safetensors file is needed, got .*nowhere"):
        jio.from_safetensors(tmp_path / "nowhere")
