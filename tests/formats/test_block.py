"""Block shapes and patterns: sizes, names, copies to and from dense arrays, being pytrees."""

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
from jaxsparse.formats.block import BlockPattern, BlockSpec, matrix_view
from jaxsparse.formats.parse import as_format

LAYER = cases.make("tiles_ragged", unused=2)
PATTERN = LAYER.pattern()

# Block --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [(16, 32), [16, 32], (np.int8(16), 32)], ids=str)
def test_block_takes_any_pair_of_ints(given):
    block = js.Block(given)
    assert block == js.Block((16, 32))
    assert hash(block) == hash(js.Block((16, 32)))
    assert [type(n) for n in block.shape] == [int, int]


def test_block_of_one_int_is_square():
    assert js.Block(16) == js.Block((16, 16))


def test_block_is_written_as_it_is_read():
    assert str(js.Block((16, 32))) == "16x32"
    assert as_format(str(js.Block((16, 32)))) == js.Block((16, 32))
    assert as_format(" 16x32 ") == js.Block((16, 32))
    assert eval(repr(js.Block((16, 32))), {"Block": js.Block}) == js.Block((16, 32))


@pytest.mark.parametrize(
    ("shape", "grid"),
    [
        ((16, 32), (1, 1)),
        ((17, 33), (2, 2)),
        ((1, 1), (1, 1)),
        ((0, 5), (0, 1)),
        ((3, 3, 4, 64), (3, 2)),
    ],
)
def test_grid_counts_blocks_rounded_up(shape, grid):
    assert js.Block((16, 32)).grid(shape) == grid


def test_matrix_view_joins_all_axes_but_the_last():
    assert matrix_view((3, 3, 4, 64)) == (36, 64)
    assert matrix_view((5, 7)) == (5, 7)


# Patterns -----------------------------------------------------------------------------------------


def test_pattern_tells_its_sizes():
    assert PATTERN.shape == (70, 90)
    assert PATTERN.grid == (5, 6)
    assert PATTERN.capacity == 17
    assert PATTERN.values_shape == (17, 16, 16)
    assert PATTERN.density == 17 / 30
    assert PATTERN.nbytes == 2 * 17 * 4
    assert repr(PATTERN) == "BlockPattern(16x16 blocks, 17 of 30, shape=(70, 90))"


@pytest.mark.parametrize(
    "problem", ["elements", "odd_blocks", "tiles_ragged", "one_block", "empty"]
)
@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_scatter_places_blocks_as_the_definition_does(problem, jit):
    layer = cases.make(problem, unused=2)
    scatter = lambda values: layer.pattern().scatter(values)
    oracle.equal_exactly(
        (jax.jit(scatter) if jit else scatter)(layer.array("values")), layer.dense()
    )


@pytest.mark.parametrize(
    "problem", ["elements", "odd_blocks", "tiles_ragged", "one_block", "empty"]
)
@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_gather_reads_blocks_as_the_definition_does(problem, jit):
    layer = cases.make(problem, unused=2)
    gather = lambda dense: layer.pattern().gather(dense)
    got = (jax.jit(gather) if jit else gather)(jnp.float32(layer.dense()))
    oracle.equal_exactly(got, layer.clean)


def test_gather_never_reads_what_is_not_stored():
    everywhere = jnp.where(PATTERN.mask(), jnp.float32(LAYER.dense()), jnp.nan)
    oracle.equal_exactly(PATTERN.gather(everywhere), LAYER.clean)


@pytest.mark.parametrize(
    "dtype", ["int8", "int32", "float16", "bfloat16", "complex64", "bool", "uint8"]
)
def test_gather_and_scatter_copy_every_dtype(dtype, rng):
    dense = np.asarray(jnp.asarray(oracle.small_integers(rng, (70, 90)), jnp.int32).astype(dtype))
    values = PATTERN.gather(jnp.asarray(dense))
    assert values.dtype == dtype
    mask = np.asarray(PATTERN.mask())
    np.testing.assert_array_equal(
        PATTERN.scatter(values), np.where(mask, dense, np.zeros((), dense.dtype))
    )


def test_gather_and_scatter_are_each_others_transpose(rng):
    dense = jnp.float32(oracle.small_integers(rng, (70, 90)))
    values = jnp.float32(oracle.small_integers(rng, PATTERN.values_shape))
    (of_values,) = jax.linear_transpose(PATTERN.gather, dense)(values)
    np.testing.assert_array_equal(of_values, PATTERN.scatter(values))
    (of_dense,) = jax.linear_transpose(PATTERN.scatter, values)(dense)
    np.testing.assert_array_equal(of_dense, PATTERN.gather(dense))


def test_gather_and_scatter_have_every_derivative(rng):
    dense = jnp.float32(oracle.small_integers(rng, (70, 90)))
    cube = lambda d: jnp.sum(PATTERN.scatter(PATTERN.gather(d) ** 3))
    stored = np.asarray(PATTERN.mask(), np.float64)
    oracle.equal_exactly(jax.grad(cube)(dense), 3 * np.asarray(dense) ** 2 * stored)
    second = jax.grad(lambda d: jnp.sum(jax.grad(cube)(d)))(dense)
    oracle.equal_exactly(second, 6 * np.asarray(dense) * stored)
    forward = jax.jvp(jax.grad(cube), (dense,), (dense,))[1]
    oracle.equal_exactly(forward, 6 * np.asarray(dense) ** 2 * stored)


def test_gather_and_scatter_under_vmap_copy_each_array(rng):
    dense = jnp.float32(oracle.small_integers(rng, (3, 70, 90)))
    values = jax.vmap(PATTERN.gather)(dense)
    for i in range(3):
        np.testing.assert_array_equal(values[i], PATTERN.gather(dense[i]))
    together = jax.vmap(PATTERN.scatter, 1, 2)(values.swapaxes(0, 1))
    for i in range(3):
        np.testing.assert_array_equal(together[..., i], PATTERN.scatter(values[i]))


@pytest.mark.parametrize("shape", [(3, 3, 16, 24), (5, 8, 16)], ids=str)
def test_gather_and_scatter_keep_kernel_axes(shape, rng):
    dense = jnp.float32(oracle.small_integers(rng, shape))
    pattern = patterns.full("8x8", shape)
    np.testing.assert_array_equal(pattern.scatter(pattern.gather(dense)), dense)


def test_mask_is_where_the_definition_stores():
    ones = oracle.todense(np.ones_like(LAYER.clean), *LAYER.places)
    np.testing.assert_array_equal(PATTERN.mask(), ones.astype(bool))
    assert PATTERN.mask().dtype == bool


# As pytrees ---------------------------------------------------------------------------------------


def test_pattern_is_two_integer_leaves_and_static_facts():
    leaves, tree = jax.tree.flatten(PATTERN)
    assert [leaf.dtype for leaf in leaves] == [jnp.int32, jnp.int32]
    assert jax.tree.structure(LAYER.pattern()) == tree
    assert hash(tree) == hash(jax.tree.structure(LAYER.pattern()))
    assert tree != jax.tree.structure(patterns.full("16x16", (70, 91)))
    assert tree != jax.tree.structure(patterns.full("16x15", (70, 90)))
    again = jax.tree.unflatten(tree, leaves)
    assert (again.shape, again.format) == (PATTERN.shape, PATTERN.format)


@pytest.mark.parametrize(
    "leaf",
    [None, "text", jax.ShapeDtypeStruct((17,), jnp.int32), object()],
    ids=["None", "text", "shape", "object"],
)
def test_pattern_is_rebuilt_around_anything(leaf):
    again = jax.tree.unflatten(jax.tree.structure(PATTERN), [leaf, leaf])
    assert again.rows is leaf
    assert "BlockPattern(16x16" in repr(again)


def test_pattern_metadata_that_changes_compiles_again_and_values_do_not():
    traces = []

    @jax.jit
    def read(pattern):
        traces.append(pattern.shape)
        return pattern.rows

    read(patterns.full("16x16", (32, 32)))
    read(patterns.full("16x16", (32, 32)))
    assert len(traces) == 1
    read(patterns.full("16x16", (32, 31)))
    read(patterns.full((16, 31), (32, 31)))
    assert len(traces) == 3


@pytest.mark.parametrize(
    "duplicate",
    [
        copy.copy,
        copy.deepcopy,
        lambda p: pickle.loads(pickle.dumps(p)),
        lambda p: jax.tree.map(jnp.array, p),
    ],
    ids=["copy", "deepcopy", "pickle", "tree_map"],
)
def test_a_copied_pattern_is_the_same_pattern(duplicate):
    again = duplicate(PATTERN)
    assert (again.shape, again.format) == (PATTERN.shape, PATTERN.format)
    np.testing.assert_array_equal(again.rows, PATTERN.rows)
    np.testing.assert_array_equal(again.cols, PATTERN.cols)


def test_pattern_cannot_be_changed():
    with pytest.raises(AttributeError):
        PATTERN.rows = PATTERN.cols


def test_pattern_of_numpy_indices_works_like_one_of_jax(path):
    w = js.SparseWeight(
        LAYER.array("clean"),
        BlockPattern(LAYER.rows, LAYER.cols, PATTERN.shape, PATTERN.format),
    )
    oracle.equal_exactly(js.matmul(LAYER.array("x"), w, implementation=path), LAYER.y())


# The specification that ops share -----------------------------------------------------------------


def test_spec_is_hashable_and_tells_inner_axes():
    spec = PATTERN.spec()
    assert hash(spec) == hash(LAYER.pattern().spec())
    assert spec == BlockSpec((70, 90), (16, 16))
    assert [spec.inner(k) for k in ("w", "dense")] == [(16, 16), (70, 90)]


def test_density_of_an_empty_grid_is_zero():
    assert patterns.full("8x8", (0, 5)).density == 0


@pytest.mark.parametrize("batch", [0, 1, 7, 8, 63, 64, 10**6])
@pytest.mark.parametrize("block", [(1, 1), (8, 100), (16, 16), (31, 31), (64, 64)])
def test_shape_class_has_a_name_for_every_problem(batch, block):
    name = BlockSpec((100, 100), block).shape_class(batch)
    assert name.startswith("batch")
    assert "block" in name
