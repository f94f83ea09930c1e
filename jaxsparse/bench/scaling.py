"""How much faster two cores are than one, for the same products."""

import dataclasses
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile


@dataclasses.dataclass(frozen=True)
class Row:
    """One product on one core and on two.

    Attributes:
        label: role, sizes and zeros.
        one_ms, two_ms: medians over the rounds, in milliseconds.
        dense: how many times faster two cores make XLA's dense product.
    """

    label: str
    one_ms: float
    two_ms: float
    dense: float

    def line(self) -> str:
        ratio = self.one_ms / self.two_ms
        met = "met" if ratio >= 1.8 else "MISSED"
        return (
            f"{self.label:44s} one core {self.one_ms:8.3f} ms  two {self.two_ms:8.3f} ms  "
            f"{ratio:5.2f}x  goal 1.8 {met}  (dense {self.dense:.2f}x)"
        )


def run(rounds: int = 3) -> list[Row]:
    """Measures one and two cores in processes of their own, taking turns, and prints the rows."""
    results = {1: [], 2: []}
    for _ in range(rounds):
        for threads in results:
            results[threads].append(_measure(threads))
    rows = []
    for one, two in zip(zip(*results[1], strict=True), zip(*results[2], strict=True), strict=True):
        first = one[0]
        size = f"{first['batch']} x {first['shape'][0]} x {first['shape'][1]}"
        rows.append(
            Row(
                label=f"{first['role']:11s} {size}  {100 * first['zeros']:.0f} %",
                one_ms=statistics.median(row["sparse_ms"] for row in one),
                two_ms=statistics.median(row["sparse_ms"] for row in two),
                dense=statistics.median(row["dense_ms"] for row in one)
                / statistics.median(row["dense_ms"] for row in two),
            )
        )
        print(rows[-1].line(), flush=True)
    return rows


def _measure(threads: int) -> list[dict]:
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "rows.json")
        command = [sys.executable, "-m", "jaxsparse", "bench", "matmul", "--quick"]
        options = ["--threads", str(threads), "--json", str(path)]
        subprocess.run(command + options, check=True, stdout=subprocess.DEVNULL)
        return json.loads(path.read_text())["rows"]
