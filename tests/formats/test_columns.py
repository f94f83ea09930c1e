"""Patterns of single weights and of groups of outputs: sizes, copies, pytrees, what is refused."""

import copy
import dataclasses
import pickle

import conv_cases
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from machine import need

import jaxsparse as js
from jaxsparse import patterns
from jaxsparse.formats.parse import as_format

FORMATS = ("unstructured", "grouped:4")
MATRIX = conv_cases.product_problem("columns", (3,), (20, 33), 0.6)
PROBLEMS = (MATRIX, "plain", "one_axis_stride2", "three_axes", "full", "empty")
every_format = pytest.mark.parametrize("format", FORMATS)
every_problem = pytest.mark.parametrize("problem", PROBLEMS, ids=str)
jit = pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])


# Formats ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("unstructured", js.Unstructured()),
        ("grouped:8", js.Grouped(8)),
        (" grouped:16 ", js.Grouped(np.int8(16))),
    ],
)
def test_formats_are_written_as_they_are_read(name, format):
    assert as_format(name) == format
    assert str(format) == name.strip()
    assert hash(as_format(name)) == hash(format)
    names = {"Unstructured": js.Unstructured, "Grouped": js.Grouped}
    assert eval(repr(format), names) == format


@pytest.mark.parametrize("width", [0, -1, 2.0, True, "8", None, 2**31])
def test_a_group_has_a_positive_number_of_outputs(width):
    with pytest.raises(ValueError, match="width is a positive int"):
        js.Grouped(width)


@pytest.mark.parametrize("name", ["grouped", "grouped:", "grouped:-1", "grouped:8x8", "csr"])
def test_names_of_no_format_are_refused(name):
    with pytest.raises(ValueError, match="format: a name is"):
        as_format(name)


@pytest.mark.parametrize("shape", [(2**16, 2**15), (3, 3, 2**14, 2**14)], ids=str)
def test_weights_with_more_places_than_int32_has_are_refused(shape):
    for make in (
        lambda: patterns.from_coordinates([[0] * len(shape)], "unstructured", shape),
        lambda: patterns.from_rows([0], "grouped:1", shape),
    ):
        with pytest.raises(ValueError, match="numbered with int32"):
            make()


def test_groups_number_weights_that_are_too_many_to_be_numbered_one_by_one():
    shape = (2**16, 2**15)
    pattern = patterns.from_coordinates([[2**16 - 1, 2**15 - 1]], "grouped:8", shape)
    assert pattern.places.tolist() == [2**28 - 1]
    assert bool(pattern.is_valid())


# Patterns -----------------------------------------------------------------------------------------


def test_patterns_tell_their_sizes():
    one = conv_cases.make(MATRIX, "unstructured", unused=1).pattern
    assert (one.grid, one.capacity, one.values_shape) == ((20, 33), 265, (265,))
    assert one.density == 265 / 660
    assert one.nbytes == 4 * 265
    assert repr(one) == "ColumnPattern(unstructured weights, 265 of 660, shape=(20, 33))"
    group = conv_cases.make(MATRIX, "grouped:4", unused=1).pattern
    assert (group.grid, group.capacity, group.values_shape) == ((20, 9), 73, (73, 4))
    assert group.density == 73 / 180
    assert group.nbytes == 4 * (73 + 36)
    assert repr(group) == "ColumnPattern(grouped:4 strips, 73 of 180, shape=(20, 33))"


@pytest.mark.parametrize("sparsity", [0.5, 0.9, 0.99])
def test_a_float32_weight_takes_at_most_twice_its_share_of_the_dense_one(sparsity):
    dense = jax.random.normal(jax.random.key(0), (3, 3, 32, 64))
    w = js.fromdense(dense, "unstructured", sparsity=sparsity)
    assert w.nbytes <= 2.1 * (1 - sparsity) * dense.nbytes


@every_problem
@every_format
@jit
def test_scatter_places_values_as_the_definition_does(problem, format, jit):
    layer = conv_cases.make(problem, format, unused=2)
    scatter = layer.pattern.scatter
    whole = (jax.jit(scatter) if jit else scatter)(layer.array("values"))
    oracle.equal_exactly(whole, layer.dense())


@every_problem
@every_format
@jit
def test_gather_takes_values_as_the_definition_does(problem, format, jit):
    layer = conv_cases.make(problem, format, unused=2)
    everywhere = np.arange(1.0, 1 + np.prod(layer.pattern.shape)).reshape(layer.pattern.shape)
    gather = layer.pattern.gather
    values = (jax.jit(gather) if jit else gather)(jnp.float32(everywhere))
    oracle.equal_exactly(values, layer.stored(everywhere))


@every_problem
@every_format
def test_mask_is_true_where_weights_are_stored(problem, format):
    layer = conv_cases.make(problem, format, unused=2)
    ones = np.where(layer.rows >= 0, 1.0, 0.0)
    stored = dataclasses.replace(layer, values=ones).dense()
    np.testing.assert_array_equal(layer.pattern.mask(), stored != 0)
    restricted = layer.pattern.restrict(jnp.where(stored != 0, 7.0, jnp.nan))
    np.testing.assert_array_equal(restricted, 7 * stored)
    assert bool(layer.pattern.is_valid())


@every_format
def test_references_of_the_copies_equal_the_kernels(format):
    layer = conv_cases.make("three_axes", format, unused=2)
    spec, indices = layer.pattern.spec(), layer.pattern.indices
    matrix = spec.dense_matrix(layer.array("values"), *indices)
    oracle.equal_exactly(jnp.reshape(matrix, layer.pattern.shape), layer.dense())
    everywhere = jnp.arange(1.0, 1 + matrix.size).reshape(matrix.shape)
    values = spec.stored_values(everywhere, *indices)
    oracle.equal_exactly(values, layer.stored(np.asarray(everywhere)))


@every_format
def test_copies_of_stacked_patterns_take_each_its_own(format):
    layers = [conv_cases.make("plain", format, seed=seed, unused=1) for seed in range(2)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[la.weight() for la in layers])
    whole = jax.vmap(lambda w: w.todense())(stacked)
    assert stacked.pattern.mask().shape == whole.shape
    values = jax.vmap(lambda d, w: w.pattern.gather(d))(whole, stacked)
    for one, again, layer in zip(whole, values, layers, strict=True):
        oracle.equal_exactly(one, layer.dense())
        oracle.equal_exactly(again, layer.clean)


# What is refused ----------------------------------------------------------------------------------

END = 20 * 33
BAD_PLACES = {
    "falling": [5, 3],
    "twice": [5, 5],
    "negative": [-1, 5],
    "beyond": [5, END + 1],
    "unused_before_used": [END, 5],
}


@pytest.mark.parametrize("name", BAD_PLACES)
@pytest.mark.parametrize("path", ["ffi", "xla"], indirect=True)
def test_places_out_of_order_or_range_are_refused_or_give_nan(name, path):
    places = jnp.int32(BAD_PLACES[name])
    pattern = js.ColumnPattern(places, None, (20, 33), js.Unstructured())
    assert not bool(pattern.is_valid())
    w = js.SparseWeight(jnp.ones(2), pattern)
    assert_refused(lambda: js.matmul(jnp.ones((3, 20)), w, implementation=path), path)
    ones = jnp.ones((3, 20)), jnp.ones((3, 33))
    assert_refused(lambda: js.sddmm(*ones, pattern, implementation=path), path)
    with pytest.raises(ValueError, match="not usable"):
        patterns.statistics(pattern)


BAD_ORDERS = {
    "twice": [0, 1, 2, 2, 4, 4],
    "missing": [0, 1, 2, 4, 4, 4],
    "negative": [0, 1, 2, 3, -1, 4],
    "beyond": [0, 1, 2, 3, 4, 5],
}


@pytest.mark.parametrize("name", BAD_ORDERS)
@pytest.mark.parametrize("path", ["ffi", "xla"], indirect=True)
def test_orders_without_every_output_once_are_refused_or_give_nan(name, path):
    order = jnp.int32(BAD_ORDERS[name])
    pattern = js.ColumnPattern(jnp.int32([0, 9]), order, (5, 4), js.Grouped(3))
    assert not bool(pattern.is_valid())
    w = js.SparseWeight(jnp.ones((2, 3)), pattern)
    assert_refused(lambda: js.matmul(jnp.ones((3, 5)), w, implementation=path), path)


def assert_refused(function, path):
    if path == "xla":
        assert np.isnan(np.asarray(function())).all()
        return
    with pytest.raises(jax.errors.JaxRuntimeError, match="INVALID_ARGUMENT.*(place|order)"):
        jax.block_until_ready(function())


def test_kernels_refuse_lost_weights_with_their_reason():
    need("cpu_kernels")
    make = jax.jit(lambda m: patterns.from_mask(m, "unstructured", capacity=3))
    w = js.SparseWeight(jnp.ones(3), make(jnp.ones((4, 4), bool)))
    with pytest.raises(jax.errors.JaxRuntimeError, match="lost weights.*larger capacity"):
        jax.block_until_ready(js.matmul(jnp.ones((2, 4)), w, implementation="ffi"))


# Weights as pytrees -------------------------------------------------------------------------------


@every_format
@pytest.mark.parametrize(
    "duplicate",
    [copy.copy, copy.deepcopy, lambda w: pickle.loads(pickle.dumps(w))],
    ids=["copy", "deepcopy", "pickle"],
)
def test_a_copied_weight_is_the_same_weight(format, duplicate):
    w = conv_cases.make("plain", format).weight()
    again = duplicate(w)
    assert jax.tree.structure(again) == jax.tree.structure(w)
    jax.tree.map(np.testing.assert_array_equal, again, w)


@every_format
@pytest.mark.parametrize("leaf", [None, 0, "text", object()], ids=["None", "0", "text", "object"])
def test_weight_is_rebuilt_and_printed_around_anything(format, leaf):
    w = conv_cases.make("plain", format).weight()
    again = jax.tree.map(lambda _: leaf, w)
    assert again.values is leaf
    assert repr(again).startswith("SparseWeight(")
    assert repr(again.pattern).startswith("ColumnPattern(")


@every_format
def test_split_trains_the_values_and_merge_joins_them(format):
    w = conv_cases.make("plain", format).weight(garbage=False)
    trainable, rest = js.split(w)
    assert len(jax.tree.leaves(trainable)) == 1
    again = js.merge(trainable, rest)
    jax.tree.map(np.testing.assert_array_equal, again, w)


def test_a_sum_is_a_pytree_of_its_parts():
    layers = [conv_cases.make("plain", format) for format in FORMATS]
    w = js.WeightSum(tuple(layer.weight(garbage=False) for layer in layers))
    oracle.equal_exactly(w.todense(), sum(layer.dense() for layer in layers))
    assert w.nbytes == sum(part.nbytes for part in w.parts)
    assert w.density == sum(part.density for part in w.parts)
    assert (w.shape, w.ndim, w.dtype) == ((3, 3, 5, 7), 4, jnp.float32)
    assert w.astype("bfloat16").dtype == jnp.bfloat16
    assert repr(w).startswith("WeightSum(SparseWeight(float32[3, 3, 5, 7], unstructured weights")
    trainable, rest = js.split(w)
    assert len(jax.tree.leaves(trainable)) == 2
    jax.tree.map(np.testing.assert_array_equal, js.merge(trainable, rest), w)


@every_format
@jit
def test_with_pattern_moves_weights_between_formats(format, jit):
    layer = conv_cases.make("plain", format)
    move = lambda w, pattern: w.with_pattern(pattern)
    move = jax.jit(move) if jit else move
    for other in (*FORMATS, "3x2"):
        pattern = conv_cases.make("plain", other, seed=1).pattern
        moved = move(layer.weight(), pattern)
        oracle.equal_exactly(moved.todense(), layer.dense() * np.asarray(pattern.mask()))
        whole = patterns.full(other, layer.pattern.shape)
        oracle.equal_exactly(move(layer.weight(), whole).todense(), layer.dense())


@every_format
def test_exported_functions_take_and_return_weights(format):
    need("flatbuffers")
    layer = conv_cases.make(MATRIX, format)
    w = js.WeightSum((layer.weight(garbage=False),))
    doubled = lambda w: js.WeightSum(tuple(p.with_values(2 * p.values) for p in w.parts))
    data = jax.export.export(jax.jit(doubled))(w).serialize()
    again = jax.export.deserialize(bytearray(data)).call(w)
    assert jax.tree.structure(again) == jax.tree.structure(w)
    oracle.equal_exactly(again.todense(), 2 * layer.dense())
