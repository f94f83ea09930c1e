"""The geometry of convolutions: which input each tap of each output sees. Integers only.

Along each axis, output `q` sees through tap `t` the input

    p = q * stride + t * dilation - low

and zero where `p` is not inside. A transposed convolution is the transpose of this map: the same
window, with inputs and outputs exchanged.
"""

import dataclasses
import math
import operator
from collections.abc import Sequence
from typing import Any

# How inputs beyond the edge are made from those inside, by the names that `jax.numpy.pad` has.
_FILLS = {"CIRCULAR": "wrap", "REFLECT": "reflect"}
LAX_NAMES = ("SAME", "SAME_LOWER", "VALID")
CONV_NAMES = (*LAX_NAMES, *_FILLS, "CAUSAL")
TRANSPOSED_NAMES = ("SAME", "VALID", "CIRCULAR")

Pairs = tuple[tuple[int, int], ...]

# No array has an axis as long, kernels count in 32 bits, and XLA ends the process where the size of
# a result overflows.
_LIMIT = 2**31
_MOST_PLACES = 2**40


@dataclasses.dataclass(frozen=True)
class Window:
    """What a convolution sees. Hashable; one entry per space axis.

    Attributes:
        x_space: the sizes of the input.
        y_space: the sizes of the output.
        kernel: how many taps there are.
        strides: from one output to the next, in inputs.
        low: zeros before the first input; negative where inputs are left out. How many follow the
            last one needs no saying: the output ends where `y_space` says.
        dilation: from one tap to the next, in inputs.
        groups: channels of input and output are in as many groups, each of which is by itself.
        mirrored: the stored weight is that of the transpose: `w[T - 1 - t, o, i]` in the place of
            `w[t, i, o]`, with T taps.
    """

    x_space: tuple[int, ...]
    y_space: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    low: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1
    mirrored: bool = False

    @property
    def high(self) -> tuple[int, ...]:
        """Zeros after the last input so that the last output sees nothing beyond them.

        Negative where the last inputs are seen by no output.
        """
        sizes = zip(self.x_space, self.y_space, self.strides, self.low, self.extents, strict=True)
        return tuple(max((y - 1) * s + e, 0) - low - x for x, y, s, low, e in sizes)

    @property
    def extents(self) -> tuple[int, ...]:
        """How many inputs lie between the first tap and the last, both included."""
        return extents(self.kernel, self.dilation)

    def transposed(self) -> "Window":
        """The transpose as a convolution: of this one's output, dilated by this one's strides."""
        return Window(
            dilated(self.y_space, self.strides),
            self.x_space,
            self.kernel,
            (1,) * len(self.kernel),
            tuple(e - 1 - low for e, low in zip(self.extents, self.low, strict=True)),
            self.dilation,
            self.groups,
            not self.mirrored,
        )


@dataclasses.dataclass(frozen=True)
class Padding:
    """What is put around the input: `pairs` of `fill` ("wrap" or "reflect"), or of zeros."""

    pairs: Pairs
    fill: str | None = None


def extents(kernel: Sequence[int], dilation: Sequence[int]) -> tuple[int, ...]:
    """The sizes of a dilated kernel."""
    return tuple((k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True))


def dilated(space: Sequence[int], dilation: Sequence[int]) -> tuple[int, ...]:
    """The sizes of an input with `dilation - 1` zeros between neighbours."""
    return tuple(max((n - 1) * d + 1, 0) for n, d in zip(space, dilation, strict=True))


# Arguments ----------------------------------------------------------------------------------------


def per_axis(function: str, name: str, value: Any, rank: int, least: int = 1) -> tuple[int, ...]:
    """One int per space axis, from an int, None (1) or a sequence.

    Raises:
        ValueError: another number of them than there are space axes, one below `least`, or one from
            2**31 on.
        TypeError: what is no int; a dilation below `least`.
    """
    value = 1 if value is None else value
    # What has no order is no list, either.
    is_one = isinstance(value, (str, dict, set, frozenset)) or not hasattr(value, "__len__")
    try:
        given: tuple[Any, ...] = (value,) * rank if is_one else tuple(value)
        sizes = tuple(map(_as_int, given))
    except TypeError:
        raise TypeError(
            f"{function}: {name} is an int or one int per space axis, got {value!r}."
        ) from None
    if len(sizes) != rank:
        raise ValueError(
            f"{function}: {name} must have one entry for each of the kernel's {rank} axes, got "
            f"{name}={value!r}."
        )
    if any(n < least for n in sizes):
        error = TypeError if "dilation" in name else ValueError  # as in lax
        raise error(f"{function}: {name} must be at least {least}, got {name}={value!r}.")
    if any(n >= _LIMIT for n in sizes):
        raise ValueError(f"{function}: {name} must be below 2**31, got {name}={value!r}.")
    return sizes


def as_padding(function: str, padding, rank: int) -> str | Pairs:
    """A name as it is, or one pair per space axis.

    Raises:
        ValueError: neither a name, an int, nor one int or pair of ints for each axis; one from
            2**31 on.
    """
    if isinstance(padding, str):
        return padding
    pairs = None
    try:
        each = padding if hasattr(padding, "__len__") else (_as_int(padding),) * rank
        if len(each) == rank:
            pairs = tuple(map(_pair, each))
    except TypeError:
        pass
    if pairs is None:
        raise ValueError(
            f"{function}: padding is a name, an int, or an int or a pair (low, high) for each of "
            f"the kernel's {rank} axes, got {padding!r}."
        )
    if any(abs(n) >= _LIMIT for pair in pairs for n in pair):
        raise ValueError(f"{function}: padding must be below 2**31, got {padding!r}.")
    return pairs


def _pair(given) -> tuple[int, int]:
    if not hasattr(given, "__len__"):
        return _as_int(given), _as_int(given)
    if isinstance(given, str) or len(given) != 2:
        raise TypeError
    return _as_int(given[0]), _as_int(given[1])


def _as_int(given) -> int:
    """An int; TypeError for anything else, and for True, which Python would take for 1."""
    if isinstance(given, bool):
        raise TypeError
    return operator.index(given)


# Padding of convolutions, by the rules of lax and Flax --------------------------------------------


def conv_padding(
    function: str,
    padding,
    x_space: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    input_dilation: Sequence[int],
    kernel_dilation: Sequence[int],
) -> Padding:
    """What is put around the dilated input of a convolution.

    Raises:
        ValueError: what is no padding; a name with a dilated input; CAUSAL in more than one axis;
            inputs to be repeated of which there are none.
        RuntimeError: an unknown name, as in lax.
    """
    rank = len(kernel)
    given = as_padding(function, padding, rank)
    if not isinstance(given, str):
        return Padding(given)
    name = given.upper()
    if name not in CONV_NAMES:
        raise RuntimeError(
            f"{function}: a padding is named {', '.join(CONV_NAMES)}, got {padding!r}."
        )
    if any(d != 1 for d in input_dilation):
        raise ValueError(
            f"{function}: with an input dilation padding must be numbers, got {padding!r} and "
            f"input_dilation={tuple(input_dilation)}. Give a pair (low, high) for each axis, or "
            "use conv_transpose."
        )
    sizes = extents(kernel, kernel_dilation)
    if name in _FILLS:
        check_repeats(function, name, x_space)
        return Padding(tuple(((e - 1) // 2, e // 2) for e in sizes), _FILLS[name])
    if name == "CAUSAL":
        if rank != 1:
            raise ValueError(
                f"{function}: CAUSAL padding is for one space axis, got a kernel with {rank}. Give "
                "a pair (low, high) for each axis."
            )
        return Padding(((sizes[0] - 1, 0),))
    if name == "VALID":
        return Padding(((0, 0),) * rank)
    pairs = []
    for x, e, s in zip(x_space, sizes, strides, strict=True):
        total = max((-(-x // s) - 1) * s + e - x, 0)
        low = total // 2 if name == "SAME" else total - total // 2
        pairs.append((low, total - low))
    return Padding(tuple(pairs))


def check_repeats(function: str, padding: str, space: Sequence[int]) -> None:
    """Raises where a padding that repeats inputs has none to repeat."""
    if 0 in space:
        raise ValueError(
            f"{function}: {padding} padding repeats inputs, got an input of {tuple(space)}. Pad "
            'with zeros ("SAME").'
        )


def check_circular(function: str, space: Sequence[int], output_padding) -> None:
    """Raises where a transposed convolution cannot wrap its results around."""
    check_repeats(function, "CIRCULAR", space)
    if output_padding is not None and any(output_padding):
        raise ValueError(
            f"{function}: CIRCULAR padding fixes the size of the result, got output_padding="
            f"{output_padding}. Leave one out."
        )


def conv_window(
    function: str,
    x_space: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    pairs: Pairs,
    dilation: Sequence[int],
    groups: int = 1,
) -> Window:
    """The window of a convolution with zeros around its input.

    Raises:
        ValueError: a negative padding that leaves less than nothing.
    """
    _check_left(function, x_space, pairs)
    y_space = tuple(
        max((x + low + high - e) // s + 1, 0)
        for x, (low, high), e, s in zip(
            x_space, pairs, extents(kernel, dilation), strides, strict=True
        )
    )
    _check_sizes(function, x_space, y_space)
    low = tuple(low for low, _ in pairs)
    return Window(
        tuple(x_space), y_space, tuple(kernel), tuple(strides), low, tuple(dilation), groups
    )


def _check_left(function, space, pairs):
    if any(n + low + high < 0 for n, (low, high) in zip(space, pairs, strict=True)):
        raise ValueError(
            f"{function}: negative padding must not exceed the size of the input, got "
            f"padding={pairs} around an input of {tuple(space)}."
        )


def _check_sizes(function, *spaces):
    """Raises for an input with its gaps, or a result, that XLA would end the process for."""
    for space in spaces:
        if any(n >= _LIMIT for n in space) or math.prod(space) >= _MOST_PLACES:
            raise ValueError(
                f"{function}: an axis of the dilated input or the result must be below 2**31, and "
                f"their places below 2**40, got a space of {tuple(space)}. Dilate, stride or pad "
                "less."
            )


# Padding of transposed convolutions ---------------------------------------------------------------


def transposed_padding(
    function: str,
    padding,
    kernel: Sequence[int],
    strides: Sequence[int],
    dilation: Sequence[int],
    output_padding: Sequence[int] | None = None,
) -> Pairs:
    """What is put around the input of a transposed convolution, dilated by its strides.

    As in `jax.lax.conv_transpose`: pairs mean just that; "SAME" makes outputs of `stride` times the
    input's size, and "VALID" all outputs that any input reaches. "CIRCULAR" asks for "VALID" here:
    what it makes of the outputs comes after. `output_padding` more outputs are added at the end.

    Raises:
        ValueError: what is no padding; an output padding as large as the stride and the dilation.
    """
    rank = len(kernel)
    given = as_padding(function, padding, rank)
    if isinstance(given, str):
        if given not in TRANSPOSED_NAMES:
            raise ValueError(
                f"{function}: a padding is named {', '.join(TRANSPOSED_NAMES)}, got {padding!r}."
            )
        pairs = tuple(
            _transposed_pair(given, e, s)
            for e, s in zip(extents(kernel, dilation), strides, strict=True)
        )
    else:
        pairs = given
    if output_padding is None:
        return pairs
    for more, s, d in zip(output_padding, strides, dilation, strict=True):
        if more and more >= max(s, d):
            raise ValueError(
                f"{function}: output_padding must be below the stride or the dilation of its axis, "
                f"got output_padding={tuple(output_padding)}, strides={tuple(strides)} and "
                f"kernel_dilation={tuple(dilation)}."
            )
    return tuple(
        (low, high + more) for (low, high), more in zip(pairs, output_padding, strict=True)
    )


def _transposed_pair(name: str, extent: int, stride: int) -> tuple[int, int]:
    if name != "SAME":
        return extent - 1, max(extent, stride) - 1
    total = extent + stride - 2
    low = extent - 1 if stride > extent - 1 else -(-total // 2)
    return low, total - low


def transposed_window(
    function: str,
    space: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    pairs: Pairs,
    dilation: Sequence[int],
    groups: int = 1,
    mirrored: bool = False,
) -> Window:
    """The window of the convolution whose transpose takes an input with these sizes.

    Its output is that input, `y_space == space`; its input `x_space` is the transposed
    convolution's output.

    Raises:
        ValueError: a negative padding that leaves less than nothing.
    """
    wide = dilated(space, strides)
    _check_left(function, wide, pairs)
    sizes = extents(kernel, dilation)
    x_space = tuple(
        max(n + low + high - e + 1, 0) for n, (low, high), e in zip(wide, pairs, sizes, strict=True)
    )
    _check_sizes(function, wide, x_space)
    low = tuple(e - 1 - low for e, (low, _) in zip(sizes, pairs, strict=True))
    return Window(
        x_space, tuple(space), tuple(kernel), tuple(strides), low, tuple(dilation), groups, mirrored
    )


def folds(space: Sequence[int], strides: Sequence[int], outputs: Sequence[int], mirrored: bool):
    """How "CIRCULAR" wraps the outputs of a transposed convolution, as Flax's layers do.

    Returns:
        For each axis the period, and the zeros (low, high) to put around the outputs so that they
        fill whole periods, the sum of which is the result.
    """
    periods = tuple(n * s for n, s in zip(space, strides, strict=True))
    pairs = []
    for period, n in zip(periods, outputs, strict=True):
        total = -(n - period) % (2 * period) if period else 0
        low = (total + 1) // 2 if mirrored else total // 2
        pairs.append((low, total - low))
    return periods, tuple(pairs)
