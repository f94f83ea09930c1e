"""A picture of speed against sparsity."""

import importlib.util
import pathlib


def require() -> None:
    """Raises unless matplotlib is installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise RuntimeError("bench: --plot takes matplotlib. Install it: pip install matplotlib.")


def write(rows, path: pathlib.Path) -> None:
    """Draws the speed relative to the rival against zeros: a line per series, a panel per problem.

    Args:
        rows: with `panel`, `series`, `zeros`, `ratio` and `goal`.
        path: where the PNG goes.
    """
    require()
    from matplotlib.figure import Figure

    panels = {}
    for row in rows:
        panels.setdefault(row.panel, {}).setdefault(row.series, []).append(row)
    figure = Figure(figsize=(6, 4 * len(panels)), layout="constrained")
    for i, (panel, lines) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(len(panels), 1, i)
        for series, line in lines.items():
            zeros = [100 * row.zeros for row in line]
            (drawn,) = axes.plot(zeros, [row.ratio for row in line], "o-", label=series)
            goals = [(100 * row.zeros, row.goal) for row in line if row.goal is not None]
            if goals:
                axes.plot(*zip(*goals), "_", markersize=12, color=drawn.get_color())
        axes.axhline(1, color="black", linewidth=0.5)
        axes.set(title=panel, xlabel="zeros, %", ylabel="times as fast as dense", yscale="log")
        axes.legend(fontsize="xx-small")
    figure.savefig(path, format="png")
