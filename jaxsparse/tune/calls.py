"""The sparse calls of a traced function, those that are alike taken together."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend import core as jex_core

from jaxsparse.core import compat, dispatch
from jaxsparse.core.kinds import Role

_LARGEST_INDEX = 1 << 28


@dataclasses.dataclass
class KindOfCall:
    """A sparse call that a plan decides for, and all that are like it.

    Attributes:
        key: `dispatch.call_key` of each.
        member, spec, n_group: of each.
        operands: the shape and dtype of each operand.
        indices: the index arrays of the first such call whose indices are known without running the
            function; None where none are.
        calls: how often one run of the function makes such a call.
        macs: multiply-adds with stored weights, in all of them.
        names: their name stacks, without repeats.
    """

    key: str
    member: Any
    spec: Any
    n_group: int
    operands: tuple[jax.ShapeDtypeStruct, ...]
    indices: list | None
    calls: int
    macs: float
    names: dict[str, None]


def of_function(function, arguments: Sequence) -> dict[str, KindOfCall]:
    """The kinds of call that `function(*arguments)` makes, by their keys.

    The function is traced, not run; but what it makes of the integers in its arguments is computed,
    as the indices of patterns are such.
    """
    closed = jax.make_jaxpr(function)(*arguments)
    platform = dispatch.platform_name()
    found: dict[str, KindOfCall] = {}
    known = [leaf if _is_index(leaf) else None for leaf in jax.tree.leaves(arguments)]
    for equation, values in _equations(closed.jaxpr, closed.consts, known, "", 1)[0]:
        eqn, times = equation.eqn, equation.times
        member = dispatch.member_of(eqn)
        if member is None or eqn.params["implementation"] is not None:
            continue
        if all(kind.role is not Role.BATCHED for kind in member.family.kinds):
            continue
        spec, n_group = eqn.params["spec"], eqn.params["n_group"]
        shapes, dtype = [var.aval.shape for var in eqn.invars], eqn.invars[0].aval.dtype
        try:
            forced = dispatch.choose(member, spec, n_group, shapes, dtype, (platform,), "ffi")
        except NotImplementedError:
            continue  # there is nothing to choose from
        if forced.path != "ffi":
            continue
        key = dispatch.call_key(member, spec, n_group, shapes, dtype)
        count = len(member.operands)
        indices = values[count:] if all(value is not None for value in values[count:]) else None
        call = dispatch.call_of(equation, platform)
        assert call is not None
        kind = found.setdefault(
            key,
            KindOfCall(
                key,
                member,
                spec,
                n_group,
                tuple(jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in eqn.invars[:count]),
                indices,
                0,
                0.0,
                {},
            ),
        )
        kind.calls += times
        kind.macs += times * call.macs * call.density
        kind.names[equation.name] = None
        kind.indices = indices if kind.indices is None else kind.indices
    return found


def _is_index(value) -> bool:
    dtype = getattr(value, "dtype", None)
    if dtype is None or isinstance(value, (Tracer, jax.ShapeDtypeStruct)):
        return False
    return _is_whole(dtype) and value.size < _LARGEST_INDEX


def _is_whole(dtype) -> bool:
    return any(jnp.issubdtype(dtype, kind) for kind in (jnp.integer, jnp.bool_))


def _equations(jaxpr, consts, known, around: str, times: int):
    """Every equation with what is known of its inputs.

    Returns:
        `[(equation, values), ...]`, and what is known of the results.
    """
    found = []
    values = dict(zip(jaxpr.constvars, (c if _is_index(c) else None for c in consts)))
    values.update(zip(jaxpr.invars, known))

    def read(var):
        return var.val if isinstance(var, jex_core.Literal) else values.get(var)

    for eqn in jaxpr.eqns:
        equation = dispatch.Equation.inside(eqn, around, times)
        given = [read(var) for var in eqn.invars]
        found.append((equation, given))
        results = [None] * len(eqn.outvars)
        inner_jaxprs = list(_inner(eqn.params))
        where = equation.name, equation.times_inside
        for inner, inner_consts in inner_jaxprs:
            more, ends = _equations(inner, inner_consts, _passed(eqn, inner, given), *where)
            found += more
            if len(inner_jaxprs) == 1 and eqn.primitive.name in _CALLS:
                results = ends
        if not inner_jaxprs and _can_compute(eqn, given):
            bound = eqn.primitive.bind(*given, **eqn.params)
            results = list(bound) if eqn.primitive.multiple_results else [bound]
        values.update(zip(eqn.outvars, results))
    return found, [read(var) for var in jaxpr.outvars]


_CALLS = {"jit", "pjit", "closed_call", "core_call", "remat", "checkpoint", "custom_vjp_call"}
_CALLS |= {"custom_jvp_call", "custom_vjp_call_jaxpr", "remat2"}


def _inner(params) -> Iterator[tuple]:
    for value in params.values():
        for one in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(one, jex_core.ClosedJaxpr):
                yield one.jaxpr, one.consts
            elif isinstance(one, jex_core.Jaxpr):
                yield one, []


def _passed(eqn, inner, given) -> list:
    """What is known of the arguments of an inner jaxpr; in a loop, of its first round."""
    if eqn.primitive.name == "scan":
        num_same, num_carried = compat.scan_inputs(eqn.params)
        rows = given[num_same + num_carried :]
        first = [None if row is None or not len(row) else row[0] for row in rows]
        return [*given[:num_same], *[None] * num_carried, *first]
    if eqn.primitive.name == "cond":
        return given[1:]
    return given if len(given) == len(inner.invars) else [None] * len(inner.invars)


def _can_compute(eqn, given) -> bool:
    """Whether an equation makes integers of integers that are known."""
    is_known = all(value is not None for value in given) and bool(given)
    dtypes = [getattr(var.aval, "dtype", None) for var in eqn.outvars]
    are_whole = all(dtype is not None and _is_whole(dtype) for dtype in dtypes)
    return is_known and are_whole and not eqn.effects and dispatch.member_of(eqn) is None


def operands_for(kind: KindOfCall, rng: np.random.Generator) -> list:
    """Normal numbers for the operands of a call, and the indices that belong to it."""
    draw = lambda struct: jnp.asarray(
        rng.standard_normal(struct.shape, np.float32).astype(struct.dtype)
    )
    assert kind.indices is not None
    return [*map(draw, kind.operands), *map(jnp.asarray, kind.indices)]
