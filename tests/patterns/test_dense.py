"""Sparse weights from dense arrays and other libraries' matrices: what is kept, exactly."""

import contextlib
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
SHAPE, BLOCK, GRID = (70, 90), (16, 16), (5, 6)


def block_sparse(rng, shape=SHAPE, block=BLOCK, density=0.4, dtype="float32"):
    """A dense array that is zero outside of some blocks, and the grid of these."""
    grid = rng.random(oracle.grid_of(shape, block)) < density
    i, o = np.indices(shape)
    return (oracle.small_integers(rng, shape) * grid[i // block[0], o // block[1]]).astype(
        dtype
    ), grid


def norms_by_definition(w, block=BLOCK):
    """In float64, one loop per block."""
    w = np.asarray(w, np.float64)
    grid = oracle.grid_of(w.shape, block)
    cut = lambda r, c: w[r * block[0] : (r + 1) * block[0], c * block[1] : (c + 1) * block[1]]
    return np.array([[np.linalg.norm(cut(r, c)) for c in range(grid[1])] for r in range(grid[0])])


# fromdense ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["16x16", (16, 16), js.Block((16, 16))], ids=str)
def test_fromdense_without_options_is_exact_and_stores_no_zero_block(format, rng):
    dense, grid = block_sparse(rng)
    w = js.fromdense(dense, format)
    assert (w.shape, w.dtype, w.format) == (SHAPE, jnp.float32, js.Block((16, 16)))
    np.testing.assert_array_equal(w.pattern.grid_mask(), grid)
    assert w.pattern.capacity == grid.sum()
    oracle.equal_exactly(w.todense(), dense)


@pytest.mark.parametrize(
    "dtype", ["float32", "bfloat16", "float16", "float64", "int8", "int32", "complex64"]
)
def test_fromdense_takes_every_dtype(dtype, rng):
    dense, _ = block_sparse(rng)
    with jax.enable_x64(True) if dtype == "float64" else contextlib.nullcontext():
        w = js.fromdense(jnp.asarray(dense, dtype), "8x8")
        assert w.dtype == dtype
        np.testing.assert_array_equal(np.asarray(w.todense()), dense.astype(jnp.dtype(dtype)))


@pytest.mark.parametrize(
    "kind", [np.asarray, jnp.asarray, np.ndarray.tolist], ids=["numpy", "jax", "list"]
)
def test_fromdense_takes_arrays_and_lists(kind):
    w = js.fromdense(kind(np.eye(6, dtype=np.float32)), "2x2")
    assert w.pattern.capacity == 3
    np.testing.assert_array_equal(w.todense(), np.eye(6))


def test_fromdense_pads_ragged_blocks_with_zeros(rng):
    w = js.fromdense(oracle.small_integers(rng, SHAPE).astype(np.float32), "16x16")
    values = np.asarray(w.values)
    rows, cols = np.asarray(w.pattern.rows), np.asarray(w.pattern.cols)
    assert (values[rows == 4][:, 6:] == 0).all()
    assert (values[cols == 5][:, :, 10:] == 0).all()
    assert np.count_nonzero(values) == 70 * 90


def test_fromdense_with_remainder_error_takes_what_divides():
    w = js.fromdense(jnp.ones((32, 48)), "16x16", remainder="error")
    assert w.pattern.capacity == 6


@pytest.mark.parametrize("sparsity", [0, 0.5, 0.9, 1])
def test_fromdense_with_sparsity_keeps_the_blocks_of_largest_norm(sparsity, rng):
    dense = rng.standard_normal(SHAPE).astype(np.float32)
    w = js.fromdense(dense, BLOCK, sparsity=sparsity)
    count = round((1 - sparsity) * 30)
    norms = norms_by_definition(dense)
    kept = norms >= np.sort(norms.ravel())[::-1][count - 1] if count else np.zeros(GRID, bool)
    np.testing.assert_array_equal(w.pattern.grid_mask(), kept)
    i, o = np.indices(SHAPE)
    np.testing.assert_array_equal(w.todense(), dense * kept[i // 16, o // 16])


def test_fromdense_with_mask_drops_what_is_false(rng):
    dense = rng.standard_normal(SHAPE).astype(np.float32)
    mask = rng.random(SHAPE) < 0.01
    w = js.fromdense(dense, BLOCK, mask=mask)
    np.testing.assert_array_equal(w.todense(), dense * mask)
    np.testing.assert_array_equal(
        w.pattern.grid_mask(), patterns.from_mask(mask, BLOCK).grid_mask()
    )


def test_fromdense_with_mask_drops_nan_where_it_is_false():
    dense = np.full((32, 32), np.nan, np.float32)
    dense[:8, :8] = 1
    w = js.fromdense(dense, "16x16", mask=~np.isnan(dense))
    np.testing.assert_array_equal(w.todense(), np.nan_to_num(dense))


def test_fromdense_keeps_nan_and_infinity():
    dense = np.zeros((32, 32), np.float32)
    dense[0, 0], dense[20, 20] = np.nan, -np.inf
    w = js.fromdense(dense, "16x16")
    assert w.pattern.capacity == 2
    np.testing.assert_array_equal(w.todense(), dense)


def test_fromdense_stores_a_block_of_the_smallest_number_and_none_of_negative_zeros():
    dense = np.zeros((32, 32), np.float32)
    dense[0, 0], dense[20, 20] = 1e-38, -0.0
    assert js.fromdense(dense, "16x16").pattern.capacity == 1


@pytest.mark.parametrize("capacity", [12, 30])
def test_fromdense_of_a_traced_array_takes_a_capacity(capacity, rng):
    dense, grid = block_sparse(rng, density=0.3)
    make = functools.partial(js.fromdense, format=BLOCK, capacity=capacity)
    w = jax.jit(make)(dense)
    assert grid.sum() <= 12
    assert w.pattern.capacity == capacity
    np.testing.assert_array_equal(w.pattern.grid_mask(), grid)
    oracle.equal_exactly(w.todense(), dense)
    outside = make(dense)
    np.testing.assert_array_equal(w.values, outside.values)
    np.testing.assert_array_equal(w.pattern.rows, outside.pattern.rows)


@pytest.mark.parametrize("options", [{"sparsity": 0.5}, {"capacity": 30}], ids=str)
def test_fromdense_inside_jit_equals_outside(options, rng):
    dense = jnp.asarray(rng.standard_normal(SHAPE), "float32")
    make = functools.partial(js.fromdense, format=BLOCK, **options)
    inside, outside = jax.jit(make)(dense), make(dense)
    jax.tree.map(np.testing.assert_array_equal, inside, outside)


def test_fromdense_is_differentiable_by_the_entries_it_keeps(rng):
    dense, _ = block_sparse(rng)
    total = lambda d: jnp.sum(js.fromdense(d, BLOCK, capacity=30).values ** 2)
    oracle.equal_exactly(jax.grad(total)(jnp.asarray(dense)), 2 * dense)
    total = lambda d: jnp.sum(js.fromdense(d, BLOCK, sparsity=0.5).values)
    kept = np.asarray(js.fromdense(dense, BLOCK, sparsity=0.5).pattern.mask())
    oracle.equal_exactly(jax.grad(total)(jnp.asarray(dense)), kept.astype(np.float64))


def test_fromdense_under_vmap_gives_each_weight_its_pattern(rng):
    several = jnp.asarray(rng.standard_normal((3, *SHAPE)), "float32")
    make = functools.partial(js.fromdense, format=BLOCK, sparsity=0.7)
    together = jax.vmap(make)(several)
    for i in range(3):
        one = jax.tree.map(lambda leaf, i=i: leaf[i], together)
        jax.tree.map(np.testing.assert_array_equal, one, make(several[i]))


@pytest.mark.parametrize("shape", [(3, 3, 8, 16), (5, 8, 16)], ids=str)
def test_fromdense_takes_weights_with_kernel_axes(shape, rng):
    dense = oracle.small_integers(rng, shape).astype(np.float32)
    w = js.fromdense(dense, "8x8")
    assert (w.shape, w.ndim) == (shape, len(shape))
    oracle.equal_exactly(w.todense(), dense)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0)], ids=str)
def test_fromdense_of_an_array_without_entries_is_empty(shape):
    w = js.fromdense(np.zeros(shape, np.float32), "8x8")
    assert w.todense().shape == shape


# block_norms, norm_kept, restrict -----------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int32", "complex64"])
def test_block_norms_equal_definition(dtype, rng):
    dense = jnp.asarray(oracle.small_integers(rng, SHAPE), dtype)
    norms = js.block_norms(dense, BLOCK)
    assert norms.dtype == jnp.float32
    np.testing.assert_allclose(norms, norms_by_definition(np.abs(np.asarray(dense))), rtol=1e-6)


def test_block_norms_of_a_sparse_weight_are_those_of_its_dense_array(rng):
    dense, grid = block_sparse(rng)
    norms = js.block_norms(js.fromdense(dense, BLOCK), BLOCK)
    np.testing.assert_allclose(norms, norms_by_definition(dense), rtol=1e-6)
    assert ((np.asarray(norms) > 0) == grid).all()


@pytest.mark.parametrize(
    ("dtype", "factor"),
    [
        ("float32", 1.6e38),
        ("float32", 1.2e-38),
        ("float16", 6e4),
        ("bfloat16", 1e38),
        ("float64", 1e-300),
        ("float64", 1e300),
    ],
)
def test_block_norms_neither_overflow_nor_vanish(dtype, factor):
    with jax.enable_x64(True) if dtype == "float64" else contextlib.nullcontext():
        dense = jnp.full((2, 4), factor, dtype)
        norms = np.asarray(js.block_norms(dense, "2x2"), np.float64)
    np.testing.assert_allclose(norms, 2 * np.asarray(dense, np.float64)[:1, :2], rtol=1e-6)


def test_block_norms_tell_small_blocks_apart_beside_a_huge_one():
    """Scaled by the largest entry of all, squares of the small ones would vanish."""
    dense = jnp.asarray([[1e30, 1e-3, 2e-3, 0]], "float32")
    norms = js.block_norms(dense, "1x1")
    np.testing.assert_allclose(norms, dense, rtol=1e-6)


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_block_norms_show_special_numbers_in_their_block_only(number):
    dense = np.ones((32, 48), np.float32)
    dense[20, 20] = number
    norms = np.array(js.block_norms(dense, "16x16"))
    np.testing.assert_array_equal(norms[1, 1], number)
    norms[1, 1] = 16
    np.testing.assert_allclose(norms, 16, rtol=1e-6)


def test_norm_kept_is_the_share_of_the_norm(rng):
    dense = rng.standard_normal(SHAPE).astype(np.float32)
    w = js.fromdense(dense, BLOCK, sparsity=0.5)
    share = np.linalg.norm(np.asarray(w.todense(), np.float64)) / np.linalg.norm(
        dense.astype(np.float64)
    )
    np.testing.assert_allclose(js.norm_kept(dense, w), share, rtol=1e-5)
    assert js.norm_kept(jnp.zeros(SHAPE), jnp.zeros(SHAPE)) == 1
    np.testing.assert_allclose(js.norm_kept(w, w), 1, rtol=1e-6)


@pytest.mark.parametrize("factor", [1e-30, 1e30])
def test_norm_kept_neither_overflows_nor_vanishes(factor):
    original = jnp.asarray([[3 * factor, 4 * factor]], "float32")
    projected = jnp.asarray([[3 * factor, 0]], "float32")
    np.testing.assert_allclose(js.norm_kept(original, projected), 0.6, rtol=1e-5)


def test_restrict_leaves_exact_zeros_off_the_pattern(rng):
    dense, grid = block_sparse(rng)
    pattern = patterns.from_grid(grid, BLOCK, SHAPE)
    everywhere = jnp.where(dense == 0, jnp.nan, dense)
    np.testing.assert_array_equal(pattern.restrict(everywhere), dense)


# fromsparse ---------------------------------------------------------------------------------------


def assert_same_matrix(w, dense):
    np.testing.assert_array_equal(w.todense(), dense)
    np.testing.assert_array_equal(
        w.pattern.grid_mask(), patterns.from_mask(np.asarray(dense) != 0, w.format).grid_mask()
    )


@pytest.mark.parametrize("kind", ["csr", "csc", "coo", "bsr", "lil", "dok", "dia"])
@pytest.mark.parametrize("container", ["matrix", "array"])
def test_fromsparse_takes_every_kind_of_scipy_matrix(kind, container, rng):
    need("scipy")
    import scipy.sparse

    dense, _ = block_sparse(rng)
    matrix = getattr(scipy.sparse, f"{kind}_{container}")(dense)
    assert_same_matrix(js.fromsparse(matrix, BLOCK), dense)


@pytest.mark.parametrize("kind", [sparse.BCOO, sparse.BCSR])
@pytest.mark.parametrize("nse", [None, 6000])
def test_fromsparse_takes_sparse_matrices_of_jax(kind, nse, rng):
    dense, _ = block_sparse(rng, density=0.3)
    matrix = kind.fromdense(jnp.asarray(dense), nse=nse)
    assert_same_matrix(js.fromsparse(matrix, BLOCK), dense)


def test_fromsparse_adds_entries_stored_twice():
    need("scipy")
    import scipy.sparse

    matrix = scipy.sparse.coo_array((np.float32([1, 2, 4]), ([0, 0, 3], [1, 1, 3])), shape=(4, 4))
    w = js.fromsparse(matrix, "2x2")
    assert w.todense()[0, 1] == 3
    assert w.todense()[3, 3] == 4


def test_fromsparse_stores_blocks_of_stored_zeros():
    need("scipy")
    import scipy.sparse

    matrix = scipy.sparse.coo_array((np.float32([0.0]), ([5], [5])), shape=(8, 8))
    assert js.fromsparse(matrix, "4x4").pattern.rows.tolist() == [1]


def test_fromsparse_of_an_empty_matrix_stores_nothing():
    need("scipy")
    import scipy.sparse

    w = js.fromsparse(scipy.sparse.csr_array((8, 8), dtype=np.float32), "4x4", capacity=2)
    assert w.pattern.capacity == 2
    np.testing.assert_array_equal(w.todense(), np.zeros((8, 8)))


def test_fromsparse_never_writes_the_dense_matrix():
    """A million by a million floats would take 4 TB."""
    need("scipy")
    import scipy.sparse

    size = 1_000_000
    matrix = scipy.sparse.coo_array(
        (np.float32([1, 2]), ([0, size - 1], [5, size - 1])), shape=(size, size)
    )
    w = js.fromsparse(matrix, (1000, 1000))
    assert w.pattern.rows.tolist() == [0, 999]
    assert float(w.values.sum()) == 3
    np.testing.assert_array_equal(js.sddmm(jnp.ones((0, size)), jnp.ones((0, size)), w.pattern), 0)


def test_fromsparse_refuses_batched_matrices():
    matrix = sparse.BCOO.fromdense(jnp.ones((2, 4, 4)), n_batch=1)
    with pytest.raises(ValueError, match="batch"):
        js.fromsparse(matrix, "2x2")


# convert ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["1x1", "8x8", "32x32", "5x7", "128x128"])
def test_convert_that_covers_loses_nothing_and_stores_no_more_than_it_must(format, rng):
    dense, _ = block_sparse(rng)
    w = js.fromdense(dense, BLOCK)
    wide = js.convert(w, format)
    assert (str(wide.format), wide.shape, wide.dtype) == (format, SHAPE, w.dtype)
    oracle.equal_exactly(wide.todense(), dense)
    np.testing.assert_array_equal(
        wide.pattern.grid_mask(), patterns.from_mask(w.pattern.mask(), wide.format).grid_mask()
    )


def test_convert_there_and_back_stores_the_same_blocks(rng):
    dense, _ = block_sparse(rng)
    w = js.fromdense(dense, BLOCK)
    again = js.convert(js.convert(w, "4x4"), BLOCK)
    jax.tree.map(np.testing.assert_array_equal, w, again)


def test_convert_that_projects_keeps_the_blocks_of_largest_norm(rng):
    dense = rng.standard_normal(SHAPE).astype(np.float32)
    w = js.fromdense(dense, BLOCK, sparsity=0.5)
    projected = js.convert(w, "8x8", "project", sparsity=0.75)
    expected = js.fromdense(w.todense(), "8x8", sparsity=0.75)
    jax.tree.map(np.testing.assert_array_equal, projected, expected)
    assert 0 < js.norm_kept(w, projected) < 1


def test_convert_that_projects_stores_as_much_as_before_by_default(rng):
    w = js.fromdense(jnp.asarray(rng.standard_normal((64, 96)), "float32"), BLOCK, sparsity=0.5)
    assert js.convert(w, "8x8", "project").density == w.density


def test_convert_that_projects_works_inside_jit(rng):
    w = js.fromdense(jnp.asarray(rng.standard_normal(SHAPE), "float32"), BLOCK, sparsity=0.5)
    convert = lambda w: js.convert(w, "8x8", "project")
    jax.tree.map(np.testing.assert_array_equal, jax.jit(convert)(w), convert(w))


# Properties ---------------------------------------------------------------------------------------

# Few shapes: each is compiled once.
layouts = st.sampled_from([((7, 40), (3, 5)), ((33, 20), (16, 32)), ((2, 3, 6), (4, 4))])


@given(layouts, st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_any_dense_array_comes_back_from_its_sparse_weight(layout, seed, density):
    shape, block = layout
    rng = np.random.default_rng(seed)
    dense = oracle.small_integers(rng, shape) * (rng.random(shape) < density)
    grid = js.Block(block).grid(shape)
    w = js.fromdense(dense.astype(np.float32), block, capacity=grid[0] * grid[1])
    oracle.equal_exactly(w.todense(), dense)
    np.testing.assert_array_equal(w.pattern.gather(w.todense()), w.values)


@given(st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_any_sparsity_keeps_the_rounded_number_of_blocks_and_most_of_the_norm(seed, sparsity):
    dense = np.random.default_rng(seed).standard_normal((7, 40)).astype(np.float32)
    norms = np.sort(norms_by_definition(dense, (3, 5)).ravel())[::-1]
    w = js.fromdense(dense, (3, 5), sparsity=sparsity)
    count = round((1 - sparsity) * norms.size)
    assert w.pattern.capacity == count
    kept = np.linalg.norm(np.asarray(w.values, np.float64))
    np.testing.assert_allclose(kept, np.linalg.norm(norms[:count]), rtol=1e-6)
