"""Rows of the benchmark of convolutions can be named, repeated and trusted."""

import json
import shlex

import pytest

import jaxsparse as js
from jaxsparse import __main__ as program
from jaxsparse.bench import conv, measure, table


@pytest.fixture(autouse=True)
def _unpinned(monkeypatch):
    monkeypatch.setattr(measure, "pin", lambda threads: None)


@pytest.mark.parametrize("name", conv.TABLES)
def test_labels_are_unique(name):
    cases = list(conv.TABLES[name]())
    assert len(conv.labels(name, quick=False)) == len(cases)


def test_a_whole_label_selects_its_row_only():
    labels = {"a 0.9": 1, "a 0.95": 2}
    assert table.select(labels, "a 0.9") == {"a 0.9": 1}
    assert table.select(labels, "0.9") == labels


def test_unknown_label_is_a_wrong_argument():
    with pytest.raises(ValueError, match="--only"):
        conv.run("conv", quick=True, only="no such row")


def test_every_quick_row_is_right_and_its_command_repeats_it(tmp_path):
    path = tmp_path / "rows.json"
    first = ["bench", "conv", "--quick", "--seconds", "0.01"]
    assert program.main([*first, "--json", str(path)]) == 0
    rows = json.loads(path.read_text())["rows"]
    assert [row["role"] for row in rows[:3]] == list(conv.ROLES)
    command = shlex.split(rows[1]["command"])
    assert program.main([*command[3:], "--json", str(path)]) == 0
    (again,) = json.loads(path.read_text())["rows"]
    for key in ("problem", "role", "dtype", "format", "zeros", "command"):
        assert again[key] == rows[1][key]


@pytest.mark.parametrize("role", conv.ROLES)
def test_wrong_result_is_not_timed(role, monkeypatch):
    right = js.conv
    monkeypatch.setattr(js, "conv", lambda *args, **options: 1.001 * right(*args, **options))
    with pytest.raises(RuntimeError, match=f"{role} of sparse is wrong"):
        conv.run("conv", quick=True, seconds=0.01, only=f"quick unstructured 0.9 {role}")


def test_plot_is_a_png(tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "speed.png"
    command = ["bench", "conv", "--quick", "--seconds", "0.01", "--only", "quick unstructured"]
    assert program.main([*command, "--plot", str(path)]) == 0
    assert path.read_bytes().startswith(b"\x89PNG")


def test_peers_are_for_products(capsys):
    assert program.main(["bench", "conv", "--peers"]) == 2
    assert "--peers goes with matmul, floor, got conv" in capsys.readouterr().err
