"""What layers on sparse inputs share, for both kinds of Flax module."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxsparse.layers import placement
from jaxsparse.ops.masked import active_places, masked_conv, masked_conv_transpose, output_mask


def forward(layer, inputs, kernel, bias, mask, *, transposed: bool) -> jax.Array:
    """The result of a layer whose arrays have been cast already.

    Args:
        layer: has Flax's attributes of a convolution, or a transposed one, and ours.
        inputs: `[*batch, *space, in]`.
        kernel: of Flax's shape.
        bias: `[out]` or None.
        mask: as in `jaxsparse.masked_conv`.
        transposed: which of the two.
    """
    op = masked_conv_transpose if transposed else masked_conv
    which = "transpose_kernel" if transposed else "feature_group_count"
    inputs = placement.gathered(inputs, range(inputs.ndim - kernel.ndim + 1, inputs.ndim))
    y = op(
        inputs,
        placement.gathered(kernel, range(kernel.ndim)),
        mask=mask,
        threshold=layer.threshold,
        submanifold=layer.submanifold,
        precision=layer.precision,
        preferred_element_type=getattr(layer, "preferred_element_type", None),
        implementation=layer.implementation,
        grad=layer.grad,
        **_moves(layer, transposed),
        **{which: getattr(layer, which)},
    )
    if bias is None:
        return y
    bias = jnp.reshape(bias, (1,) * (y.ndim - 1) + (-1,))
    if not layer.submanifold:
        return y + bias
    active = active_places(inputs) if mask is None else jnp.broadcast_to(mask, y.shape[:-1])
    return y + jnp.where(active[..., None], bias, jnp.zeros((), bias.dtype))


def mask_of_output(layer, mask, *, transposed: bool) -> jax.Array:
    """The mask for the layer after this one."""
    if layer.submanifold:
        return mask
    taps = layer.kernel_size
    taps = (taps,) if isinstance(taps, int) else tuple(taps)
    moves = _moves(layer, transposed)
    if transposed:
        moves["transpose_kernel"] = layer.transpose_kernel
    return output_mask(mask, taps, transposed=transposed, **moves)


def _moves(layer, transposed: bool) -> dict[str, Any]:
    """How the layer's window moves, as arguments of our ops."""
    names = ["strides", "padding", "kernel_dilation"]
    names += [] if transposed else ["input_dilation"]
    return {name: getattr(layer, name) for name in names}
