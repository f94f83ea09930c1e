"""Weights of PyTorch in the order of axes that this library and Flax have."""

import jax
import jax.numpy as jnp
import numpy as np


def weight_from_torch(weight, *, transposed: bool = False, feature_group_count: int = 1):
    """A weight of a PyTorch layer as ops and layers take it here, with the same zeros.

    Both libraries correlate, and number the outputs of feature groups one group after the other, so
    that convolutions differ in the order of axes only. Transposed convolutions differ in the
    direction of the taps too.

    Args:
        weight: an array, or what NumPy can read (`layer.weight.detach()`):
            `[out, in]` of `torch.nn.Linear`;
            `[out, in // groups, *kernel]` of `torch.nn.Conv1d`, `Conv2d` and `Conv3d`;
            `[in, out // groups, *kernel]` of `torch.nn.ConvTranspose1d`, `2d` and `3d`.
        transposed: whether it is one of the last kind, for `conv_transpose` and ConvTranspose
            layers. PyTorch's `padding=p` and `output_padding=q` are there, for each space axis,
            `padding=(e - p, e - p + q)` with `e = kernel_dilation * (kernel - 1)`.
        feature_group_count: PyTorch's `groups`.

    Returns:
        A new `jax.Array`: `[in, out]`, or `[*kernel, in // groups, out]`. A transposed
        convolution's weight that is read with `transposed=False` is `[*kernel, out // groups, in]`,
        as it is wanted with `transpose_kernel=True`.

    Raises:
        ValueError: too few axes, or groups that do not divide the first one.
        TypeError: what is no array of numbers; groups that are no int.
    """
    name = "weight_from_torch"
    w = weight if isinstance(weight, jax.Array) else np.asarray(weight)
    if not jnp.issubdtype(w.dtype, jnp.number):
        raise TypeError(f"{name}: the weight must hold numbers, got dtype {w.dtype}.")
    least, axes = (3, "[in, out, *kernel]") if transposed else (2, "[out, in, *kernel]")
    if w.ndim < least:
        raise ValueError(f"{name}: the weight must have axes {axes}, got shape {w.shape}.")
    groups = feature_group_count
    if isinstance(groups, bool) or not isinstance(groups, (int, np.integer)):
        raise TypeError(f"{name}: feature_group_count is an int, got {groups!r}.")
    if groups < 1 or w.shape[0] % groups:
        raise ValueError(
            f"{name}: feature_group_count must divide the weight's first axis, got "
            f"feature_group_count={groups} and shape {w.shape}."
        )
    if not transposed:
        return jnp.array(w.transpose(*range(2, w.ndim), 1, 0))
    inputs, outputs, *kernel = w.shape
    w = w[:, :, *[slice(None, None, -1)] * len(kernel)]
    w = w.reshape(groups, inputs // groups, outputs, *kernel)
    w = w.transpose(*range(3, w.ndim), 1, 0, 2)
    return jnp.array(w.reshape(*kernel, inputs // groups, groups * outputs))
