"""Whole models and functions against each other: time per call, after a look at the results."""

import contextlib
import dataclasses
import statistics
from collections.abc import Callable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.core import modes
from jaxsparse.models.program import program
from jaxsparse.tune import timing
from jaxsparse.tune.table import as_table


@dataclasses.dataclass(frozen=True)
class Timed:
    """One of the functions that `benchmark` compares.

    Attributes:
        name: as it was given, or how a model ran.
        ms: the median time of a call, in milliseconds.
        ratio: how many times as fast it is as the first one: the median over rounds.
        spread: the quartiles of that.
    """

    name: str
    ms: float
    ratio: float
    spread: tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """What `benchmark` measured. Prints as a table."""

    rows: tuple[Timed, ...]

    def __getitem__(self, name: str) -> Timed:
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(name)

    def __iter__(self) -> Iterator[Timed]:
        return iter(self.rows)

    def __str__(self) -> str:
        header = ("", "ms", "times as fast", "quartiles")
        rows = [
            (row.name, f"{row.ms:.3f}", f"{row.ratio:.2f}", "{:.2f} {:.2f}".format(*row.spread))
            for row in self.rows
        ]
        return as_table(header, rows)


def benchmark(model, *sample, seconds: float = 1.0, rtol: float | None = None, **call) -> Benchmark:
    """How long a call of a model takes, dense, sparse, and as it would be chosen.

        print(benchmark(model, x))                                  # nnx; or a function
        print(benchmark(model, variables, x))                       # linen
        print(benchmark(sparse, dense, x))                          # one against another
        print(benchmark({"dense": model, "sparse": other}, x))      # any two or more

    All are compiled, and their results compared with those of the first one, before they are timed
    in turn.

    Args:
        model: a `flax.nnx.Module`, an unbound `flax.linen.Module` or a function, which runs as it
            is ("chosen") and with `mode("dense")` and `mode("sparse")`; or several of these by
            name, which run as they are. Two of them one after the other are "sparse" and "dense",
            whatever they are, and are called with the rest.
        *sample: arrays that it is called with; the variables of a linen model come first.
        seconds: about how long to sample, all together. Compiling comes on top.
        rtol: by how much results may differ, relative to the largest entry of each; if None, 1e-3
            of it for float32 and 5e-2 for shorter dtypes. Whole models round again and again, so
            this only finds gross errors; `check` compares op by op.
        **call: keyword arguments of the call, or of `apply` of a linen model.

    Returns:
        A row for each, times in milliseconds and ratios to the first: above 1 is faster.

    Raises:
        ArithmeticError: results differ.
        TypeError, ValueError: what is no model, variables that are missing, a single function by
            name.
    """
    if sample and callable(sample[0]):
        model, sample = {"dense": sample[0], "sparse": model}, sample[1:]
    if isinstance(model, Mapping):
        if len(model) < 2:
            raise ValueError(f"benchmark: compare two functions or more, got {list(model)}.")
        calls = {name: _compiled(one, sample, call) for name, one in model.items()}
    else:
        calls = {}
        for name in (*modes.MODES, "chosen"):
            with modes.mode(name) if name in modes.MODES else contextlib.nullcontext():
                calls[name] = _compiled(model, sample, call)
    first, *others = calls
    expected = calls[first]()
    for name in others:
        _compare(first, expected, name, calls[name](), rtol)
    return timed(calls, seconds)


def timed(calls: Mapping[str, Callable], seconds: float) -> Benchmark:
    """Functions without arguments against the first of them."""
    samples = timing.interleaved(calls, seconds=seconds)
    first = samples[next(iter(calls))]
    rows = []
    for name, own in samples.items():
        ratios = [a / b for a, b in zip(first, own, strict=True)]
        low, _, high = statistics.quantiles(ratios, n=4)
        row = Timed(name, 1e3 * statistics.median(own), statistics.median(ratios), (low, high))
        rows.append(row)
    return Benchmark(tuple(rows))


def _compiled(model, sample, call) -> Callable:
    """The call without arguments, which waits for its result."""
    one = program("benchmark", model, sample, call)
    compiled = jax.jit(one.function).lower(*one.arguments).compile()
    return lambda: jax.block_until_ready(compiled(*one.arguments))


def _compare(first: str, expected, name: str, got, rtol: float | None) -> None:
    if jax.tree.structure(expected) != jax.tree.structure(got):
        raise ArithmeticError(
            f"benchmark: all must return the same, got {jax.tree.structure(expected)} of {first!r} "
            f"and {jax.tree.structure(got)} of {name!r}."
        )
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(got), strict=True):
        if a.shape != b.shape:
            raise ArithmeticError(
                f"benchmark: results must have one shape, got {a.shape} of {first!r} and {b.shape} "
                f"of {name!r}."
            )
        short = any(jnp.finfo(x.dtype).bits < 32 for x in (a, b) if _is_inexact(x))
        limit = (5e-2 if short else 1e-3) if rtol is None else rtol
        a, b = (np.asarray(x, np.float64) for x in (a, b))
        largest = np.max(np.abs(a), initial=0, where=np.isfinite(a))
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        with np.errstate(invalid="ignore"):
            off = np.where(same, 0, np.abs(a - b))
        if not (off <= limit * largest).all():
            worst = np.nanmax(np.where(np.isnan(off), np.inf, off), initial=0)
            raise ArithmeticError(
                f"benchmark: results must agree, got {name!r} off by {worst:.3g} from {first!r}, "
                f"whose largest entry is {largest:.3g}. Find the layer with jaxsparse.check()."
            )


def _is_inexact(x) -> bool:
    return jnp.issubdtype(x.dtype, jnp.inexact)
