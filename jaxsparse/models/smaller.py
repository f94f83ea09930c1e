"""A layer's kernel, pattern and bias with fewer channels, and which layers can do with fewer."""

import numpy as np
from jax import lax

from jaxsparse.formats.pattern import Pattern, as_jax
from jaxsparse.patterns import from_mask

_PRODUCTS = (None, lax.dot_general, lax.conv_general_dilated)
_HOOKS = ("dot_general", "conv_general_dilated", "dot_general_cls", "conv_general_dilated_cls")


def why_whole(layer, has_channels: bool) -> str | None:
    """Why all channels of a layer of either framework must stay; None where they need not.

    Args:
        has_channels: whether its type is one whose channels are on the last two axes of the kernel.
    """
    if not has_channels:
        return "its channels are on several axes, or not on the last"
    if getattr(layer, "feature_group_count", 1) > 1:
        return "it convolves groups of channels"
    if getattr(layer, "mask", None) is not None:
        return "it has a mask"
    if any(getattr(layer, name, None) not in _PRODUCTS for name in _HOOKS):
        return "it has a product of the user's"
    return None


def channel_axes(layer) -> tuple[int, int]:
    """Of the kernel: where its input and output channels are."""
    return (-1, -2) if getattr(layer, "transpose_kernel", False) else (-2, -1)


def taken(kernel, pattern: Pattern | None, axes: tuple[int, int], inputs, outputs):
    """`(kernel, pattern)` with some of the channels.

    Args:
        kernel: whole, zero off the pattern.
        pattern: of the kernel, or None for a dense one.
        axes: of the kernel: its input and its output channels.
        inputs, outputs: bool, which channels stay; None for all.

    Returns:
        The smaller kernel, and the pattern of what was stored in it. The pattern is None where that
        is everything.
    """

    def take(array):
        for axis, keep in zip(axes, (inputs, outputs)):
            array = array if keep is None else np.compress(keep, array, axis)
        return array

    small = as_jax(take(np.asarray(kernel)))
    if pattern is None:
        return small, None
    mask = take(np.asarray(pattern.mask()).reshape(np.shape(kernel)))
    order = getattr(pattern, "order", None)
    if order is not None and outputs is not None:
        order = _renumbered(np.asarray(order), outputs)
    new = from_mask(mask, pattern.format, order=order)
    return small, (new if new.density < 1 else None)


def some(array, keep):
    """The entries of the last axis for which `keep` is true.

    On the host, as XLA would compile programs for each size; in the dtype of the array.
    """
    return as_jax(np.asarray(array)[..., keep])


def _renumbered(order, keep):
    """An order of outputs without those that go; what is no output goes, too."""
    order = order[order < keep.size]
    return (np.cumsum(keep) - 1)[order[keep[order]]].astype(np.int32)
