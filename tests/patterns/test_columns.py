"""Making weights of single entries and of groups of outputs: what is stored, exactly."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental import sparse
from machine import need

import jaxsparse as js
from jaxsparse import patterns

settings.register_profile("tests", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("tests")
SHAPE = (2, 3, 5, 10)  # [*kernel, in, out]
FORMATS = ("unstructured", "grouped:4")
ORDER = np.array([3, 9, 0, 7, 1, 2, 8, 4, 6, 5])
every_format = pytest.mark.parametrize("format", FORMATS)
every_order = pytest.mark.parametrize(
    ("format", "order"),
    [("unstructured", None), ("grouped:4", None), ("grouped:4", ORDER)],
    ids=["unstructured", "grouped", "grouped_in_order"],
)
jit = pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])


def spread(mask, format, order=None):
    """What a format stores where it must store `mask`: whole groups of outputs, by definition."""
    if format == "unstructured":
        return mask
    width = int(format.removeprefix("grouped:"))
    order = np.arange(mask.shape[-1]) if order is None else order
    stored = np.zeros_like(mask)
    for start in range(0, mask.shape[-1], width):
        group = order[start : start + width]
        stored[..., group] = mask[..., group].any(-1, keepdims=True)
    return stored


def drawn(rng, density=0.2, shape=SHAPE):
    mask = rng.random(shape) < density
    return mask, (oracle.small_integers(rng, shape) * mask).astype(np.float32)


def assert_stores(pattern, mask):
    assert bool(pattern.is_valid())
    np.testing.assert_array_equal(pattern.mask(), mask)


# Makers -------------------------------------------------------------------------------------------


@every_order
@jit
def test_from_mask_stores_every_part_that_the_mask_meets(format, order, jit, rng):
    mask, _ = drawn(rng)
    capacity = 90 if jit else None
    make = functools.partial(patterns.from_mask, format=format, capacity=capacity, order=order)
    pattern = (jax.jit(make) if jit else make)(mask)
    assert_stores(pattern, spread(mask, format, order))
    if jit:
        outside = make(mask)
        jax.tree.map(np.testing.assert_array_equal, pattern, outside)


@every_order
@jit
def test_from_coordinates_stores_the_listed_weights_in_any_order(format, order, jit, rng):
    mask, _ = drawn(rng)
    listed = rng.permutation(np.argwhere(mask))
    capacity = 90 if jit else None
    make = lambda c: patterns.from_coordinates(c, format, SHAPE, capacity=capacity, order=order)
    assert_stores((jax.jit(make) if jit else make)(listed), spread(mask, format, order))


@every_order
def test_from_rows_stores_the_listed_inputs_of_every_output(format, order, rng):
    rows = rng.permutation(30)[:7]
    mask = np.zeros((30, 10), bool)
    mask[rows] = True
    pattern = patterns.from_rows(rows, format, SHAPE, order=order)
    assert_stores(pattern, mask.reshape(SHAPE))


def test_column_compaction_keeps_each_index_once_and_multiplies_what_it_lists(path, rng):
    """That is x[:, rows] w[rows], with one list for all outputs."""
    rows = rng.permutation(40)[:9]
    x, dense = oracle.small_integers(rng, (6, 40)), oracle.small_integers(rng, (40, 12))
    pattern = patterns.from_rows(rows, "grouped:12", (40, 12))
    assert pattern.places.tolist() == sorted(rows)
    w = js.SparseWeight(pattern.gather(jnp.float32(dense)), pattern)
    y = js.matmul(jnp.float32(x), w, implementation=path)
    oracle.equal_exactly(y, x[:, rows] @ dense[rows])


@every_order
def test_full_and_random_store_as_many_parts_as_they_say(format, order):
    whole = patterns.full(format, SHAPE, order=order)
    assert_stores(whole, np.ones(SHAPE, bool))
    total = whole.capacity
    make = lambda key: patterns.random(key, format, SHAPE, sparsity=0.7, order=order)
    one, again, other = (jax.jit(make)(jax.random.key(k)) for k in (0, 0, 1))
    assert one.capacity == round(0.3 * total)
    np.testing.assert_array_equal(one.places, make(jax.random.key(0)).places)
    np.testing.assert_array_equal(one.places, again.places)
    assert (one.places != other.places).any()
    assert bool(one.is_valid())
    assert int(one.grid_mask().sum()) == one.capacity


@pytest.mark.parametrize("order", [None, ORDER], ids=["natural", "given"])
@jit
def test_exchange_moves_parts_and_keeps_groups(order, jit, rng):
    before = patterns.random(jax.random.key(0), "grouped:4", SHAPE, sparsity=0.5, order=order)
    keep, grow = jnp.float32(rng.permutation(180).reshape(2, *before.grid))
    move = (jax.jit if jit else lambda f: f)(lambda p: patterns.exchange(p, keep, grow, 5))
    after = move(before)
    stored, keep, grow = np.asarray(before.grid_mask()), np.asarray(keep), np.asarray(grow)
    expected = stored.copy()
    expected[stored & (keep <= np.sort(keep[stored])[4])] = False
    expected[~stored & (grow >= np.sort(grow[~stored])[-5])] = True
    np.testing.assert_array_equal(after.grid_mask(), expected)
    np.testing.assert_array_equal(after.order, before.order)
    assert bool(after.is_valid())


@every_format
def test_a_traced_mask_with_more_weights_than_room_makes_a_pattern_nobody_can_use(format):
    make = jax.jit(lambda m: patterns.from_mask(m, format, capacity=3))
    assert not bool(make(jnp.ones(SHAPE, bool)).is_valid())
    assert bool(make(jnp.zeros(SHAPE, bool).at[0, 0, 0, :2].set(True)).is_valid())


# From dense and sparse matrices -------------------------------------------------------------------


@every_order
@jit
def test_fromdense_is_exact_and_stores_no_zero_part(format, order, jit, rng):
    mask, dense = drawn(rng)
    make = functools.partial(js.fromdense, format=format, order=order, capacity=90 if jit else None)
    w = (jax.jit(make) if jit else make)(dense)
    assert_stores(w.pattern, spread(mask, format, order))
    oracle.equal_exactly(w.todense(), dense)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8", "int32", "complex64"])
def test_fromdense_of_single_weights_takes_every_dtype(dtype, rng):
    _, dense = drawn(rng)
    w = js.fromdense(jnp.asarray(dense, dtype), "unstructured")
    np.testing.assert_array_equal(np.asarray(w.todense()), dense.astype(jnp.dtype(dtype)))


@pytest.mark.parametrize("sparsity", [0, 0.5, 0.95, 1])
@jit
def test_fromdense_with_sparsity_keeps_the_largest_magnitudes(sparsity, jit, rng):
    dense = rng.standard_normal(SHAPE).astype(np.float32)
    make = functools.partial(js.fromdense, format="unstructured", sparsity=sparsity)
    w = (jax.jit(make) if jit else make)(dense)
    count = round((1 - sparsity) * dense.size)
    least = np.sort(abs(dense).ravel())[-count] if count else np.inf
    np.testing.assert_array_equal(w.todense(), np.where(abs(dense) >= least, dense, 0))


def test_fromdense_with_sparsity_keeps_the_groups_of_largest_norm(rng):
    dense = rng.standard_normal((12, 8)).astype(np.float32)
    order = rng.permutation(8)
    w = js.fromdense(dense, "grouped:4", sparsity=0.5, order=order)
    norms = np.stack([np.linalg.norm(dense[:, order[:4]], axis=1)] * 4, 1)
    others = np.stack([np.linalg.norm(dense[:, order[4:]], axis=1)] * 4, 1)
    of_each = np.empty_like(dense)
    of_each[:, order[:4]], of_each[:, order[4:]] = norms, others
    least = np.sort(np.concatenate([norms[:, 0], others[:, 0]]))[-12]
    np.testing.assert_array_equal(w.todense(), np.where(of_each >= least, dense, 0))


@jit
def test_tolerance_says_what_counts_as_zero(jit):
    dense = jnp.float32([[0, 1e-7, -1e-6], [1e-5, -1, jnp.nan]])
    stored = {0: [[False, True, True], [True] * 3], 1e-6: [[False] * 3, [True] * 3]}
    for tolerance, expected in stored.items():
        capacity = 6 if jit else None
        make = lambda d, **of: js.fromdense(d, "unstructured", **of).pattern.mask()
        make = functools.partial(make, tolerance=tolerance, capacity=capacity)
        np.testing.assert_array_equal((jax.jit(make) if jit else make)(dense), expected)


def test_weights_below_any_usual_tolerance_are_stored():
    dense = np.zeros((3, 2), np.float32)
    dense[1, 1], dense[2, 0] = 1e-38, np.float32(1e-45)
    assert js.fromdense(dense, "unstructured").pattern.capacity == 2
    made = jax.jit(lambda d: js.fromdense(d, "unstructured", capacity=2))(dense)
    np.testing.assert_array_equal(made.pattern.mask(), dense != 0)


@every_format
@pytest.mark.parametrize("kind", ["csr_array", "csc_matrix", "coo_array", "lil_array"])
def test_fromsparse_takes_matrices_of_scipy(format, kind, rng):
    need("scipy")
    import scipy.sparse

    mask, dense = drawn(rng, shape=(14, 10))
    w = js.fromsparse(getattr(scipy.sparse, kind)(dense), format)
    assert_stores(w.pattern, spread(mask, format))
    oracle.equal_exactly(w.todense(), dense)


@every_order
@pytest.mark.parametrize("kind", [sparse.BCOO, sparse.BCSR])
def test_fromsparse_takes_sparse_matrices_of_jax(format, order, kind, rng):
    mask, dense = drawn(rng, shape=(14, 10))
    matrix = kind.fromdense(jnp.asarray(dense), nse=100)  # some of them unused
    w = js.fromsparse(matrix, format, capacity=42, order=order)
    assert_stores(w.pattern, spread(mask, format, order))
    oracle.equal_exactly(w.todense(), dense)


def test_fromsparse_never_writes_the_dense_matrix():
    """A million inputs and a thousand outputs would take 4 GB."""
    need("scipy")
    import scipy.sparse

    entries = np.float32([1, 2, 4]), ([0, 999_999, 0], [5, 999, 5])
    matrix = scipy.sparse.coo_array(entries, shape=(1_000_000, 1000))
    w = js.fromsparse(matrix, "unstructured")
    assert w.values.tolist() == [5, 2]
    assert w.pattern.places.tolist() == [5_000_000, 999_999_999]


# Between formats ----------------------------------------------------------------------------------

ALL_FORMATS = ("unstructured", "grouped:3", "grouped:10", "2x4")


@pytest.mark.parametrize("to", ALL_FORMATS)
@pytest.mark.parametrize("start", ALL_FORMATS)
def test_convert_that_covers_loses_nothing_and_stores_no_more_than_it_must(start, to, rng):
    _, dense = drawn(rng)
    w = js.fromdense(dense, start)
    wide = js.convert(w, to)
    assert (str(wide.format), wide.shape, wide.dtype) == (to, SHAPE, w.dtype)
    oracle.equal_exactly(wide.todense(), dense)
    expected = patterns.from_mask(np.asarray(w.pattern.mask()), to).mask()
    np.testing.assert_array_equal(wide.pattern.mask(), expected)
    if to != "2x4":
        np.testing.assert_array_equal(expected, spread(np.asarray(w.pattern.mask()), to))


@pytest.mark.parametrize("to", ALL_FORMATS)
@jit
def test_convert_that_projects_keeps_the_parts_of_largest_norm(to, jit, rng):
    dense = rng.standard_normal(SHAPE).astype(np.float32)
    w = js.fromdense(dense, "unstructured", sparsity=0.5)
    project = lambda w: js.convert(w, to, "project", sparsity=0.75)
    projected = (jax.jit(project) if jit else project)(w)
    expected = js.fromdense(w.todense(), to, sparsity=0.75)
    jax.tree.map(np.testing.assert_array_equal, projected, expected)
    assert 0 < js.norm_kept(w, projected) < 1


def test_convert_joins_a_sum_of_weights(rng):
    _, dense = drawn(rng)
    parts = js.with_residual(dense, "grouped:4", filled=0.5)
    oracle.equal_exactly(js.convert(parts, "unstructured").todense(), dense)


# Regrouped weights --------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["grouped:4", "3x4"])
@pytest.mark.parametrize("filled", [0.25, 0.5, 1.0])
def test_with_residual_loses_nothing_and_stores_nothing_twice(format, filled, rng):
    mask, dense = drawn(rng, density=0.4)
    w = js.with_residual(dense, format, filled=filled)
    parts, rest = w.parts
    assert (str(parts.format), str(rest.format)) == (format, "unstructured")
    oracle.equal_exactly(w.todense(), dense)
    stored, single = (np.asarray(part.pattern.mask()) for part in w.parts)
    assert not (stored & single).any()
    np.testing.assert_array_equal(single, mask & ~stored)


def test_with_residual_of_the_published_example():
    """Four filters of eight weights, of which columns 0 to 3 form a block of 13 and 3 are left."""
    used = [{0, 1, 2, 6}, {0, 1, 3}, {0, 2, 3, 5}, {0, 1, 2, 3, 7}]
    dense = np.array([[float(i in inputs) for inputs in used] for i in range(8)], np.float32)
    block, rest = js.with_residual(dense, "grouped:4", filled=0.75).parts
    assert block.pattern.places.tolist() == [0, 1, 2, 3]
    assert int((block.values != 0).sum()) == 13
    assert np.argwhere(np.asarray(rest.pattern.mask())).tolist() == [[5, 2], [6, 0], [7, 3]]


def test_leftovers_are_computed_and_added(path, rng):
    _, dense = drawn(rng, density=0.4, shape=(30, 20))
    x = oracle.small_integers(rng, (7, 30))
    w = js.with_residual(dense, "grouped:4", filled=0.5)
    assert all(part.pattern.capacity for part in w.parts)
    oracle.equal_exactly(js.matmul(jnp.float32(x), w, implementation=path), x @ dense)


def planted(rng, size_in=120, size_out=34, width=8):
    """Outputs in hidden groups that use the same inputs, with little beside them."""
    group = rng.permutation(size_out) // width
    lists = rng.random((size_in, 5)) < 0.2
    mask = lists[:, group] | (rng.random((size_in, size_out)) < 0.01)
    return group, (oracle.small_integers(rng, mask.shape) * mask).astype(np.float32)


def test_similar_outputs_finds_groups_that_share_their_inputs(rng):
    group, dense = planted(rng)
    order = patterns.similar_outputs(dense, 8)
    assert order.dtype == np.int32
    assert sorted(order.tolist()) == list(range(34))
    for start in range(0, 32, 8):
        assert len(set(group[order[start : start + 8]])) == 1
    np.testing.assert_array_equal(order, patterns.similar_outputs(jnp.asarray(dense), 8))
    of_sparse = patterns.similar_outputs(js.fromdense(dense, "unstructured"), 8)
    np.testing.assert_array_equal(order, of_sparse)


def test_regrouped_weights_take_less_memory_and_leave_less_over(rng):
    _, dense = planted(rng)
    order = patterns.similar_outputs(dense, 8)
    apart = js.with_residual(dense, "grouped:8")
    together = js.with_residual(dense, "grouped:8", order=order)
    oracle.equal_exactly(together.todense(), dense)
    assert together.parts[1].pattern.capacity < apart.parts[1].pattern.capacity / 3
    assert together.nbytes < js.fromdense(dense, "unstructured").nbytes
    assert js.fromdense(dense, "grouped:8", order=order).density < 0.5


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (4, 1)], ids=str)
def test_similar_outputs_of_next_to_nothing_is_some_order(shape):
    order = patterns.similar_outputs(np.ones(shape, np.float32), 2)
    assert sorted(order.tolist()) == list(range(shape[1]))


def test_similar_outputs_of_taps_counts_them_all(rng):
    _, dense = planted(rng)
    kernel = dense.reshape(2, 3, 20, 34)
    np.testing.assert_array_equal(
        patterns.similar_outputs(kernel, 8), patterns.similar_outputs(dense, 8)
    )


# What is refused ----------------------------------------------------------------------------------

DENSE = np.ones((4, 6), np.float32)
REFUSED = {
    "order of blocks": (lambda: js.fromdense(DENSE, "2x2", order=range(6)), "order says which"),
    "order too short": (lambda: js.fromdense(DENSE, "grouped:2", order=[0, 1]), "each of the 6"),
    "output twice": (lambda: js.fromdense(DENSE, "grouped:2", order=[0] * 6), "each of the 6"),
    "tolerance": (lambda: js.fromdense(DENSE, "unstructured", tolerance=-1), "0 or more"),
    "tolerance and mask": (
        lambda: js.fromdense(DENSE, "unstructured", tolerance=1e-6, mask=DENSE > 0),
        "Leave one out",
    ),
    "row twice": (lambda: patterns.from_rows([1, 1], "unstructured", (4, 6)), "listed once"),
    "row outside": (lambda: patterns.from_rows([4], "unstructured", (4, 6)), "from 0 to 3"),
    "weight twice": (
        lambda: patterns.from_coordinates([[1, 2], [1, 2]], "unstructured", (4, 6)),
        "listed once",
    ),
    "weight outside": (
        lambda: patterns.from_coordinates([[1, 6]], "unstructured", (4, 6)),
        "inside the shape",
    ),
    "blocks of weights": (
        lambda: patterns.from_blocks([0], [0], "unstructured", (4, 6)),
        "must be blocks",
    ),
    "filled": (lambda: js.with_residual(DENSE, "grouped:2", filled=0), "filled is a share"),
    "traced residual": (
        lambda: jax.jit(lambda d: js.with_residual(d, "grouped:2"))(DENSE),
        "traced",
    ),
    "traced cover": (
        lambda: jax.jit(lambda w: js.convert(w, "2x2"))(js.fromdense(DENSE, "unstructured")),
        "inside jit",
    ),
    "traced outputs": (lambda: jax.jit(lambda d: patterns.similar_outputs(d, 2))(DENSE), "traced"),
    "width": (lambda: patterns.similar_outputs(DENSE, 0), "positive int"),
    "too little room": (
        lambda: js.fromdense(DENSE, "unstructured", capacity=23),
        "number of weights must be an int from 24",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_makes_no_pattern_is_refused_with_the_rule(name):
    function, words = REFUSED[name]
    with pytest.raises(ValueError, match=words):
        function()


def test_from_rows_refuses_a_mask_and_says_how_to_list_its_rows():
    with pytest.raises(TypeError, match="rows must be ints, got bool. Use np.flatnonzero"):
        patterns.from_rows(DENSE[:, 0] > 0, "unstructured", (4, 6))


# Statistics and pictures --------------------------------------------------------------------------


def test_statistics_count_weights_and_groups():
    dense = np.zeros((2, 3), np.float32)
    dense[0, :2] = 1
    counts = patterns.statistics(js.fromdense(dense, "unstructured"))
    assert (counts.num_blocks, counts.grid, counts.density) == (2, (2, 3), 2 / 6)
    assert (counts.per_row, counts.per_col) == ((0, 1.0, 2), (0, 2 / 3, 1))
    assert (counts.empty_rows, counts.empty_cols, counts.imbalance) == (1, 1, 1.5)
    assert counts.index_bytes == 8
    counts = patterns.statistics(js.fromdense(dense, "grouped:2"))
    assert (counts.num_blocks, counts.grid, counts.index_bytes) == (1, (2, 2), 4 + 16)


def test_picture_has_a_character_per_weight():
    text = patterns.picture(js.fromdense(np.eye(3, dtype=np.float32), "unstructured"))
    assert text.splitlines()[1:] == ["+---+", "|█  |", "| █ |", "|  █|", "+---+"]


# Properties ---------------------------------------------------------------------------------------

layouts = st.sampled_from([((7, 9), "unstructured"), ((2, 3, 7), "grouped:3"), ((5, 4), "3x2")])


@settings(max_examples=12)  # every number of weights is compiled anew
@given(layouts, layouts, st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_any_weight_comes_back_from_any_format(layout, other, seed, density):
    shape, format = layout
    rng = np.random.default_rng(seed)
    _, dense = drawn(rng, density, shape)
    order = rng.permutation(shape[-1]) if format.startswith("grouped") else None
    w = js.fromdense(dense, format, order=order)
    oracle.equal_exactly(w.todense(), dense)
    assert bool(w.pattern.is_valid())
    again = js.convert(js.convert(w, other[1]), "unstructured")
    oracle.equal_exactly(again.todense(), dense)
    listed = patterns.from_coordinates(
        np.argwhere(np.asarray(w.pattern.mask())), format, shape, order=order
    )
    jax.tree.map(np.testing.assert_array_equal, listed, w.pattern)
    residual = js.with_residual(dense, format, order=order) if format != "unstructured" else w
    oracle.equal_exactly(residual.todense(), dense)
