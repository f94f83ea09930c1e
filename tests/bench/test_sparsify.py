"""The benchmark of substitution replaces every layer, and would not call a slow one good."""

import dataclasses
import json

import pytest

from jaxsparse import __main__ as program
from jaxsparse.bench import measure, sparsify


def test_quick_rows_are_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "pin", lambda threads: None)
    path = tmp_path / "rows.json"
    assert program.main(["bench", "sparsify", "--quick", "--json", str(path)]) == 0
    rows = json.loads(path.read_text())["rows"]
    assert [row["name"] for row in rows] == [
        f"{framework} {format}" for framework in ("nnx", "linen") for format in sparsify.FORMATS
    ]
    assert {row["name"].partition(" ")[0]: row["layers"] for row in rows} == {
        "nnx": 3 + 4 + 2,
        "linen": 5,
    }


@pytest.mark.parametrize(("first", "word"), [(1.9, "met"), (2.1, "MISSED")])
def test_the_first_call_is_what_the_goal_is_for(first, word):
    row = sparsify.Row("nnx", 100, first, 0.1, sparsify.GOAL_SECONDS)
    assert row.line().endswith(word)
    assert dataclasses.asdict(row)["first"] == first
