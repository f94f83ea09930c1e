"""Convolutions with their axes in the order in which XLA's CPU backend is fast.

It has one fast form, channels last, and a pass that brings other forms into it, which looks at the
outermost computation only. The derivatives of a convolution have other forms; inside a loop or a
conditional they are ten to a hundred times slower without what is done here.
"""

from typing import Any

import jax
from jax import lax
from jax.extend import core as jex_core


def in_order(function):
    """`function` of arrays, with every convolution in it channels last, behind transposes."""

    def ordered(*arrays):
        closed = jax.make_jaxpr(function)(*arrays)
        results = _evaluate(closed.jaxpr, closed.consts, arrays)
        return results[0] if len(results) == 1 else results

    return ordered


def _evaluate(jaxpr, consts, arrays) -> list[Any]:
    known = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *arrays), strict=True))
    read = lambda atom: atom.val if isinstance(atom, jex_core.Literal) else known[atom]
    for eqn in jaxpr.eqns:
        operands = [read(atom) for atom in eqn.invars]
        if eqn.primitive is lax.conv_general_dilated_p:
            results = [_channels_last(*operands, **eqn.params)]
        elif eqn.primitive.name == "jit":
            inner = eqn.params["jaxpr"]
            results = _evaluate(inner.jaxpr, inner.consts, operands)
        else:
            results = eqn.primitive.bind(*operands, **eqn.params)
            results = results if eqn.primitive.multiple_results else [results]
        known.update(zip(eqn.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _channels_last(x, kernel, *, dimension_numbers, **params):
    batch, channels, *space = dimension_numbers.lhs_spec
    outputs, inputs, *taps = dimension_numbers.rhs_spec
    out_batch, out_channels, *out_space = dimension_numbers.out_spec
    last = len(space) + 1
    between = tuple(range(1, last))
    y = lax.conv_general_dilated_p.bind(
        lax.transpose(x, (batch, *space, channels)),
        lax.transpose(kernel, (*taps, inputs, outputs)),
        dimension_numbers=lax.ConvDimensionNumbers(
            (0, last, *between), (last, last - 1, *range(last - 1)), (0, last, *between)
        ),
        **params,
    )
    order = (out_batch, *out_space, out_channels)  # of the axes of y, those of the result
    return lax.transpose(y, [order.index(axis) for axis in range(last + 1)])
