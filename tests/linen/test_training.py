"""Linen layers while a model trains, changes its patterns, and is packed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import serialization
from flax.core import freeze, meta
from flax_layers import mask_of
from jax.sharding import PartitionSpec as P

import jaxsparse as js
import jaxsparse.linen as jlinen

X = jax.random.normal(jax.random.key(1), (4, 16))
SPARSE = {"format": "8x8", "sparsity": 0.5}


class Inner(nn.Module):
    layer: type
    options: tuple

    @nn.compact
    def __call__(self, x):
        return self.layer(16, **dict(self.options))(x)


class Model(nn.Module):
    """Sparse layers, one of them in a submodule, and a dense one."""

    layer: type = jlinen.Dense
    options: tuple = tuple({**SPARSE, "grad": "sparse"}.items())

    @nn.compact
    def __call__(self, x):
        options = dict(self.options)
        x = nn.relu(self.layer(32, **options, name="first")(x))
        x = nn.relu(nn.Dense(32, name="dense")(x))
        return Inner(self.layer, self.options, name="last")(x)


@pytest.fixture(scope="module")
def variables():
    return jax.jit(Model().init)(jax.random.key(0), X)


def first(variables):
    return variables["params"]["first"]["kernel"], variables["sparsity"]["first"]["pattern"]


def off_pattern(variables):
    kernel, pattern = first(variables)
    return np.asarray(kernel)[~mask_of(pattern, kernel.shape)]


def random_pattern(seed, shape=(16, 32)):
    return js.patterns.random(jax.random.key(seed), "8x8", shape, sparsity=0.5)


def with_pattern(variables, pattern):
    sparsity = {**variables["sparsity"], "first": {"pattern": pattern}}
    return {**variables, "sparsity": sparsity}


def test_init_puts_patterns_in_a_collection_of_their_own(variables):
    flax = Model(nn.Dense, ()).init(jax.random.key(0), X)
    assert jax.tree.structure(variables["params"]) == jax.tree.structure(flax["params"])
    np.testing.assert_array_equal(*(v["params"]["dense"]["kernel"] for v in (variables, flax)))
    is_pattern = lambda leaf: isinstance(leaf, js.BlockPattern)
    patterns = jax.tree.leaves(variables["sparsity"], is_leaf=is_pattern)
    assert [pattern.shape for pattern in patterns] == [(16, 32), (32, 16)]


@pytest.mark.parametrize("mutable", [False, ["batch_stats"]])
def test_apply_without_the_collection_names_it(variables, mutable):
    with pytest.raises(ValueError, match=r'Dense: the collection "sparsity" holds .* of first'):
        Model().apply({"params": variables["params"]}, X, mutable=mutable)


def test_apply_with_a_mutable_collection_makes_patterns_for_dense_parameters():
    flax = Model(nn.Dense, ()).init(jax.random.key(0), X)
    _, made = Model().apply(flax, X, mutable=["sparsity"])
    ours = Model().init(jax.random.key(0), X)
    jax.tree.map(np.testing.assert_array_equal, made["sparsity"], ours["sparsity"])


@pytest.mark.parametrize("grad", ["sparse", "dense"])
def test_a_jitted_loop_changes_patterns_without_compiling_again(variables, grad):
    model = Model(options=tuple({**SPARSE, "grad": grad}.items()))
    optimizer = optax.sgd(1e-1, momentum=0.9)
    traces = []

    @jax.jit
    def step(variables, state, pattern):
        traces.append(None)
        variables = jlinen.apply_patterns(with_pattern(variables, pattern))
        loss = lambda params: (model.apply({**variables, "params": params}, X) ** 2).mean()
        updates, state = optimizer.update(jax.grad(loss)(variables["params"]), state)
        params = optax.apply_updates(variables["params"], updates)
        return jlinen.apply_patterns({**variables, "params": params}), state

    state = optimizer.init(variables["params"])
    for seed in range(3):
        before = first(variables)[0]
        variables, state = step(variables, state, random_pattern(seed))
        np.testing.assert_array_equal(first(variables)[1].rows, random_pattern(seed).rows)
        assert not off_pattern(variables).any()
        assert (first(variables)[0] != before).any()
    assert len(traces) == 1


def test_apply_patterns_needs_both_collections(variables):
    with pytest.raises(ValueError, match=r"apply_patterns: .* got \['params'\]"):
        jlinen.apply_patterns({"params": variables["params"]})
    without = {**variables, "params": {**variables["params"], "first": {}}}
    with pytest.raises(ValueError, match="got none at first"):
        jlinen.pack(without)


# Packing ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frozen", [False, True], ids=["dict", "FrozenDict"])
def test_packed_variables_store_values_and_compute_the_same(variables, frozen):
    given = freeze(variables) if frozen else variables
    packed = jlinen.pack(given)
    assert type(packed) is type(given)
    assert first(packed)[0].shape == first(variables)[1].values_shape
    # To rounding: the two storages have break-even points of their own.
    y = Model().apply(variables, X)
    np.testing.assert_allclose(Model().apply(packed, X), y, rtol=1e-5, atol=1e-6)
    assert first(variables)[0].shape == (16, 32)


def test_unpack_gives_the_same_bits(variables):
    again = jlinen.unpack(jlinen.pack(variables))
    assert jax.tree.structure(again) == jax.tree.structure(variables)
    for ours, theirs in zip(jax.tree.leaves(again), jax.tree.leaves(variables)):
        assert np.asarray(ours).tobytes() == np.asarray(theirs).tobytes()


@pytest.mark.parametrize("convert", [jlinen.pack, jlinen.unpack])
def test_converting_twice_changes_nothing_more(variables, convert):
    once = convert(variables)
    twice = convert(once)
    assert jax.tree.structure(once) == jax.tree.structure(twice)
    jax.tree.map(np.testing.assert_array_equal, once, twice)


def test_packed_general_layers_compute_the_same():
    layer = jlinen.DenseGeneral((5, 8), axis=(1, 3), batch_dims=(0,), format="4x8", sparsity=0.6)
    x = jax.random.normal(jax.random.key(2), (2, 4, 3, 6))
    variables = jax.jit(layer.init)(jax.random.key(0), x)
    packed = jlinen.pack(variables)
    assert packed["params"]["kernel"].ndim == 4
    y = layer.apply(variables, x)
    np.testing.assert_allclose(layer.apply(packed, x), y, rtol=1e-5, atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, jlinen.unpack(packed), variables)


def test_variables_survive_flax_serialization(variables):
    for tree in (variables, jlinen.pack(variables)):
        zeros = jax.tree.map(jnp.zeros_like, tree)
        again = serialization.from_bytes(zeros, serialization.to_bytes(tree))
        assert jax.tree.structure(again) == jax.tree.structure(tree)
        jax.tree.map(np.testing.assert_array_equal, again, tree)


# Transformations ----------------------------------------------------------------------------------


class Scanned(nn.Module):
    collections: tuple = ("params", "sparsity")
    remat: bool = False

    @nn.compact
    def __call__(self, x):
        cls = nn.remat(jlinen.Dense) if self.remat else jlinen.Dense
        scan = nn.scan(
            lambda layer, x, _: (layer(x), None),
            variable_axes=dict.fromkeys(self.collections, 0),
            split_rngs={"params": True},
            length=3,
        )
        return scan(cls(16, use_bias=False, **SPARSE, name="layer"), x, None)[0]


@pytest.mark.parametrize("remat", [False, True], ids=["", "remat"])
def test_scan_over_layers_equals_a_loop(remat):
    model = Scanned(remat=remat)
    variables = jax.jit(model.init)(jax.random.key(0), X)
    kernels, patterns = variables["params"]["layer"], variables["sparsity"]["layer"]["pattern"]
    assert patterns.rows.shape == (3, 2)
    expected = np.float64(X)
    for i in range(3):
        pattern = jax.tree.map(lambda a, i=i: a[i], patterns)
        expected = expected @ (np.float64(kernels["kernel"][i]) * mask_of(pattern, (16, 16)))
    for tree in (variables, jlinen.pack(variables), jlinen.apply_patterns(variables)):
        np.testing.assert_allclose(model.apply(tree, X), expected, rtol=1e-5, atol=1e-5)


def test_scan_without_the_collection_names_it():
    with pytest.raises(ValueError, match='list "sparsity" in variable_axes'):
        Scanned(("params",)).apply({"params": {"layer": {"kernel": jnp.ones((3, 16, 16))}}}, X)


def test_vmap_over_layers_gives_each_its_pattern():
    layers = nn.vmap(
        jlinen.Dense,
        variable_axes={"params": 0, "sparsity": 0},
        split_rngs={"params": True},
        in_axes=None,
        axis_size=3,
    )(16, use_bias=False, **SPARSE)
    variables = jax.jit(layers.init)(jax.random.key(0), X)
    kernel, pattern = variables["params"]["kernel"], variables["sparsity"]["pattern"]
    expected = np.float64(X) @ (np.float64(kernel) * mask_of(pattern, (3, 16, 16)))
    np.testing.assert_allclose(layers.apply(variables, X), expected, rtol=1e-5, atol=1e-5)


def test_partitioned_kernels_stay_boxed():
    init = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
    layer, flax = (
        cls(32, kernel_init=init, **options)
        for cls, options in ((jlinen.Dense, SPARSE), (nn.Dense, {}))
    )
    variables, dense = (module.init(jax.random.key(0), X) for module in (layer, flax))
    kernel = variables["params"]["kernel"]
    assert isinstance(kernel, nn.Partitioned)
    assert nn.get_partition_spec(variables)["params"]["kernel"] == P(None, "model")
    mask = mask_of(variables["sparsity"]["pattern"], (16, 32))
    expected = np.where(mask, dense["params"]["kernel"].unbox(), 0)
    np.testing.assert_array_equal(kernel.unbox(), expected)
    applied = jlinen.apply_patterns(variables)
    assert isinstance(applied["params"]["kernel"], nn.Partitioned)
    y = layer.apply(variables, X)
    np.testing.assert_array_equal(layer.apply(meta.unbox(variables), X), y)
    np.testing.assert_allclose(layer.apply(jlinen.pack(variables), X), y, rtol=1e-5, atol=1e-6)


def test_a_model_of_shapes_only_has_the_shapes_of_a_real_one(variables):
    shapes = jax.eval_shape(Model().init, jax.random.key(0), X)
    jax.tree.map(lambda a, b: np.testing.assert_equal(a.shape, b.shape), shapes, variables)


def test_layers_compare_and_hash_by_their_options():
    layer = functools.partial(jlinen.Dense, 32)
    pattern = random_pattern(0)
    copy = jax.tree.map(lambda a: jnp.array(a, copy=True), pattern)
    assert layer(format="8x8") == layer(format=js.Block((8, 8)))
    assert layer(pattern=pattern) == layer(pattern=copy)
    assert hash(layer(pattern=pattern)) == hash(layer(pattern=copy))
    assert layer(pattern=pattern) != layer(pattern=random_pattern(1))
    assert layer(pattern=pattern).clone() == layer(pattern=pattern)


def test_intermediates_have_one_entry_per_layer(variables):
    _, captured = Model().apply(variables, X, capture_intermediates=True)
    assert len(captured["intermediates"]["first"]["__call__"]) == 1
    assert list(captured["intermediates"]["first"]) == ["__call__"]
