"""Convolutions with sparse weights. Their transposes are in `conv_transpose`."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsparse.core import contract
from jaxsparse.formats.pattern import Pattern, WeightSpec
from jaxsparse.ops import arguments, families, parts, window
from jaxsparse.ops.options import check_options
from jaxsparse.ops.window import Window


@dataclasses.dataclass(frozen=True)
class ConvSpec:
    """What is fixed about a convolution before any array is seen."""

    weight: WeightSpec
    window: Window
    precision: Any = None  # for the reference on platforms where it matters

    @property
    def cast_from(self) -> str | None:
        return None

    def inner(self, kind: str) -> tuple[int, ...]:
        if kind not in ("x", "y"):
            return self.weight.inner(kind)
        rows, columns = self.weight.weight_shape
        listed = rows // math.prod(self.window.kernel) * self.window.groups
        # Columns are outputs, and inputs of a mirrored weight.
        if (kind == "y") != self.window.mirrored:
            listed = columns
        return (*(self.window.x_space if kind == "x" else self.window.y_space), listed)

    def attributes(self) -> dict[str, Any]:
        return {
            "kernel": np.array(self.window.kernel, np.int64),
            "strides": np.array(self.window.strides, np.int64),
            "padding_low": np.array(self.window.low, np.int64),
            "kernel_dilation": np.array(self.window.dilation, np.int64),
            "feature_groups": np.int64(self.window.groups),
            "mirrored": np.int64(self.window.mirrored),
        }

    def density(self, stored: int) -> float:
        return self.weight.density(stored)

    def macs(self, batch: int) -> int:
        # Also of the transpose: each entry of y meets each weight of its channel, padding included.
        return batch * math.prod(self.window.y_space) * math.prod(self.weight.weight_shape)

    def unmeasured_break_even(self) -> float:
        # At 0.2, single weights were 1.4 to 6 times as fast as XLA in every role of layers from
        # 7 x 7 x 2048 to 56 x 56 x 32, strided and 1 x 1 among them (one core, AVX-512).
        return 0.25

    def shape_class(self, batch: int) -> str:
        """Such as "taps>1,strides=1,channels<128,batch>=64,block>=16"; the batch counts outputs."""
        taps = math.prod(self.window.kernel)
        channels = self.weight.weight_shape[0] // taps
        classes = [f"taps{'>' if taps > 1 else '='}1"]
        classes += ["strides=1" if set(self.window.strides) == {1} else "strides>1"]
        classes += [next((f"channels<{n}" for n in (64, 128) if channels < n), "channels>=128")]
        classes += ["groups>1"] if self.window.groups > 1 else []
        return ",".join([*classes, self.weight.shape_class(self._outputs(batch))])

    def is_thin(self, batch: int, role: str) -> bool:
        """As for products, where the kernel has one tap. With more, inputs are read more than once.

        XLA is slow where convolutions have groups or three axes.
        """
        taps = math.prod(self.window.kernel)
        if taps == 1:
            return self.weight.is_thin(self._outputs(batch), role)
        is_plain = self.window.groups == 1 and len(self.window.kernel) < 3
        return is_plain and self._outputs(batch) >= 512 and self.weight.weight_shape[0] < 32

    def _outputs(self, batch: int) -> int:
        return batch * math.prod(self.window.y_space)


# In plain JAX -------------------------------------------------------------------------------------


def dense_conv(window: Window, x, w, precision=None) -> jax.Array:
    """The convolution with a whole weight `[*kernel, in, out]`, by lax."""
    rank = len(window.kernel)
    batch = x.shape[: x.ndim - rank - 1]
    x = x.reshape(math.prod(batch), *x.shape[len(batch) :])
    around, inside = _split_padding(window)
    if any(pair != (0, 0) for pair in around):
        edges = [(0, 0, 0), *((low, high, 0) for low, high in around), (0, 0, 0)]
        x = lax.pad(x, jnp.zeros((), x.dtype), edges)
    space = tuple(range(1, rank + 1))
    sums = arguments.sum_dtype(x.dtype)
    y = lax.conv_general_dilated(
        x,
        _as_lax_has_it(window, w),
        window.strides,
        inside,
        rhs_dilation=window.dilation,
        dimension_numbers=lax.ConvDimensionNumbers(
            (0, rank + 1, *space), (rank + 1, rank, *range(rank)), (0, rank + 1, *space)
        ),
        feature_group_count=window.groups,
        precision=precision,
        # Not to be named where it is no other: of integers, lax would transpose that to float0.
        preferred_element_type=None if sums == x.dtype else sums,
    )
    return y.reshape(*batch, *y.shape[1:]).astype(x.dtype)


def _split_padding(window: Window):
    """What to pad before the convolution, and what lax pads inside it.

    jaxlib's CPU backend reads out of bounds where padding is negative on one side and positive on
    the other (openxla/xla#48713; right again in 0.12.0). The input gradient of a convolution pads
    `extent - 1 - padding`, so lax gets 0 to `extent - 1` only; within this it is right, and its
    weight gradient is up to three times as fast as one of an input that was padded before.
    """
    around, inside = [], []
    for x, y, low, high, stride, extent in zip(
        window.x_space, window.y_space, window.low, window.high, window.strides, window.extents
    ):
        if high < 0 and (x + low - extent) // stride + 1 == y:
            high = 0  # these inputs are seen by no output anyway
        kept = [min(max(n, 0), extent - 1) for n in (low, high)]
        # One side may take away what the other one has put there.
        missing = max(0, -(x + low - kept[0] + high - kept[1]))
        for side in (0, 1):
            moved = min(missing, kept[side])
            kept[side] -= moved
            missing -= moved
        around.append((low - kept[0], high - kept[1]))
        inside.append(tuple(kept))
    return around, inside


def _as_lax_has_it(window: Window, w):
    """`[*kernel, in, out]` of the convolution, from the weight as it is stored."""
    if not window.mirrored:
        return w
    *kernel, listed, columns = w.shape
    # [*kernel, out in group, group, in in group] -> [*kernel, in in group, group, out in group]
    parts = w.reshape(*kernel, listed, window.groups, columns // window.groups)
    parts = jnp.flip(parts.swapaxes(-1, -3), range(len(kernel)))
    return parts.reshape(*kernel, columns // window.groups, window.groups * listed)


def dense_conv_transpose(window: Window, y, w, precision=None) -> jax.Array:
    """The transpose of `dense_conv`, which takes what that one returns."""
    rank = len(window.kernel)
    channels = w.shape[-1] if window.mirrored else w.shape[-2] * window.groups
    shape = (*y.shape[: y.ndim - rank - 1], *window.x_space, channels)
    conv = lambda x: dense_conv(window, x, w, precision)
    return jax.linear_transpose(conv, jax.ShapeDtypeStruct(shape, y.dtype))(y)[0]


def _reference(spec: ConvSpec, x, matrix):
    rows, columns = matrix.shape
    taps = math.prod(spec.window.kernel)
    w = matrix.reshape(*spec.window.kernel, rows // taps, columns)
    return dense_conv(spec.window, x, w, spec.precision)


CONV = families.make(
    "conv", _reference, {"cpu": frozenset({"float32", "float64", "bfloat16", "float16"})}
)


# The public function ------------------------------------------------------------------------------


def conv(
    x,
    w,
    *,
    pattern: Pattern | None = None,
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
    """Convolves `x` with a sparse weight, in one to three space axes.

    y[..., q, o] = sum over taps t and inputs i of
                   x[..., q * strides + t * kernel_dilation - low, i] * w[t, i, o]

    where `x` is zero outside. Weights that are not stored multiply nothing in a kernel; in plain
    JAX they are zeros, so that an Inf or NaN of `x` makes NaN of every result that sees it.

    Args:
        x: `[*batch, *space, in]`, with any number of batch axes; float32, bfloat16, float16 or
            float64 have kernels, other numbers run in plain JAX.
        w: `[*kernel, in // groups, out]`, of the dtype of `x`:
            a SparseWeight or a WeightSum;
            or an array with `pattern`: its entries on the pattern (a weight that is stored dense
            while it trains);
            or an array alone: the convolution is dense.
        pattern: for an array `w`, which of its entries take part.
        strides: an int, or one per space axis.
        padding: as Flax's layers have it: "SAME", "SAME_LOWER", "VALID", "CIRCULAR", "REFLECT",
            "CAUSAL" (one space axis), an int, or for each space axis an int or a pair (low, high),
            negative to leave inputs out.
        input_dilation: an int, or one per space axis: zeros are put between inputs, one less than
            this. With it, padding must be numbers.
        kernel_dilation: an int, or one per space axis: from one tap to the next, in inputs.
        feature_group_count: channels of `x` and of the result are in as many groups, each of which
            is convolved by itself.
        precision: as for `jax.lax.conv_general_dilated`. CPU kernels are exact in any case.
        preferred_element_type: the dtype of the result. A wider one than that of `x` is computed
            in.
        implementation: None chooses and never fails. "ffi" is the compiled kernel, or an error
            that says why there is none; "xla" is plain JAX on any platform, which for this op is
            XLA's dense convolution with the whole weight; "dense" is the same, but compiled copies
            unpack the weight where there are any.
        grad: as in `jaxsparse.matmul`: "exact", "sparse", or "dense" for `w` with `pattern`.

    Returns:
        `[*batch, *output_space, out]` in `preferred_element_type`, or the dtype of `x`. Sums are
        taken in float32 (float64 for float64) and rounded once.

    Raises:
        ValueError: shapes, strides or padding that do not fit; unknown options.
        TypeError: dtypes that differ or are not numbers; sizes that are not ints; dilations that
            are not positive, as in lax.
        RuntimeError: a name that no padding has, as in lax.
        NotImplementedError: more than three space axes; `implementation="ffi"` where there is no
            kernel.
    """
    check_options("conv", implementation, grad)
    x = arguments.as_array("conv", "x", x)
    weights = arguments.read_weights("conv", w, pattern, implementation, grad)
    kernel = check_shapes("conv", x, weights)
    rank = len(kernel)
    strides = window.per_axis("conv", "strides", strides, rank)
    input_dilation = window.per_axis("conv", "input_dilation", input_dilation, rank)
    dilation = window.per_axis("conv", "kernel_dilation", kernel_dilation, rank)
    groups = check_channels("conv", x, weights, feature_group_count)
    space = x.shape[x.ndim - rank - 1 : -1]
    prepare, seen, is_transposed = geometry(
        "conv", space, kernel, strides, padding, input_dilation, dilation, groups
    )
    x = prepare(x)
    return convolve(
        "conv",
        x,
        weights,
        seen,
        is_transposed,
        precision=precision,
        preferred_element_type=preferred_element_type,
        implementation=implementation,
        grad=grad,
    )


def geometry(
    function: str,
    space: tuple[int, ...],
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    padding,
    input_dilation: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
):
    """How a convolution sees an input with these sizes of space.

    Returns:
        What to make of the input first, as a function of arrays `[*batch, *space, channels]`; the
        window; and whether its transpose is to be taken, of what that function returns.
    """
    around = window.conv_padding(
        function, padding, space, kernel, strides, input_dilation, dilation
    )
    pairs = around.pairs
    is_dilated = any(d > 1 for d in input_dilation)
    if is_dilated and all(s == 1 for s in strides):
        seen = window.transposed_window(
            function, space, kernel, input_dilation, pairs, dilation, groups, mirrored=True
        )
        return lambda x: x, seen, True
    prepare = lambda x: x
    if around.fill is not None:
        edges, mode = [*pairs, (0, 0)], around.fill
        prepare = lambda x: jnp.pad(x, [*[(0, 0)] * (x.ndim - len(edges)), *edges], mode=mode)
        space = tuple(n + low + high for n, (low, high) in zip(space, pairs, strict=True))
        pairs = ((0, 0),) * len(kernel)
    elif is_dilated:
        prepare = lambda x: _dilated(x, input_dilation)
        space = window.dilated(space, input_dilation)
    return (
        prepare,
        window.conv_window(function, space, kernel, strides, pairs, dilation, groups),
        False,
    )


# What both directions share -----------------------------------------------------------------------


def check_shapes(function: str, x, weights) -> tuple[int, ...]:
    """The kernel of the weights, or an error."""
    shape = weights[0].shape
    rank = len(shape) - 2
    if rank < 1:
        raise ValueError(
            f"{function}: the weight must have kernel axes, [*kernel, in, out], got shape {shape}. "
            "Use jaxsparse.matmul without any."
        )
    if rank > 3:
        raise NotImplementedError(
            f"{function}: one to three kernel axes are computed, got {rank}, in a weight of shape "
            f"{shape}."
        )
    if 0 in shape[:rank]:
        raise ValueError(f"{function}: a kernel must have taps, got a weight of shape {shape}.")
    if x.ndim < rank + 1:
        raise ValueError(
            f"{function}: x must have a space axis for each of the kernel's {rank}, and channels, "
            f"got x.shape={x.shape} and a weight of shape {shape}."
        )
    return shape[:rank]


def check_channels(function: str, x, weights, groups, *, exchanged: bool = False) -> int:
    """The number of feature groups, or an error.

    Args:
        groups: as given.
        exchanged: whether the last axis of the weight counts the channels of `x`.
    """
    if isinstance(groups, bool) or not isinstance(groups, (int, np.integer)):
        raise TypeError(f"{function}: feature_group_count is an int, got {groups!r}.")
    if groups < 1:
        raise ValueError(f"{function}: feature_group_count must be at least 1, got {groups}.")
    channels, shape = x.shape[-1], weights[0].shape
    for what, count in (
        (f"the {channels} channels of x", channels),
        ("the weight's last axis", shape[-1]),
    ):
        if count % groups:
            raise ValueError(
                f"{function}: feature_group_count must divide {what}, got "
                f"feature_group_count={groups}, x.shape={x.shape} and a weight of shape {shape}."
            )
    takes = shape[-1] if exchanged else shape[-2] * groups
    if channels != takes:
        times = f" ({shape[-2]} in each of {groups} groups)" if groups > 1 and not exchanged else ""
        raise ValueError(
            f"{function}: the weight takes {takes} input channels{times}, got x.shape={x.shape}, "
            f"whose last axis has {channels}."
        )
    if groups > 1 and weights[0].storage in ("out", "in"):
        raise NotImplementedError(
            f"{function}: a SplitWeight has one feature group, got feature_group_count={groups}. "
            "Split the groups over devices with jax.shard_map."
        )
    return int(groups)


def convolve(
    function: str,
    x,
    weights,
    seen: Window,
    is_transposed: bool,
    *,
    precision,
    preferred_element_type,
    implementation,
    grad,
) -> jax.Array:
    """The convolution, or its transpose, of checked operands.

    Args:
        function: the public one, for errors.
        x: what the weight is applied to: inputs, or outputs where `is_transposed`.
        weights: as `arguments.read_weights` returns them.
        seen: the window of the convolution, in both cases.
        precision, preferred_element_type, implementation, grad: as in `conv`.
    """
    arguments.check_preferred(function, x.dtype, preferred_element_type)
    result, wide = arguments.result_dtypes(x.dtype, preferred_element_type)
    if is_transposed and jnp.issubdtype(x.dtype, jnp.integer):  # lax can not transpose these
        x, seen, is_transposed = _dilated(x, seen.strides), seen.transposed(), False

    def by(weight):
        arguments.check_same_dtype(function, "x", x, "w", weight.numbers)
        operand, numbers = arguments.cast(x, wide), arguments.cast(weight.numbers, wide)
        if weight.pattern is None:
            dense = dense_conv_transpose if is_transposed else dense_conv
            return arguments.cast(dense(seen, operand, numbers, precision), result)
        spec = ConvSpec(weight.pattern.spec(), seen, arguments.hashable(precision))
        if weight.storage == "dense":
            numbers = numbers.reshape(spec.weight.weight_shape)
        product = _product(function, weight.storage, spec, is_transposed, implementation, grad)
        return arguments.cast(product(operand, numbers, *weight.pattern.indices), result)

    return arguments.sum_over(weights, by)


def folded(y, periods, around):
    """The sum of all periods along each space axis, of zeros (low, high) around the results."""
    first = y.ndim - len(periods) - 1
    total = jnp.pad(y, [*[(0, 0)] * first, *around, (0, 0)])
    total = total.astype(arguments.sum_dtype(y.dtype))
    for axis, period in enumerate(periods, start=first):
        times = total.shape[axis] // max(period, 1)
        split = (*total.shape[:axis], times, period, *total.shape[axis + 1 :])
        total = total.reshape(split).sum(axis)
    return total.astype(y.dtype)


def _dilated(x, dilation):
    """`x` with `dilation - 1` zeros between neighbours along its space axes."""
    gaps = [(0, 0, d - 1) for d in dilation]
    edges = [*[(0, 0, 0)] * (x.ndim - len(gaps) - 1), *gaps, (0, 0, 0)]
    return lax.pad(x, jnp.zeros((), x.dtype), edges)


@functools.lru_cache(maxsize=1024)
def _product(function, storage, spec, is_transposed, implementation, grad):
    """The convolution of x and a weight in some storage, with a gradient contract or none.

    Kept, because making a contract costs more than a small convolution.
    """
    arguments.check_precision(spec.precision)
    op = (CONV.whole if storage == "dense" else CONV.packed)[spec.weight.name]

    def product(x, w, *indices):
        if is_transposed:
            return op.input_grad(spec, w, x, *indices, implementation=implementation)
        return op.forward(spec, x, w, *indices, implementation=implementation)

    if storage in ("out", "in"):
        are_results_last = is_transposed == spec.window.mirrored  # in the weight
        are_results_split = (storage == "out") == are_results_last
        product = (parts.over_results if are_results_split else parts.over_operands)(product)
    if grad == "exact":
        return product
    whole = functools.partial(_whole_weight_grad, spec, is_transposed) if grad == "dense" else None
    return contract.with_contract(function, product, whole)


def _whole_weight_grad(spec, is_transposed, x, g):
    """The gradient of every entry of the weight, as if all were stored."""
    x, y = (g, x) if is_transposed else (x, g)
    matrix = jax.ShapeDtypeStruct(spec.weight.weight_shape, x.dtype)
    return jax.linear_transpose(lambda matrix: _reference(spec, x, matrix), matrix)(y)[0]
