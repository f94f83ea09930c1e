"""What is wrong is refused, with words that say what; nothing crashes or is silently wrong."""

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from machine import need

import jaxsparse as js
from jaxsparse import patterns
from jaxsparse.formats.block import BlockPattern

LAYER = cases.make("tiles_ragged")  # x [2, 70], w [70, 90], blocks 16x16, a grid of 5 x 6
X, G, W = LAYER.array("x"), LAYER.array("g"), LAYER.weight()
DENSE = jnp.float32(LAYER.dense())
P = W.pattern
SHAPE = (70, 90)
SCORES = jnp.zeros((5, 6))
sparse_like = js.SparseWeight
half = lambda a: a.astype(jnp.bfloat16)


def call(function, *arguments, **options):
    return function, arguments, options


BAD = {
    # name: (what is called, the error, words that must appear in it)
    # matmul: shapes and dtypes
    "matmul_features": (call(js.matmul, X[:, :7], W), ValueError, ["matmul", "70", "(2, 7)"]),
    "matmul_scalar": (call(js.matmul, jnp.float32(1), W), ValueError, ["matmul", "no axes"]),
    "matmul_x_dtype": (call(js.matmul, half(X), W), TypeError, ["bfloat16", "float32", "Cast"]),
    "matmul_x_bool": (call(js.matmul, X > 0, W), TypeError, ["numbers", "bool"]),
    "matmul_x_objects": (
        call(js.matmul, np.array([[1, None]]), W),
        TypeError,
        ["x must hold numbers", "object"],
    ),
    "matmul_x_texts": (call(js.matmul, np.array([["1"]]), W), TypeError, ["x must hold", "U1"]),
    "matmul_x_ragged": (call(js.matmul, [[1.0, 2.0], [1.0]], W), TypeError, ["x must be", "list"]),
    "matmul_w_tuple": (
        call(js.matmul, X, (W, W)),
        TypeError,
        ["w must be an array", "a tuple", "WeightSum"],
    ),
    "matmul_w_objects": (
        call(js.matmul, X, np.full((70, 90), None)),
        TypeError,
        ["w must hold numbers", "object"],
    ),
    "matmul_x_none": (call(js.matmul, None, W), TypeError, ["x must be an array", "NoneType"]),
    "matmul_x_text": (call(js.matmul, "x", W), TypeError, ["x must be an array", "str"]),
    "matmul_w_none": (call(js.matmul, X, None), TypeError, ["w must be an array", "NoneType"]),
    "matmul_w_pattern": (call(js.matmul, X, P), TypeError, ["w must be an array", "BlockPattern"]),
    "matmul_w_rank": (call(js.matmul, X, jnp.ones((70,))), ValueError, ["two axes", "(70,)"]),
    "matmul_w_dense_shape": (call(js.matmul, X, jnp.ones((71, 90))), ValueError, ["71"]),
    "matmul_w_int": (call(js.matmul, X, W.astype(jnp.int32)), TypeError, ["int32", "float32"]),
    "matmul_values_count": (
        call(js.matmul, X, sparse_like(W.values[1:], P)),
        ValueError,
        ["values must have shape", "(15, 16, 16)"],
    ),
    "matmul_values_block": (
        call(js.matmul, X, sparse_like(W.values[:, :8], P)),
        ValueError,
        ["values must have shape", "(15, 16, 16)"],
    ),
    "matmul_values_rank": (
        call(js.matmul, X, sparse_like(W.values[0], P)),
        ValueError,
        ["values must have shape"],
    ),
    "matmul_values_none": (
        call(js.matmul, X, sparse_like(None, P)),
        TypeError,
        ["values", "must be an array", "NoneType"],
    ),
    "matmul_values_pattern_none": (
        call(js.matmul, X, sparse_like(W.values, None)),
        TypeError,
        ["pattern", "NoneType"],
    ),
    "matmul_two_patterns": (call(js.matmul, X, W, pattern=P), ValueError, ["pattern", "Drop it"]),
    "matmul_pattern_shape": (
        call(js.matmul, X, DENSE, pattern=patterns.full("16x16", (70, 91))),
        ValueError,
        ["(70, 91)", "(70, 90)"],
    ),
    # matmul: options
    "matmul_implementation": (
        call(js.matmul, X, W, implementation="fast"),
        ValueError,
        ["implementation", '"ffi"', "'fast'"],
    ),
    "matmul_implementation_true": (
        call(js.matmul, X, W, implementation=True),
        ValueError,
        ["implementation", "True"],
    ),
    "matmul_grad": (call(js.matmul, X, W, grad="masked"), ValueError, ["grad", "'masked'"]),
    "matmul_grad_none": (call(js.matmul, X, W, grad=None), ValueError, ["grad", "None"]),
    "matmul_ffi_dense": (
        call(js.matmul, X, DENSE, implementation="ffi"),
        ValueError,
        ["ffi", "sparse weight", "fromdense"],
    ),
    # sddmm
    "sddmm_a": (call(js.sddmm, X[:, :7], G, P), ValueError, ["sddmm", "70", "(2, 7)"]),
    "sddmm_b": (call(js.sddmm, X, G[:, :7], P), ValueError, ["sddmm", "90", "(2, 7)"]),
    "sddmm_batch": (call(js.sddmm, X, G[:1], P), ValueError, ["batch axes", "(2, 70)", "(1, 90)"]),
    "sddmm_dtype": (call(js.sddmm, X, half(G), P), TypeError, ["bfloat16", "float32"]),
    "sddmm_no_pattern": (call(js.sddmm, X, G, None), TypeError, ["pattern", "NoneType"]),
    "sddmm_weight": (call(js.sddmm, X, G, W), TypeError, ["pattern", "SparseWeight"]),
    "sddmm_bool": (call(js.sddmm, X > 0, G > 0, P), TypeError, ["numbers", "bool"]),
    "sddmm_implementation": (
        call(js.sddmm, X, G, P, implementation="cuda"),
        ValueError,
        ["sddmm", "'cuda'"],
    ),
    # weights
    "with_values": (call(W.with_values, W.values[1:]), ValueError, ["with_values", "(15, 16, 16)"]),
    "with_pattern": (
        call(W.with_pattern, patterns.full("16x16", (70, 91))),
        ValueError,
        ["with_pattern", "(70, 91)"],
    ),
    "gather": (call(P.gather, DENSE[1:]), ValueError, ["gather", "(70, 90)", "(69, 90)"]),
    # fromdense
    "fromdense_rank": (call(js.fromdense, jnp.ones(7), "8x8"), ValueError, ["two axes", "(7,)"]),
    "fromdense_scalar": (call(js.fromdense, 3.0, "8x8"), ValueError, ["two axes"]),
    "fromdense_bool": (call(js.fromdense, DENSE > 0, "8x8"), TypeError, ["numbers", "bool"]),
    "fromdense_text": (call(js.fromdense, "w", "8x8"), (TypeError, ValueError), []),
    "fromdense_both": (
        call(js.fromdense, DENSE, "8x8", sparsity=0.5, mask=DENSE > 0),
        ValueError,
        ["sparsity or mask"],
    ),
    "fromdense_mask_dtype": (
        call(js.fromdense, DENSE, "8x8", mask=jnp.ones(SHAPE)),
        TypeError,
        ["mask must be bool", "float32"],
    ),
    "fromdense_mask_shape": (
        call(js.fromdense, DENSE, "8x8", mask=DENSE[1:] > 0),
        ValueError,
        ["mask", "(69, 90)"],
    ),
    "fromdense_capacity": (
        call(js.fromdense, jnp.ones(SHAPE), "16x16", capacity=29),
        ValueError,
        ["30", "29"],
    ),
    "fromdense_capacity_and_sparsity": (
        call(js.fromdense, DENSE, "16x16", capacity=29, sparsity=0.5),
        ValueError,
        ["sparsity fixes the capacity"],
    ),
    "fromdense_remainder": (
        call(js.fromdense, DENSE, "16x16", remainder="error"),
        ValueError,
        ["16x16", "(70, 90)", "tile"],
    ),
    "fromdense_remainder_name": (
        call(js.fromdense, DENSE, "16x16", remainder="drop"),
        ValueError,
        ["remainder", "'drop'"],
    ),
    **{
        f"fromdense_sparsity_{sparsity!r}": (
            call(js.fromdense, DENSE, "16x16", sparsity=sparsity),
            ValueError,
            ["sparsity", "from 0 to 1", repr(sparsity)],
        )
        for sparsity in (-0.1, 1.1, float("nan"), float("inf"), True, "0.5", (0.5,))
    },
    **{
        f"format_{given!r}": (call(js.fromdense, DENSE, given), error, words)
        for given, error, words in [
            ("32", ValueError, ["format", "'32'"]),
            ("axb", ValueError, ["format", "'axb'"]),
            ("0x8", ValueError, ["positive"]),
            ("-8x8", ValueError, ["format"]),
            ("8x8x8", ValueError, ["format"]),
            (None, TypeError, ["format", "NoneType"]),
            (8, TypeError, ["format", "int"]),
            ((8,), ValueError, ["two positive ints"]),
            ((8, 8, 8), ValueError, ["two positive ints"]),
            ((8, -8), ValueError, ["two positive ints"]),
            ((8, 0), ValueError, ["two positive ints"]),
            ((8.0, 8.0), ValueError, ["two positive ints"]),
            ((True, True), ValueError, ["two positive ints"]),
            ((8, 2**31), ValueError, ["two positive ints"]),
        ]
    },
    # Block
    **{
        f"Block_{given!r}": (call(js.Block, given), ValueError, ["two positive ints"])
        for given in (0, -1, True, None, "8x8", (1, 2, 3), (1.5, 2), ("8", "8"), 2**31)
    },
    # patterns
    "from_grid_shape": (
        call(patterns.from_grid, np.ones((5, 5), bool), "16x16", SHAPE),
        ValueError,
        ["(5, 6)", "(5, 5)"],
    ),
    "from_grid_dtype": (
        call(patterns.from_grid, np.ones((5, 6)), "16x16", SHAPE),
        TypeError,
        ["bool", "float64"],
    ),
    "from_grid_capacity_small": (
        call(patterns.from_grid, np.ones((5, 6), bool), "16x16", SHAPE, capacity=29),
        ValueError,
        ["30", "29"],
    ),
    "from_grid_capacity_large": (
        call(patterns.from_grid, np.ones((5, 6), bool), "16x16", SHAPE, capacity=31),
        ValueError,
        ["30", "31"],
    ),
    "from_grid_capacity_bool": (
        call(patterns.from_grid, np.zeros((5, 6), bool), "16x16", SHAPE, capacity=True),
        ValueError,
        ["int", "True"],
    ),
    "from_mask_dtype": (call(patterns.from_mask, DENSE, "16x16"), TypeError, ["bool", "float32"]),
    "from_blocks_outside": (
        call(patterns.from_blocks, [0, 5], [0, 0], "16x16", SHAPE),
        ValueError,
        ["rows must be from 0 to 4", "5"],
    ),
    "from_blocks_outside_column": (
        call(patterns.from_blocks, [0, 0], [0, 6], "16x16", SHAPE),
        ValueError,
        ["columns must be from 0 to 5", "6"],
    ),
    "from_blocks_negative": (
        call(patterns.from_blocks, [0, -1], [0, 0], "16x16", SHAPE),
        ValueError,
        ["rows must be from 0 to 4", "-1"],
    ),
    "from_blocks_huge": (
        call(patterns.from_blocks, [2**31 - 1], [0], "16x16", SHAPE),
        ValueError,
        ["2147483647"],
    ),
    "from_blocks_beyond_int32": (
        call(patterns.from_blocks, np.array([2**32]), np.array([0]), "16x16", SHAPE),
        ValueError,
        ["4294967296"],
    ),
    "from_blocks_twice": (
        call(patterns.from_blocks, [1, 0, 1], [2, 0, 2], "16x16", SHAPE),
        ValueError,
        ["(row 1, column 2) twice"],
    ),
    "from_blocks_lengths": (
        call(patterns.from_blocks, [1, 0], [2], "16x16", SHAPE),
        ValueError,
        ["one length", "(2,)", "(1,)"],
    ),
    "from_blocks_rank": (
        call(patterns.from_blocks, [[1, 0]], [[2, 1]], "16x16", SHAPE),
        ValueError,
        ["one length"],
    ),
    "from_blocks_floats": (
        call(patterns.from_blocks, [1.0], [2.0], "16x16", SHAPE),
        TypeError,
        ["ints", "float64"],
    ),
    "from_blocks_bools": (
        call(patterns.from_blocks, [True], [False], "16x16", SHAPE),
        TypeError,
        ["ints", "bool"],
    ),
    "from_scores_shape": (
        call(patterns.from_scores, SCORES.T, "16x16", SHAPE, 3),
        ValueError,
        ["(5, 6)", "(6, 5)"],
    ),
    "from_scores_count": (
        call(patterns.from_scores, SCORES, "16x16", SHAPE, 31),
        ValueError,
        ["30", "31"],
    ),
    "from_scores_fraction": (
        call(patterns.from_scores, SCORES, "16x16", SHAPE, 0.5),
        ValueError,
        ["int", "0.5"],
    ),
    "random_sparsity": (
        call(patterns.random, jax.random.key(0), "16x16", SHAPE, sparsity=2),
        ValueError,
        ["random", "from 0 to 1", "2"],
    ),
    "shape_rank": (call(patterns.full, "16x16", (70,)), ValueError, ["two axes", "(70,)"]),
    "shape_negative": (call(patterns.full, "16x16", (-70, 90)), ValueError, ["negative"]),
    "shape_int": (call(patterns.full, "16x16", 70), ValueError, ["two axes", "70"]),
    "grid_beyond_int32": (
        call(patterns.from_blocks, [0], [0], "1x1", (2**16, 2**15)),
        ValueError,
        ["int32", "2147483648"],
    ),
    "exchange_scores": (
        call(patterns.exchange, P, SCORES, SCORES.T, 1),
        ValueError,
        ["grow_scores", "(5, 6)"],
    ),
    # conversions
    "fromsparse_dense": (call(js.fromsparse, DENSE, "8x8"), TypeError, ["fromdense"]),
    "convert_policy": (call(js.convert, W, "8x8", "best"), ValueError, ["policy", "'best'"]),
    "convert_cover_sparsity": (
        call(js.convert, W, "8x8", "cover", sparsity=0.5),
        ValueError,
        ["project"],
    ),
    "picture_width": (call(patterns.picture, P, width=0), ValueError, ["width", "0"]),
    "split_parts": (call(js.split_features, W, 0), ValueError, ["split_features"]),
    "split_remainder": (call(js.split_features, W, 4), ValueError, ["whole blocks", "16"]),
    "split_name": (call(js.split_features, W, 2, "rows"), ValueError, ["features", "'rows'"]),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_with_words_that_say_what(name):
    case, error, words = BAD[name]
    function, arguments, options = case
    with pytest.raises(error) as caught:
        jax.block_until_ready(function(*arguments, **options))
    for word in words:
        assert word in str(caught.value), str(caught.value)


@pytest.mark.parametrize("name", [n for n in BAD if n.startswith(("matmul_", "sddmm_"))])
def test_bad_input_of_an_op_is_refused_while_tracing(name):
    (function, arguments, options), error, words = BAD[name]
    is_array = lambda a: isinstance(a, (jax.Array, js.SparseWeight, BlockPattern))
    places = [i for i, a in enumerate(arguments) if is_array(a)]

    def traced(arrays):
        filled = list(arguments)
        for i, array in zip(places, arrays):
            filled[i] = array
        return function(*filled, **options)

    with pytest.raises(error) as caught:
        jax.jit(traced)([arguments[i] for i in places])
    for word in words:
        assert word in str(caught.value), str(caught.value)


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (lambda w: js.fromdense(w, "16x16"), (DENSE,)),
        (lambda m: patterns.from_mask(m, "16x16"), (DENSE > 0,)),
        (lambda m: patterns.from_grid(m, "16x16", SHAPE), (P.grid_mask(),)),
    ],
    ids=["fromdense", "from_mask", "from_grid"],
)
def test_a_traced_pattern_without_capacity_is_refused(function, arguments):
    with pytest.raises(ValueError, match="how many there is room for"):
        jax.jit(function)(*arguments)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda w: patterns.statistics(w.pattern).num_blocks, "statistics: the pattern is traced"),
        (lambda w: len(patterns.picture(w)), "picture: the pattern is traced"),
        (lambda w: js.convert(w, "8x8").values, "cover"),
        (lambda w: js.split_features(w, 1).values, "split_features: the pattern is traced"),
    ],
    ids=["statistics", "picture", "convert_cover", "split_features"],
)
def test_what_needs_a_known_pattern_refuses_a_traced_one(function, words):
    with pytest.raises(ValueError, match=words):
        jax.jit(function)(W)


# Patterns made by hand, with indices that lie -----------------------------------------------------

ROWS, COLS = np.asarray(P.rows), np.asarray(P.cols)
HUGE = np.iinfo(np.int32).max


def changed(array, place, value):
    array = array.copy()
    array[place] = value
    return array


LIES = {
    "row_negative": (changed(ROWS, 0, -1), COLS),
    "row_smallest": (changed(ROWS, 3, -HUGE - 1), COLS),
    "row_past_the_end": (changed(ROWS, 3, 5), COLS),
    "row_huge": (changed(ROWS, 3, HUGE), COLS),
    "col_negative": (ROWS, changed(COLS, 0, -1)),
    "col_smallest": (ROWS, changed(COLS, 0, -HUGE - 1)),
    "col_huge": (ROWS, changed(COLS, -1, HUGE)),
    "col_past_unused": (ROWS, changed(COLS, -1, 7)),
    "unused_in_front": (changed(ROWS, 0, 5), changed(COLS, 0, 6)),
    "unsorted": (ROWS[::-1].copy(), COLS[::-1].copy()),
    "unsorted_rows": (changed(ROWS, [0, 1], ROWS[[1, 0]]), changed(COLS, [0, 1], COLS[0])),
    "twice": (changed(ROWS, 1, ROWS[0]), changed(COLS, 1, COLS[0])),
    "all_the_same": (np.zeros_like(ROWS), np.zeros_like(COLS)),
    "overflowed": (np.full_like(ROWS, -HUGE - 1), COLS),
}
USES = {
    "forward": lambda w: js.matmul(X, w, implementation="ffi"),
    "gradients": lambda w: jax.vjp(
        lambda x, v: js.matmul(x, w.with_values(v), implementation="ffi"), X, w.values
    )[1](G),
    "sddmm": lambda w: js.sddmm(X, G, w.pattern, implementation="ffi"),
    "vmap": lambda w: jax.vmap(lambda v: js.matmul(X, w.with_values(v), implementation="ffi"))(
        w.values[None]
    ),
    "todense": lambda w: w.todense(),
    "gather": lambda w: w.pattern.gather(DENSE),
}
# JAX raises either type for INVALID_ARGUMENT, depending on its own call path.
REFUSED = (ValueError, jax.errors.JaxRuntimeError)


def lying_weight(name):
    rows, cols = LIES[name]
    return js.SparseWeight(
        jnp.nan_to_num(W.values),
        BlockPattern(jnp.asarray(rows), jnp.asarray(cols), SHAPE, P.format),
    )


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("lie", LIES)
def test_kernels_refuse_a_pattern_made_by_hand_with_bad_indices(lie, use, jit):
    need("cpu_kernels")
    function = jax.jit(USES[use]) if jit else USES[use]
    with pytest.raises(REFUSED, match=r"outside the grid|in order of column|lost blocks"):
        jax.block_until_ready(function(lying_weight(lie)))


@pytest.mark.parametrize("lie", LIES)
def test_plain_jax_survives_a_pattern_made_by_hand_with_bad_indices(lie):
    """It cannot raise inside jit; what is asked is an answer of the right shape, and no crash."""
    w = lying_weight(lie)
    assert js.matmul(X, w, implementation="xla").shape == G.shape
    assert js.sddmm(X, G, w.pattern, implementation="xla").shape == W.values.shape


@pytest.mark.parametrize("lie", [name for name, (rows, _) in LIES.items() if rows.min() < 0])
def test_plain_jax_answers_nan_for_negative_rows(lie):
    w = lying_weight(lie)
    assert np.isnan(js.matmul(X, w, implementation="xla")).all()
    assert np.isnan(js.sddmm(X, G, w.pattern, implementation="xla")).all()


@pytest.mark.parametrize(
    ("indices", "words"),
    [
        (jnp.zeros(15, jnp.int8), "int32"),
        (jnp.zeros(15, jnp.float32), "int32"),
        (jnp.zeros(15, jnp.uint32), "int32"),
        (jnp.zeros((15, 1), jnp.int32), "int32 with one axis|one part per place"),
        (jnp.zeros(14, jnp.int32), "one length|one part per place"),
        (jnp.zeros((), jnp.int32), "int32 with one axis|one part per place"),
    ],
    ids=["int8", "float32", "uint32", "matrix", "shorter", "scalar"],
)
@pytest.mark.parametrize("which", ["rows", "cols"])
def test_indices_of_another_type_or_shape_are_refused(indices, words, which, path):
    both = {"rows": P.rows, "cols": P.cols, which: indices}
    w = js.SparseWeight(W.values, BlockPattern(**both, shape=SHAPE, format=P.format))
    with pytest.raises((TypeError, ValueError), match=words):
        jax.block_until_ready(js.matmul(X, w, implementation=path))


def test_a_refused_call_leaves_the_library_working(path):
    need("cpu_kernels")
    for _ in range(3):
        with pytest.raises(REFUSED):
            jax.block_until_ready(USES["forward"](lying_weight("row_huge")))
    y = np.asarray(js.matmul(X, W, implementation=path))
    np.testing.assert_array_equal(y, LAYER.y())


def test_products_refuse_preferred_dtypes_that_no_result_has():
    x, w = jnp.ones((2, 4)), js.fromdense(jnp.ones((4, 4)), "2x2")
    for preferred in (jnp.int32, jnp.complex64):
        with pytest.raises(TypeError, match="matmul: preferred_element_type is of the kind of x"):
            js.matmul(x, w, preferred_element_type=preferred)
