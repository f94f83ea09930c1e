"""Plans: which way each call of a model runs, as it was measured; kept in files."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Iterator

from jaxsparse.core import modes
from jaxsparse.tune import environment
from jaxsparse.tune.table import as_table

# What a measurement holds for; another value of one of these makes a plan stale.
_FINGERPRINT = ("cpu", "isa", "cores_used", "device", "jax", "jaxlib", "jaxsparse")


def fingerprint() -> dict[str, str]:
    """The machine and the versions that measurements of this process hold for."""
    about = environment.describe()
    return {name: str(about[name]) for name in _FINGERPRINT}


@dataclasses.dataclass(frozen=True)
class Planned:
    """A kind of call, and how it runs.

    Attributes:
        key: all that is static about the call (`dispatch.call_key`).
        path: the way that the plan takes: "ffi" or "dense".
        ffi_ms, dense_ms: medians, in milliseconds.
        calls: how often one run of the program makes such a call.
        layers: which layers make it.
    """

    key: str
    path: str
    ffi_ms: float
    dense_ms: float
    calls: int
    layers: tuple[str, ...]

    @property
    def reason(self) -> str:
        """Why that path, for `explain` and `report`."""
        return f"planned: kernel {self.ffi_ms:.3g} ms, dense op {self.dense_ms:.3g} ms"

    def cells(self) -> tuple[str, ...]:
        """As a row of the table, less the layer."""
        member, _, *shapes = self.key.partition(" groups=")[0].split()
        times = (f"{ms:.3g}" for ms in (self.ffi_ms, self.dense_ms))
        name = member.removeprefix("stored_dense_")
        return name, " ".join(shapes), self.path, *times, str(self.calls)


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """Which way each call runs. `with plan:` makes it hold, `save` keeps it; prints as a table.

        plan = jaxsparse.calibrate(model, x)
        plan.save("plan.json")

        with jaxsparse.Plan.load("plan.json"):
            y = step(model, x)

    It decides for calls with `implementation=None` that have the shapes, dtype and direction of a
    call that was measured, wherever they are; others go by break-even points. A function that was
    compiled outside is compiled anew inside, once.

    Attributes:
        machine: what the measurements hold for.
        calls: a Planned for every kind of call.
        skipped: a sentence for every kind of call that was not measured.
        whole_ms: milliseconds of the whole program, by "dense", "sparse" and "plan"; empty if the
            budget did not suffice.
    """

    machine: dict[str, str]
    calls: tuple[Planned, ...]
    skipped: tuple[str, ...] = ()
    whole_ms: dict[str, float] = dataclasses.field(default_factory=dict)

    def __enter__(self) -> "Plan":
        modes.enter(plan=self, mode=None)
        return self

    def __exit__(self, *error) -> None:
        modes.leave(*error)

    @functools.cached_property
    def _by_key(self) -> dict[str, Planned]:
        return {call.key: call for call in self.calls}

    @functools.cached_property
    def _choices(self) -> frozenset:
        return frozenset((call.key, call.path) for call in self.calls)

    # Plans that choose alike share what jit has compiled.
    def __eq__(self, other) -> bool:
        return isinstance(other, Plan) and self._choices == other._choices

    def __hash__(self) -> int:
        return hash(self._choices)

    def path_of(self, key: str) -> tuple[str, str] | None:
        """The path of a call, and why; None for a call that was not measured."""
        call = self._by_key.get(key)
        return None if call is None else (call.path, call.reason)

    def all_by(self, path: str) -> "Plan":
        """The same calls, all in one way."""
        calls = tuple(dataclasses.replace(call, path=path) for call in self.calls)
        return dataclasses.replace(self, calls=calls)

    def merge(self, other: "Plan") -> "Plan":
        """A plan with the calls of both, such as those of several batch sizes.

        Where both have measured a call, `other` counts.

        Raises:
            ValueError: plans of different machines or versions.
        """
        _check_machine("merge", self.machine, other.machine)
        return Plan(
            self.machine,
            tuple({**self._by_key, **other._by_key}.values()),
            tuple(dict.fromkeys(self.skipped + other.skipped)),
        )

    def save(self, path: str | pathlib.Path) -> None:
        """Writes the plan into a JSON file."""
        content = {
            "format": "jaxsparse plan 1",
            "machine": self.machine,
            "calls": [dataclasses.asdict(call) for call in self.calls],
            "skipped": self.skipped,
            "whole_ms": self.whole_ms,
        }
        pathlib.Path(path).write_text(json.dumps(content, indent=1) + "\n")

    @classmethod
    def load(cls, path: str | pathlib.Path, *, anywhere: bool = False) -> "Plan":
        """Reads a plan that `save` wrote.

        Args:
            path: of the file.
            anywhere: whether a plan of another machine or of other versions will do. It never makes
                results wrong, only slower than they could be.

        Raises:
            ValueError: no plan, or one of another machine or version.
        """
        try:
            content = json.loads(pathlib.Path(path).read_text())
            calls = [
                Planned(**{**call, "layers": tuple(call["layers"])}) for call in content["calls"]
            ]
            machine, skipped = content["machine"], tuple(content["skipped"])
            is_plan = content["format"] == "jaxsparse plan 1"
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"Plan.load: {path} must hold a plan, got {error!r}.") from error
        if not is_plan or any(call.path not in ("ffi", "dense") for call in calls):
            raise ValueError(
                f"Plan.load: {path} must hold a plan of this version of its format, got "
                f"{content['format']!r}. Calibrate again."
            )
        if not anywhere:
            _check_machine("Plan.load", fingerprint(), machine)
        return cls(machine, tuple(calls), skipped, dict(content["whole_ms"]))

    def __iter__(self) -> Iterator[Planned]:
        return iter(self.calls)

    def __str__(self) -> str:
        header = ("layer", "call", "shapes", "path", "kernel ms", "dense ms", "times")
        rows = [(layer or "(root)", *call.cells()) for call in self.calls for layer in call.layers]
        lines = [as_table(header, rows)] if rows else ["no call was measured"]
        if self.whole_ms:
            each = ", ".join(f"{name} {ms:.3g} ms" for name, ms in self.whole_ms.items())
            lines.append(f"the whole: {each}")
        lines += [f"not measured: {sentence}" for sentence in self.skipped]
        return "\n".join([*lines, ", ".join(f"{k} {v}" for k, v in self.machine.items())])

    def __len__(self) -> int:
        return len(self.calls)


def _check_machine(function: str, here: dict[str, str], there: dict[str, str]) -> None:
    differ = [name for name in here | there if here.get(name) != there.get(name)]
    if differ:
        names = "; ".join(f"{name} {here.get(name)!r}, got {there.get(name)!r}" for name in differ)
        raise ValueError(
            f"{function}: a plan must be of this machine and these versions, {names}. Calibrate "
            "again, or load it with anywhere=True."
        )
