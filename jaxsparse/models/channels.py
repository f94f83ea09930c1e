"""Channels of a model that do nothing: found in its program, which proves that they may go.

Outputs of a layer that reach other layers as they are, or through functions of each element, form a
group of channels with those layers; a sum of two joins their groups. A channel of a group does
nothing if all that consume it have zeros for it, or if all that produce it have zeros for it, and
what is made of their biases is zero where it is consumed.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex_core

from jaxsparse.core.dispatch import Equation
from jaxsparse.formats.pattern import as_jax
from jaxsparse.models.program import Program, path_in

# Functions of each element, whose operands have one shape or are scalars.
# fmt: off
_ELEMENTWISE = {
    "abs", "acos", "acosh", "add", "and", "asin", "asinh", "atan", "atan2", "atanh", "cbrt", "ceil",
    "clamp", "convert_element_type", "copy", "cos", "cosh", "div", "eq", "erf", "erf_inv", "erfc",
    "exp", "exp2", "expm1", "floor", "ge", "gt", "integer_pow", "is_finite", "le", "lgamma", "log",
    "log1p", "logistic", "lt", "max", "min", "mul", "ne", "neg", "not", "or", "pow",
    "reduce_precision", "rem", "round", "rsqrt", "select_n", "sign", "sin", "sinh", "sqrt",
    "square", "sub", "tan", "tanh", "xor",
}
# What is inside of these runs once, on their operands.
_INLINED = {
    "checkpoint", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "jit", "pjit",
    "remat2",
}
# fmt: on
# Parameters of these are sizes, which other numbers of channels change.
_SIZED = {"broadcast_in_dim", "pad", "reshape"}


@dataclasses.dataclass(frozen=True)
class Weight:
    """What a layer of one of the known types computes: sums over input channels, and a bias.

    Attributes:
        kernel: `[taps, in, out]`, zero where nothing is stored.
        bias: `[out]` or None.
    """

    kernel: np.ndarray
    bias: Any


class Group:
    """Channels that several layers share.

    Attributes:
        size: how many there are.
        producers: the paths of layers.
        consumers: the paths of layers, and what each takes in place of a channel that none of the
            producers has a weight for: `[size]`, NaN where that is not one number.
        leaves: arguments of the program with an entry for each channel, by number.
        why_not: why they all must stay; None where they need not.
    """

    def __init__(self, size: int, producer: str):
        self.size = size
        self.producers = [producer]
        self.consumers: list[tuple[str, np.ndarray]] = []
        self.leaves: set[int] = set()
        self.why_not: str | None = None
        self._joined: Group | None = None

    def now(self) -> "Group":
        """The group that this one has become a part of, or itself."""
        return self if self._joined is None else self._joined.now()

    def join(self, other: "Group") -> "Group":
        one, other = self.now(), other.now()
        if one is not other:
            one.producers += other.producers
            one.consumers += other.consumers
            one.leaves |= other.leaves
            one.why_not = one.why_not or other.why_not
            other._joined = one
        return one

    def must_stay(self, why: str) -> None:
        group = self.now()
        group.why_not = group.why_not or why


@dataclasses.dataclass(frozen=True)
class Kept:
    """Which channels stay: bool arrays for the inputs and outputs of layers, and for arguments."""

    inputs: Mapping[str, np.ndarray]
    outputs: Mapping[str, np.ndarray]
    leaves: Mapping[int, np.ndarray]

    def __bool__(self) -> bool:
        return bool(self.inputs or self.outputs)


class Channels:
    """The groups of channels of a program.

    Args:
        program: of a model; its first argument holds all parameters.
        weights: of the layers of known types, by their paths.
        with_values: whether to find `kept`; without, only `outside` counts.

    Attributes:
        groups: all of them.
        of_inputs, of_outputs: the group of a layer's inputs and outputs, by its path.
        unseen: the paths of layers that neither take nor return anything in the program itself.
        outside: all that happens outside of these layers, but for numbers of channels. Two models
            with the same `outside` differ in nothing but their layers.
    """

    def __init__(
        self, program: Program, weights: Mapping[str, Weight], *, with_values: bool = True
    ):
        self._weights, self._with_values = weights, with_values
        self._calls = {path: _LayerCall(path) for path in weights}
        self._opaque: set[int] = set()  # arguments that something unknown reads
        self._outside: list[Any] = []
        self._groups: list[Group] = []
        closed = jax.make_jaxpr(program.function)(*program.arguments)
        leaves = jax.tree.leaves(program.arguments[0])
        state = [_of_leaf(i, leaf) for i, leaf in enumerate(leaves)]
        others = [_Other() for _ in closed.jaxpr.invars[len(state) :]]
        for value in self._run(closed.jaxpr, state + others, ""):
            self._unknown(value, "the model returns it")
        self._settle_calls()
        self.groups = list(dict.fromkeys(group.now() for group in self._groups))
        self._settle_leaves()
        self.of_inputs = {path: g for g in self.groups for path, _ in g.consumers}
        self.of_outputs = {path: g for g in self.groups for path in g.producers}
        calls = self._calls.values()
        self.unseen = {call.path for call in calls if not call.inputs and not call.outputs}
        self.outside = tuple(self._outside)

    def kept(self, among) -> Kept:
        """The channels that do something, in groups of `among`; in all others all of them stay."""
        keep = {id(group): np.ones(group.size, bool) for group in self.groups}
        for _ in range(1 + sum(group.size for group in self.groups)):
            changed = False
            for group in among:
                left = keep[id(group)] & ~self._idle(group, keep)
                if not left.any():  # XLA need not have an opinion of products without channels
                    left = np.arange(group.size) == 0
                changed |= bool((left != keep[id(group)]).any())
                keep[id(group)] = left
            if not changed:
                break
        smaller = [group for group in among if not keep[id(group)].all()]
        inputs = {path: keep[id(g)] for g in smaller for path, _ in g.consumers}
        outputs = {path: keep[id(g)] for g in smaller for path in g.producers}
        leaves = {leaf: keep[id(g)] for g in smaller for leaf in g.leaves}
        return Kept(inputs, outputs, leaves)

    def _idle(self, group: Group, keep) -> np.ndarray:
        def kernel_of(path):
            kernel = self._weights[path].kernel
            for groups, axis in ((self.of_inputs, 1), (self.of_outputs, 2)):
                if path in groups and groups[path] is not group:
                    kernel = np.compress(keep[id(groups[path])], kernel, axis)
            return kernel

        unused = np.logical_and.reduce(
            [~kernel_of(path).any((0, 2)) for path, _ in group.consumers]
        )
        empty = np.logical_and.reduce([~kernel_of(path).any((0, 1)) for path in group.producers])
        becomes_zero = np.logical_and.reduce([value == 0 for _, value in group.consumers])
        return unused | (empty & becomes_zero)

    # The program, with what is known of each value instead of arrays -----------------------------

    def _run(self, jaxpr, operands, around: str) -> list:
        known = dict(zip(jaxpr.invars, operands))
        known |= {var: _Other() for var in jaxpr.constvars}

        def read(atom):
            return _Uniform(atom.val) if isinstance(atom, jex_core.Literal) else known[atom]

        for eqn in jaxpr.eqns:
            name, inputs = Equation.inside(eqn, around, 1).name, list(map(read, eqn.invars))
            path = path_in(name)
            inner = list(jex_core.jaxprs_in_params(eqn.params))
            if path in self._calls:
                results = self._in_layer(self._calls[path], inputs, eqn)
            elif (
                eqn.primitive.name in _INLINED
                and len(inner) == 1
                and len(inner[0].invars) == len(inputs)
            ):
                results = self._run(inner[0], inputs, name)
            else:
                results = self._outside_layers(eqn, [self._settled(value) for value in inputs])
            known.update(zip(eqn.outvars, results))
        return [read(atom) for atom in jaxpr.outvars]

    def _in_layer(self, call: "_LayerCall", inputs, eqn) -> list:
        for value in inputs:
            is_its_own = isinstance(value, _Inside) and value.call is call
            if is_its_own or isinstance(value, _Uniform):
                continue
            if isinstance(value, (_Leaf, _Vector)):
                call.leaves |= value.leaves
            else:
                value = self._settled(value)
                call.inputs[id(value)] = value
        return [_Inside(call, var.aval) for var in eqn.outvars]

    def _settled(self, value):
        """What a value is outside of the layer that made it."""
        if not isinstance(value, _Inside):
            return value
        call = value.call
        if id(value) not in call.outputs:
            size, bias = value.aval.shape[-1], self._weights[call.path].bias
            group = Group(size, call.path)
            self._groups.append(group)
            bias = np.zeros(size) if bias is None else np.asarray(bias)
            made = _Channels(group, as_jax(bias.astype(value.aval.dtype)))
            call.outputs[id(value)] = value, made
        return call.outputs[id(value)][1]

    def _unknown(self, value, why: str):
        value = self._settled(value)
        if isinstance(value, _Channels):
            value.group.must_stay(why)
        elif isinstance(value, (_Leaf, _Vector)):
            self._opaque |= value.leaves

    def _outside_layers(self, eqn, inputs) -> list:
        name, params, out = eqn.primitive.name, eqn.params, eqn.outvars[0].aval
        shapes = [atom.aval.shape for atom in eqn.invars]
        literals = [
            str(atom.val) if isinstance(atom, jex_core.Literal) else None for atom in eqn.invars
        ]
        result = None
        of_channels = [value for value in inputs if isinstance(value, (_Channels, _Vector))]
        if len(eqn.outvars) == 1:
            if name in _ELEMENTWISE:
                result = _elementwise(eqn, inputs, out, self._with_values)
            elif of_channels and inputs[0] is of_channels[0]:
                result = _along_other_axes(name, params, inputs, shapes[0], out.shape)
            elif name in _SIZED and isinstance(inputs[0], _Uniform) and len(inputs) == 1:
                result = inputs[0]
        if result is None:
            for value in inputs:
                self._unknown(value, f"{name} takes it")
            result = _Other()
            of_channels = []
        if name == "convert_element_type" and eqn.invars[0].aval.dtype == out.dtype:
            pass  # says only that a dtype is no longer a weak one
        elif of_channels or isinstance(result, _Uniform):
            self._outside.append((name, literals, "" if name in _SIZED else str(params)))
        else:
            self._outside.append((name, literals, shapes, str(params)))
        return [result, *(_Other() for _ in eqn.outvars[1:])]

    # What holds only once all has been seen ------------------------------------------------------

    def _settle_calls(self) -> None:
        for call in self._calls.values():
            if len(call.inputs) == len(call.outputs) == 1:
                (value,) = call.inputs.values()
                if isinstance(value, _Channels):
                    value.group.now().consumers.append((call.path, np.asarray(value.value)))
                continue
            why = f"{call.path or 'the layer'} is called more than once"
            for value in (*call.inputs.values(), *(made for _, made in call.outputs.values())):
                self._unknown(value, why)

    def _settle_leaves(self) -> None:
        """Arguments that more than one thing takes stay as they are."""
        owners: dict[int, int] = {}
        for call in self._calls.values():
            for leaf in call.leaves:
                owners[leaf] = owners.get(leaf, 0) + 1
        for group in self.groups:
            for leaf in group.leaves:
                owners[leaf] = owners.get(leaf, 0) + 1
        shared = self._opaque | {leaf for leaf, count in owners.items() if count > 1}
        for group in self.groups:
            members = {*group.producers, *(path for path, _ in group.consumers)}
            leaves = group.leaves.union(*(self._calls[path].leaves for path in members))
            if leaves & shared:
                group.must_stay("something else uses the same parameters")
            if not group.consumers:
                group.must_stay("no layer takes it")


class _LayerCall:
    """What goes in and out of a layer of known type, and the arguments that it takes."""

    def __init__(self, path: str):
        self.path = path
        self.inputs: dict[int, Any] = {}
        self.outputs: dict[int, tuple[Any, Any]] = {}
        self.leaves: set[int] = set()


class _Other:
    """Anything."""


@dataclasses.dataclass(eq=False)
class _Uniform:
    """One number, in all places of an array."""

    value: Any


@dataclasses.dataclass(eq=False)
class _Leaf:
    """An argument of the program that is no vector."""

    leaves: frozenset[int]


@dataclasses.dataclass(eq=False)
class _Vector:
    """`[..., size]`, made of arguments of the program; on the last axis, `value`."""

    leaves: frozenset[int]
    value: Any


@dataclasses.dataclass(eq=False)
class _Channels:
    """`[..., size]`; of a channel that its producers have no weight for, `value[channel]`."""

    group: Group
    value: Any


@dataclasses.dataclass(eq=False)
class _Inside:
    """What a layer computes on its way."""

    call: _LayerCall
    aval: Any


def _of_leaf(index: int, leaf):
    shape = np.shape(leaf)
    if shape and math.prod(shape) == shape[-1] > 1:
        return _Vector(frozenset({index}), as_jax(leaf).reshape(-1))
    return _Leaf(frozenset({index})) if shape else _Uniform(leaf)


def _elementwise(eqn, inputs, out, with_value: bool):
    """The result of a function of each element; None where it is more than that."""
    if any(isinstance(value, (_Other, _Leaf)) for value in inputs):
        return None
    wide = [value for value in inputs if not isinstance(value, _Uniform)]
    sizes = {value.value.shape[0] for value in wide}
    if len(sizes) > 1 or (sizes and out.shape[-1:] != tuple(sizes)):
        return None
    shape = tuple(sizes)
    made = _evaluated(eqn, inputs, shape) if with_value else np.zeros(shape, out.dtype)
    if not wide:
        return _Uniform(made)
    leaves = frozenset().union(*(v.leaves for v in wide if isinstance(v, _Vector)))
    groups = [value.group for value in wide if isinstance(value, _Channels)]
    if not groups:
        return _Vector(leaves, made)
    group = groups[0].now()
    for other in groups[1:]:
        group = group.join(other)
    group.leaves |= leaves
    return _Channels(group, made)


def _evaluated(eqn, inputs, shape):
    """What an equation makes of values in place of its operands."""
    operands = [
        jnp.broadcast_to(jnp.asarray(value.value, atom.aval.dtype), shape)
        for value, atom in zip(inputs, eqn.invars)
    ]
    return eqn.primitive.bind(*operands, **eqn.params)


def _along_other_axes(name: str, params, inputs, shape, new_shape):
    """The result of what mixes no channels, the last axis; None where that is not sure."""
    value, *others = inputs
    size, last = value.value.shape[0], len(shape) - 1
    keeps_channels = shape[-1:] == new_shape[-1:] == (size,)
    if name in ("reshape", "squeeze") and keeps_channels and not others:
        return value
    if name == "broadcast_in_dim" and keeps_channels and not others:
        is_last = params["broadcast_dimensions"][-1:] == (len(new_shape) - 1,)
        return value if is_last else None
    if not isinstance(value, _Channels) or not keeps_channels:
        return None
    with_value = lambda made: _Channels(value.group, made)
    if name in ("reduce_max", "reduce_min") and last not in params["axes"]:
        return value
    if name == "reduce_sum" and last not in params["axes"]:
        return with_value(value.value * math.prod(shape[axis] for axis in params["axes"]))
    if name in ("reduce_window_max", "reduce_window_sum") and not others:
        sizes = ("window_dimensions", "window_strides", "base_dilation", "window_dilation")
        window, strides, *dilations = (params[which] for which in sizes)
        padding = params["padding"]
        is_plain = all(n == 1 for dilation in dilations for n in dilation)
        mixes_none = window[last] == strides[last] == 1 and tuple(padding[last]) == (0, 0)
        meets_all = all(max(pair) < extent for pair, extent in zip(padding, window))
        if is_plain and mixes_none and meets_all:
            is_whole = name.endswith("max") or not any(map(any, padding))
            count = 1 if name.endswith("max") else math.prod(window)
            made = value.value * count
            return with_value(made if is_whole else jnp.where(made == 0, made, jnp.nan))
        return None
    if name == "pad" and isinstance(others[0], _Uniform):
        if tuple(params["padding_config"][last]) != (0, 0, 0):
            return None
        made = value.value
        return with_value(jnp.where(made == others[0].value, made, jnp.nan))
    return None
