"""What goes wrong when sparse weights meet JAX and Flax: a test for each trap.

Numbers 10, 12, 13 and 15 are in test_sparsify_nnx.py and test_sparsify_linen.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx, serialization
from flax_layers import mask_of
from jax.sharding import NamedSharding, PartitionSpec

import jaxsparse as js
import jaxsparse.io as jio
import jaxsparse.nnx as jnnx
from jaxsparse import patterns, pruning

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.standard_normal((4, 8)), jnp.float32)
DENSE = jnp.asarray(RNG.standard_normal((8, 8)), jnp.float32)
W = js.fromdense(DENSE, "4x4", sparsity=0.5)
TREE = {"w": W, "b": jnp.zeros((1, 8))}


def loss(tree):
    return jnp.sum((js.matmul(X, tree["w"]) + tree["b"]) ** 2)


@pytest.fixture
def layer():
    return jnnx.Linear(8, 8, rngs=nnx.Rngs(0), format="4x4", sparsity=0.5)


@pytest.fixture(autouse=True)
def _promotion():
    with jax.numpy_dtype_promotion("standard"):  # optax relies on it
        yield


def test_gotcha_1_optax_sees_floats_only_and_trains_them():
    trainable, rest = js.split(TREE)
    assert all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(trainable))
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1))
    of_trainable = lambda trainable: loss(js.merge(trainable, rest))
    grads = jax.grad(of_trainable)(trainable)
    updates, _ = optimizer.update(grads, optimizer.init(trainable), trainable)
    moved = js.merge(optax.apply_updates(trainable, updates), rest)
    assert loss(moved) < loss(TREE)
    np.testing.assert_array_equal(moved["w"].pattern.rows, W.pattern.rows)


def test_gotcha_2_values_are_the_parameter_and_the_pattern_is_another_variable(layer):
    params = nnx.state(layer, nnx.Param)
    assert {path: leaf.shape for path, leaf in nnx.to_flat_state(params)} == {
        ("kernel",): (8, 8),
        ("bias",): (8,),
    }
    optimizer = nnx.Optimizer(layer, optax.adam(1e-3), wrt=nnx.Param)
    moments = [leaf for leaf in jax.tree.leaves(nnx.state(optimizer)) if leaf.ndim]
    assert all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in moments)
    assert layer.kernel[...].shape == (8, 8)


def test_gotcha_3_second_derivatives_come_by_reverse_over_reverse():
    of = lambda grad: lambda x: jnp.sum(js.matmul(x, W, grad=grad) ** 3)
    expected = jax.hessian(lambda x: jnp.sum((x @ W.todense()) ** 3))(X)
    for got in (jax.jacrev(jax.jacrev(of("sparse")))(X), jax.hessian(of("exact"))(X)):
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_gotcha_4_indices_have_the_cotangents_of_integers():
    grads = jax.jit(jax.grad(loss, allow_int=True))(TREE)
    assert grads["w"].values.shape == W.values.shape
    assert np.asarray(grads["w"].values).any()
    assert {leaf.dtype for leaf in jax.tree.leaves(grads["w"].pattern)} == {jax.dtypes.float0}


def test_gotcha_5_weight_decay_by_name_finds_packed_values(layer):
    params = nnx.to_pure_dict(nnx.state(jnnx.pack(layer), nnx.Param))
    is_kernel = jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)
    decay = optax.add_decayed_weights(0.5, mask=is_kernel)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = decay.update(zeros, decay.init(params), params)
    np.testing.assert_array_equal(updates["kernel"], 0.5 * params["kernel"])
    assert not updates["bias"].any()


def test_gotcha_6_growth_reads_dense_gradients_and_grown_moments_start_at_zero():
    params, adam = {"w": DENSE}, optax.adam(0.1)
    pruner = pruning.rigl(sparsity=0.5, format="unstructured", every=1, end=10, fraction=0.5)
    state = pruner.init(params, key=jax.random.key(0))
    before = np.asarray(state.patterns["w"].mask())
    of = lambda p: jnp.sum((X @ p["w"] - 1) ** 2)
    ones = jax.tree.map(jnp.ones_like, params)
    _, optimizer = adam.update(ones, adam.init(params), params)
    for _ in range(2):  # patterns change after the first step
        params, optimizer, state = pruner.update(params, optimizer, state, jax.grad(of))
    after = np.asarray(state.patterns["w"].mask())
    grown, kept = after & ~before, after & before
    moments = np.asarray(optimizer[0].mu["w"])
    assert grown.any()
    assert not moments[grown].any()
    assert moments[kept].all()
    assert not np.asarray(params["w"])[~after].any()


class Holder(nnx.Module):
    def __init__(self, w):
        self.w = w

    def __call__(self, x):
        return js.matmul(x, self.w)


def test_gotcha_7_a_sparse_weight_may_be_an_attribute_of_a_module():
    held = nnx.jit(lambda model, x: model(x))(Holder(W), X)
    np.testing.assert_allclose(held, js.matmul(X, W), rtol=1e-6)


def test_gotcha_8_layers_hold_no_arrays_outside_of_variables(layer):
    model, _ = js.sparsify(nnx.List([nnx.Linear(8, 8, rngs=nnx.Rngs(0))]), js.Rule("0", "4x4"))
    for one in (layer, model[0], jnnx.pack(layer)):
        held = [v for name, v in vars(one).items() if isinstance(v, (np.ndarray, jax.Array))]
        assert held == []
        cached = nnx.cached_partial(nnx.jit(lambda layer, x: layer(x)), one)
        np.testing.assert_allclose(cached(X), one(X), atol=1e-6)


def test_gotcha_9_sizes_given_as_lists_are_hashable_all_the_same():
    conv = jnnx.Conv(4, 4, [3, 3], [1, 1], rngs=nnx.Rngs(0), format="4x4", sparsity=0.5)
    pattern = patterns.random(jax.random.key(0), [4, 4], [8, 8], sparsity=0.5)
    run = jax.jit(lambda pattern: pattern.mask())
    np.testing.assert_array_equal(run(pattern), pattern.mask())
    assert hash(jax.tree.structure(pattern))
    assert nnx.jit(lambda layer, x: layer(x))(conv, jnp.ones((1, 4, 4, 4))).shape == (1, 4, 4, 4)


def test_gotcha_11_names_of_axes_do_not_reach_packed_values():
    mesh = jax.make_mesh((2,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
    options = {"kernel_metadata": {"out_sharding": (None, "model")}, "format": "4x4"}
    with jax.set_mesh(mesh):
        layer = jnnx.Linear(8, 8, rngs=nnx.Rngs(0), sparsity=0.5, **options)
        packed = jnnx.pack(layer)
        assert packed.kernel.get_metadata("out_sharding", None) is None
        assert jnnx.unpack(packed).kernel.get_metadata("out_sharding") == (None, "model")


def test_gotcha_14_weights_of_different_formats_train_side_by_side():
    tree = {"a": W, "b": js.fromdense(DENSE, "unstructured", sparsity=0.5)}
    with pytest.raises(ValueError, match="attern"):
        jax.tree.map(jnp.add, tree["a"], tree["b"])
    trainable, rest = js.split(tree)
    halved = js.merge(jax.tree.map(lambda leaf: leaf / 2, trainable), rest)
    for name in tree:
        np.testing.assert_array_equal(halved[name].todense(), tree[name].todense() / 2)


def test_gotcha_16_a_jitted_function_takes_a_second_pattern_without_compiling():
    product = jax.jit(lambda w: js.matmul(X, w))
    other = js.fromdense(DENSE[::-1], "4x4", sparsity=0.5)
    product(W)
    np.testing.assert_allclose(product(other), X @ other.todense(), atol=1e-5)
    assert product._cache_size() == 1


@pytest.mark.parametrize("leaf", [None, 0, "text", jax.ShapeDtypeStruct((), "int32")], ids=str)
def test_gotcha_17_weights_are_rebuilt_around_anything(leaf):
    rebuilt = jax.tree.map(lambda _: leaf, W)
    assert type(rebuilt) is js.SparseWeight
    assert repr(rebuilt.pattern)
    assert jax.tree.structure(jax.eval_shape(lambda: W)) == jax.tree.structure(W)


def test_gotcha_18_a_weight_is_made_inside_jit_as_outside():
    made = jax.jit(lambda w: js.fromdense(w, "4x4", sparsity=0.5))(DENSE)
    jax.tree.map(np.testing.assert_array_equal, made, W)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("gotchas") / "tree"
    jio.save(path, TREE)
    return path


def test_gotcha_19_a_checkpoint_comes_back_as_weights_without_a_target(saved):
    back = jio.load(saved)
    assert type(back["w"]) is js.SparseWeight
    jax.tree.map(np.testing.assert_array_equal, back, TREE)


def test_gotcha_20_a_checkpoint_of_another_shape_is_never_silent(saved):
    wide = js.SparseWeight(W.values, js.patterns.from_blocks([0, 1], [0, 0], "4x4", (8, 16)))
    with pytest.raises(ValueError, match="w"):
        jio.load(saved, {**TREE, "w": wide})


def test_gotcha_21_a_dense_checkpoint_fills_a_sparse_model_which_is_then_packed(layer):
    dense = nnx.Linear(8, 8, rngs=nnx.Rngs(1))
    filled = jio.load_dense(dense, layer)
    packed = jnnx.pack(filled)
    kernel = np.where(mask_of(layer.pattern, (8, 8)), dense.kernel[...], 0)
    np.testing.assert_allclose(packed(X), X @ kernel, atol=1e-5)


def test_gotcha_22_another_number_of_values_is_refused_by_the_name_of_the_weight(saved):
    fewer = js.fromdense(DENSE, "4x4", sparsity=0.75)
    with pytest.raises(ValueError, match=r"\bw\b"):
        jio.load(saved, {**TREE, "w": fewer})


def test_gotcha_23_flax_serialization_knows_weights_and_patterns():
    data = serialization.to_bytes(TREE)
    like = jax.tree.map(jnp.zeros_like, TREE)
    back = serialization.from_bytes(like, data)
    jax.tree.map(np.testing.assert_array_equal, back, TREE)


def test_gotcha_24_safetensors_keep_what_is_no_array(tmp_path):
    tree = {"w": W.astype(jnp.bfloat16)}
    jio.to_safetensors(tmp_path / "w.safetensors", tree)
    back = jio.from_safetensors(tmp_path / "w.safetensors")
    assert (back["w"].dtype, back["w"].shape, back["w"].format) == ("bfloat16", (8, 8), W.format)
    jax.tree.map(np.testing.assert_array_equal, back, tree)


def test_gotcha_25_a_program_of_a_weight_is_exported_and_read():
    pytest.importorskip("flatbuffers")
    product = jax.jit(lambda w: js.matmul(X, w))
    exported = jax.export.export(product, disabled_checks=js.disabled_export_checks())(W)
    again = jax.export.deserialize(bytearray(exported.serialize()))
    np.testing.assert_array_equal(again.call(W), product(W))


def test_gotcha_26_a_split_batch_is_not_gathered():
    mesh = jax.make_mesh((4,), ("data",))
    split = jax.device_put(X, NamedSharding(mesh, PartitionSpec("data")))
    compiled = jax.jit(lambda x: js.matmul(x, W)).lower(split).compile()
    assert "all-gather" not in compiled.as_text()
    np.testing.assert_allclose(compiled(split), js.matmul(X, W), atol=1e-6)
