"""A checkpoint as a table of its weights, and its patterns as pictures, in text and as a PNG."""

import importlib.util
import math
import pathlib
import re
from collections.abc import Iterator

import jax
import numpy as np

from jaxsparse.formats.pattern import Pattern
from jaxsparse.io.weights import Weight, weights_of
from jaxsparse.models.summary import as_table
from jaxsparse.patterns import from_mask, picture


def report(tree) -> str:
    """A table of the weights of a tree: how they are stored, how much of them, in how many bytes.

    "Zeros" counts entries of the whole weight, whatever stores them; "bytes" are those in memory,
    indices of patterns included, "dense" those of the whole weight.
    """
    rows, of_weights, of_dense = [], 0, 0
    for weight in weights_of(tree):
        pattern, size = weight.pattern, math.prod(weight.shape)
        dense = size * weight.value.dtype.itemsize
        stored = weight.value.nbytes + (0 if pattern is None else pattern.nbytes)
        nonzero = int(np.count_nonzero(np.asarray(weight.value)))
        format = "dense" if pattern is None else str(pattern.format)
        density, parts = "", ""
        if pattern is not None:
            density = f"{pattern.density:.3g}"
            parts = f"{pattern.capacity} of {math.prod(pattern.grid)} {pattern.format.noun}"
        zeros = f"{100 * (1 - nonzero / max(1, size)):.1f} %"
        shape = "x".join(map(str, weight.shape))
        how = "" if pattern is None else "values only" if weight.is_packed else "kernel whole"
        rows.append(
            (weight.name, shape, format, density, parts, zeros, how, f"{stored:,}", f"{dense:,}")
        )
        of_weights, of_dense = of_weights + stored, of_dense + dense
    header = ("weight", "shape", "format", "density", "stored", "zeros", "kept", "bytes", "dense")
    total = sum(leaf.nbytes for leaf in jax.tree.leaves(tree) if hasattr(leaf, "nbytes"))
    lines = [as_table(header, rows), ""]
    if of_dense:
        lines.append(
            f"{of_weights:,} bytes in weights, {of_weights / of_dense:.3f} times what they take "
            f"dense; {max(0, total - of_weights):,} bytes in everything else"
        )
    else:
        lines.append(f"no weights; {total:,} bytes in all")
    return "\n".join(lines)


def pictures(tree, layers: str, *, width: int) -> Iterator[str]:
    """A picture in text for each weight whose name matches: its pattern, or where it is not zero.

    Args:
        tree: of a checkpoint.
        layers: a regular expression for the whole name.
        width: of the pictures, in characters.

    Raises:
        ValueError: no name matches.
    """
    for name, pattern in _patterns(tree, layers):
        yield f"{name}\n{picture(pattern, width=width)}"


def draw(tree, layers: str, path) -> int:
    """Draws what `pictures` draws into a PNG, and returns how many patterns there are.

    Raises:
        ValueError: no name matches.
        RuntimeError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise RuntimeError("show: --png takes matplotlib. Install it: pip install matplotlib.")
    from matplotlib.figure import Figure

    patterns = list(_patterns(tree, layers))
    across = min(4, math.ceil(math.sqrt(len(patterns))))
    down = math.ceil(len(patterns) / across)
    figure = Figure(figsize=(4 * across, 4.4 * down), layout="constrained")
    for i, (name, pattern) in enumerate(patterns, start=1):
        axes = figure.add_subplot(down, across, i)
        mask = np.asarray(pattern.grid_mask())
        axes.imshow(mask, cmap="Greys", vmin=0, vmax=1, aspect="auto", interpolation="antialiased")
        axes.set_title(f"{name}\n{pattern.format}, density {mask.mean():.3g}", fontsize="small")
        axes.set(xlabel="outputs", ylabel="inputs")
    figure.savefig(pathlib.Path(path), format="png", dpi=100)
    return len(patterns)


def _patterns(tree, layers: str) -> Iterator[tuple[str, Pattern]]:
    """The patterns of the weights whose names match, stacked ones one by one."""
    try:
        is_wanted = re.compile(layers).fullmatch
    except re.error as error:
        raise ValueError(
            f"show: --layer is a regular expression, got {layers!r} ({error})."
        ) from error
    weights = list(weights_of(tree))
    found = [weight for weight in weights if is_wanted(weight.name)]
    if not found:
        names = ", ".join(repr(weight.name) for weight in weights[:12]) or "none"
        raise ValueError(
            f"show: --layer must match the whole name of a weight, got {layers!r}. Weights are "
            f"{names}{', ...' if len(weights) > 12 else ''}."
        )
    for weight in found:
        yield from _each(weight)


def _each(weight: Weight) -> Iterator[tuple[str, Pattern]]:
    pattern = weight.pattern
    if pattern is None:
        mask = np.asarray(weight.value) != 0
        yield weight.name, from_mask(mask, "unstructured")
        return
    for group in np.ndindex(*pattern.group):
        indices = (np.asarray(index)[group] for index in pattern.indices)
        place = "".join(f"[{i}]" for i in group)
        yield weight.name + place, pattern.with_indices(*map(jax.numpy.asarray, indices))
