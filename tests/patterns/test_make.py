"""Patterns from masks, grids, lists, scores and keys: what they store, in which order."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxsparse as js
from jaxsparse import patterns

SHAPE, BLOCK = (70, 90), (16, 16)
GRID = (5, 6)
settings.register_profile("tests", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("tests")


def assert_sound(pattern):
    """Sorted by column and row, each block once, unused places last and marked as such."""
    rows, cols = np.asarray(pattern.rows), np.asarray(pattern.cols)
    assert (pattern.rows.dtype, pattern.cols.dtype) == (jnp.int32, jnp.int32)
    grid = pattern.grid
    used = cols < grid[1]
    assert (rows[used] >= 0).all()
    assert (rows[used] < grid[0]).all()
    assert (rows[~used] == grid[0]).all()
    assert (cols[~used] == grid[1]).all()
    assert not (np.diff(used.astype(int)) > 0).any()
    assert (np.diff(cols[used].astype(np.int64) * grid[0] + rows[used]) > 0).all()


def assert_stores(pattern, grid_mask):
    assert_sound(pattern)
    np.testing.assert_array_equal(pattern.grid_mask(), grid_mask)


def draw_grid(rng, grid=GRID, density=0.4):
    return rng.random(grid) < density


def expand(grid_mask, shape=SHAPE, block=BLOCK):
    """The mask of single weights, by the definition of a grid position."""
    i, o = np.indices(shape)
    return np.asarray(grid_mask)[i // block[0], o // block[1]]


# On the host --------------------------------------------------------------------------------------


def test_from_grid_stores_what_is_true(rng):
    grid = draw_grid(rng)
    pattern = patterns.from_grid(grid, BLOCK, SHAPE)
    assert_stores(pattern, grid)
    assert pattern.capacity == grid.sum()
    assert (pattern.shape, pattern.format, pattern.grid) == (SHAPE, js.Block(BLOCK), GRID)
    assert pattern.density == grid.sum() / 30


@pytest.mark.parametrize("extra", [0, 1, 5])
def test_from_grid_leaves_places_unused_beyond_what_is_true(extra, rng):
    grid = draw_grid(rng)
    pattern = patterns.from_grid(grid, BLOCK, SHAPE, capacity=int(grid.sum()) + extra)
    assert_stores(pattern, grid)
    assert pattern.capacity == grid.sum() + extra


@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
def test_from_mask_stores_every_block_with_anything_true(kind, rng):
    mask = rng.random(SHAPE) < 0.01
    pattern = patterns.from_mask(kind(mask), BLOCK)
    padded = np.zeros((80, 96), bool)
    padded[:70, :90] = mask
    assert_stores(pattern, padded.reshape(5, 16, 6, 16).any((1, 3)))
    assert not (mask & ~np.asarray(pattern.mask())).any()


def test_from_mask_sees_the_last_weight_of_a_ragged_block():
    mask = np.zeros(SHAPE, bool)
    mask[69, 89] = True
    pattern = patterns.from_mask(mask, BLOCK)
    assert (pattern.rows.tolist(), pattern.cols.tolist()) == ([4], [5])


@pytest.mark.parametrize("shape", [(3, 3, 16, 24), (5, 8, 16), (2, 3, 4, 5, 6)], ids=str)
def test_a_weight_with_kernel_axes_is_seen_as_its_matrix(shape, rng):
    mask = rng.random(shape) < 0.1
    matrix = mask.reshape(-1, shape[-1])
    pattern, of_matrix = patterns.from_mask(mask, "8x8"), patterns.from_mask(matrix, "8x8")
    assert pattern.shape == shape
    np.testing.assert_array_equal(pattern.grid_mask(), of_matrix.grid_mask())
    np.testing.assert_array_equal(pattern.mask(), np.asarray(of_matrix.mask()).reshape(shape))


def test_from_blocks_takes_any_order(rng):
    grid = draw_grid(rng)
    rows, cols = np.nonzero(grid)
    order = rng.permutation(len(rows))
    assert_stores(patterns.from_blocks(rows[order], cols[order], BLOCK, SHAPE), grid)
    pattern = patterns.from_blocks(rows.tolist(), cols.tolist(), BLOCK, SHAPE, capacity=25)
    assert_stores(pattern, grid)
    assert pattern.capacity == 25


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "int64", "uint64"])
def test_from_blocks_takes_ints_of_any_size(dtype):
    pattern = patterns.from_blocks(np.array([4, 0], dtype), np.array([5, 0], dtype), BLOCK, SHAPE)
    assert_sound(pattern)
    assert pattern.capacity == 2


def test_from_blocks_of_nothing_is_empty():
    assert patterns.from_blocks([], [], BLOCK, SHAPE).capacity == 0


def test_from_scores_stores_the_highest(rng):
    scores = rng.permutation(30).reshape(GRID).astype(np.float32)
    assert_stores(patterns.from_scores(scores, BLOCK, SHAPE, 11), scores >= 19)


@pytest.mark.parametrize("count", [0, 1, 29, 30])
def test_from_scores_stores_exactly_so_many_of_equal_scores(count):
    pattern = patterns.from_scores(jnp.zeros(GRID), BLOCK, SHAPE, count)
    assert_sound(pattern)
    assert int(pattern.grid_mask().sum()) == pattern.capacity == count


def test_from_scores_takes_lower_places_first_on_ties():
    pattern = patterns.from_scores(jnp.zeros(GRID), BLOCK, SHAPE, 7)
    assert pattern.rows.tolist() == [0, 1, 2, 3, 4, 0, 1]
    assert pattern.cols.tolist() == [0, 0, 0, 0, 0, 1, 1]


def test_from_scores_counts_nan_as_highest_and_minus_infinity_as_lowest():
    scores = np.zeros(GRID, np.float32)
    scores[2, 3], scores[1, 1], scores[0, 0] = np.nan, np.inf, -np.inf
    pattern = patterns.from_scores(scores, BLOCK, SHAPE, 2)
    assert np.asarray(pattern.grid_mask())[[2, 1], [3, 1]].all()
    pattern = patterns.from_scores(scores, BLOCK, SHAPE, 29)
    assert not bool(pattern.grid_mask()[0, 0])
    assert int(pattern.grid_mask().sum()) == 29


@pytest.mark.parametrize("dtype", ["int32", "int8", "uint8", "float16", "bfloat16", "float32"])
def test_from_scores_takes_real_scores_of_any_dtype(dtype):
    scores = jnp.arange(30).reshape(GRID).astype(dtype)
    assert_stores(patterns.from_scores(scores, BLOCK, SHAPE, 4), np.arange(30).reshape(GRID) > 25)


@pytest.mark.parametrize("sparsity", [0, 0.0, 0.1, 0.5, 0.9, 1, 1.0, np.float32(0.5)], ids=str)
def test_random_stores_the_rounded_number_of_blocks(sparsity):
    pattern = patterns.random(jax.random.key(1), BLOCK, SHAPE, sparsity=sparsity)
    assert_sound(pattern)
    count = round((1 - float(sparsity)) * 30)
    assert pattern.capacity == int(pattern.grid_mask().sum()) == count


def test_random_depends_on_its_key_alone():
    draw = lambda seed: patterns.random(jax.random.key(seed), BLOCK, SHAPE, sparsity=0.5)
    np.testing.assert_array_equal(draw(0).grid_mask(), draw(0).grid_mask())
    assert (draw(0).grid_mask() != draw(1).grid_mask()).any()


def test_random_stores_every_block_equally_often():
    draw = lambda key: patterns.random(key, "8x8", (32, 40), sparsity=0.5).grid_mask()
    counts = jax.vmap(draw)(jax.random.split(jax.random.key(0), 400)).sum(0)
    # Binomial(400, 1/2) has a standard deviation of 10.
    assert (abs(np.asarray(counts) - 200) < 50).all()


def test_full_stores_every_block():
    assert_stores(patterns.full(BLOCK, SHAPE), np.ones(GRID, bool))


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0), (3, 0, 5)], ids=str)
def test_a_weight_without_entries_has_a_pattern_without_blocks(shape):
    pattern = patterns.full("8x8", shape)
    assert pattern.capacity == 0
    assert pattern.mask().shape == shape
    assert patterns.from_mask(np.zeros(shape, bool), "8x8").capacity == 0


def test_mask_says_where_single_weights_are(rng):
    grid = draw_grid(rng)
    pattern = patterns.from_grid(grid, BLOCK, SHAPE)
    np.testing.assert_array_equal(pattern.mask(), expand(grid))


def test_patterns_of_grids_near_the_int32_limit_are_made_from_lists():
    """46340 x 46340 blocks are the most that a square grid can have; no dense mask is made."""
    size = 46340
    pattern = patterns.from_blocks([size - 1, 0], [size - 1, 0], "1x1", (size, size))
    assert pattern.rows.tolist() == [0, size - 1]
    assert pattern.density == 2 / size**2


# Inside jit, the same as outside ------------------------------------------------------------------

MAKERS = {
    "from_grid": lambda a: patterns.from_grid(a > 0.6, BLOCK, SHAPE, capacity=20),
    "from_mask": lambda a: patterns.from_mask(
        jnp.repeat(jnp.repeat(a > 0.6, 16, 0), 16, 1)[:70, :90], BLOCK, capacity=20
    ),
    "from_scores": lambda a: patterns.from_scores(a, BLOCK, SHAPE, 13),
    "random": lambda a: patterns.random(
        jax.random.key((a[0, 0] * 1000).astype(jnp.int32)), BLOCK, SHAPE, sparsity=0.7
    ),
    "exchange": lambda a: patterns.exchange(patterns.from_scores(a, BLOCK, SHAPE, 13), a, -a, 4),
    "from_blocks": lambda a: patterns.from_blocks(
        jnp.argsort(a[:, 0]).astype(jnp.int32),
        jnp.argsort(a[:, 1]).astype(jnp.int32),
        BLOCK,
        SHAPE,
        capacity=9,
    ),
}


@pytest.mark.parametrize("maker", MAKERS)
def test_pattern_made_inside_jit_equals_the_one_made_outside(maker, rng):
    a = jnp.float32(rng.random(GRID))
    outside, inside = MAKERS[maker](a), jax.jit(MAKERS[maker])(a)
    assert_sound(outside)
    np.testing.assert_array_equal(inside.rows, outside.rows)
    np.testing.assert_array_equal(inside.cols, outside.cols)
    assert jax.tree.structure(inside) == jax.tree.structure(outside)


@pytest.mark.parametrize("maker", MAKERS)
def test_patterns_made_under_vmap_equal_those_made_one_by_one(maker, rng):
    several = jnp.float32(rng.random((3, *GRID)))
    together = jax.vmap(MAKERS[maker])(several)
    for i in range(3):
        alone = MAKERS[maker](several[i])
        np.testing.assert_array_equal(together.rows[i], alone.rows)
        np.testing.assert_array_equal(together.cols[i], alone.cols)


def test_a_traced_mask_with_more_blocks_than_room_makes_a_pattern_nobody_can_use():
    make = jax.jit(lambda m: patterns.from_grid(m, BLOCK, SHAPE, capacity=3))
    pattern = make(jnp.ones(GRID, bool))
    assert (pattern.rows < 0).all()
    assert_sound(make(jnp.zeros(GRID, bool).at[1, :3].set(True)))


# Exchange -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 5, 13])
def test_exchange_drops_the_lowest_and_grows_the_highest(count, rng):
    scores = rng.permutation(60).astype(np.float32)
    keep, grow = scores[:30].reshape(GRID), scores[30:].reshape(GRID)
    before = patterns.random(jax.random.key(0), BLOCK, SHAPE, sparsity=17 / 30)
    stored = np.asarray(before.grid_mask())
    after = patterns.exchange(before, keep, grow, count)
    expected = stored.copy()
    if count:
        expected[stored & (keep <= np.sort(keep[stored])[count - 1])] = False
        expected[~stored & (grow >= np.sort(grow[~stored])[-count])] = True
    assert_stores(after, expected)
    assert after.capacity == before.capacity


@pytest.mark.parametrize("count", [1000, -3])
@pytest.mark.parametrize("sparsity", [0.2, 0.8])
def test_exchange_cuts_its_count_to_what_is_possible(sparsity, count, rng):
    before = patterns.random(jax.random.key(0), BLOCK, SHAPE, sparsity=sparsity)
    scores = jnp.float32(rng.random(GRID))
    after = patterns.exchange(before, scores, scores, count)
    assert_sound(after)
    changed = int((after.grid_mask() & ~before.grid_mask()).sum())
    assert changed == (0 if count < 0 else min(before.capacity, 30 - before.capacity))
    assert int(after.grid_mask().sum()) == before.capacity


def test_exchange_takes_a_traced_count_without_compiling_again(rng):
    traces = []

    @jax.jit
    def step(pattern, scores, count):
        traces.append(count)
        return patterns.exchange(pattern, scores, -scores, count)

    pattern = patterns.random(jax.random.key(0), BLOCK, SHAPE, sparsity=0.5)
    scores = jnp.float32(rng.random(GRID))
    for count in (0, 3, 7):
        after = step(pattern, scores, count)
        assert int((after.grid_mask() & ~pattern.grid_mask()).sum()) == count
    assert len(traces) == 1


def test_exchange_keeps_nan_scores_of_stored_blocks(rng):
    """A NaN weight is kept, so that it is seen."""
    pattern = patterns.random(jax.random.key(0), BLOCK, SHAPE, sparsity=0.5)
    keep = np.where(np.asarray(pattern.grid_mask()), np.nan, 0).astype(np.float32)
    keep[int(pattern.rows[0]), int(pattern.cols[0])] = 1
    after = patterns.exchange(pattern, keep, jnp.zeros(GRID), 1)
    assert not bool(after.grid_mask()[pattern.rows[0], pattern.cols[0]])


# Properties ---------------------------------------------------------------------------------------

# Few shapes: each is compiled once.
layouts = st.sampled_from([((7, 40), (3, 5)), ((1, 9), (1, 1)), ((33, 20), (16, 32))])


@given(layouts, st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_any_grid_comes_back_from_its_pattern(layout, seed, density):
    shape, block = layout
    grid = oracle.grid_of(shape, block)
    mask = np.random.default_rng(seed).random(grid) < density
    pattern = patterns.from_grid(mask, block, shape, capacity=mask.size)
    assert_stores(pattern, mask)
    rows, cols = (np.asarray(index)[: mask.sum()] for index in pattern.indices)
    again = patterns.from_blocks(rows, cols, block, shape, capacity=mask.size)
    np.testing.assert_array_equal(again.rows, pattern.rows)
    np.testing.assert_array_equal(again.cols, pattern.cols)
    from_mask = patterns.from_mask(np.asarray(pattern.mask()), block)
    np.testing.assert_array_equal(from_mask.grid_mask(), mask)


@given(st.integers(0, 2**32 - 1), st.integers(0, 30), st.integers(-2, 40))
def test_any_exchange_keeps_the_number_of_blocks(seed, stored, count):
    rng = np.random.default_rng(seed)
    pattern = patterns.from_scores(rng.random(GRID).astype(np.float32), BLOCK, SHAPE, stored)
    # Few different scores: ties everywhere.
    keep, grow = rng.integers(0, 3, (2, *GRID)).astype(np.float32)
    after = patterns.exchange(pattern, keep, grow, count)
    assert_sound(after)
    assert int(after.grid_mask().sum()) == stored


_jitted = jax.jit(functools.partial(patterns.from_grid, format=BLOCK, shape=SHAPE, capacity=30))


@given(st.lists(st.booleans(), min_size=30, max_size=30))
def test_any_grid_makes_one_pattern_inside_and_outside_jit(flat):
    mask = np.array(flat).reshape(GRID)
    inside = _jitted(jnp.asarray(mask))
    outside = patterns.from_grid(mask, BLOCK, SHAPE, capacity=30)
    np.testing.assert_array_equal(inside.rows, outside.rows)
    np.testing.assert_array_equal(inside.cols, outside.cols)
