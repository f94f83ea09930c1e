"""Sparse weights as values with a pattern: what they tell, change, and are as pytrees."""

import copy
import pickle

import cases
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

import jaxsparse as js
from jaxsparse import patterns

LAYER = cases.make("tiles_ragged", unused=2)
W = LAYER.weight(garbage=False)


def test_weight_tells_what_it_stands_for():
    assert (W.shape, W.ndim, W.dtype) == ((70, 90), 2, jnp.float32)
    assert W.format == js.Block((16, 16))
    assert W.density == 17 / 30
    assert W.nbytes == 17 * 16 * 16 * 4 + 2 * 17 * 4
    assert repr(W) == "SparseWeight(float32[70, 90], 16x16 blocks, 17 of 30, density=0.567)"


def test_todense_equals_definition_and_ignores_garbage():
    oracle.equal_exactly(LAYER.weight(garbage=True).todense(), LAYER.dense())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", jnp.int32])
def test_astype_changes_the_values_alone(dtype):
    w = W.astype(dtype)
    assert w.dtype == dtype
    assert w.pattern is W.pattern
    np.testing.assert_array_equal(np.asarray(w.todense(), np.float64), LAYER.dense())


def test_with_values_keeps_the_pattern():
    w = W.with_values(2 * W.values)
    assert w.pattern is W.pattern
    oracle.equal_exactly(w.todense(), 2 * LAYER.dense())
    assert isinstance(W.with_values(np.asarray(W.values)).values, jax.Array)


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_with_pattern_keeps_shared_blocks_and_zeroes_new_ones(jit):
    other = patterns.random(jax.random.key(3), "16x16", (70, 90), sparsity=0.6)
    move = lambda w, pattern: w.with_pattern(pattern)
    moved = (jax.jit(move) if jit else move)(LAYER.weight(), other)
    expected = LAYER.dense() * np.asarray(other.mask())
    oracle.equal_exactly(moved.todense(), expected)
    np.testing.assert_array_equal(moved.pattern.rows, other.rows)
    assert np.isfinite(moved.values).all()


def test_with_pattern_there_and_back_loses_nothing_on_a_larger_pattern():
    back = W.with_pattern(patterns.full("16x16", (70, 90))).with_pattern(W.pattern)
    jax.tree.map(np.testing.assert_array_equal, back, W)


def test_with_pattern_takes_other_blocks_of_the_same_shape():
    moved = W.with_pattern(patterns.full("8x8", (70, 90)))
    oracle.equal_exactly(moved.todense(), LAYER.dense())


def test_gradients_flow_through_with_values_with_pattern_and_todense():
    full = patterns.full("16x16", (70, 90))
    total = lambda v: jnp.sum(W.with_values(v).with_pattern(full).todense() ** 2)
    oracle.equal_exactly(jax.grad(total)(W.values), 2 * LAYER.clean)


# As pytrees ---------------------------------------------------------------------------------------


def test_weight_is_three_leaves_and_keeps_its_structure():
    leaves, tree = jax.tree.flatten(W)
    assert [leaf.dtype for leaf in leaves] == [jnp.float32, jnp.int32, jnp.int32]
    assert tree == jax.tree.structure(LAYER.weight())
    again = jax.tree.unflatten(tree, leaves)
    assert (again.shape, again.format) == (W.shape, W.format)


def test_paths_of_leaves_have_names():
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(W)]
    assert paths == [".values", ".pattern.rows", ".pattern.cols"]


@pytest.mark.parametrize(
    "leaf",
    [None, 0, "text", jax.ShapeDtypeStruct((), jnp.int8), object()],
    ids=["None", "number", "text", "shape", "object"],
)
def test_weight_is_rebuilt_and_printed_around_anything(leaf):
    again = jax.tree.map(lambda _: leaf, W)
    assert again.values is leaf
    assert repr(again).startswith("SparseWeight(")


def test_weight_of_shapes_stands_in_for_a_weight():
    like = jax.eval_shape(lambda w: w, W)
    assert (like.shape, like.dtype, like.density, like.format) == (
        W.shape,
        W.dtype,
        W.density,
        W.format,
    )
    assert repr(like) == repr(W)
    y = jax.eval_shape(js.matmul, jax.ShapeDtypeStruct((3, 70), jnp.float32), like)
    assert y.shape == (3, 90)


def test_weight_in_vmap_axes_and_out_axes():
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), W)
    doubled = jax.vmap(lambda w: w.with_values(2 * w.values))(stacked)
    axes = js.SparseWeight(0, js.BlockPattern(None, None, W.shape, W.format))
    shared = js.SparseWeight(stacked.values, W.pattern)
    ys = jax.vmap(js.matmul, (None, axes))(LAYER.array("x"), shared)
    oracle.equal_exactly(ys[1], LAYER.y())
    oracle.equal_exactly(doubled.values[1], 2 * LAYER.clean)


def test_weight_passes_through_every_kind_of_control_flow():
    doubled = lambda w: w.with_values(2 * w.values)
    w = jax.jit(lambda w: jax.lax.cond(True, doubled, lambda w: w, w))(W)
    w = jax.lax.fori_loop(0, 2, lambda _, w: doubled(w), w)
    w, _ = jax.lax.scan(lambda w, _: (doubled(w), None), w, None, length=2)
    oracle.equal_exactly(w.todense(), 32 * LAYER.dense())


@pytest.mark.parametrize(
    "duplicate",
    [copy.copy, copy.deepcopy, lambda w: pickle.loads(pickle.dumps(w))],
    ids=["copy", "deepcopy", "pickle"],
)
def test_a_copied_weight_is_the_same_weight(duplicate):
    again = duplicate(W)
    assert jax.tree.structure(again) == jax.tree.structure(W)
    jax.tree.map(np.testing.assert_array_equal, again, W)


def test_weight_cannot_be_changed():
    with pytest.raises(AttributeError):
        W.values = None


# split and merge ----------------------------------------------------------------------------------


def test_split_separates_floats_from_the_rest_and_merge_joins_them():
    tree = {
        "w": W,
        "bias": jnp.ones(3, jnp.bfloat16),
        "step": jnp.int32(3),
        "mask": np.ones(2, bool),
        "key": jax.random.key(0),
        "rate": 0.5,
        "count": 7,
        "complex": jnp.complex64(1j),
        "nothing": None,
    }
    trainable, rest = js.split(tree)
    kept = {name for name, leaf in trainable.items() if jax.tree.leaves(leaf)}
    assert kept == {"w", "bias", "rate", "complex"}
    assert len(jax.tree.leaves(trainable["w"])) == 1
    again = js.merge(trainable, rest)
    assert jax.tree.structure(again) == jax.tree.structure(tree)
    for one, other in zip(jax.tree.leaves(again), jax.tree.leaves(tree), strict=True):
        assert one is other


def test_split_works_inside_jit_and_under_grad():
    x, g = LAYER.array("x"), LAYER.array("g")

    @jax.jit
    def gradient(tree):
        trainable, rest = js.split(tree)
        loss = lambda t: jnp.vdot(js.matmul(x, js.merge(t, rest)["w"]), g)
        return jax.grad(loss)(trainable)

    oracle.equal_exactly(gradient({"w": W, "step": jnp.int32(0)})["w"].values, LAYER.dvalues())


@pytest.mark.parametrize("tree", [(), {}, None, [None, 3], jnp.ones(2), 1.0], ids=str)
def test_split_and_merge_take_any_tree(tree):
    again = js.merge(*js.split(tree))
    assert jax.tree.structure(again) == jax.tree.structure(tree)
