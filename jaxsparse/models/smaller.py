"""A layer's kernel, pattern and bias with fewer channels."""

import numpy as np

from jaxsparse.formats.pattern import Pattern, as_jax
from jaxsparse.patterns import from_mask


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
