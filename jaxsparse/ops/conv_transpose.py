"""Transposed convolutions: the input gradients of convolutions, under a name of their own."""

from collections.abc import Sequence

import jax

from jaxsparse.formats.pattern import Pattern
from jaxsparse.ops import arguments, window
from jaxsparse.ops.conv import check_channels, check_shapes, convolve, folded
from jaxsparse.ops.options import check_options


def conv_transpose(
    x,
    w,
    *,
    pattern: Pattern | None = None,
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
    """Convolves `x`, with `strides - 1` zeros between its entries, with a sparse weight.

    y[..., p, o] = sum over taps t and inputs i of
                   dilated x[..., p + t * kernel_dilation - low, i] * w[t, i, o]

    This is `jax.lax.conv_transpose` in channels-last layout. With `transpose_kernel` the taps run
    backwards and the weight is `[*kernel, out, in]`: it is then the transpose (the input gradient)
    of `conv` with that weight, which PyTorch and Keras call a transposed convolution.

    Args:
        x: `[*batch, *space, in]`, as in `jaxsparse.conv`.
        w: `[*kernel, in // groups, out]`, or `[*kernel, out // groups, in]` with
            `transpose_kernel`; a SparseWeight, a WeightSum, or an array, as in `jaxsparse.conv`.
        pattern: for an array `w`, which of its entries take part.
        strides: an int, or one per space axis: how much larger the result is.
        padding: as for `jax.lax.conv_transpose`: "SAME", "VALID", or the zeros around the dilated
            `x`: an int, or for each space axis an int or a pair (low, high). PyTorch's `padding=p`
            is `kernel_dilation * (kernel - 1) - p` on both sides. "CIRCULAR" is what Flax's layers
            make of it: results of "VALID", wrapped around to `strides` times the size of `x`.
        kernel_dilation: an int, or one per space axis.
        transpose_kernel: whether taps run backwards and channels are exchanged.
        output_padding: None, an int, or one per space axis: results added at the end, as in
            PyTorch; below the stride or the dilation of the axis. Not with "CIRCULAR".
        feature_group_count, precision, preferred_element_type, implementation, grad: as in
            `jaxsparse.conv`.

    Returns:
        `[*batch, *output_space, out]` in `preferred_element_type`, or the dtype of `x`.

    Raises:
        ValueError, TypeError, NotImplementedError: as `jaxsparse.conv`.
    """
    name = "conv_transpose"
    check_options(name, implementation, grad)
    if not isinstance(transpose_kernel, bool):
        raise TypeError(f"{name}: transpose_kernel is a bool, got {transpose_kernel!r}.")
    x = arguments.as_array(name, "x", x)
    weights = arguments.read_weights(name, w, pattern, implementation, grad)
    kernel = check_shapes(name, x, weights)
    rank = len(kernel)
    strides = window.per_axis(name, "strides", strides, rank)
    dilation = window.per_axis(name, "kernel_dilation", kernel_dilation, rank)
    if output_padding is not None:
        output_padding = window.per_axis(name, "output_padding", output_padding, rank, least=0)
    groups = check_channels(name, x, weights, feature_group_count, exchanged=transpose_kernel)
    space = x.shape[x.ndim - rank - 1 : -1]
    is_circular = isinstance(padding, str) and padding == "CIRCULAR"
    if is_circular:
        window.check_circular(name, space, output_padding)
    pairs = window.transposed_padding(name, padding, kernel, strides, dilation, output_padding)
    seen = window.transposed_window(
        name, space, kernel, strides, pairs, dilation, groups, mirrored=not transpose_kernel
    )
    y = convolve(
        name,
        x,
        weights,
        seen,
        True,
        precision=precision,
        preferred_element_type=preferred_element_type,
        implementation=implementation,
        grad=grad,
    )
    if is_circular:
        return folded(y, *window.folds(space, strides, seen.x_space, seen.mirrored))
    return y
