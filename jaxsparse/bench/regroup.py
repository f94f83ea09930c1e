"""Regrouping by cost against the rule of widths: what both store for as many weights kept."""

import dataclasses
import time
import tracemalloc

import numpy as np

from jaxsparse import patterns

# What the rule is known to be tried on: 32 outputs in one group, evenly random, and with a quarter
# of the inputs used by many outputs: (density of those, of the others).
UNIFORM = (0.5, 0.3, 0.2, 0.1, 0.05)
PLANTED = {0.375: (1.0, 1 / 6), 0.31: (0.93, 0.103), 0.19: (0.65, 0.037), 0.09: (0.36, 0.0),
           0.05: (0.2, 0.0)}  # fmt: skip

# Weights of VGG-16 and densities of masks at which the rule stores what it is reported to store of
# lottery tickets: 0.603 at most for the first two (the rule itself stores less, whatever the mask),
# then 0.430, 0.203, 0.118, 0.089, 0.074 and 0.069.
TICKETS = (
    ((3, 3, 128, 256), 0.857),
    ((3, 3, 256, 256), 0.857),
    ((3, 3, 256, 512), 0.453),
    ((3, 3, 512, 512), 0.102),
    ((3, 3, 512, 512), 0.0437),
    ((3, 3, 512, 512), 0.0286),
    ((3, 3, 512, 512), 0.0231),
    ((3, 3, 512, 512), 0.0208),
)
LARGEST = ((3, 3, 512, 2048), 0.1)  # of the bounds on time and memory
SECONDS, MEGABYTES = 10.0, 1000.0


@dataclasses.dataclass(frozen=True)
class Row:
    """One mask: shares of its weights that are kept in blocks, and of all that is stored."""

    name: str
    kept: float
    by_width: float
    by_cost: float
    seconds: float  # of both together

    def line(self) -> str:
        return (
            f"{self.name:32s} kept {self.kept:5.3f}  stored by width {self.by_width:5.3f}  by cost "
            f"{self.by_cost:5.3f}  {self.by_cost / self.by_width:5.2f}x  {self.seconds:5.2f} s"
        )


def run(quick: bool = False) -> list[Row]:
    """Measures and prints every mask, and the bounds on time and memory."""
    rng, rows = np.random.default_rng(0), []
    for density in UNIFORM:
        rows.append(_row(f"uniform, {density:.3g}", rng.random((1152, 32)) < density, 1))
    for density, (hot, cold) in PLANTED.items():
        shares = np.where(np.arange(1152) < 288, hot, cold)[:, None]
        rows.append(_row(f"planted, {density:.3g}", rng.random((1152, 32)) < shares, 1))
    if not quick:
        for shape, density in (*TICKETS, LARGEST):
            name = f"{'x'.join(map(str, shape))}, {density:.3g}"
            rows.append(_row(name, ticket(shape, density), 8))
        megabytes = _peak(ticket(*LARGEST))
        is_kept = rows[-1].seconds < SECONDS and megabytes < MEGABYTES
        print(
            f"the last one takes {megabytes:.0f} MB; bounds {SECONDS:g} s and {MEGABYTES:g} MB "
            f"{'kept' if is_kept else 'BROKEN'}"
        )
    return rows


def _row(name: str, mask: np.ndarray, num_groups: int) -> Row:
    start = time.perf_counter()
    by_width = patterns.regroup(mask, num_groups=num_groups)
    kept = by_width.kept(mask)
    by_cost = patterns.regroup_by_cost(mask, keep=kept, widths=(8,))
    seconds = time.perf_counter() - start
    assert by_cost.kept(mask) >= kept
    row = Row(name, kept, by_width.density, by_cost.density, seconds)
    print(row.line(), flush=True)
    return row


def _peak(mask: np.ndarray) -> float:
    """Megabytes that regrouping takes at most. In a run of its own, because counting is slow."""
    tracemalloc.start()
    patterns.regroup(mask, num_groups=8)
    patterns.regroup_by_cost(mask)
    peak = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    return peak


def ticket(shape: tuple[int, ...], density: float) -> np.ndarray:
    """A mask as pruning leaves it: some channels, taps and outputs, and some kinds of outputs with
    inputs of their own, matter more than others.
    """
    *kernel, size_in, size_out = shape
    taps, rng = int(np.prod(kernel)), np.random.default_rng(0)
    matters = rng.lognormal(0, 1, (1, size_in, 1)) * rng.lognormal(0, 0.3, (taps, 1, 1))
    matters = matters * rng.lognormal(0, 0.7, size_out)
    matters = matters * rng.lognormal(0, 0.8, (1, size_in, 8))[..., rng.integers(8, size=size_out)]
    # As many as wanted, drawn by how much they matter.
    drawn = rng.random(matters.shape) ** (1 / matters)
    count = round(density * drawn.size)
    least = np.partition(drawn.ravel(), -count)[-count]
    return (drawn >= least).reshape(shape)
