"""The kernel of a sparse layer, stored dense or packed: masking it, packing it, multiplying by it.

Leading axes of a pattern's indices are batch axes of the layer, or layers stacked by `vmap` or
`scan`. The kernel has the same axes in front.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax import lax

from jaxsparse.formats import serialization
from jaxsparse.formats.pattern import Pattern
from jaxsparse.formats.weight import SparseWeight, check_values
from jaxsparse.layers.placement import gathered, placed_like, sharding_of_product
from jaxsparse.ops import window
from jaxsparse.ops.conv import conv
from jaxsparse.ops.conv_transpose import conv_transpose
from jaxsparse.ops.dot_general import dot_general, packed_dot_general


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class PackedPattern:
    """The pattern of a kernel of which only the values are stored.

    Attributes:
        pattern: where they are.
        kernel_shape: the shape of the whole kernel, without the leading axes that `pattern` has
            too. Static.
    """

    pattern: Pattern
    kernel_shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})

    def __repr__(self) -> str:
        return f"PackedPattern({self.pattern!r}, kernel_shape={self.kernel_shape})"


serialization.register(PackedPattern, "PackedPattern", lambda shape: (tuple(shape),))


def pattern_of(stored: Pattern | PackedPattern) -> Pattern:
    """The pattern, however the kernel is stored."""
    return stored.pattern if isinstance(stored, PackedPattern) else stored


def mask(kernel, pattern: Pattern):
    """The dense kernel with exact zeros where the pattern stores nothing."""
    matrices = _matrices("mask", kernel, pattern)
    masked = _each(lambda w, p: p.restrict(w), matrices, pattern)
    return placed_like(masked.reshape(jnp.shape(kernel)), kernel)


def pack(kernel, pattern: Pattern):
    """`(values, PackedPattern)` of a dense kernel; what is off the pattern is dropped."""
    values = _each(lambda w, p: p.gather(w), _matrices("pack", kernel, pattern), pattern)
    return values, PackedPattern(pattern, jnp.shape(kernel)[len(pattern.group) :])


def unpack(values, packed: PackedPattern):
    """`(kernel, pattern)`, the inverse of `pack`: the same bits, and zeros off the pattern."""
    pattern = packed.pattern
    check_values("unpack", values, pattern)
    kernel = _each(lambda v, p: p.scatter(v), values, pattern)
    return kernel.reshape(*pattern.group, *packed.kernel_shape), pattern


def change_pattern(layer: str, kernel, stored, new: Pattern):
    """The kernel and what is stored of its pattern, after the pattern changed.

    Args:
        layer: its name, for errors.
        kernel: dense, or values where `stored` is packed.
        stored: the old pattern, packed or not.
        new: of the same shape, format and capacity. Blocks that only it has start as zeros.

    Raises:
        ValueError, TypeError: a pattern that cannot take the place of the old one.
    """
    old = pattern_of(stored)
    if not isinstance(new, Pattern):
        raise TypeError(
            f"{layer}: a pattern is one of jaxsparse.patterns, got {type(new).__name__}."
        )
    for what, was, given in (
        ("format", old.format, new.format),
        ("shape", old.shape, new.shape),
        ("shapes of indices", [i.shape for i in old.indices], [i.shape for i in new.indices]),
    ):
        if was != given:
            raise ValueError(
                f"{layer}: the new pattern must have the {what} of the old one, {was}, got "
                f"{given}. Make it with capacity={old.capacity}, or make a new layer."
            )
    new = new.with_indices(*map(jnp.asarray, new.indices))
    if not isinstance(stored, PackedPattern):
        return mask(kernel, new), new
    move = lambda values, old, new: SparseWeight(values, old).with_pattern(new).values
    return _each(move, kernel, old, new), dataclasses.replace(stored, pattern=new)


def linear(
    inputs, kernel, bias, stored, *, axes, batch_axes, hook, implementation, grad, **arguments
):
    """The result of a linear layer, whose arrays have been cast already.

    y[batch, rest, out] = sum over in of inputs[batch, rest, in] * kernel[batch, in, out]
                          + bias[batch, out]

    Args:
        inputs: an array.
        kernel: `[*batch, *in, *out]`, or values where `stored` is packed.
        bias: `[*batch, *out]` or None.
        stored: the kernel's pattern, packed or not; None for a dense layer.
        axes: of `inputs`, contracted with the kernel's. They count in rising order.
        batch_axes: of `inputs`: its first ones.
        hook: the user's product in place of `dot_general`, or None. It gets the masked kernel.
        implementation, grad: as in `jaxsparse.matmul`.
        **arguments: for the product, ours or the user's.
    """
    axes, batch_axes = (
        tuple(sorted(axis + inputs.ndim if axis < 0 else axis for axis in given))
        for given in (axes, batch_axes)
    )
    num_batch, num_in = len(batch_axes), len(axes)
    stored = placed_like(stored, kernel, num_batch)
    dimension_numbers = (
        (axes, tuple(range(num_batch, num_batch + num_in))),
        (batch_axes, tuple(range(num_batch))),
    )
    if stored is None or hook is not None:
        whole = kernel if stored is None else _whole(kernel, stored, grad)
        y = (hook or lax.dot_general)(inputs, whole, dimension_numbers, **arguments)
    elif isinstance(stored, PackedPattern):
        y = packed_dot_general(
            gathered(inputs, axes),
            SparseWeight(kernel, stored.pattern),
            stored.kernel_shape,
            dimension_numbers,
            implementation=implementation,
            grad="sparse" if grad == "dense" else grad,  # there is nothing else to have one
            **arguments,
        )
    else:
        if arguments.get("out_sharding") is None:
            arguments["out_sharding"] = sharding_of_product(inputs, kernel, dimension_numbers)
        y = dot_general(
            gathered(inputs, axes),
            gathered(kernel, range(num_batch, kernel.ndim)),
            dimension_numbers,
            pattern=stored,
            implementation=implementation,
            grad=grad,
            **arguments,
        )
    if bias is None:
        return y
    places = [
        inputs.shape[i] if i in batch_axes else 1 for i in range(inputs.ndim) if i not in axes
    ]
    return y + jnp.reshape(bias, (*places, *bias.shape[num_batch:]))


def apply_mask(kernel, stored, mask, whole_shape):
    """The kernel, or values where `stored` is packed, times the mask that Flax's layers take.

    Raises:
        ValueError: a mask of another shape than `whole_shape`, as in Flax.
    """
    if mask is None:
        return kernel
    if mask.shape != whole_shape:
        raise ValueError(
            f"Mask needs to have the same shape as weights. Shapes are: {mask.shape}, {whole_shape}"
        )
    if isinstance(stored, PackedPattern):
        mask = stored.pattern.gather(jnp.asarray(mask))
    return kernel * mask


def convolution(
    inputs,
    kernel,
    bias,
    stored,
    *,
    transposed,
    hook=None,
    out_sharding=None,
    implementation,
    grad,
    **arguments,
):
    """The result of a convolutional layer, whose arrays have been cast already.

    Args:
        inputs: `[*batch, *space, in]`.
        kernel: `[*kernel, in, out]`, or values where `stored` is packed.
        bias: `[out]` or None.
        stored: the kernel's pattern, packed or not.
        transposed: whether this is `conv_transpose`, and not `conv`.
        hook: the user's convolution in place of `conv`, or None; it gets the masked kernel. It is
            called as Flax calls it.
        out_sharding: of the result, on meshes with explicit axes.
        implementation, grad: as in `jaxsparse.conv`.
        **arguments: the others of `jaxsparse.conv` or `jaxsparse.conv_transpose`.
    """
    stored = placed_like(stored, kernel, 0)
    shape = stored.kernel_shape if isinstance(stored, PackedPattern) else kernel.shape
    if hook is not None:
        y = _hooked(hook, inputs, _whole(kernel, stored, grad), out_sharding, **arguments)
    else:
        inputs = gathered(inputs, range(inputs.ndim - len(shape) + 1, inputs.ndim))
        kernel = gathered(kernel, range(kernel.ndim))
        if isinstance(stored, PackedPattern):
            kernel = SparseWeight(kernel, stored.pattern)
            arguments["grad"] = "sparse" if grad == "dense" else grad  # there is no other one
        else:
            arguments |= {"pattern": stored, "grad": grad}
        op = conv_transpose if transposed else conv
        y = op(inputs, kernel, implementation=implementation, **arguments)
        if out_sharding is not None:
            y = jax.sharding.reshard(y, out_sharding)
    return y if bias is None else y + jnp.reshape(bias, (1,) * (y.ndim - 1) + (-1,))


def _hooked(
    hook,
    inputs,
    kernel,
    out_sharding,
    *,
    strides,
    padding,
    input_dilation,
    kernel_dilation,
    **arguments,
):
    """What Flax's layer makes of its `conv_general_dilated`."""
    rank = kernel.ndim - 2
    batch, space = inputs.shape[: inputs.ndim - rank - 1], inputs.shape[-rank - 1 : -1]
    x = inputs.reshape(-1, *inputs.shape[len(batch) :])
    sizes = {
        name: window.per_axis("Conv", name, given, rank)
        for name, given in (
            ("strides", strides),
            ("input_dilation", input_dilation),
            ("kernel_dilation", kernel_dilation),
        )
    }
    around = window.as_padding("Conv", padding, rank)
    if isinstance(around, str) and around.upper() not in window.LAX_NAMES:
        pad = window.conv_padding("Conv", around, space, kernel.shape[:rank], *sizes.values())
        x = jnp.pad(x, ((0, 0), *pad.pairs, (0, 0)), mode=pad.fill or "constant")
        around = "VALID"
    if out_sharding is not None:
        arguments["out_sharding"] = out_sharding
    axes = tuple(range(1, rank + 1))
    y = hook(
        x,
        kernel,
        sizes["strides"],
        around,
        lhs_dilation=sizes["input_dilation"],
        rhs_dilation=sizes["kernel_dilation"],
        dimension_numbers=lax.ConvDimensionNumbers(
            (0, rank + 1, *axes), (rank + 1, rank, *range(rank)), (0, rank + 1, *axes)
        ),
        **arguments,
    )
    return y.reshape(*batch, *y.shape[1:])


def _whole(kernel, stored, grad):
    """The dense kernel for a product that knows no patterns, with the gradient asked for."""
    if isinstance(stored, PackedPattern):
        return unpack(kernel, stored)[0]
    masked = mask(kernel, stored)
    if grad != "dense":
        return masked
    # Zero off the pattern, and differentiated as if it were the kernel. On it nothing is added, as
    # that would turn -0 into 0.
    finite = jnp.where(jnp.isfinite(kernel), kernel, jnp.zeros((), kernel.dtype))
    off = mask(jnp.ones_like(kernel), stored) == 0
    return jnp.where(off, finite - lax.stop_gradient(finite), kernel)


def _matrices(function: str, kernel, pattern: Pattern):
    """The kernel as `[*stacked, *pattern.shape]`."""
    shape, num_stacked = jnp.shape(kernel), len(pattern.group)
    stacked = pattern.group
    rest, matrix = shape[num_stacked:], pattern.spec().weight_shape
    views = [(math.prod(rest[:i]), math.prod(rest[i:])) for i in range(len(rest) + 1)]
    if shape[:num_stacked] != stacked or matrix not in views:
        raise ValueError(
            f"{function}: a kernel must have the leading axes of its pattern's indices, {stacked}, "
            f"before those of shape {pattern.shape}, got {shape}. Stack layers along axis 0."
        )
    kernel = gathered(jnp.asarray(kernel), range(num_stacked, len(shape)))
    return jnp.reshape(kernel, (*stacked, *pattern.shape))


def _each(function, kernel, *patterns: Pattern):
    """`function(kernel, *patterns)` for each place on the leading axes of the patterns' indices."""
    placed = placed_like(patterns, kernel, len(patterns[0].group))
    return patterns[0].over_groups(function)(kernel, *placed)
