"""Break-even points: how they are found, and that the library has them for what it runs."""

import functools
import json
import pathlib

import pytest
from machine import need

from jaxsparse import tune
from jaxsparse.core import dispatch
from jaxsparse.formats.block import Block
from jaxsparse.tune import break_even

TABLES = sorted(pathlib.Path(tune.__file__).parent.glob("data/*.json"))


@pytest.mark.parametrize("point", break_even.DENSITIES)
def test_highest_finds_the_last_density_that_pays(point):
    assert break_even.highest(lambda density: density <= point) == point


def test_measure_asks_more_of_a_kernel_where_the_dense_op_is_safe(monkeypatch):
    need("cpu_kernels")
    monkeypatch.setattr(break_even, "DTYPES", ("float32",))
    monkeypatch.setattr(break_even, "FORMATS", (Block((32, 32)),))
    monkeypatch.setattr(break_even, "SHAPES", ((32, 32),))
    table = break_even.measure(lambda ours, theirs: 1.05, report=lambda line: None)
    for member in ("block_matmul_forward", "stored_dense_block_matmul_weight_grad"):
        points = table[member]["float32"]
        assert points.pop("batch>=2048,block>=32") == 0.0
        assert set(points.values()) == {1.0}


def test_measure_compares_the_kernel_with_the_dense_path(monkeypatch):
    need("cpu_kernels")
    monkeypatch.setattr(break_even, "DTYPES", ("float32",))
    monkeypatch.setattr(break_even, "FORMATS", (Block((8, 8)),))
    monkeypatch.setattr(break_even, "SHAPES", ((16, 16),))
    monkeypatch.setattr(break_even, "BATCHES", (4,))
    results = []

    def compare(ours, theirs):
        results.append((ours(), theirs()))
        return 2.0

    break_even.measure(compare, report=lambda line: None)
    assert len(results) == 6
    for ours, theirs in results:
        assert ours.shape == theirs.shape
        assert abs(ours - theirs).max() < 1e-4


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_tables_of_the_library_name_every_class(path):
    table = json.loads(path.read_text())["break_even"]
    for dtype in break_even.DTYPES:
        for format in break_even.BLOCKS:
            for batch in break_even.BATCHES:
                spec = break_even.make.full(format, (64, 64)).spec()
                for member in ("block_matmul_forward", "stored_dense_block_matmul_input_grad"):
                    assert 0 <= table[member][dtype][spec.shape_class(batch)] <= 1


def test_only_some_points_are_measured_and_the_others_stay(monkeypatch, tmp_path):
    need("cpu_kernels")
    monkeypatch.setattr(break_even, "DTYPES", ("float32",))
    monkeypatch.setattr(break_even, "FORMATS", (Block((32, 32)),))
    monkeypatch.setattr(break_even, "SHAPES", ((32, 32),))
    measure = functools.partial(break_even.measure, report=lambda line: None)
    only = "block_matmul_forward float32 batch<8"
    first = measure(lambda ours, theirs: 2.0)
    break_even.write(first, {}, tmp_path)
    path = break_even.write(measure(lambda ours, theirs: 0.5, only=only), {}, tmp_path)
    points = json.loads(path.read_text())["break_even"]
    changed = {
        f"{member} {dtype} {name}"
        for member, dtypes in points.items()
        for dtype, classes in dtypes.items()
        for name, point in classes.items()
        if point != first[member][dtype][name]
    }
    assert changed == {f"{only},block>=32", f"stored_dense_{only},block>=32"}


def test_a_point_is_looked_up_by_the_class_it_was_stored_for(monkeypatch):
    table = {"m": {"float32": {"batch<8,block>=8": 0.4}}}
    monkeypatch.setattr(dispatch, "_table", lambda device: table)
    assert dispatch.break_even("m", "float32", "batch<8,block>=8") == 0.4
    assert dispatch.break_even("m", "bfloat16", "batch<8,block>=8") is None
