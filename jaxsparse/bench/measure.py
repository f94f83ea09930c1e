"""On how many cores rows are measured, and how functions are timed there."""

import os

from jaxsparse.tune.timing import interleaved, median_ratio, warm

__all__ = ["interleaved", "median_ratio", "pin", "warm"]


def pin(threads: int) -> list[int]:
    """Keeps this process on `threads` cores, the last ones it may use. Before JAX's first call.

    XLA sizes its thread pool by the cores a process may use, so this sets its threads as well.
    """
    allowed = sorted(os.sched_getaffinity(0))
    if not 1 <= threads <= len(allowed):
        raise ValueError(
            f"bench: this process may use {len(allowed)} cores, got threads={threads}."
        )
    os.sched_setaffinity(0, allowed[-threads:])
    return allowed[-threads:]
