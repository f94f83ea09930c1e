"""Schedules: functions from a step to a share, as in optax, whose own can be used as well."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

Schedule = Callable[[jax.Array], jax.Array]


def cubic(sparsity: float, *, end: int, begin: int = 0, initial: float = 0.0) -> Schedule:
    """The sparsity of gradual pruning: fast at first, then slower.

    s(t) = sparsity + (initial - sparsity) * (1 - (t - begin) / (end - begin)) ** 3

    Args:
        sparsity: from step `end` on.
        end, begin: steps.
        initial: the sparsity up to step `begin`.

    Returns:
        A function from a step, traced or not, to a float32 scalar.

    Raises:
        ValueError: sparsities outside [0, 1], or `end` not after `begin`.

    Source: Zhu and Gupta, To prune, or not to prune, 2017, arXiv:1710.01878.
    """
    check_share("cubic", "sparsity", sparsity)
    check_share("cubic", "initial", initial)
    _check_order("cubic", begin, end)

    def schedule(step):
        left = jnp.clip(1 - (jnp.asarray(step, jnp.float32) - begin) / (end - begin), 0, 1)
        return sparsity + (initial - sparsity) * left**3

    return schedule


def cosine(fraction: float, *, end: int) -> Schedule:
    """The share of weights that RigL exchanges, which falls to zero at step `end`.

    f(t) = fraction / 2 * (1 + cos(pi * t / end))

    Args:
        fraction: at step 0.
        end: the step from which on nothing is exchanged.

    Returns:
        A function from a step, traced or not, to a float32 scalar.

    Raises:
        ValueError: a fraction outside [0, 1], or `end` not after 0.

    Source: Evci et al., Rigging the Lottery, 2020, arXiv:1911.11134.
    """
    check_share("cosine", "fraction", fraction)
    _check_order("cosine", 0, end)

    def schedule(step):
        done = jnp.clip(jnp.asarray(step, jnp.float32) / end, 0, 1)
        return fraction / 2 * (1 + jnp.cos(jnp.pi * done))

    return schedule


def as_schedule(function: str, name: str, share) -> Schedule:
    """A schedule as it is; a number as one that is always the same.

    Raises:
        TypeError: neither of the two.
    """
    is_number = isinstance(share, (int, float, np.number)) or getattr(share, "ndim", None) == 0
    if not callable(share) and not is_number:
        raise TypeError(
            f"{function}: {name} is a number or a function of the step, such as a schedule of "
            f"optax, got {share!r}."
        )
    schedule = share if callable(share) else lambda step: share
    return lambda step: jnp.asarray(schedule(step), jnp.float32)


def check_schedule(function: str, name: str, schedule: Schedule, steps) -> np.ndarray:
    """The shares at these steps.

    Raises:
        ValueError: one of them is outside [0, 1].
    """
    with jax.ensure_compile_time_eval():  # so that it can raise inside jit as well
        shares = np.asarray(jax.vmap(schedule)(jnp.asarray(steps, jnp.int32)))
    wrong = np.flatnonzero(~((shares >= 0) & (shares <= 1)))
    if wrong.size:
        raise ValueError(
            f"{function}: {name} must stay from 0 to 1, got {shares[wrong[0]]:.4g} at step "
            f"{steps[wrong[0]]}. Change the schedule."
        )
    return shares


def check_share(function: str, name: str, share) -> None:
    """Raises unless this is a number from 0 to 1."""
    is_number = isinstance(share, (int, float, np.number)) and not isinstance(share, bool)
    if not is_number or not 0 <= share <= 1:
        raise ValueError(f"{function}: {name} is a share, from 0 to 1, got {share!r}.")


def _check_order(function: str, begin, end) -> None:
    for name, step in (("begin", begin), ("end", end)):
        if isinstance(step, bool) or not isinstance(step, (int, np.integer)) or step < 0:
            raise ValueError(f"{function}: {name} is a step, an int from 0 on, got {step!r}.")
    if end <= begin:
        raise ValueError(
            f"{function}: end must come after begin, got begin={begin} and end={end}. Give the "
            "later step as end."
        )
