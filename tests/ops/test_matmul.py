"""`matmul` and its two gradients against the definition, for every small problem and dtype."""

import contextlib
import dataclasses
import functools

import cases
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from machine import compiled, need

import jaxsparse as js
from jaxsparse import problems

every_case = pytest.mark.parametrize(
    ("problem", "dtype", "path"), cases.COVERING, indirect=["path"]
)
some_problems = pytest.mark.parametrize("problem", ["odd_blocks", "tiles_ragged", "standing"])


def x64_for(dtype):
    return jax.enable_x64(True) if dtype == "float64" else contextlib.nullcontext()


@functools.partial(jax.jit, static_argnames=("implementation", "grad"))
def value_and_gradients(x, w, g, **options):
    """y, dx and dvalues."""
    product = lambda x, values: js.matmul(x, w.with_values(values), **options)
    y, pull_back = jax.vjp(product, x, w.values)
    return y, *pull_back(g)


@functools.lru_cache(maxsize=8)
def results(problem, dtype, path, draw=oracle.small_integers, unused=0):
    """The layer, and what the library returns for it."""
    layer = cases.make(problem, draw, unused=unused).rounded(dtype)
    with x64_for(dtype):
        w = layer.weight(dtype)
        x, g = layer.array("x", dtype), layer.array("g", dtype)
        got = value_and_gradients(x, w, g, implementation=path)
        return layer, jax.tree.map(np.asarray, got)


# Structure: on small integers nothing is rounded --------------------------------------------------


@every_case
def test_matmul_equals_definition_on_integers(problem, dtype, path):
    layer, (y, _, _) = results(problem, dtype, path)
    assert y.dtype.name == dtype
    oracle.equal_exactly(y, layer.y(), "y")


@every_case
def test_matmul_input_grad_equals_definition_on_integers(problem, dtype, path):
    layer, (_, dx, _) = results(problem, dtype, path)
    assert dx.dtype.name == dtype
    oracle.equal_exactly(dx, layer.dx(), "dx")


@every_case
def test_matmul_weight_grad_equals_definition_on_integers(problem, dtype, path):
    layer, (_, _, dvalues) = results(problem, dtype, path)
    assert dvalues.dtype.name == dtype
    oracle.equal_exactly(dvalues, layer.dvalues(), "dvalues")


@pytest.mark.parametrize("batch", [1, 2, 7, 8, 13, 14, 15, 28, 29, 64, 130])
@pytest.mark.parametrize("block", [(16, 16), (32, 32), (8, 24)], ids=lambda b: f"{b[0]}x{b[1]}")
def test_matmul_and_gradients_equal_definition_around_tile_heights(block, batch, path):
    problem = problems.Problem(f"{block}_{batch}", (batch,), (70, 100), block, 0.4, "")
    layer, (y, dx, dvalues) = results(problem, "float32", path)
    oracle.equal_exactly(y, layer.y(), "y")
    oracle.equal_exactly(dx, layer.dx(), "dx")
    oracle.equal_exactly(dvalues, layer.dvalues(), "dvalues")


@pytest.mark.parametrize("width", [1, 2, 7, 15, 16, 17, 31, 33, 47, 65])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_matmul_and_gradients_equal_definition_around_vector_widths(width, dtype, path):
    problem = problems.Problem(
        f"width_{width}", (5,), (3 * width, 2 * width), (width, width), 0.3, ""
    )
    layer, (y, dx, dvalues) = results(problem, dtype, path)
    oracle.equal_exactly(y, layer.y(), "y")
    oracle.equal_exactly(dx, layer.dx(), "dx")
    oracle.equal_exactly(dvalues, layer.dvalues(), "dvalues")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
@some_problems
def test_unused_places_of_a_pattern_add_nothing(problem, dtype, path):
    layer, (y, dx, dvalues) = results(problem, dtype, path, unused=3)
    assert np.isnan(layer.values[-1]).all()
    oracle.equal_exactly(y, layer.y(), "y")
    oracle.equal_exactly(dx, layer.dx(), "dx")
    oracle.equal_exactly(dvalues, layer.dvalues(), "dvalues")


@pytest.mark.parametrize(
    "keep",
    [np.s_[:, 1:2], np.s_[1:2, :], np.s_[0:1, 0:1], np.s_[-1:, -1:]],
    ids=["one_column", "one_row", "first_block", "last_block"],
)
def test_matmul_equals_definition_where_whole_rows_or_columns_are_empty(keep, path, rng):
    grid, block, shape = np.zeros((5, 4), bool), (16, 16), (70, 60)
    grid[keep] = True
    cols, rows = np.nonzero(grid.T)
    values = oracle.small_integers(rng, (len(rows), *block))
    x, g = oracle.small_integers(rng, (9, 70)), oracle.small_integers(rng, (9, 60))
    w = js.SparseWeight(jnp.asarray(values, "float32"), js.patterns.from_grid(grid, block, shape))
    got = value_and_gradients(jnp.float32(x), w, jnp.float32(g), implementation=path)
    oracle.equal_exactly(got[0], oracle.forward(x, values, rows, cols, shape))
    oracle.equal_exactly(got[1], oracle.input_grad(g, values, rows, cols, shape))
    oracle.equal_exactly(got[2], oracle.weight_grad(x, g, rows, cols, shape, block))


# Rounding: every element within the forward error of a dot product --------------------------------


@every_case
def test_matmul_rounds_like_a_dot_product(problem, dtype, path):
    layer, (y, _, _) = results(problem, dtype, path, oracle.normals)
    oracle.rounds_like_a_dot_product(y, layer.y(), layer.magnitudes().y(), "y")


@every_case
def test_matmul_input_grad_rounds_like_a_dot_product(problem, dtype, path):
    layer, (_, dx, _) = results(problem, dtype, path, oracle.normals)
    oracle.rounds_like_a_dot_product(dx, layer.dx(), layer.magnitudes().dx(), "dx")


@every_case
def test_matmul_weight_grad_rounds_like_a_dot_product(problem, dtype, path):
    layer, (_, _, dvalues) = results(problem, dtype, path, oracle.normals)
    oracle.rounds_like_a_dot_product(dvalues, layer.dvalues(), layer.magnitudes().dvalues(), "dw")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_short_floats_are_summed_in_float32(dtype, path):
    """1000 ones and then 1000 times -1: in the dtype itself the sum would stop at 256 or 2048."""
    one = jnp.ones((), dtype)
    values = jnp.where(jnp.arange(6000)[None, :, None] < 5000, one, -one)
    w = js.SparseWeight(values, js.patterns.full((6000, 1), (6000, 1)))
    y = js.matmul(jnp.ones((1, 6000), dtype), w, implementation=path)
    np.testing.assert_array_equal(np.asarray(y, np.float64), [[4000]])


# Special numbers ----------------------------------------------------------------------------------


def special(layer, where, number):
    """The layer with one strange number in `x` or in the values, and where it is."""
    changed = {name: np.array(getattr(layer, name)) for name in ("x", "g", "values")}
    place = (0, 0) if where != "values" else (0, 0, 0)
    changed[where][place] = number
    return dataclasses.replace(layer, **changed)


def assert_same_with_specials(got, exact):
    got = np.asarray(got, np.float64)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(exact))
    np.testing.assert_array_equal(got[~np.isnan(got)], exact[~np.isnan(exact)])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf], ids=["nan", "inf", "minus_inf"])
@pytest.mark.parametrize("where", ["x", "g", "values"])
@some_problems
def test_kernels_carry_special_numbers_through_stored_blocks_only(problem, where, number, dtype):
    """What is not stored multiplies nothing, not even NaN; plain JAX multiplies it by zero."""
    need("cpu_kernels")
    layer = special(cases.make(problem), where, number)
    w = layer.weight(dtype)
    got = value_and_gradients(
        layer.array("x", dtype), w, layer.array("g", dtype), implementation="ffi"
    )
    with np.errstate(invalid="ignore"):
        exact = layer.y(), layer.dx(), layer.dvalues()
    for one, other in zip(got, exact, strict=True):
        assert_same_with_specials(one, other)


@pytest.mark.parametrize("number", [np.nan, np.inf], ids=["nan", "inf"])
def test_special_values_reach_exactly_the_outputs_of_their_column(number, path):
    layer = special(cases.make("odd_blocks"), "values", number)
    y = js.matmul(layer.array("x"), layer.weight(), implementation=path)
    with np.errstate(invalid="ignore"):
        assert_same_with_specials(y, layer.y())


def test_special_inputs_stay_in_their_row_of_the_batch(path):
    layer = special(cases.make("odd_blocks"), "x", np.nan)
    y = np.asarray(js.matmul(layer.array("x"), layer.weight(), implementation=path))
    exact = layer.y()
    np.testing.assert_array_equal(y[1:], exact[1:])
    assert np.isnan(y[0][np.isnan(exact[0])]).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_largest_and_smallest_numbers_pass_unchanged(dtype, path):
    with x64_for(dtype):
        info = jnp.finfo(dtype)
        x = jnp.stack([info.max, info.min, info.smallest_subnormal, jnp.zeros((), dtype)])[:, None]
        w = js.SparseWeight(jnp.ones((1, 1, 1), dtype), js.patterns.full((1, 1), (1, 1)))
        y = js.matmul(x.astype(dtype), w, implementation=path)
        largest = np.asarray(y[:2], np.float64)
        np.testing.assert_array_equal(largest, np.asarray(x[:2], np.float64))
        assert np.isfinite(np.asarray(y, np.float64)).all()


# The forms of the weight --------------------------------------------------------------------------


@some_problems
def test_matmul_of_a_dense_weight_with_a_pattern_uses_its_stored_blocks_only(problem, path):
    layer = cases.make(problem)
    everywhere = np.where(layer.dense() == 0, np.nan, layer.dense())  # what is dropped is not read
    y = js.matmul(
        layer.array("x"), jnp.float32(everywhere), pattern=layer.pattern(), implementation=path
    )
    oracle.equal_exactly(y, layer.y())


@some_problems
def test_gradient_of_a_dense_weight_with_a_pattern_is_zero_off_the_pattern(problem, path):
    layer = cases.make(problem)
    product = lambda w: js.matmul(layer.array("x"), w, pattern=layer.pattern(), implementation=path)
    dw = jax.vjp(product, jnp.float32(layer.dense()))[1](layer.array("g"))[0]
    oracle.equal_exactly(dw, oracle.todense(layer.dvalues(), *layer.places))


@some_problems
def test_matmul_of_an_array_is_the_dense_product(problem):
    layer = cases.make(problem)
    dense = jnp.float32(layer.dense())
    oracle.equal_exactly(js.matmul(layer.array("x"), dense), layer.y())
    oracle.equal_exactly(js.matmul(layer.array("x"), dense, implementation="dense"), layer.y())


@some_problems
def test_dense_implementation_equals_definition(problem):
    layer = cases.make(problem)
    got = value_and_gradients(
        layer.array("x"), layer.weight(), layer.array("g"), implementation="dense"
    )
    for one, exact in zip(got, (layer.y(), layer.dx(), layer.dvalues()), strict=True):
        oracle.equal_exactly(one, exact)


def test_a_weight_with_kernel_axes_is_refused_by_matmul():
    w = js.fromdense(jnp.ones((3, 3, 16, 16)), "16x16")
    with pytest.raises(ValueError, match="two axes"):
        js.matmul(jnp.ones((2, 16)), w)


@pytest.mark.parametrize("dtype", ["int32", "int8", "complex64"])
def test_other_numbers_run_in_plain_jax(dtype):
    layer = cases.make("odd_blocks")
    w = js.SparseWeight(layer.array("clean", dtype), layer.pattern())
    y = js.matmul(layer.array("x", dtype), w)
    assert y.dtype == dtype
    np.testing.assert_array_equal(np.asarray(y), layer.y().astype(dtype))


# The dtype of the result --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "preferred"),
    [("bfloat16", "float32"), ("float16", "float32"), ("float32", "bfloat16"), ("int8", "int32")],
)
def test_preferred_element_type_is_the_dtype_of_the_result(dtype, preferred):
    layer = cases.make("tiles")
    w = js.SparseWeight(layer.array("clean", dtype), layer.pattern())
    y = js.matmul(layer.array("x", dtype), w, preferred_element_type=preferred)
    assert y.dtype == preferred
    np.testing.assert_array_equal(np.asarray(y, np.float64), layer.y())


def test_a_wider_preferred_element_type_keeps_what_the_operands_could_not_hold(path):
    """257 is no bfloat16: rounding before widening would lose the last one."""
    w = js.SparseWeight(jnp.ones((1, 257, 1), "bfloat16"), js.patterns.full((257, 1), (257, 1)))
    x = jnp.ones((1, 257), "bfloat16")
    y = js.matmul(x, w, preferred_element_type=jnp.float32, implementation=path)
    assert float(y[0, 0]) == 257


def test_gradients_of_a_float32_result_are_not_rounded_before_the_product(path):
    """257 is no bfloat16: as 256 or 258 it would leave 0 or 2."""
    w = js.SparseWeight(jnp.ones((1, 1, 1), "bfloat16"), js.patterns.full((1, 1), (1, 1)))
    product = lambda v: js.matmul(
        jnp.ones((2, 1), "bfloat16"),
        w.with_values(v),
        preferred_element_type=jnp.float32,
        implementation=path,
    )
    (dvalues,) = jax.vjp(product, w.values)[1](jnp.array([[257.0], [-256.0]]))
    assert float(dvalues[0, 0, 0]) == 1


def test_kernels_take_bfloat16_for_a_float32_result_as_it_is():
    need("cpu_kernels")
    layer = cases.make("tiles")
    product = functools.partial(js.matmul, preferred_element_type=jnp.float32, implementation="ffi")
    text = compiled(product, layer.array("x", "bfloat16"), layer.weight("bfloat16")).as_text()
    assert "jaxsparse.block_matmul_forward" in text
    assert " convert(" not in text


def test_gradients_have_the_dtype_of_the_operands_whatever_is_preferred(path):
    layer = cases.make("tiles")
    x, w = layer.array("x", "bfloat16"), layer.weight("bfloat16")
    product = lambda x, v: js.matmul(
        x, w.with_values(v), preferred_element_type=jnp.float32, implementation=path
    )
    y, pull_back = jax.vjp(product, x, w.values)
    dx, dvalues = pull_back(layer.array("g"))
    assert (y.dtype, dx.dtype, dvalues.dtype) == (jnp.float32, jnp.bfloat16, jnp.bfloat16)
    oracle.equal_exactly(dx, layer.dx())
    oracle.equal_exactly(dvalues, layer.dvalues())


# sddmm, the weight gradient under its public name -------------------------------------------------


@every_case
def test_sddmm_is_the_weight_gradient(problem, dtype, path):
    layer = cases.make(problem)
    with x64_for(dtype):
        a, b = layer.array("x", dtype), layer.array("g", dtype)
        values = js.sddmm(a, b, layer.pattern(), implementation=path)
        oracle.equal_exactly(values, layer.dvalues())


def test_sddmm_dense_implementation_equals_definition():
    layer = cases.make("tiles_ragged")
    values = js.sddmm(layer.array("x"), layer.array("g"), layer.pattern(), implementation="dense")
    oracle.equal_exactly(values, layer.dvalues())


@pytest.mark.parametrize("unused", [0, 3])
def test_sddmm_gradients_are_the_other_members_of_the_family(path, unused):
    layer = cases.make("tiles_ragged", unused=unused)
    sampled = lambda a, b: js.sddmm(a, b, layer.pattern(), implementation=path)
    _, pull_back = jax.vjp(sampled, layer.array("x"), layer.array("g"))
    da, db = pull_back(layer.array("values"))  # garbage arrives too, and must not pass
    oracle.equal_exactly(da, layer.dx())
    oracle.equal_exactly(db, layer.y())
