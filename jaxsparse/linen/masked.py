"""Convolutional layers of Flax Linen for inputs that have many zeros."""

import jax
from flax import linen as nn
from jax import lax

from jaxsparse.layers import kernel as kernels
from jaxsparse.layers import masked, options
from jaxsparse.linen.conv import taps_of


class MaskedConv(nn.Conv):
    """A convolutional layer that skips the zeros of its input.

    Parameters are those of `flax.linen.Conv`, so checkpoints of either load into the other.

    Attributes:
        threshold, submanifold, grad, implementation: as in `jaxsparse.masked_conv`. The bias is
            added everywhere; with `submanifold`, at active places only.

    All other attributes are those of `flax.linen.Conv`, but that there is no `conv_general_dilated`
    of your own.
    """

    threshold: float | None = None
    submanifold: bool = False
    grad: str = "exact"
    implementation: str | None = None

    @nn.compact
    def __call__(self, inputs, mask=None) -> jax.Array:
        """The layer's result.

        Args:
            inputs: `[*batch, *space, in]`, any number of batch axes.
            mask: bool `[*batch, *space]` or `[*space]`: which places are active, or None to find
                those that have a nonzero.

        Returns:
            `[*batch, *output_space, features]`.
        """
        hooks = {"conv_general_dilated_cls": self.conv_general_dilated_cls}
        if self.conv_general_dilated is not lax.conv_general_dilated:
            hooks["conv_general_dilated"] = self.conv_general_dilated
        options.refuse_hook("MaskedConv", hooks)
        shape = (*taps_of(self), inputs.shape[-1] // self.feature_group_count, self.features)
        return _forward(self, inputs, mask, shape, transposed=False)

    def output_mask(self, mask) -> jax.Array:
        """The places of the result that an active place reaches: the mask of the next layer.

        With `submanifold`, the mask itself. Else, other places of the result hold the bias,
        which a next layer that is given this mask takes as zero.
        """
        return masked.mask_of_output(self, mask, transposed=False)


class MaskedConvTranspose(nn.ConvTranspose):
    """A transposed convolutional layer that skips the zeros of its input.

    Parameters are those of `flax.linen.ConvTranspose`, so checkpoints of either load into the
    other.

    Attributes:
        threshold, submanifold, grad, implementation: as in `MaskedConv`.

    All other attributes are those of `flax.linen.ConvTranspose`.
    """

    threshold: float | None = None
    submanifold: bool = False
    grad: str = "exact"
    implementation: str | None = None

    @nn.compact
    def __call__(self, inputs, mask=None) -> jax.Array:
        """The layer's result, for arguments as those of `MaskedConv`."""
        channels = (inputs.shape[-1], self.features)
        channels = channels[::-1] if self.transpose_kernel else channels
        return _forward(self, inputs, mask, (*taps_of(self), *channels), transposed=True)

    def output_mask(self, mask) -> jax.Array:
        """The places of the result that an active place reaches: the mask of the next layer.

        Other places of the result hold the bias, which a next layer that is given this mask takes
        as zero.
        """
        return masked.mask_of_output(self, mask, transposed=True)


def _forward(layer, inputs, mask, shape, transposed):
    kernel = layer.param("kernel", layer.kernel_init, shape, layer.param_dtype)
    kernel = kernels.apply_mask(kernel, None, layer.mask, shape)
    bias = None
    if layer.use_bias:
        bias = layer.param("bias", layer.bias_init, (layer.features,), layer.param_dtype)
    inputs, kernel, bias = layer.promote_dtype(inputs, kernel, bias, dtype=layer.dtype)
    return masked.forward(layer, inputs, kernel, bias, mask, transposed=transposed)
