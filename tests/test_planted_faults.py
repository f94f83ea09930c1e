"""The comparisons see what goes wrong in sparse kernels: each typical fault, planted, is caught.

A fault changes right results, or the arrays that they are computed from, as a wrong kernel would.
The comparison that the suite makes of every op must then fail; so that it fails for the fault
alone, it must pass without.
"""

import dataclasses

import cases
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

import jaxsparse as js
from jaxsparse.problems import Problem

SQUARE = Problem("faults", (13,), (70, 70), (16, 16), 0.4, "")


def caught(comparison, *arguments):
    """Whether the comparison fails."""
    try:
        comparison(*arguments)
    except AssertionError as error:
        return "bad test" not in str(error)
    return False


def layer_of(draw=oracle.small_integers):
    return cases.make(SQUARE, draw)


def change(layer, **arrays):
    return dataclasses.replace(layer, **arrays)


def without(array, k):
    return np.delete(array, k, axis=0)


def one_element(array, place, factor):
    array = np.array(array)
    array[place] = array[place] * factor
    return array


def swapped(array, j, k):
    array = np.array(array)
    array[[j, k]] = array[[k, j]]
    return array


K = 5  # a block inside the weight
FAULTS_OF_THE_WEIGHT = {
    "block_missing": lambda layer: change(
        layer,
        values=without(layer.values, K),
        rows=without(layer.rows, K),
        cols=without(layer.cols, K),
    ),
    "block_zero": lambda layer: change(layer, values=one_element(layer.values, K, 0)),
    "block_doubled": lambda layer: change(layer, values=one_element(layer.values, K, 2)),
    "block_transposed": lambda layer: change(
        layer,
        values=np.concatenate(
            [layer.values[:K], layer.values[K : K + 1].swapaxes(1, 2), layer.values[K + 1 :]]
        ),
    ),
    "all_blocks_transposed": lambda layer: change(layer, values=layer.clean.swapaxes(1, 2)),
    "two_blocks_swapped": lambda layer: change(layer, values=swapped(layer.clean, K, K + 1)),
    "rows_and_cols_swapped": lambda layer: change(
        layer, rows=layer.cols, cols=layer.rows, values=layer.clean
    ),
    "block_one_row_down": lambda layer: change(
        layer,
        rows=layer.rows + (np.arange(len(layer.rows)) == K) * (1 if layer.rows[K] == 0 else -1),
    ),
    "last_column_of_blocks_dropped": lambda layer: change(
        layer, values=np.where((layer.cols == layer.cols.max())[:, None, None], 0, layer.clean)
    ),
    "one_product_missing": lambda layer: change(
        layer, values=one_element(layer.values, (K, 3, 4), 0)
    ),
    "one_product_negated": lambda layer: change(
        layer, values=one_element(layer.values, (K, 3, 4), -1)
    ),
    "row_of_a_block_twice": lambda layer: change(
        layer,
        values=np.concatenate(
            [layer.values[:K], layer.values[K : K + 1, [0, *range(15)]], layer.values[K + 1 :]]
        ),
    ),
}


def forward_with(fault):
    return lambda layer: fault(layer).y()


FAULTS_OF_THE_RESULT = {
    "row_of_the_batch_missing": lambda y: one_element(y, -1, 0),
    "rows_of_the_batch_swapped": lambda y: swapped(y, 0, 1),
    "last_column_zero": lambda y: y * (np.arange(y.shape[1]) < y.shape[1] - 1),
    "one_element_off_by_one": lambda y: y + (np.arange(y.size).reshape(y.shape) == 100),
    "shifted_by_one": lambda y: np.roll(y, 1, axis=1),
    "one_nan": lambda y: one_element(y, (0, 0), np.nan),
    "transposed_shape": lambda y: y.T,
    "batch_axis_lost": lambda y: y[0],
}


def library_y(layer, dtype):
    y = js.matmul(layer.array("x", dtype), layer.weight(dtype), implementation="xla")
    return np.asarray(y)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_right_results_pass_every_comparison(dtype):
    layer = layer_of()
    oracle.equal_exactly(library_y(layer, dtype), layer.y())
    layer = layer_of(oracle.normals).rounded(dtype)
    oracle.rounds_like_a_dot_product(library_y(layer, dtype), layer.y(), layer.magnitudes().y())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("fault", FAULTS_OF_THE_WEIGHT)
def test_exact_comparison_catches_a_wrong_weight(fault, dtype):
    layer = layer_of()
    wrong = FAULTS_OF_THE_WEIGHT[fault](layer).y().astype(jnp.dtype(dtype))
    assert caught(oracle.equal_exactly, wrong, layer.y())


@pytest.mark.parametrize("fault", FAULTS_OF_THE_WEIGHT)
def test_exact_comparison_catches_a_wrong_weight_in_the_input_gradient(fault):
    layer = layer_of()
    wrong = FAULTS_OF_THE_WEIGHT[fault](layer).dx().astype(np.float32)
    assert caught(oracle.equal_exactly, wrong, layer.dx())


@pytest.mark.parametrize("fault", FAULTS_OF_THE_WEIGHT)
def test_rounding_bound_catches_a_wrong_weight_in_float32(fault):
    """In bfloat16 one missing product drowns in rounding: that is what integers are for."""
    layer = layer_of(oracle.normals).rounded("float32")
    wrong = FAULTS_OF_THE_WEIGHT[fault](layer).y().astype(np.float32)
    bound = oracle.rounds_like_a_dot_product
    assert caught(bound, wrong, layer.y(), layer.magnitudes().y())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("fault", FAULTS_OF_THE_RESULT)
def test_exact_comparison_catches_a_wrong_result(fault, dtype):
    layer = layer_of()
    wrong = FAULTS_OF_THE_RESULT[fault](library_y(layer, dtype).astype(np.float64))
    assert caught(oracle.equal_exactly, wrong.astype(jnp.dtype(dtype)), layer.y())


FAULTS_OF_THE_WEIGHT_GRADIENT = {
    "block_missing": lambda layer: one_element(layer.dvalues(), K, 0),
    "block_transposed": lambda layer: np.concatenate(
        [layer.dvalues()[:K], layer.dvalues()[K : K + 1].swapaxes(1, 2), layer.dvalues()[K + 1 :]]
    ),
    "last_example_left_out": lambda layer: change(layer, x=layer.x[:-1], g=layer.g[:-1]).dvalues(),
    "first_example_twice": lambda layer: change(
        layer, x=np.append(layer.x, layer.x[:1], 0), g=np.append(layer.g, layer.g[:1], 0)
    ).dvalues(),
    "mean_in_place_of_sum": lambda layer: layer.dvalues() / len(layer.x),
    "garbage_beyond_the_edge": lambda layer: np.where(layer.clean == 0, 1, layer.dvalues()),
    "forgotten_places_are_nan": lambda layer: layer.dvalues() + 0 * layer.values,
    "rows_and_cols_swapped": lambda layer: change(
        layer, rows=layer.cols, cols=layer.rows
    ).dvalues(),
}


@pytest.mark.parametrize("fault", FAULTS_OF_THE_WEIGHT_GRADIENT)
def test_exact_comparison_catches_a_wrong_weight_gradient(fault):
    layer = layer_of()
    oracle.equal_exactly(layer.dvalues().astype(np.float32), layer.dvalues())
    wrong = FAULTS_OF_THE_WEIGHT_GRADIENT[fault](layer).astype(np.float32)
    assert caught(oracle.equal_exactly, wrong, layer.dvalues())


# Faults of transformations: over mapped axes and groups -------------------------------------------

GROUP = 3


def group_gradients(layer):
    """One weight gradient for each of three examples that differ."""
    examples = [change(layer, x=factor * layer.x) for factor in (1, 2, -1)]
    return np.stack([example.dvalues() for example in examples])


FAULTS_OF_GROUPS = {
    "not_summed": lambda each: each[0],
    "first_counted_for_all": lambda each: GROUP * each[0],
    "last_left_out": lambda each: each[:-1].sum(0),
    "mean": lambda each: each.mean(0),
    "summed_twice": lambda each: 2 * each.sum(0),
}


@pytest.mark.parametrize("fault", FAULTS_OF_GROUPS)
def test_exact_comparison_catches_a_wrong_sum_over_a_mapped_axis(fault):
    layer = layer_of()
    each = group_gradients(layer)
    xs = jnp.stack([layer.array("x") * factor for factor in (1.0, 2.0, -1.0)])
    w = layer.weight()
    total = lambda v: jnp.vdot(
        jax.vmap(lambda x: js.matmul(x, w.with_values(v)))(xs),
        jnp.stack([layer.array("g")] * GROUP),
    )
    oracle.equal_exactly(jax.grad(total)(w.values), each.sum(0))
    assert caught(
        oracle.equal_exactly, FAULTS_OF_GROUPS[fault](each).astype(np.float32), each.sum(0)
    )


@pytest.mark.parametrize("order", [(0, 0, 2), (1, 0, 2), (2, 1, 0)], ids=str)
def test_exact_comparison_catches_groups_that_take_each_others_weights(order):
    layer = layer_of()
    each = np.stack([layer.y(), 2 * layer.y(), -layer.y()])
    assert caught(oracle.equal_exactly, each[list(order)].astype(np.float32), each)


# Faults in the library itself ---------------------------------------------------------------------


def broken_reference(fault):
    """The library's reference with a fault, by the same road as the right one."""

    def reference(spec, x, values, rows, cols):
        values, rows, cols = fault(values, rows, cols)
        block_in, block_out = spec.weight.block_shape
        i = rows[:, None, None] * block_in + jnp.arange(block_in)[None, :, None]
        o = cols[:, None, None] * block_out + jnp.arange(block_out)[None, None, :]
        dense = jnp.zeros(spec.weight.weight_shape, values.dtype).at[i, o].add(values, mode="drop")
        return x @ dense

    return reference


FAULTS_OF_THE_LIBRARY = {
    "right": lambda v, r, c: (v, r, c),
    "block_missing": lambda v, r, c: (v[1:], r[1:], c[1:]),
    "blocks_transposed": lambda v, r, c: (v.swapaxes(1, 2), r, c),
    "rows_and_cols_swapped": lambda v, r, c: (v, c, r),
    "unused_places_wrap_around": lambda v, r, c: (v, r % 5, c % 5),
    "blocks_reversed": lambda v, r, c: (v[::-1], r, c),
}


@pytest.mark.parametrize("fault", FAULTS_OF_THE_LIBRARY)
def test_a_fault_in_the_reference_of_a_family_is_caught_in_all_members(fault):
    """The members' references follow from one: a fault in it shows in all three."""
    from jaxsparse.core.bilinear import BilinearOp
    from jaxsparse.ops.matmul import MatmulSpec

    layer = cases.make(SQUARE, unused=2)
    op = BilinearOp(f"faulty_{fault}", broken_reference(FAULTS_OF_THE_LIBRARY[fault]), {})
    w = layer.weight(garbage=False)
    values = jnp.where(w.values == 0, 1.0, w.values)  # ones where nothing should be read
    indices, spec = w.pattern.indices, MatmulSpec(w.pattern.spec())
    results = (
        (op.forward(spec, layer.array("x"), values, *indices), layer.y()),
        (op.input_grad(spec, values, layer.array("g"), *indices), layer.dx()),
        (op.weight_grad(spec, layer.array("x"), layer.array("g"), *indices), layer.dvalues()),
    )
    outcomes = {caught(oracle.equal_exactly, got, exact) for got, exact in results}
    assert outcomes == {fault != "right"}
