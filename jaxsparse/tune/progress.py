"""A progress bar for long tables, below the rows that are printed."""

import sys
from collections.abc import Iterable, Iterator, Sequence

_bar = None


def over(rows: Sequence, name: str) -> Iterator:
    """The rows, with a bar on standard error where that is a terminal and tqdm is installed."""
    global _bar
    iterable: Iterable = rows
    if len(rows) > 3 and sys.stderr.isatty():
        try:
            from tqdm import tqdm

            iterable = _bar = tqdm(rows, desc=name, unit="row", file=sys.stderr)
        except ModuleNotFoundError:
            pass
    try:
        yield from iterable
    finally:
        _bar = None


def write(line: str) -> None:
    """Prints a line above the bar."""
    if _bar is None:
        print(line, flush=True)
    else:
        _bar.write(line, file=sys.stdout)
