"""Weights of PyTorch in the order of axes that this library and Flax have, and back."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxsparse.formats.weight import SparseWeight, WeightSum


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
    groups = _check_groups(name, feature_group_count, w.shape, 0)
    if not transposed:
        return jnp.array(w.transpose(*range(2, w.ndim), 1, 0))
    inputs, outputs, *kernel = w.shape
    w = w[:, :, *[slice(None, None, -1)] * len(kernel)]
    w = w.reshape(groups, inputs // groups, outputs, *kernel)
    w = w.transpose(*range(3, w.ndim), 1, 0, 2)
    return jnp.array(w.reshape(*kernel, inputs // groups, groups * outputs))


def weight_to_torch(
    weight, *, transposed: bool = False, feature_group_count: int = 1
) -> np.ndarray:
    """A weight as PyTorch's layers have it: the inverse of `weight_from_torch`.

    Args:
        weight: `[in, out]` or `[*kernel, in // groups, out]`, an array or a sparse weight, known
            outside `jit`.
        transposed, feature_group_count: as for `weight_from_torch`.

    Returns:
        A new array of NumPy, with zeros where nothing is stored; `torch.from_numpy` takes it.
        bfloat16, which NumPy and PyTorch do not share, is in float32, which loses nothing.

    Raises:
        ValueError: too few axes, groups that do not divide the last one, a traced weight.
        TypeError: what is no array of numbers; groups that are no int.
    """
    name = "weight_to_torch"
    w = weight.todense() if isinstance(weight, (SparseWeight, WeightSum)) else weight
    if isinstance(w, Tracer):
        raise ValueError(f"{name}: the weight is traced. Call it outside jit.")
    w = np.asarray(w)
    if not jnp.issubdtype(w.dtype, jnp.number):
        raise TypeError(f"{name}: the weight must hold numbers, got dtype {w.dtype}.")
    if w.dtype == jnp.bfloat16:
        w = w.astype(np.float32)
    least, axes = (
        (3, "[*kernel, in, out]") if transposed else (2, "[*kernel, in, out] or [in, out]")
    )
    if w.ndim < least:
        raise ValueError(f"{name}: the weight must have axes {axes}, got shape {w.shape}.")
    groups = _check_groups(name, feature_group_count, w.shape, -1)
    if not transposed:
        return w.transpose(-1, -2, *range(w.ndim - 2)).copy()
    *kernel, inputs, outputs = w.shape
    w = w.reshape(*kernel, inputs, groups, outputs // groups)
    w = w.transpose(-2, -3, -1, *range(len(kernel)))
    w = w.reshape(groups * inputs, outputs // groups, *kernel)
    return w[:, :, *[slice(None, None, -1)] * len(kernel)].copy()


def _check_groups(function: str, groups, shape: tuple[int, ...], axis: int) -> int:
    if isinstance(groups, bool) or not isinstance(groups, (int, np.integer)):
        raise TypeError(f"{function}: feature_group_count is an int, got {groups!r}.")
    if groups < 1 or shape[axis] % groups:
        raise ValueError(
            f"{function}: feature_group_count must divide the weight's "
            f"{'last' if axis else 'first'} axis, got feature_group_count={groups} and shape "
            f"{shape}."
        )
    return int(groups)
