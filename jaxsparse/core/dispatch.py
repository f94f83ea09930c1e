"""Which of its two ways a member runs: the compiled handler, or the reference in plain JAX.

The decision is made when a call is lowered, from what is static then: platform, dtype, shapes and
density. With `implementation=None` it follows the mode or the plan that is set (`modes`), else
measured break-even points, and never fails; "ffi", "xla" and "dense" are strict. The last two are
XLA's dense op; for "dense", compiled copies unpack the weight where there are any.
"""

import dataclasses
import functools
import json
import math
import os
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import jax
from jax.extend import core as jex_core

from jaxsparse.core import kernel, modes, native
from jaxsparse.core.kinds import Role

IMPLEMENTATIONS = (None, "ffi", "xla", "dense")
_SHIPPED = pathlib.Path(__file__).parent.parent / "tune" / "data"


@dataclasses.dataclass(frozen=True)
class Choice:
    """A path, "ffi", "xla" or "dense", and why."""

    path: str
    reason: str


def user_tables() -> pathlib.Path:
    """The folder of the tables that were measured on this machine."""
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "jaxsparse").expanduser()


@functools.cache
def _table(device: str) -> dict:
    """This machine's table if it was measured, else that of the library."""
    for folder in (user_tables(), _SHIPPED):
        path = folder / f"{device}.json"
        if path.exists():
            return json.loads(path.read_text())["break_even"]
    return {}


def break_even(member: str, dtype: str, shape_class: str, platform: str = "cpu") -> float | None:
    """The density up to which the handler is the faster way on this machine; None if unmeasured."""
    return _table(device(platform)).get(member, {}).get(dtype, {}).get(shape_class)


def choose(member, spec, n_group, shapes, dtype, platforms, implementation) -> Choice:
    """How `member` runs on operands and indices of these shapes.

    Raises:
        NotImplementedError: `implementation="ffi"`, and there is no handler.
    """
    if implementation in ("xla", "dense"):
        return Choice(implementation, f'implementation="{implementation}"')
    batch = batch_size(member, spec, n_group, shapes)
    absent = _why_no_handler(member, dtype, batch, platforms)
    if absent and implementation == "ffi":
        raise NotImplementedError(
            f'{member.name}: implementation="ffi" needs a compiled kernel, but '
            f"{absent.removesuffix('.')}. "
            "Use implementation=None to run what there is."
        )
    if absent:
        return Choice("xla", absent)
    own = member.family.choose(member, spec, dtype.name) if member.family.choose else None
    if own is not None and own.path != "ffi":
        return own  # whatever is asked for: a kernel would have nothing to skip
    if implementation == "ffi":
        return Choice("ffi", 'implementation="ffi"')
    if all(kind.role is not Role.BATCHED for kind in member.family.kinds):
        return Choice("ffi", "a copy")
    setting = modes.current()
    if setting.mode is not None:
        path = "ffi" if setting.mode == "sparse" else "dense"
        return Choice(path, f'mode("{setting.mode}")')
    if setting.plan is not None:
        key = call_key(member, spec, n_group, shapes, dtype)
        if (planned := setting.plan.path_of(key)) is not None:
            return Choice(*planned)
    if own is not None:
        return own
    dtype = member.cast_from(spec) or dtype.name
    return _by_density(member, spec, member.num_stored(shapes), batch, dtype, platforms[0])


def call_key(member, spec, n_group, shapes, dtype) -> str:
    """What a plan knows a call by: all that is static about it, the same in every process."""
    sizes = " ".join("x".join(map(str, shape)) or "()" for shape in shapes)
    return f"{member.name} {dtype.name} {sizes} groups={n_group} {spec!r}"


def _by_density(member, spec, stored, batch, dtype, platform) -> Choice:
    density = spec.density(stored)
    batch = batch if isinstance(batch, int) else sys.maxsize  # symbolic, in an exported program
    its = member.family.devices.get(platform)
    role = member.result.member
    # XLA's gradients of short floats are up to seven times as slow as kernels.
    is_slow = role != "forward" and dtype not in ("float32", "float64")
    if its is None and not is_slow and spec.is_thin(batch, role):
        return Choice("dense", "the weight is thin: x and y take most of the time, not the weight")
    shape_class = spec.shape_class(batch) if its is None else its.shape_class(spec, batch)
    # Where an op that calls others was not measured, the one that it calls was.
    called = () if member.family.parts is None else member.family.parts(member.result.name)
    points = (break_even(m.name, dtype, shape_class, platform) for m in (member, *called))
    limit = next((point for point in points if point is not None), None)
    measured = f"the break-even point {limit} for {shape_class} on {device(platform)}"
    if limit is None:
        if its is None:
            limit = spec.unmeasured_break_even()
        else:
            limit = its.unmeasured_break_even(member.result.member, spec, dtype, batch)
        measured = f"{limit}, a guess: not measured for {shape_class} on {device(platform)}"
    if density > limit:
        return Choice("dense", f"density {density:.3g} is above {measured}")
    return Choice("ffi", f"density {density:.3g} is at most {measured}")


def device(platform: str = "cpu") -> str:
    """The name under which this machine's break-even points are kept."""
    if platform == "cpu":
        return f"cpu-{native.isa()}"
    kinds = [device.device_kind for device in native.devices(platform)]
    return "-".join([platform, *kinds[:1]]).lower().replace(" ", "-")


def _why_no_handler(member, dtype, batch, platforms) -> str | None:
    for platform in platforms:
        if platform not in member.family.dtypes:
            return f"{member.family.name} has no kernels for {platform}"
        if reason := native.why_absent(platform) or native.why_unsuitable(platform):
            return reason
        if missing := kernel.missing(platform, member.handlers(platform)):
            return f"there is no {platform} kernel {missing[0]}"
        dtypes = member.family.dtypes[platform]
        if dtype.name not in dtypes:
            return f"the {platform} kernels take {', '.join(sorted(dtypes))}, not {dtype.name}"
        if platform in member.family.devices and not isinstance(batch, int):
            return f"the {platform} kernels take sizes that are numbers, not the symbol {batch}"
    return None


def batch_size(member, spec, n_group, shapes) -> int:
    """How many activations each group has."""
    for kind, shape in zip(member.operands, shapes):
        if kind.role is Role.BATCHED:
            return math.prod(shape[n_group : len(shape) - len(spec.inner(kind.name))])
    return 1


# What a function does, read from its jaxpr ------------------------------------------------------

_members = {}


def register_member(member) -> None:
    """Makes calls of the member visible to `explain`."""
    _members[member.primitive] = member


@dataclasses.dataclass(frozen=True)
class Call:
    """One sparse call in a traced function.

    Attributes:
        member: such as "block_matmul_forward".
        name: the name stack where it was traced: the layer, in Flax models.
        shapes: of the operands and the result.
        dtype: of the operands.
        density: of the stored weight.
        macs: multiply-adds with every weight; the stored ones make `density` of them.
        path: "ffi", "xla" or "dense".
        reason: why that path. Ops that decide when they run say by what.
    """

    member: str
    name: str
    shapes: tuple[tuple[int, ...], ...]
    dtype: str
    density: float
    macs: int
    path: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Equation:
    """An equation of a jaxpr or of one inside it.

    Attributes:
        eqn: the equation.
        name: its whole name stack: inner jaxprs do not know the names around them.
        times: how often loops of known length run it.
    """

    eqn: Any
    name: str
    times: int

    @classmethod
    def inside(cls, eqn, around: str, times: int) -> "Equation":
        """An equation of a jaxpr that runs `times` times under the name `around`."""
        return cls(eqn, "/".join(filter(None, (around, str(eqn.source_info.name_stack)))), times)

    @property
    def times_inside(self) -> int:
        """How often what is inside it runs."""
        is_loop = self.eqn.primitive.name == "scan"
        return self.times * (self.eqn.params["length"] if is_loop else 1)


def explain(function, *args, platform: str | None = None, **kwargs) -> list[Call]:
    """Every sparse call that `function(*args)` makes, with the path it takes and why.

    The function is traced, not run. A call inside a loop is listed once.

    Args:
        function: what could be given to `jax.jit`.
        *args, **kwargs: arrays or `jax.ShapeDtypeStruct`s.
        platform: "cpu", "cuda" or "tpu"; the default backend's if None.
    """
    platform = platform_name(platform)
    jaxpr = jax.make_jaxpr(function)(*args, **kwargs).jaxpr
    calls = (call_of(equation, platform) for equation in equations(jaxpr))
    return [call for call in calls if call is not None]


def platform_name(given: str | None = None) -> str:
    """What kernels call the platform of this name, or that of the default backend."""
    backend = given or jax.default_backend()
    return "cuda" if backend == "gpu" else backend


def equations(jaxpr, around: str = "", times: int = 1) -> Iterator[Equation]:
    """Every equation of a jaxpr, and of those inside it."""
    for eqn in jaxpr.eqns:
        equation = Equation.inside(eqn, around, times)
        yield equation
        for inner in jex_core.jaxprs_in_params(eqn.params):
            yield from equations(inner, equation.name, equation.times_inside)


def member_of(eqn):
    """The member that an equation calls; None if it is no sparse call."""
    return _members.get(eqn.primitive)


def call_of(equation: Equation, platform: str) -> Call | None:
    """What there is to say of a sparse call; None of another equation."""
    eqn, member = equation.eqn, member_of(equation.eqn)
    if member is None:
        return None
    spec, n_group = eqn.params["spec"], eqn.params["n_group"]
    shapes = [var.aval.shape for var in eqn.invars]
    dtype, result = eqn.invars[0].aval.dtype, eqn.outvars[0].aval.shape
    choice = choose(member, spec, n_group, shapes, dtype, (platform,), eqn.params["implementation"])
    macs = math.prod(result[:n_group]) * spec.macs(batch_size(member, spec, n_group, shapes))
    return Call(
        member=member.name,
        name=equation.name,
        shapes=(*shapes[: len(member.operands)], result),
        dtype=dtype.name,
        density=spec.density(member.num_stored(shapes)),
        macs=macs,
        path=choice.path,
        reason=choice.reason,
    )
