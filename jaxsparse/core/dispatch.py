"""Which of its two ways a member runs: the compiled handler, or the reference in plain JAX.

The decision is made when a call is lowered, from what is static then: platform, dtype, shapes and
density. With `implementation=None` it follows measured break-even points and never fails; "ffi",
"xla" and "dense" are strict. The last two are XLA's dense op; for "dense", compiled copies unpack
the weight where there are any.
"""

import dataclasses
import functools
import json
import math
import os
import pathlib
import sys

import jax
from jax.extend import core as jex_core

from jaxsparse.core import kernel, native
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


def break_even(member: str, dtype: str, shape_class: str) -> float | None:
    """The density up to which the handler is the faster way on this machine; None if unmeasured."""
    return _table(device()).get(member, {}).get(dtype, {}).get(shape_class)


def choose(member, spec, n_group, shapes, dtype, platforms, implementation) -> Choice:
    """How `member` runs on operands and indices of these shapes.

    Raises:
        NotImplementedError: `implementation="ffi"`, and there is no handler.
    """
    if implementation in ("xla", "dense"):
        return Choice(implementation, f'implementation="{implementation}"')
    absent = _why_no_handler(member, dtype, platforms)
    if implementation == "ffi":
        if absent:
            raise NotImplementedError(
                f'{member.name}: implementation="ffi" needs a compiled kernel, but {absent}. '
                "Use implementation=None to run what there is."
            )
        return Choice("ffi", 'implementation="ffi"')
    if absent:
        return Choice("xla", absent)
    if all(kind.role is not Role.BATCHED for kind in member.family.kinds):
        return Choice("ffi", "a copy")
    batch = _batch(member, spec, n_group, shapes)
    dtype = member.cast_from(spec) or dtype.name
    return _by_density(member, spec, member.num_stored(shapes), batch, dtype)


def _by_density(member, spec, stored, batch, dtype) -> Choice:
    density = spec.density(stored)
    batch = batch if isinstance(batch, int) else sys.maxsize  # symbolic, in an exported program
    shape_class = spec.shape_class(batch)
    # Where an op that calls others was not measured, the one that it calls was.
    called = () if member.family.parts is None else member.family.parts(member.result.name)
    points = (break_even(m.name, dtype, shape_class) for m in (member, *called))
    limit = next((point for point in points if point is not None), None)
    measured = f"the break-even point {limit} for {shape_class} on {device()}"
    if limit is None:
        limit = spec.unmeasured_break_even()
        measured = f"{limit}, a guess: nothing was measured for {shape_class} on {device()}"
    if density > limit:
        return Choice("dense", f"density {density:.3g} is above {measured}")
    return Choice("ffi", f"density {density:.3g} is at most {measured}")


def device() -> str:
    """The name under which this machine's break-even points are kept."""
    return f"cpu-{native.isa()}"


def _platform(backend: str) -> str:
    return "cuda" if backend == "gpu" else backend


def _why_no_handler(member, dtype, platforms) -> str | None:
    for platform in platforms:
        if platform not in member.family.dtypes:
            return f"{member.family.name} has no kernels for {platform}"
        if reason := native.why_absent(platform):
            return reason
        if missing := kernel.missing(platform, member.handlers):
            return f"there is no {platform} kernel {missing[0]}"
        dtypes = member.family.dtypes[platform]
        if dtype.name not in dtypes:
            return f"the {platform} kernels take {', '.join(sorted(dtypes))}, not {dtype.name}"
    return None


def _batch(member, spec, n_group, shapes) -> int:
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
        path: "ffi", "xla" or "dense".
        reason: why that path.
    """

    member: str
    name: str
    shapes: tuple[tuple[int, ...], ...]
    dtype: str
    density: float
    path: str
    reason: str


def explain(function, *args, platform: str | None = None, **kwargs) -> list[Call]:
    """Every sparse call that `function(*args)` makes, with the path it takes and why.

    The function is traced, not run. A call inside a loop is listed once.

    Args:
        function: what could be given to `jax.jit`.
        *args, **kwargs: arrays or `jax.ShapeDtypeStruct`s.
        platform: "cpu", "cuda" or "tpu"; the default backend's if None.
    """
    platform = _platform(platform or jax.default_backend())
    jaxpr = jax.make_jaxpr(function)(*args, **kwargs).jaxpr
    return [_describe(eqn, name, platform) for eqn, name in _sparse_equations(jaxpr)]


def _sparse_equations(jaxpr, around: str = ""):
    """Every sparse equation, with its name: inner jaxprs do not know the names around them."""
    for eqn in jaxpr.eqns:
        name = "/".join(filter(None, (around, str(eqn.source_info.name_stack))))
        if eqn.primitive in _members:
            yield eqn, name
        for inner in jex_core.jaxprs_in_params(eqn.params):
            yield from _sparse_equations(inner, name)


def _describe(eqn, name: str, platform) -> Call:
    member = _members[eqn.primitive]
    spec, n_group = eqn.params["spec"], eqn.params["n_group"]
    shapes = [var.aval.shape for var in eqn.invars]
    dtype = eqn.invars[0].aval.dtype
    choice = choose(member, spec, n_group, shapes, dtype, (platform,), eqn.params["implementation"])
    return Call(
        member=member.name,
        name=name,
        shapes=(*shapes[: len(member.operands)], eqn.outvars[0].aval.shape),
        dtype=dtype.name,
        density=spec.density(member.num_stored(shapes)),
        path=choice.path,
        reason=choice.reason,
    )
