"""The comparison of two cores with one reads the rows of every table that it starts."""

import json
import pathlib
import subprocess

from jaxsparse.bench import scaling

PRODUCT = {"role": "forward", "batch": 4, "shape": [8, 16], "zeros": 0.9}
CONVOLUTION = {"role": "forward", "problem": "layer", "zeros": 0.9}


def test_two_cores_are_compared_row_by_row(monkeypatch):
    def measured(command, **_):
        threads = int(command[command.index("--threads") + 1])
        if command[4] == "matmul":
            row = {**PRODUCT, "sparse_ms": 6 / threads, "dense_ms": 10.0, "warm_ms": 3 / threads}
        else:
            times = {"sparse": 8 / threads**2, "xla": 9.0}
            row = {**CONVOLUTION, "milliseconds": times, "warm_ms": 3 / threads}
        path = pathlib.Path(command[command.index("--json") + 1])
        path.write_text(json.dumps({"rows": [row]}))

    monkeypatch.setattr(subprocess, "run", measured)
    rows = scaling.run()
    assert [row.one_ms / row.two_ms for row in rows] == [2.0, *[4.0] * (len(rows) - 1)]
    assert all(row.dense == 1 and row.warm == 2 and " met " in row.line() for row in rows)
