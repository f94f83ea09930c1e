"""How much faster two cores are than one, for the same products and convolutions."""

import dataclasses
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator

# Of each table, the rows that are measured, and how much faster two cores are to make them.
PARTS = (
    (("matmul", "--quick"), 1.8),
    (("conv", "--only", "resnet50_3_3x3 unstructured 0.9"), 1.7),
    (("conv", "--only", "resnet50_2_3x3 unstructured 0.9"), 1.7),
)


@dataclasses.dataclass(frozen=True)
class Row:
    """One product or convolution on one core and on two.

    Attributes:
        label: role, sizes and zeros.
        one_ms, two_ms: medians over the rounds, in milliseconds, in turn with XLA's dense op.
        warm: how many times faster two cores make ours where it is called again and again by
            itself: no core has gone to sleep, and operands lie in caches.
        dense: and XLA's dense op, in turn.
        goal: for ours in turn.
    """

    label: str
    one_ms: float
    two_ms: float
    warm: float
    dense: float
    goal: float

    def line(self) -> str:
        ratio = self.one_ms / self.two_ms
        met = "met" if ratio >= self.goal else "MISSED"
        return (
            f"{self.label:44s} one core {self.one_ms:8.3f} ms  two {self.two_ms:8.3f} ms  "
            f"{ratio:5.2f}x  goal {self.goal} {met}  warm {self.warm:.2f}x  "
            f"(dense {self.dense:.2f}x)"
        )


def run(rounds: int = 3) -> list[Row]:
    """Measures one and two cores in processes of their own, taking turns, and prints the rows."""
    rows = []
    for part, goal in PARTS:
        times = {1: {}, 2: {}}
        for _ in range(rounds):
            for threads, of_label in times.items():
                for label, *milliseconds in _measure(part, threads):
                    of_label.setdefault(label, []).append(milliseconds)
        for label, samples in times[1].items():
            one, two = (
                [statistics.median(column) for column in zip(*each, strict=True)]
                for each in (samples, times[2][label])
            )
            warm, dense = (a / b for a, b in zip(one[1:], two[1:], strict=True))
            rows.append(Row(label, one[0], two[0], warm, dense, goal))
            print(rows[-1].line(), flush=True)
    return rows


def _measure(part: tuple[str, ...], threads: int) -> Iterator[tuple[str, float, float, float]]:
    """For each row of a part its label; milliseconds of ours, of ours warm, of XLA's dense op."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "rows.json")
        command = [sys.executable, "-m", "jaxsparse", "bench", *part]
        options = ["--threads", str(threads), "--json", str(path)]
        subprocess.run(command + options, check=True, stdout=subprocess.DEVNULL)
        rows = json.loads(path.read_text())["rows"]
    for row in rows:
        zeros = f"{100 * row['zeros']:.0f} %"
        if "milliseconds" in row:
            times, problem = row["milliseconds"], row["problem"]
            if "xla" in times:  # others are compared with another format of ours
                label = f"{row['role']:11s} {problem}  {zeros}"
                yield label, times["sparse"], row["warm_ms"], times["xla"]
        else:
            problem = f"{row['batch']} x {row['shape'][0]} x {row['shape'][1]}"
            label = f"{row['role']:11s} {problem}  {zeros}"
            yield label, row["sparse_ms"], row["warm_ms"], row["dense_ms"]
