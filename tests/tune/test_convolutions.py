"""Break-even points of convolutions: what is compared, and what the dispatcher makes of them."""

import conv_cases
import jax
import numpy as np
import pytest
from machine import need

import jaxsparse as js
from jaxsparse.core import dispatch
from jaxsparse.formats.block import Block
from jaxsparse.formats.columns import Unstructured
from jaxsparse.problems import ConvProblem
from jaxsparse.tune import convolutions

LAYER = conv_cases.make(ConvProblem("tune", (5, 4), (3, 2), (4, 6), batch=(2,)), "unstructured")
SHAPE_CLASS = "taps>1,strides=1,channels<64,batch<64"


@pytest.fixture
def small(monkeypatch):
    need("cpu_kernels")
    monkeypatch.setattr(convolutions, "DTYPES", ("float32",))
    monkeypatch.setattr(convolutions, "FORMATS", (Unstructured(), Block((4, 4))))
    monkeypatch.setattr(convolutions, "KERNELS", ((2, 3),))
    monkeypatch.setattr(convolutions, "STRIDES", (2,))
    monkeypatch.setattr(convolutions, "CHANNELS", ((3, 5),))
    monkeypatch.setattr(convolutions, "RESULTS", ((1, 4),))


def test_measure_compares_the_kernel_with_xla_on_one_weight(small):
    compared = []

    def compare(ours, theirs):
        compared.append((np.asarray(ours()), np.asarray(theirs())))
        return 2.0

    convolutions.measure({}, compare, report=lambda line: None)
    assert len(compared) == 2 * 3 * 2  # formats, roles, channels
    is_packed = lambda ours, theirs: ours.ndim != theirs.ndim
    for ours, theirs in compared:
        if not is_packed(ours, theirs):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
        else:  # a weight gradient, at density 1
            assert ours.size >= theirs.size
            np.testing.assert_allclose(ours.sum(), theirs.sum(), rtol=1e-3, atol=1e-3)


def test_the_worst_layer_of_a_class_decides(small, monkeypatch):
    calls = []

    def compare(ours, theirs):
        calls.append(None)
        return 2.0 if len(calls) % 2 else 0.5

    monkeypatch.setattr(convolutions, "FORMATS", (Unstructured(),))
    table = {}
    convolutions.measure(table, compare, report=lambda line: None)
    assert {point for dtypes in table.values() for point in dtypes["float32"].values()} == {0.0}


@pytest.mark.parametrize("stored_dense", [False, True], ids=["packed", "stored_dense"])
@pytest.mark.parametrize(("point", "path"), [(0.2, "ffi"), (0.05, "dense")])
def test_a_point_decides_for_packed_weights_and_those_stored_dense(
    point, path, stored_dense, monkeypatch
):
    need("cpu_kernels")
    assert 0.05 < LAYER.pattern.density < 0.2
    table = {"unstructured_conv_forward": {"float32": {SHAPE_CLASS: point}}}
    monkeypatch.setattr(dispatch, "_table", lambda device: table)
    w, options = LAYER.weight(), {}
    if stored_dense:
        w, options = w.todense(), {"pattern": LAYER.pattern}
    (call,) = js.explain(lambda x: js.conv(x, w, **options), LAYER.array("x"))
    assert call.path == path, call.reason
    assert f"break-even point {point} for {SHAPE_CLASS}" in call.reason


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"strides": 2}, "strides>1"),
        ({"kernel_dilation": 2}, "taps>1,strides=1,channels<64"),
    ],
)
@pytest.mark.parametrize("is_full", [False, True], ids=["few_weights", "all_weights"])
def test_what_was_not_measured_takes_the_kernel_for_few_weights_only(
    is_full, change, words, monkeypatch
):
    need("cpu_kernels")
    monkeypatch.setattr(dispatch, "_table", lambda device: {})
    w = js.fromdense(np.ones(LAYER.pattern.shape, np.float32), "unstructured")
    conv = lambda x: js.conv(x, w if is_full else LAYER.weight(), **change)
    (call,) = js.explain(conv, LAYER.array("x"))
    assert call.path == ("dense" if is_full else "ffi")
    assert "a guess" in call.reason
    assert words in call.reason
    jax.block_until_ready(jax.jit(conv)(LAYER.array("x")))
