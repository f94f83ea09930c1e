"""Multiply-adds of sparse inputs are those of the definition, counted one by one."""

import jax.numpy as jnp
import numpy as np
import oracle_conv
import pytest

import jaxsparse as js


def sparse_input():
    rng = np.random.default_rng(0)
    x = rng.integers(1, 5, (3, 6, 5, 4)) * (rng.random((3, 6, 5, 4)) < 0.3)
    x[1] = 0
    return x.astype(np.float32)


@pytest.mark.parametrize("bias", [False, True])
def test_macs_of_a_convolution_are_those_of_nonzeros(bias):
    x = sparse_input()
    options = {"strides": (2, 1), "padding": ((1, 0), (2, 1)), "feature_group_count": 2}
    cost = js.input_macs(x, (3, 2, 2, 6), bias=bias, **options)
    seen = oracle_conv.geometry((6, 5), (3, 2), (2, 1), [(1, 0), (2, 1)], (1, 1))
    # Each nonzero once for every tap that meets it and each output channel of its group.
    sparse = sum((x[(slice(None), *p)] != 0).sum(-1) * 3 for _, _, p in seen.steps())
    more = bias * 3 * 7 * 6
    np.testing.assert_array_equal(cost.sparse, sparse + more)
    np.testing.assert_array_equal(cost.dense, [3 * 7 * 6 * 6 * 2 + more] * 3)
    np.testing.assert_array_equal(cost.nonzeros, (x != 0).sum((1, 2, 3)))
    assert cost.output_shape == (3, 3, 7, 6)
    assert cost.sparsity == pytest.approx((x == 0).mean())
    assert cost.reduction == pytest.approx(1 - cost.sparse.sum() / cost.dense.sum())


def test_nothing_saves_nothing():
    cost = js.input_macs(np.zeros((0, 6, 5, 4), np.float32), (3, 3, 4, 6))
    assert cost.dense.shape == cost.sparse.shape == (0,)
    assert cost.sparsity == cost.reduction == 0
    assert "0.0% of all MACs" in str(cost)


def test_macs_of_a_transposed_convolution_are_counted_from_its_inputs():
    x = sparse_input()
    cost = js.input_macs(x, (4, 4, 4, 5), transposed=True, strides=(2, 2), padding="VALID")
    np.testing.assert_array_equal(cost.dense, [6 * 5 * 4 * 16 * 5] * 3)
    np.testing.assert_array_equal(cost.sparse, (x != 0).sum((1, 2, 3)) * 16 * 5)
    assert (
        cost.output_shape
        == js.conv_transpose(
            jnp.asarray(x), jnp.ones((4, 4, 4, 5)), strides=(2, 2), padding="VALID"
        ).shape
    )
    cropped = js.input_macs(x, (4, 4, 4, 5), transposed=True, strides=(2, 2), padding="SAME")
    assert (cropped.sparse <= cost.sparse).all()
    assert cropped.sparse.sum() < cost.sparse.sum()


def test_the_report_names_every_sample():
    lines = str(js.input_macs(sparse_input(), (3, 3, 4, 6))).splitlines()
    assert [line.split()[0] for line in lines[2:5]] == ["0", "1", "2"]
    assert lines[3].split()[1] == "0"


def test_more_than_one_batch_axis_is_refused():
    with pytest.raises(ValueError, match="as many axes as the kernel"):
        js.input_macs(np.ones((2, 3, 5, 4, 4)), (3, 3, 4, 6))
