"""Rows of the benchmark can be named, repeated and trusted."""

import json
import shlex

import pytest

import jaxsparse as js
from jaxsparse import __main__ as program
from jaxsparse.bench import matmul


@pytest.mark.parametrize("table", ["matmul", "floor"])
def test_each_label_selects_its_row_only(table):
    for problem, role in matmul.select(table, False, "")[::37]:
        assert matmul.select(table, False, matmul.label(*problem, role)) == [(problem, role)]


def test_command_in_json_repeats_the_row(tmp_path, monkeypatch):
    monkeypatch.setattr(matmul.measure, "pin", lambda threads: None)
    path = tmp_path / "rows.json"
    first = ["bench", "floor", "--quick", "--seconds", "0.01", "--only", "0.9 input_grad"]
    assert program.main([*first, "--json", str(path)]) == 0
    (row,) = json.loads(path.read_text())["rows"]
    command = shlex.split(row["command"])
    assert program.main([*command[3:], "--json", str(path)]) == 0
    (again,) = json.loads(path.read_text())["rows"]
    for key in ("role", "dtype", "batch", "shape", "block", "zeros", "command"):
        assert again[key] == row[key]


def test_wrong_result_is_not_timed(monkeypatch):
    right = js.matmul
    monkeypatch.setattr(js, "matmul", lambda *args: right(*args) + 1)
    with pytest.raises(RuntimeError, match="forward is wrong"):
        matmul.run("floor", quick=True, seconds=0.01, only="0.9 forward")


def test_unknown_label_is_a_wrong_argument():
    with pytest.raises(ValueError, match="--only"):
        matmul.run("floor", quick=True, only="no such row")


def test_plot_is_a_png(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(matmul.measure, "pin", lambda threads: None)
    path = tmp_path / "speed.png"
    command = ["bench", "floor", "--quick", "--seconds", "0.01", "--only", "forward"]
    assert program.main([*command, "--plot", str(path)]) == 0
    assert path.read_bytes().startswith(b"\x89PNG")
