"""Convolutional layers of Flax NNX for inputs that have many zeros."""

from typing import Any

import jax
from flax import nnx

from jaxsparse.layers import kernel as kernels
from jaxsparse.layers import masked, options


class MaskedConv(nnx.Conv):
    """A convolutional layer that skips the zeros of its input.

    Parameters are those of `flax.nnx.Conv`, so checkpoints of either load into the other.

    Args:
        in_features, out_features, kernel_size, strides, rngs: as for `flax.nnx.Conv`, and so are
            all of its other arguments but `conv_general_dilated`.
        threshold, submanifold, grad, implementation: as in `jaxsparse.masked_conv`. The bias is
            added everywhere; with `submanifold`, at active places only.

    Raises:
        ValueError, TypeError: options that there are not.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: Any,
        strides: Any = 1,
        *,
        rngs: nnx.Rngs,
        threshold: float | None = None,
        submanifold: bool = False,
        grad: str = "exact",
        implementation: str | None = None,
        **of_flax,
    ):
        options.refuse_hook("MaskedConv", of_flax)
        super().__init__(in_features, out_features, kernel_size, strides, rngs=rngs, **of_flax)
        self.threshold, self.submanifold = threshold, submanifold
        self.grad, self.implementation = grad, implementation

    def __call__(self, inputs, mask=None) -> jax.Array:
        """The layer's result.

        Args:
            inputs: `[*batch, *space, in_features]`, any number of batch axes.
            mask: bool `[*batch, *space]` or `[*space]`: which places are active, or None to find
                those that have a nonzero.

        Returns:
            `[*batch, *output_space, out_features]`.
        """
        return _forward(self, inputs, mask, transposed=False)

    def output_mask(self, mask) -> jax.Array:
        """The places of the result that an active place reaches: the mask of the next layer.

        With `submanifold`, the mask itself. Else, other places of the result hold the bias,
        which a next layer that is given this mask takes as zero.
        """
        return masked.mask_of_output(self, mask, transposed=False)


class MaskedConvTranspose(nnx.ConvTranspose):
    """A transposed convolutional layer that skips the zeros of its input.

    Parameters are those of `flax.nnx.ConvTranspose`, so checkpoints of either load into the other.

    Args:
        in_features, out_features, kernel_size, strides, rngs: as for `flax.nnx.ConvTranspose`, and
            so are all of its other arguments.
        threshold, submanifold, grad, implementation: as for `MaskedConv`.

    Raises:
        ValueError, TypeError: options that there are not.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: Any,
        strides: Any = None,
        *,
        rngs: nnx.Rngs,
        threshold: float | None = None,
        submanifold: bool = False,
        grad: str = "exact",
        implementation: str | None = None,
        **of_flax,
    ):
        super().__init__(in_features, out_features, kernel_size, strides, rngs=rngs, **of_flax)
        self.threshold, self.submanifold = threshold, submanifold
        self.grad, self.implementation = grad, implementation

    def __call__(self, inputs, mask=None) -> jax.Array:
        """The layer's result, for arguments as those of `MaskedConv`."""
        return _forward(self, inputs, mask, transposed=True)

    def output_mask(self, mask) -> jax.Array:
        """The places of the result that an active place reaches: the mask of the next layer.

        Other places of the result hold the bias, which a next layer that is given this mask takes
        as zero.
        """
        return masked.mask_of_output(self, mask, transposed=True)


def _forward(layer, inputs, mask, transposed):
    kernel = kernels.apply_mask(layer.kernel[...], None, layer.mask, layer.kernel_shape)
    bias = None if layer.bias is None else layer.bias[...]
    inputs, kernel, bias = layer.promote_dtype((inputs, kernel, bias), dtype=layer.dtype)
    with jax.named_scope(type(layer).__name__):  # for `explain`, `check` and profiles
        return masked.forward(layer, inputs, kernel, bias, mask, transposed=transposed)
