"""Timing two or more functions against each other on a machine that others use too."""

import os
import statistics
import time
from collections.abc import Callable, Mapping


def interleaved(
    functions: Mapping[str, Callable[[], object]],
    *,
    seconds: float = 1.0,
    min_rounds: int = 7,
    max_rounds: int = 400,
) -> dict[str, list[float]]:
    """Seconds per call of each function, called in turn, in reversed order every other round.

    A sample is the smaller of wall time and, with one core, the process's CPU time, which does not
    see preemption by others. Functions that take microseconds are called several times a sample.
    The functions must wait for their results.

    Args:
        functions: by name; each is called twice before it is timed.
        seconds: about how long to sample, all functions together.
        min_rounds, max_rounds: bounds on the number of samples.
    """
    estimates = {}
    for name, function in functions.items():
        function()
        function()
        start = time.perf_counter()
        function()
        estimates[name] = max(1e-9, time.perf_counter() - start)
    rounds = int(min(max_rounds, max(min_rounds, seconds / sum(estimates.values()))))
    repeats = {name: max(1, int(2e-4 / estimate)) for name, estimate in estimates.items()}
    use_cpu_time = len(os.sched_getaffinity(0)) == 1
    samples = {name: [] for name in functions}
    for i in range(rounds):
        for name in list(functions)[:: 1 if i % 2 == 0 else -1]:
            function, repeat = functions[name], repeats[name]
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in range(repeat):
                function()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            samples[name].append((min(wall, cpu) if use_cpu_time else wall) / repeat)
    return samples


def median_ratio(samples: dict[str, list[float]], slow: str, fast: str) -> float:
    """The median over rounds of how many times longer `slow` took than `fast` in the same round."""
    return statistics.median(a / b for a, b in zip(samples[slow], samples[fast], strict=True))


def warm(functions: Mapping[str, Callable[[], object]], *, seconds: float) -> dict[str, float]:
    """Median seconds per call of functions that are each called again and again by themselves.

    In turn, each finds its operands where the others left them, mostly in memory; alone, in the
    caches. A model lies in between: what a layer reads was just written, but for its weights.
    """
    return {
        name: statistics.median(interleaved({name: function}, seconds=seconds / 2)[name])
        for name, function in functions.items()
    }
