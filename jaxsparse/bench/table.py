"""What tables of measurements share: which rows are measured, and how each can be repeated."""

import shlex
from collections.abc import Callable, Mapping
from typing import Any

from jaxsparse.tune import progress


def select(labels: Mapping[str, Any], only: str) -> dict[str, Any]:
    """What has the label `only`, else everything whose label contains it.

    Raises:
        ValueError: there is nothing.
    """
    if only in labels:
        return {only: labels[only]}
    selected = {label: case for label, case in labels.items() if only in label}
    if not selected:
        raise ValueError(f"bench: --only takes a part of a row's label, got {only!r}.")
    return selected


def run(table: str, cases: Mapping[str, Any], measure: Callable[[Any, str], Any]) -> list:
    """Measures and prints rows, one after the other.

    Args:
        table: its name, for the progress bar.
        cases: by label, what to measure.
        measure: `measure(case, label)` returns a row, which has `line()`.
    """
    rows = []
    for label, case in progress.over(list(cases.items()), table):
        rows.append(measure(case, label))
        progress.write(rows[-1].line())
    return rows


def command(table: str, label: str, *, quick: bool, threads: int, seconds: float, **flags) -> str:
    """What to type to measure one row again; flags such as `peers=True` are written `--peers`."""
    words = ["python", "-m", "jaxsparse", "bench", table, *["--quick"] * quick]
    words += ["--threads", str(threads), "--seconds", str(seconds)]
    words += [f"--{name}" for name, is_set in flags.items() if is_set]
    return shlex.join([*words, "--only", label])
