"""What a pattern looks like: counts, and a picture in text."""

import dataclasses
import math

import numpy as np

from jaxsparse.formats.pattern import Pattern, check_pattern, check_usable
from jaxsparse.formats.weight import SparseWeight

_SHADES = " ░▒▓█"


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Counts of a pattern, whose blocks are single weights or groups' strips in other formats.

    Attributes:
        num_blocks: blocks stored.
        capacity: blocks there is room for.
        grid: blocks that would tile the weight.
        density: `num_blocks` over all blocks.
        per_row, per_col: least, mean and most stored blocks in a row and in a column of blocks.
        empty_rows, empty_cols: rows and columns of blocks that store nothing.
        imbalance: the most blocks in a column over the mean: 1 is even.
        index_bytes: memory of the indices.
    """

    num_blocks: int
    capacity: int
    grid: tuple[int, int]
    density: float
    per_row: tuple[int, float, int]
    per_col: tuple[int, float, int]
    empty_rows: int
    empty_cols: int
    imbalance: float
    index_bytes: int


def statistics(pattern: Pattern | SparseWeight) -> Statistics:
    """Counts of a pattern that is known (not traced).

    Raises:
        ValueError: the pattern is traced.
    """
    pattern = _known(pattern, "statistics")
    mask = np.asarray(pattern.grid_mask())
    count = int(mask.sum())
    per_row, per_col = mask.sum(axis=1), mask.sum(axis=0)
    mean = float(per_col.mean()) if per_col.size else 0.0
    return Statistics(
        num_blocks=count,
        capacity=pattern.capacity,
        grid=pattern.grid,
        density=count / max(1, mask.size),
        per_row=_spread(per_row),
        per_col=_spread(per_col),
        empty_rows=int((per_row == 0).sum()),
        empty_cols=int((per_col == 0).sum()),
        imbalance=float(per_col.max(initial=0)) / mean if mean else 1.0,
        index_bytes=pattern.nbytes,
    )


def picture(pattern: Pattern | SparseWeight, *, width: int = 64) -> str:
    """A picture of a known pattern, inputs downwards and outputs to the right.

    Each character stands for one block (or weight, or strip of a group), or for a rectangle of them
    where the grid is wider than `width`: the darker, the more are stored (empty, up to a third, two
    thirds, less than all, all).
    """
    if width < 1:
        raise ValueError(f"picture: width must be at least 1 character, got {width}.")
    pattern = _known(pattern, "picture")
    mask = np.asarray(pattern.grid_mask())
    if not mask.size:
        return f"{pattern!r}\n(no {pattern.format.noun})"
    step = max(1, math.ceil(mask.shape[1] / width))
    rows = np.arange(0, mask.shape[0], step)
    cols = np.arange(0, mask.shape[1], step)
    stored = np.add.reduceat(np.add.reduceat(mask.astype(np.int64), rows), cols, axis=1)
    whole = np.add.reduceat(np.add.reduceat(np.ones_like(mask, np.int64), rows), cols, axis=1)
    # Whole numbers throughout: 0 only if empty, the last shade only if all are stored.
    shades = np.where(stored == whole, len(_SHADES) - 1, -(-3 * stored // whole))
    lines = ["".join(_SHADES[shade] for shade in row) for row in shades]
    each = f", each character {step} x {step} {pattern.format.noun}" if step > 1 else ""
    edge = "+" + "-" * len(lines[0]) + "+"
    return "\n".join([f"{pattern!r}{each}", edge, *(f"|{line}|" for line in lines), edge])


def _known(pattern, function: str) -> Pattern:
    pattern = pattern.pattern if isinstance(pattern, SparseWeight) else pattern
    check_pattern(function, pattern)
    check_usable(function, pattern)
    return pattern


def _spread(counts) -> tuple[int, float, int]:
    if not counts.size:
        return 0, 0.0, 0
    return int(counts.min()), float(counts.mean()), int(counts.max())
