"""The model of the GPU kernels, and what the measurements on a GPU are made of."""

import dataclasses
import pathlib

import pytest
from machine import need

from jaxsparse.bench import gpu, gpu_model
from jaxsparse.ops import cuda

README = pathlib.Path(__file__).parents[2] / "xla_ffi" / "cuda" / "README.md"


def test_the_readme_has_the_models_tables():
    assert gpu_model.tables() in README.read_text()


def test_more_work_takes_longer_and_faster_memory_less():
    times = [gpu_model.modelled("forward", 4096, 4096, 64, d).seconds for d in (0.05, 0.1, 0.3)]
    assert times == sorted(times)
    faster = dataclasses.replace(gpu_model.H200, l2=7e12)
    assert gpu_model.modelled("forward", 4096, 4096, 64, 0.3, faster).seconds < times[-1]


def test_the_limit_is_the_one_that_a_better_rate_lifts():
    slow = dataclasses.replace(gpu_model.H200, mma_sync=0.1)
    assert gpu_model.modelled("weight_grad", 4096, 4096, 64, 0.2).limit == "L2"
    assert gpu_model.modelled("weight_grad", 4096, 4096, 64, 0.2, slow).limit == "tensor cores"


def test_a_step_is_the_sum_of_its_passes():
    parts = [gpu_model.modelled(role, 4096, 4096, 64, 0.1).seconds for role in gpu.ROLES]
    assert gpu_model.modelled("step", 4096, 4096, 64, 0.1).seconds == pytest.approx(sum(parts))


def test_break_even_is_where_the_speedup_passes_one():
    point = gpu_model.break_even("forward", 4096, 64)
    assert gpu_model.speedup("forward", 4096, 4096, 64, point) >= 1
    assert gpu_model.speedup("forward", 4096, 4096, 64, point + 0.02) < 1


def test_the_unmeasured_rule_keeps_well_below_the_models_break_even():
    for role in gpu.ROLES:
        rule = cuda.WEIGHT_GRADS if role == "weight_grad" else cuda.PRODUCTS
        for block, density in rule.items():
            assert density <= 0.7 * gpu_model.break_even(role, 4096, block)


def test_the_sweep_has_a_training_step_and_every_row_a_label_of_its_own():
    cells = list(gpu.sweep(is_dry=False))
    assert len({cell.label for cell in cells}) == len(cells)
    assert any(cell.role == "step" and cell.goal == 2.8 for cell in cells)


@pytest.mark.parametrize("cell", [*gpu.sweep(is_dry=True)], ids=lambda cell: cell.role)
def test_a_row_compares_a_pass_with_the_dense_one(cell):
    row = gpu.measure_cell(cell, seconds=0.0, implementation="xla")
    assert row["error"] < 2**-7
    assert row["speedup"] > 0
    assert row["modelled"] > 0


def test_a_peer_that_fails_takes_no_other_along(monkeypatch, capsys):
    need("torch")

    def fails(*args):
        raise RuntimeError("no kernel for this")

    monkeypatch.setattr(gpu, "CALLS", 1)
    monkeypatch.setattr(gpu, "_triton_product", lambda: fails)
    rows = list(gpu.peer_rows(is_dry=True))
    assert {row["peer"] for row in rows} == {"torch BSR"}
    assert len(rows) == 6
    assert all(row["error"] < 1e-5 for row in rows)
    assert "Triton BSR forward 256 b64 0.1: RuntimeError: no kernel" in capsys.readouterr().out


def test_peers_that_were_measured_are_left_out(monkeypatch):
    need("torch")
    monkeypatch.setattr(gpu, "CALLS", 1)
    monkeypatch.setattr(gpu, "_triton_product", lambda: None)
    labels = [row["label"] for row in gpu.peer_rows(is_dry=True)]
    assert [row["label"] for row in gpu.peer_rows(is_dry=True, done=labels[1:])] == labels[:1]
