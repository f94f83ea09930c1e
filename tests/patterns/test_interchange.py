"""Sparse weights as matrices of other libraries, and back: the same entries, to the bit."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from jax.experimental import sparse
from machine import need

import jaxsparse as js
from jaxsparse import patterns

MATRIX, KERNEL = (14, 10), (2, 3, 5, 10)
ORDER = np.array([3, 9, 0, 7, 1, 2, 8, 4, 6, 5])
every_format = pytest.mark.parametrize(
    ("format", "order"),
    [("unstructured", None), ("4x4", None), ("grouped:4", None), ("grouped:4", ORDER)],
    ids=["unstructured", "block", "grouped", "grouped_in_order"],
)
every_shape = pytest.mark.parametrize("shape", [MATRIX, KERNEL], ids=["matrix", "kernel"])
every_kind = pytest.mark.parametrize("kind", ["bcoo", "bcsr", "scipy"])
TYPES = {"bcoo": sparse.BCOO, "bcsr": sparse.BCSR}


def drawn(rng, shape=MATRIX):
    """With stored zeros of both signs in every format: some entries of a mask are zero."""
    mask = rng.random(shape) < 0.3
    dense = oracle.small_integers(rng, shape) * mask
    dense.ravel()[np.flatnonzero(mask)[::3]] = 0.0
    dense.ravel()[np.flatnonzero(mask)[1::6]] = -0.0
    return dense.astype(np.float32), mask


def weight(rng, format, order=None, shape=MATRIX):
    dense, mask = drawn(rng, shape)
    pattern = patterns.from_mask(mask, format, order=order)
    return js.SparseWeight(pattern.gather(jnp.asarray(dense)), pattern)


def dense_of(matrix):
    return np.asarray(matrix.todense())


def same_bits(one, other):
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), one, other)
    np.testing.assert_array_equal(np.signbit(one.values), np.signbit(other.values))


@every_format
@every_shape
@every_kind
def test_a_weight_comes_back_from_every_library_to_the_bit(kind, format, order, shape, rng):
    need("scipy")
    w = weight(rng, format, order, shape)
    matrix = js.tosparse(w, kind)
    np.testing.assert_array_equal(dense_of(matrix), w.todense().reshape(matrix.shape))
    same_bits(js.fromsparse(matrix, w.format, shape=shape, order=order), w)


@every_format
@every_kind
def test_all_that_is_stored_is_an_entry_in_row_major_order(kind, format, order, rng):
    """Zeros too, but nothing of what blocks and groups store beyond the weight's edge."""
    need("scipy")
    w = weight(rng, format, order)
    matrix = js.tosparse(w, kind)
    rows, cols = np.nonzero(np.asarray(w.pattern.mask()))
    if kind == "bcoo":
        assert isinstance(matrix, sparse.BCOO)
        np.testing.assert_array_equal(matrix.indices, np.stack([rows, cols], axis=1))
        assert matrix.indices_sorted
        assert matrix.unique_indices
    else:
        np.testing.assert_array_equal(matrix.indices, cols)
        starts = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=w.shape[0]))])
        np.testing.assert_array_equal(matrix.indptr, starts)
    assert matrix.data.dtype == np.float32


@every_kind
def test_a_sum_of_weights_is_one_matrix_with_each_place_once(kind, rng):
    need("scipy")
    dense, _ = drawn(rng)
    w = js.with_residual(dense, "2x2", filled=0.5)
    twice = js.WeightSum((*w.parts, w.parts[0]))
    matrix = js.tosparse(twice, kind)
    np.testing.assert_array_equal(dense_of(matrix), twice.todense())
    stored = np.logical_or.reduce([np.asarray(p.pattern.mask()) for p in w.parts])
    assert len(matrix.data) == stored.sum()


@every_kind
@pytest.mark.parametrize("format", ["4x4", "unstructured"])
def test_an_empty_weight_is_an_empty_matrix(kind, format):
    need("scipy")
    w = js.fromdense(np.zeros(MATRIX, np.float32), format)
    matrix = js.tosparse(w, kind)
    assert (matrix.shape, len(matrix.data)) == (MATRIX, 0)
    assert js.fromsparse(matrix, format).pattern.capacity == 0


@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "float16", "int32"])
def test_every_dtype_comes_back_from_bcoo(dtype, rng):
    with jax.enable_x64(dtype == "float64"):
        w = weight(rng, "4x4").astype(dtype)
        again = js.fromsparse(js.tosparse(w, "bcoo"), "4x4")
        assert again.dtype == dtype
        np.testing.assert_array_equal(again.values, w.values)


def test_a_million_inputs_are_never_written_as_a_dense_matrix():
    need("scipy")
    places = [[0, 5], [999_999, 999]]
    pattern = patterns.from_coordinates(places, "unstructured", (1_000_000, 1000))
    matrix = js.tosparse(js.SparseWeight(jnp.ones(2), pattern), "scipy")
    assert (matrix[0, 5], matrix[999_999, 999], matrix.nnz) == (1, 1, 2)


# Inside jit ---------------------------------------------------------------------------------------


@every_format
def test_bcoo_is_made_inside_jit_with_unused_places_as_its_padding(format, order, rng):
    dense, _ = drawn(rng)
    capacity = {"unstructured": 120, "4x4": 12, "grouped:4": 41}[format]

    @jax.jit
    def made(dense, x):
        matrix = js.tosparse(js.fromdense(dense, format, capacity=capacity, order=order), "bcoo")
        return matrix, x @ matrix

    x = jnp.asarray(oracle.small_integers(rng, (3, 14)), jnp.float32)
    matrix, y = made(jnp.asarray(dense), x)
    known = js.fromdense(dense, format, order=order)
    np.testing.assert_array_equal(dense_of(matrix), dense)
    np.testing.assert_array_equal(y, np.asarray(x) @ dense)
    again = js.fromsparse(matrix, format, order=order)
    jax.tree.map(np.testing.assert_array_equal, again, known)


def lost(format):
    """A pattern with too little room, made where that is not known."""
    return jax.jit(lambda mask: patterns.from_mask(mask, format, capacity=2))(
        jnp.ones(MATRIX, bool)
    )


@pytest.mark.parametrize("format", ["4x4", "unstructured"])
@pytest.mark.parametrize("dtype", ["float32", "int32"])
def test_a_pattern_that_lost_parts_inside_jit_shows_in_the_bcoo(format, dtype):
    pattern = lost(format)
    w = js.SparseWeight(jnp.ones(pattern.values_shape, dtype), pattern)
    made = jax.jit(lambda w: js.tosparse(w, "bcoo"))(w)
    bad = np.isnan if dtype == "float32" else lambda a: a == np.iinfo(np.int32).min
    assert bad(dense_of(made)).sum() == len(made.data) == w.values.size


@every_kind
def test_a_known_pattern_takes_traced_values_and_gives_their_gradient(kind, rng):
    w = weight(rng, "4x4")
    x = jnp.asarray(oracle.small_integers(rng, (3, 14)), jnp.float32)
    loss = lambda values: jnp.sum(x @ js.tosparse(w.with_values(values), kind).todense())
    if kind == "scipy":
        with pytest.raises(ValueError, match='"scipy" takes known values, got traced ones'):
            jax.grad(loss)(w.values)
        return
    expected = jax.grad(lambda values: jnp.sum(x @ w.with_values(values).todense()))(w.values)
    np.testing.assert_array_equal(jax.jit(jax.grad(loss))(w.values), expected)


# Bad input ----------------------------------------------------------------------------------------


def test_bad_input_gets_a_sentence(rng):
    w = weight(rng, "4x4")
    unusable = js.SparseWeight(jnp.ones((2, 4, 4)), lost("4x4"))
    stacked = jax.tree.map(lambda *a: jnp.stack(a), w, w)
    matrix = js.tosparse(w, "bcoo")
    for function, error, words in (
        (lambda: js.tosparse(w, "csr"), ValueError, '"bcoo", "bcsr" or "scipy", got \'csr\''),
        (lambda: js.tosparse(w.todense(), "bcoo"), TypeError, "For arrays use fromdense"),
        (lambda: js.tosparse(unusable, "bcoo"), ValueError, "pattern is not usable"),
        (lambda: js.tosparse(stacked, "bcoo"), ValueError, "Map over them with jax.vmap"),
        (
            lambda: jax.jit(lambda w: js.tosparse(w, "bcsr").data)(w),
            ValueError,
            "got a traced pattern",
        ),
        (lambda: js.tosparse(w.astype("bfloat16"), "scipy"), TypeError, "SciPy has no sparse"),
        (
            lambda: js.fromsparse(matrix, "4x4", shape=(3, 5, 10)),
            ValueError,
            r"matrix view \(15, 10\), got a matrix of shape \(14, 10\)",
        ),
    ):
        with pytest.raises(error, match=words):
            function()
