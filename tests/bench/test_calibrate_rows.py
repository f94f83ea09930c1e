"""The benchmark of plans times by plan, and calls none good that is slower than one way for all."""

import pytest
from flax import nnx
from machine import need

import jaxsparse as js
from jaxsparse.bench import calibrate, resnet


def test_a_row_is_measured_within_its_budget(monkeypatch):
    need("cpu_kernels")

    def models(zeros, stages):
        rule = js.Rule(".*", "unstructured", sparsity=zeros)
        return js.sparsify(nnx.Conv(3, 8, (3, 3), rngs=nnx.Rngs(0)), rule)[0], None

    monkeypatch.setattr(resnet, "models", models)
    (row,) = calibrate.run(quick=True, seconds=0.01, only="80", budget_s=20)
    assert row.sparse + row.dense == 1
    assert 0 < row.seconds <= row.budget
    assert min(row.plan_ms, row.over_dense, row.over_sparse) > 0


@pytest.mark.parametrize(
    ("over_dense", "over_sparse", "seconds", "word"),
    [
        (2.0, 0.99, 39, "met"),
        (2.0, 0.97, 39, "MISSED"),
        (0.97, 2.0, 39, "MISSED"),
        (2.0, 2.0, 41, "MISSED"),
    ],
)
def test_a_plan_is_good_if_no_way_for_all_is_faster_and_its_budget_was_kept(
    over_dense, over_sparse, seconds, word
):
    row = calibrate.Row("net", 0.3, 3, 2, seconds, 40, 1.0, over_dense, over_sparse, calibrate.GOAL)
    assert row.line().endswith(word)
