"""What replaces the break-even points, or watches the results, for calls traced inside a context.

The setting is part of the key of `jax.jit`'s caches: a function that was compiled outside a context
is traced anew inside it, and found again after it.
"""

import contextlib
import dataclasses
import threading
from collections.abc import Iterator
from typing import Any, Protocol

import jax

MODES = ("dense", "sparse")


class Plan(Protocol):
    """Paths that were measured, by the keys of calls. Hashable."""

    def path_of(self, key: str) -> tuple[str, str] | None:
        """The path of a call, and why; None for a call that was not measured."""
        ...


class Checker(Protocol):
    """Compares the ways to compute a call. Hashable."""

    def lower(self, member, context, operands, spec, n_group, label, choice, choose, by) -> Any:
        """The lowered result of a call, with a comparison beside it."""
        ...


class Recorder(Protocol):
    """Keeps what was decided. Hashable."""

    def record(self, member: str, pays) -> None:
        """Takes one decision: whether the member's kernel ran."""
        ...


@dataclasses.dataclass(frozen=True)
class Setting:
    """What holds at one place.

    Attributes:
        mode: "dense" or "sparse", which decides for all calls; or None.
        plan: which decides for those that it knows; or None.
        check: which compares every call; or None.
        decisions: is told what calls that decide when they run decided; or None.
    """

    mode: str | None = None
    plan: Plan | None = None
    check: Checker | None = None
    decisions: Recorder | None = None


_setting = jax.make_user_context(Setting())
_entered = threading.local()  # `blocks`, those of `enter` in this thread


def current() -> Setting:
    """The setting that holds here."""
    return _setting.value


@contextlib.contextmanager
def set_to(**changes) -> Iterator[None]:
    """Changes some of the setting inside a `with` block, in this thread."""
    with _setting(dataclasses.replace(current(), **changes)):
        yield


def enter(**changes) -> None:
    """`set_to` for objects that are contexts themselves, and may be in several threads at once."""
    block = set_to(**changes)
    block.__enter__()
    _entered.__dict__.setdefault("blocks", []).append(block)


def leave(*error) -> None:
    """Ends the innermost block of `enter` in this thread; `error` is what `__exit__` gets."""
    _entered.blocks.pop().__exit__(*error)


def mode(name: str):
    """A context in which all calls with `implementation=None` run the same way.

        with jaxsparse.mode("dense"):
            y = model(x)

    Inside, functions that are compiled already are compiled anew, and found again afterwards. Calls
    with an `implementation` of their own keep it. The innermost of nested modes and plans decides.

    Args:
        name: "dense" runs XLA's dense ops; "sparse" runs compiled kernels wherever there are any,
            however many weights are stored.

    Raises:
        ValueError: another name.
    """
    if name not in MODES:
        raise ValueError(f'mode: a mode is "dense" or "sparse", got {name!r}.')
    return set_to(mode=name)  # goes before any plan
