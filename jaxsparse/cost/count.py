"""Multiply-adds of a traced function, call by call.

A MAC is one multiplication and one addition; those with padding count, as kernels and libraries
differ in which of them they leave out.
"""

import dataclasses
import math
from collections.abc import Iterator

from jaxsparse.core import dispatch


@dataclasses.dataclass(frozen=True)
class Counted:
    """A product in a traced function.

    Attributes:
        name: the name stack where it was traced.
        times: how often it runs, as loops tell.
        macs: multiply-adds with every weight, in all times together.
        executed: those with stored weights.
        call: what `explain` says of it; None for a dense op.
    """

    name: str
    times: int
    macs: int
    executed: int
    call: dispatch.Call | None


def products(jaxpr, platform: str) -> Iterator[Counted]:
    """Every product and convolution of a jaxpr, sparse or dense, outermost first."""
    for equation in dispatch.equations(jaxpr):
        eqn, times = equation.eqn, equation.times
        call = dispatch.call_of(equation, platform)
        if call is not None:
            macs = times * call.macs
            yield Counted(equation.name, times, macs, round(macs * call.density), call)
        elif (macs := _dense_macs(eqn)) is not None:
            yield Counted(equation.name, times, times * macs, times * macs, None)


def _dense_macs(eqn) -> int | None:
    if eqn.primitive.name == "dot_general":
        (contracted, _), _ = eqn.params["dimension_numbers"]
        shape = eqn.invars[0].aval.shape
        return eqn.outvars[0].aval.size * math.prod(shape[axis] for axis in contracted)
    if eqn.primitive.name == "conv_general_dilated":
        x, w = (var.aval for var in eqn.invars)
        places = eqn.params["dimension_numbers"].rhs_spec  # of outputs, inputs, taps
        size_out, size_in, *taps = (w.shape[axis] for axis in places)
        if math.prod(eqn.params["lhs_dilation"]) > 1:  # x is zero in between
            return x.size * math.prod(taps) * size_out // eqn.params["feature_group_count"]
        return eqn.outvars[0].aval.size * math.prod(taps) * size_in
    return None
