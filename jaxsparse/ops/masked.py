"""Convolutions and products of sparse inputs: what is zero is skipped, the shape stays.

They are bilinear in the input and the kernel, so their rules are those of every other op. What is
sparse is an activation: the family here has, beside x, w and y, the numbers of nonzeros of each
place of x or y, 0 where the place is inactive.

    <m_y y, f(m_x x, w)>        m: 1 at active places, 0 at others

Which implementation runs is decided when it runs, by counting, in `_compute`: below every
transformation, so that `vmap` has one decision for the whole batch and only one side runs.
"""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsparse.core import dispatch, modes, ordered
from jaxsparse.core.family import Family
from jaxsparse.core.kinds import Kind, Role
from jaxsparse.core.nonzeros import nonzeros
from jaxsparse.ops import arguments, window
from jaxsparse.ops.arguments import Weight
from jaxsparse.ops.conv import (
    check_channels,
    check_shapes,
    conv,
    convolve,
    dense_conv,
    folded,
    geometry,
)
from jaxsparse.ops.conv_transpose import conv_transpose
from jaxsparse.ops.options import check_options
from jaxsparse.ops.window import Window

GRADS = ("exact", "masked")


@dataclasses.dataclass(frozen=True)
class MaskedSpec:
    """What is fixed about an op on a sparse input before any array is seen.

    Attributes:
        window: of the convolution; without axes for a product of matrices.
        channels: of x and of y.
        source: "x" or "y", which of them is the sparse input; "y" of a transposed convolution.
        masks: the activations whose places are given, of "x" and "y", in this order.
        threshold: the share of zeros from which on they are skipped; None for measured ones.
        is_strict: whether the kernel for sparse inputs runs in any case.
        precision: for plain JAX on platforms where it matters.
    """

    window: Window
    channels: tuple[int, int]
    source: str
    masks: tuple[str, ...] = ()
    threshold: Fraction | None = None
    is_strict: bool = False
    precision: Any = None

    @property
    def cast_from(self) -> str | None:
        return None

    def inner(self, kind: str) -> tuple[int, ...]:
        spaces = {"x": self.window.x_space, "y": self.window.y_space}
        if kind in ("x", "y"):
            return (*spaces[kind], self.channels["xy".index(kind)])
        if kind != "w":
            return spaces[kind[0]]  # "x_places", "y_places"
        rows, columns = self.channels[:: -1 if self.window.mirrored else 1]
        return (*self.window.kernel, rows // self.window.groups, columns)

    def attributes(self) -> dict[str, Any]:
        return {
            "kernel": np.array(self.window.kernel, np.int64),
            "strides": np.array(self.window.strides, np.int64),
            "padding_low": np.array(self.window.low, np.int64),
            "kernel_dilation": np.array(self.window.dilation, np.int64),
            "feature_groups": np.int64(self.window.groups),
            "mirrored": np.int64(self.window.mirrored),
            "places": np.int64(sum({"x": 1, "y": 2}[mask] for mask in self.masks)),
        }

    def density(self, stored: int) -> float:
        return 1.0  # of the weight

    def macs(self, batch: int) -> int:
        places = math.prod(self.window.y_space)
        return batch * places * math.prod(self.inner("w"))

    @property
    def least_channels(self) -> int:
        """The fewer of x and y in a feature group."""
        return min(self.channels) // self.window.groups

    def unmeasured_break_even(self) -> float:
        # Of places: what AVX2 kernels reach against XLA with AVX-512.
        return 0.35 if self.least_channels >= 16 else 0.05

    def shape_class(self, batch: int = 0) -> str:
        """Such as "taps>1,strides=1,channels>=64"."""
        classes = [f"taps{'>' if math.prod(self.window.kernel) > 1 else '='}1"]
        classes += [f"strides{'=' if set(self.window.strides) <= {1} else '>'}1"]
        channels = self.least_channels
        classes += [next((f"channels<{n}" for n in (16, 32, 64) if channels < n), "channels>=64")]
        return ",".join(classes)


# The families -------------------------------------------------------------------------------------

_KINDS = (
    Kind("x", Role.BATCHED, "input_grad"),
    Kind("w", Role.WHOLE, "weight_grad"),
    Kind("y", Role.BATCHED, "forward"),
)
_MASKS: tuple[tuple[str, ...], ...] = ((), ("x",), ("y",), ("x", "y"))
_DTYPES = {"cpu": frozenset({"float32", "float64", "bfloat16", "float16"})}


def _at_active(array, places):
    return array if places is None else jnp.where(places[..., None] > 0, array, 0)


def _dense(spec: MaskedSpec, x, w):
    if not spec.window.kernel:
        sums = arguments.sum_dtype(x.dtype)
        product = jnp.matmul(x, w, precision=spec.precision, preferred_element_type=sums)
        return product.astype(x.dtype)
    return dense_conv(spec.window, x, w, spec.precision)


def _reference(spec: MaskedSpec, x, w, *places):
    given = dict(zip(spec.masks, places, strict=True))
    return _at_active(_dense(spec, _at_active(x, given.get("x")), w), given.get("y"))


def _choose(member, spec: MaskedSpec, dtype: str) -> dispatch.Choice:
    if not _is_sparse(member.result.name, spec):
        return dispatch.Choice("dense", "a gradient that is wanted everywhere skips nothing")
    if spec.threshold is not None:
        share = f"from {float(spec.threshold):.4g} zeros on"
    else:
        limits = _break_even(member.result.name, dtype, spec)
        share = f"up to {limits[0]:.2g} active places"
        if _skips_numbers(member.result.name, spec, spec.masks or (spec.source,)):
            share += f" or {limits[1]:.2g} nonzeros"
    return dispatch.Choice("ffi", f"decided when it runs: sparse {share}, else XLA's dense op")


def _is_sparse(result: str, spec: MaskedSpec) -> bool:
    return result != spec.source or bool(spec.masks)


def _skips_numbers(result: str, spec: MaskedSpec, masks: Sequence[str]) -> bool:
    """Whether single zeros pay: an operand's, where no other places are given.

    With feature groups the result's kernel skips places only, and still beats XLA's grouped
    convolution, but for few channels.
    """
    is_fast = result == "w" or spec.window.groups == 1 or spec.least_channels >= 16
    return result != spec.source and tuple(masks) == (spec.source,) and is_fast


def _break_even(kind: str, dtype: str, spec: MaskedSpec) -> list[float]:
    """The shares of active places, and of nonzeros, up to which kernels pay on this machine."""
    by_number = "masked_conv_weight_grad_nonzeros" if kind == "w" else "masked_conv_nonzeros"
    measured = (
        dispatch.break_even(name, dtype, spec.shape_class())
        for name in ("masked_conv_places", by_number)
    )
    guessed = spec.unmeasured_break_even(), 0.1
    return [guess if m is None else m for m, guess in zip(measured, guessed, strict=True)]


def _compute(kind: str, spec: MaskedSpec, *arrays, n_group: int):
    """The member that returns `kind`: by its kernel where there are zeros enough, else by XLA."""
    member = _DECIDING[spec.masks].members[kind]
    operands = dict(zip((k.name for k in member.operands), arrays))
    places = dict(zip(spec.masks, arrays[len(operands) :], strict=True))
    if spec.source in operands and spec.source not in places:
        places[spec.source] = nonzeros(operands[spec.source])
    reference = functools.partial(member.run_reference, spec=spec, n_group=n_group)
    dense = functools.partial(ordered.in_order(reference), *arrays)
    if not places:  # a gradient that is wanted everywhere
        return dense()
    masks = tuple(sorted(places))
    kernels = _KERNELS[masks].members[kind]
    known = dataclasses.replace(spec, masks=masks)

    def counts_of(mask):
        if mask in (spec.source, kind):
            return places[mask]
        # Counts are of the sparse input: of what else is read there, all numbers.
        return jnp.where(places[mask] > 0, jnp.int32(spec.channels["xy".index(mask)]), 0)

    def sparse():
        arrays = (*operands.values(), *map(counts_of, masks))
        return kernels(known, *arrays, n_group=n_group, implementation="ffi")

    if spec.is_strict or modes.current().mode == "sparse":
        return sparse()
    counts = places[spec.source if spec.source in places else masks[0]]
    channels = spec.channels["xy".index(spec.source)]  # which both sides' counts are of
    pays = _pays(kind, known, arrays[0].dtype.name, counts, channels)
    if (decisions := modes.current().decisions) is not None:
        jax.debug.callback(functools.partial(decisions.record, member.name), pays)
    return lax.cond(pays, sparse, dense)


def _pays(kind: str, spec: MaskedSpec, dtype: str, counts, channels: int):
    """Whether there are zeros enough, for the number of nonzeros of each place."""
    if spec.threshold is not None:
        return _is_at_most(counts, 1 - spec.threshold, channels)
    by_place, by_number = (Fraction(str(share)) for share in _break_even(kind, dtype, spec))
    few_places = _is_at_most((counts > 0).astype(jnp.int32), by_place, 1)
    if not _skips_numbers(kind, spec, spec.masks):
        return few_places
    return few_places | _is_at_most(counts, by_number, channels)


def _is_at_most(counts, share: Fraction, of: int):
    """Whether the sum of counts is at most this share of all, `of` for each: exact in integers."""
    size = counts.size
    if not isinstance(size, int):  # symbolic, in an exported program: to rounding
        all_of_them = lax.convert_element_type(size, jnp.float32) * of
        return jnp.sum(counts.astype(jnp.float32)) <= all_of_them * float(share)
    limit = math.floor(share * size * of)
    if size * of < 2**31:
        return jnp.sum(counts) <= limit
    # A sum of 64 bits in two words, as there need not be integers so wide.
    low, high = lax.reduce(
        (counts.astype(jnp.uint32), jnp.zeros(counts.shape, jnp.uint32)),
        (jnp.uint32(0), jnp.uint32(0)),
        _add_words,
        range(counts.ndim),
    )
    of_low, of_high = jnp.uint32(limit % 2**32), jnp.uint32(limit >> 32)
    return (high < of_high) | ((high == of_high) & (low <= of_low))


def _add_words(a, b):
    low = a[0] + b[0]
    return low, a[1] + b[1] + (low < a[0]).astype(jnp.uint32)


def _family(masks, name: str, **options) -> Family:
    indices = tuple(Kind(f"{mask}_places", Role.BATCHED, "") for mask in masks)
    return Family(name, _KINDS, _reference, _DTYPES, indices=indices, **options)


# Those with handlers, which need to know places; and those that decide, whose parts they are.
_KERNELS: dict[tuple[str, ...], Family] = {
    masks: _family(masks, "places_conv") for masks in _MASKS if masks
}
_DECIDING: dict[tuple[str, ...], Family] = {
    masks: _family(
        masks,
        "masked_conv",
        compute=_compute,
        parts=lambda kind: (_KERNELS["x",].members[kind],),  # all have these targets
        choose=_choose,
    )
    for masks in _MASKS
}


# What was decided ---------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Decision:
    """How a call on a sparse input ran.

    Attributes:
        member: such as "masked_conv_forward", as `explain` has it: to apply a transposed
            convolution is "masked_conv_input_grad", and a product is a convolution without space.
        is_sparse: whether zeros were skipped, else XLA's dense op ran.
    """

    member: str
    is_sparse: bool


class _Decisions:
    """Those of the calls inside a `with decisions()`, in the order in which they ran."""

    def __init__(self):
        self.taken: list[Decision] = []

    def record(self, member: str, pays) -> None:
        self.taken.append(Decision(member, bool(pays)))


@contextlib.contextmanager
def decisions() -> Iterator[list[Decision]]:
    """Reads back what calls on sparse inputs decide: a list that is filled when the block ends.

        with jaxsparse.decisions() as taken:
            jax.jit(f)(x)

    Functions are compiled anew inside. Calls that decide nothing, as the implementation is strict
    or a gradient skips nothing, are not in the list; `explain` has those.
    """
    record, taken = _Decisions(), []
    with modes.set_to(decisions=record):
        yield taken
        jax.effects_barrier()
    taken.extend(record.taken)


# The public functions -----------------------------------------------------------------------------


def masked_conv(
    x,
    kernel,
    *,
    mask=None,
    threshold: float | None = None,
    submanifold: bool = False,
    strides: int | Sequence[int] | None = 1,
    padding="SAME",
    input_dilation: int | Sequence[int] | None = 1,
    kernel_dilation: int | Sequence[int] | None = 1,
    feature_group_count: int = 1,
    precision=None,
    preferred_element_type=None,
    implementation: str | None = None,
    grad: str = "exact",
) -> jax.Array:
    """Convolves an input that has many zeros, and skips them.

    The result is that of the dense convolution, of the same shape. Two kinds of zeros are skipped:
    places that have no channel but zeros, and single zeros; the latter by the result and the
    gradient of the kernel, but not with a mask or `submanifold`. Whether there are enough of them
    is counted when it runs, without leaving the device; with too few, XLA's dense convolution runs.

    Args:
        x: `[*batch, *space, in]`, with one to three space axes and any batch axes; float32,
            bfloat16, float16 and float64 have kernels, other numbers run in plain JAX.
        kernel: an array `[*kernel, in // groups, out]`, of the dtype of `x`.
        mask: bool `[*batch, *space]`, or `[*space]` for the whole batch: which places are active.
            The rest of `x` counts as zero, whatever it holds. Active places then are not looked
            for, and the derivative by what is masked is zero. None: every place that has a nonzero.
        threshold: the share of zeros, from 0 to 1, from which on they are skipped; exactly this
            share is enough. With a mask, all numbers at active places count as nonzeros; what
            padding repeats and what dilation puts between inputs counts, too. None: what was
            measured for this machine, of places and of numbers.
        submanifold: whether results are computed at active places only, and are zero elsewhere.
            The convolution must then keep the sizes of space.
        strides, padding, input_dilation, kernel_dilation, feature_group_count, precision,
        preferred_element_type: as in `jaxsparse.conv`.
        implementation: None decides as above. "ffi" is the compiled kernel whatever the input, or
            an error that says why there is none; "xla" and "dense" are XLA's dense convolution. The
            gradient of `x` is always XLA's where it is wanted everywhere and nothing is given to
            skip.
        grad: "exact" is the derivative: the gradient of `x` is dense where no mask is given.
            "masked" takes the places found active for a mask, and so has no gradient elsewhere.

    Returns:
        `[*batch, *output_space, out]` in `preferred_element_type`, or the dtype of `x`. Sums are
        taken in float32 (float64 for float64) and rounded once. What is skipped multiplies nothing:
        an Inf or NaN of the kernel does not show there, as 0 * inf does in the dense convolution,
        nor does one of the result's gradient in the kernel's.

    Raises:
        ValueError: shapes, strides, padding or a threshold that do not fit; unknown options.
        TypeError: dtypes that differ or are not numbers, a mask that is not bool, a sparse kernel.
        NotImplementedError: `implementation="ffi"` where there is no kernel.

    Source: submanifold convolutions, Graham and van der Maaten, 2017, arXiv:1706.01307.
    """
    name = "masked_conv"
    x, weight, options = _read(
        name, x, kernel, mask, threshold, submanifold, implementation, grad, precision
    )
    taps = check_shapes(name, x, (weight,))
    rank = len(taps)
    strides = window.per_axis(name, "strides", strides, rank)
    input_dilation = window.per_axis(name, "input_dilation", input_dilation, rank)
    dilation = window.per_axis(name, "kernel_dilation", kernel_dilation, rank)
    groups = check_channels(name, x, (weight,), feature_group_count)
    space = x.shape[x.ndim - rank - 1 : -1]
    places = _places(name, x, mask, rank, options)
    prepare, seen, is_transposed = geometry(
        name, space, taps, strides, padding, input_dilation, dilation, groups
    )
    if submanifold:
        _check_keeps(name, space, seen.x_space if is_transposed else seen.y_space)
    source = None
    if options.restricts:
        source = prepare(jnp.expand_dims(places, -1))[..., 0]
    return _convolved(
        prepare(x), weight, seen, is_transposed, source, places, options, preferred_element_type
    )


def masked_conv_transpose(
    x,
    kernel,
    *,
    mask=None,
    threshold: float | None = None,
    submanifold: bool = False,
    strides: int | Sequence[int] | None = 1,
    padding="SAME",
    kernel_dilation: int | Sequence[int] | None = 1,
    transpose_kernel: bool = False,
    output_padding=None,
    feature_group_count: int = 1,
    precision=None,
    preferred_element_type=None,
    implementation: str | None = None,
    grad: str = "exact",
) -> jax.Array:
    """The transposed convolution of an input that has many zeros, which are skipped.

    Args:
        x, mask, threshold, submanifold, implementation, grad: as in `jaxsparse.masked_conv`.
        kernel: an array `[*kernel, in // groups, out]`, or `[*kernel, out // groups, in]` with
            `transpose_kernel`, of the dtype of `x`.
        strides, padding, kernel_dilation, transpose_kernel, output_padding, feature_group_count,
        precision, preferred_element_type: as in `jaxsparse.conv_transpose`.

    Returns:
        `[*batch, *output_space, out]`, as in `jaxsparse.masked_conv`.

    Raises:
        ValueError, TypeError, NotImplementedError: as `jaxsparse.masked_conv`.
    """
    name = "masked_conv_transpose"
    if not isinstance(transpose_kernel, bool):
        raise TypeError(f"{name}: transpose_kernel is a bool, got {transpose_kernel!r}.")
    x, weight, options = _read(
        name, x, kernel, mask, threshold, submanifold, implementation, grad, precision
    )
    taps = check_shapes(name, x, (weight,))
    rank = len(taps)
    strides = window.per_axis(name, "strides", strides, rank)
    dilation = window.per_axis(name, "kernel_dilation", kernel_dilation, rank)
    if output_padding is not None:
        output_padding = window.per_axis(name, "output_padding", output_padding, rank, least=0)
    groups = check_channels(name, x, (weight,), feature_group_count, exchanged=transpose_kernel)
    space = x.shape[x.ndim - rank - 1 : -1]
    is_circular = isinstance(padding, str) and padding == "CIRCULAR"
    if is_circular:
        window.check_circular(name, space, output_padding)
    pairs = window.transposed_padding(name, padding, taps, strides, dilation, output_padding)
    seen = window.transposed_window(
        name, space, taps, strides, pairs, dilation, groups, mirrored=not transpose_kernel
    )
    places = _places(name, x, mask, rank, options)
    if submanifold:
        periods = tuple(n * s for n, s in zip(space, strides, strict=True))
        _check_keeps(name, space, periods if is_circular else seen.x_space)
    source = places if options.restricts else None
    if is_circular:  # what wraps around is known after the sum only
        options = dataclasses.replace(options, submanifold=False)
    y = _convolved(x, weight, seen, True, source, places, options, preferred_element_type)
    if is_circular:
        y = folded(y, *window.folds(space, strides, seen.x_space, seen.mirrored))
        return _at_active(y, places) if submanifold else y
    return y


def masked_matmul(
    x,
    kernel,
    *,
    mask=None,
    threshold: float | None = None,
    precision=None,
    preferred_element_type=None,
    implementation: str | None = None,
    grad: str = "exact",
) -> jax.Array:
    """Multiplies the last axis of an input that has many zeros by a matrix, and skips them.

    Args:
        x: `[*batch, in]`.
        kernel: an array `[in, out]`, of the dtype of `x`.
        mask: bool `[*batch]`: which rows of `x` are active. Others count as zero.
        threshold, precision, preferred_element_type, implementation, grad: as in
            `jaxsparse.masked_conv`.

    Returns:
        `[*batch, out]`, as in `jaxsparse.masked_conv`.

    Raises:
        ValueError, TypeError, NotImplementedError: as `jaxsparse.masked_conv`.
    """
    name = "masked_matmul"
    x, weight, options = _read(
        name, x, kernel, mask, threshold, False, implementation, grad, precision
    )
    if len(weight.shape) != 2:
        raise ValueError(
            f"{name}: the kernel must have two axes, [in, out], got shape {weight.shape}."
        )
    if x.ndim < 1 or x.shape[-1] != weight.shape[0]:
        raise ValueError(
            f"{name}: the kernel takes {weight.shape[0]} input features, got x.shape={x.shape}."
        )
    places = _places(name, x, mask, 0, options)
    source = places if options.restricts else None
    seen = Window((), (), (), (), (), ())
    return _convolved(x, weight, seen, False, source, None, options, preferred_element_type)


def active_places(x) -> jax.Array:
    """Which places of `x [*places, channels]` have a nonzero: bool `[*places]`, for masks.

    Raises:
        TypeError, ValueError: what is no array of numbers, or has no axis of channels.
    """
    x = arguments.as_array("active_places", "x", x)
    if not x.ndim:
        raise ValueError(
            "active_places: x must have an axis of channels, its last, got x.shape=(). Use "
            "x[..., None] for numbers that are places of their own."
        )
    return nonzeros(x) > 0


def output_mask(
    mask,
    kernel_size: Sequence[int],
    *,
    transposed: bool = False,
    strides: int | Sequence[int] | None = 1,
    padding="SAME",
    **geometry,
) -> jax.Array:
    """Which results of a convolution see an active place: the mask of its output.

    Strides make it smaller and taps wider, so the places of a whole network are found once. What is
    added to every result, such as a bias, is not in it: a next layer that is given this mask takes
    those places as zero.

    Args:
        mask: bool `[*batch, *space]`, of the input.
        kernel_size: an int for each space axis.
        transposed: whether the convolution is a transposed one.
        strides, padding, **geometry: as in `jaxsparse.masked_conv`, or
            `jaxsparse.masked_conv_transpose`: input_dilation, kernel_dilation, output_padding,
            and transpose_kernel, by which CIRCULAR padding wraps around.

    Returns:
        bool `[*batch, *output_space]`.

    Raises:
        ValueError, TypeError: as these functions.
    """
    name = "output_mask"
    _check_is_mask(name, mask)
    if not isinstance(transposed, bool):
        raise TypeError(f"{name}: transposed is a bool, got {transposed!r}.")
    known = ("kernel_dilation", "input_dilation")
    if transposed:
        known = ("kernel_dilation", "output_padding", "transpose_kernel")
    if unknown := [option for option in geometry if option not in known]:
        kind = "a transposed convolution" if transposed else "a convolution"
        raise TypeError(
            f"{name}: the mask of {kind} depends on strides, padding, {', '.join(known)}, got "
            f"{', '.join(unknown)}. Leave out what moves no window."
        )
    rank = len(kernel_size) if hasattr(kernel_size, "__len__") else 1
    taps = window.per_axis(name, "kernel_size", kernel_size, rank)
    if not 1 <= rank <= min(3, mask.ndim):
        raise ValueError(
            f"{name}: kernel_size has an entry for each of one to three space axes of the mask, "
            f"got kernel_size={kernel_size!r} and mask.shape={mask.shape}. Give one for each axis."
        )
    op = conv_transpose if transposed else conv
    x, ones = jnp.asarray(mask)[..., None].astype(jnp.float32), jnp.ones((*taps, 1, 1), jnp.float32)
    return op(x, ones, strides=strides, padding=padding, **geometry)[..., 0] > 0


# Arguments ----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Options:
    """What was asked for. `restricts`: whether the gradient of x is of active places only."""

    function: str
    restricts: bool
    submanifold: bool
    threshold: Fraction | None
    implementation: str | None
    precision: Any


def _read(function, x, kernel, mask, threshold, submanifold, implementation, grad, precision):
    """The arrays, and the options that all three functions have, or an error."""
    check_options(function, implementation)
    if not isinstance(grad, str) or grad not in GRADS:
        raise ValueError(f'{function}: grad is "exact" or "masked", got {grad!r}.')
    if not isinstance(submanifold, bool):
        raise TypeError(f"{function}: submanifold is a bool, got {submanifold!r}.")
    if threshold is not None:
        is_number = isinstance(threshold, (int, float, np.number))
        if not is_number or isinstance(threshold, bool):
            raise TypeError(
                f"{function}: threshold is a number or None, got {threshold!r}. It is part of the "
                "program: give a number of Python or NumPy."
            )
        if not 0 <= threshold <= 1:
            raise ValueError(
                f"{function}: threshold is a share of zeros, from 0 to 1, got {threshold!r}. Use "
                "None for the measured one."
            )
        threshold = Fraction(str(threshold))  # 0.7 is seven tenths, not the float next to it
    x = arguments.as_array(function, "x", x)
    kernel = arguments.as_array(function, "kernel", kernel)
    arguments.check_same_dtype(function, "x", x, "kernel", kernel)
    precision = arguments.hashable(precision)
    arguments.check_precision(precision)
    weight = Weight(kernel, None, tuple(kernel.shape), "dense")
    restricts = mask is not None or grad == "masked"
    options = _Options(function, restricts, submanifold, threshold, implementation, precision)
    return x, weight, options


def _places(function, x, mask, rank, options) -> Any:
    """How many nonzeros each place has, or None where nobody asks."""
    if mask is None:
        return nonzeros(x) if options.restricts or options.submanifold else None
    _check_is_mask(function, mask)
    shape = x.shape[:-1]
    space = shape[len(shape) - rank :] if rank else shape
    if mask.shape not in (shape, space):
        of_space = f", or those of space, {space}" if space != shape else ""
        raise ValueError(
            f"{function}: a mask has the axes of x without channels, {shape}{of_space}, got "
            f"mask.shape={mask.shape}. Broadcast or reshape it."
        )
    counts = jnp.where(jnp.asarray(mask), jnp.int32(x.shape[-1]), jnp.int32(0))
    return jnp.broadcast_to(counts, shape)


def _check_is_mask(function, mask):
    if not hasattr(mask, "dtype") or mask.dtype != bool:
        got = getattr(mask, "dtype", type(mask).__name__)
        raise TypeError(
            f"{function}: a mask must be an array of bool, got {got}. Compare it with zero, or use "
            "jaxsparse.active_places of an array with channels."
        )


def _check_keeps(function, space, result_space):
    if tuple(space) != tuple(result_space):
        raise ValueError(
            f"{function}: with submanifold=True the result has the places of x, got an input of "
            f"{tuple(space)} and a result of {tuple(result_space)}. Use stride 1 and SAME padding."
        )


def _convolved(x, weight, seen, is_transposed, source, target, options, preferred):
    """The convolution or its transpose of checked operands.

    Args:
        x: what the kernel is applied to.
        source, target: the nonzeros of places of x and of the result, or None where those are not
            restricted. `target` counts only where the result is a submanifold's.
    """
    target = target if options.submanifold else None
    arguments.check_preferred(options.function, x.dtype, preferred)
    result, wide = arguments.result_dtypes(x.dtype, preferred)
    if not jnp.issubdtype(x.dtype, jnp.inexact):  # no kernels, and no transposes in lax
        y = _whole_numbers(_at_active(x, source), weight, seen, is_transposed, options, preferred)
        return _at_active(y, target)
    x, w = arguments.cast(x, wide), arguments.cast(weight.numbers, wide)
    rows, columns = w.shape[-2] * seen.groups, w.shape[-1]
    ends = {"x": source, "y": target}
    if is_transposed:
        ends = {"x": target, "y": source}
    masks = tuple(kind for kind, places in ends.items() if places is not None)
    spec = MaskedSpec(
        seen,
        (columns, rows) if seen.mirrored else (rows, columns),
        "y" if is_transposed else "x",
        masks,
        options.threshold,
        options.implementation == "ffi",
        options.precision,
    )
    members = _DECIDING[masks].members
    member, operands = (members["x"], (w, x)) if is_transposed else (members["y"], (x, w))
    given = (ends[mask] for mask in masks)
    y = member(spec, *operands, *given, implementation=options.implementation)
    return arguments.cast(y, result)


def _whole_numbers(x, weight, seen, is_transposed, options, preferred):
    implementation = options.implementation
    if implementation == "ffi":
        raise NotImplementedError(
            f'{options.function}: implementation="ffi" needs a compiled kernel, and there is none '
            f"for {x.dtype}. Use implementation=None."
        )
    if not seen.kernel:
        return jnp.matmul(x, weight.numbers, preferred_element_type=preferred)
    return convolve(
        options.function,
        x,
        (weight,),
        seen,
        is_transposed,
        precision=options.precision,
        preferred_element_type=preferred,
        implementation=None,
        grad="exact",
    )
