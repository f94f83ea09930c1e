"""Convolutional layers of Flax Linen with a sparse kernel."""

import inspect
from typing import Any

import jax
from flax import linen as nn
from jax import lax

from jaxsparse.core import names
from jaxsparse.layers import kernel as kernels
from jaxsparse.linen.kernel import SparseKernel


class _SparseConv(SparseKernel):
    """Parameters and forward pass that both layers share."""

    features: int
    use_bias: bool
    kernel_init: Any
    bias_init: Any

    def _apply(self, inputs, kernel_shape) -> jax.Array:
        kernel, stored = self._kernel(self.kernel_init, kernel_shape, 0, kernel_shape)
        bias = None
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (self.features,), self.param_dtype)
        return forward(
            self,
            inputs,
            kernel,
            bias,
            stored,
            kernel_shape,
            implementation=self.implementation,
            grad=self.grad,
        )


def forward(
    layer, inputs, kernel, bias, stored, kernel_shape, *, implementation, grad
) -> jax.Array:
    """What a convolutional layer of Flax, or ours, returns with this kernel and its pattern."""
    kernel = kernels.apply_mask(kernel, stored, layer.mask, kernel_shape)
    inputs, kernel, bias = layer.promote_dtype(inputs, kernel, bias, dtype=layer.dtype)
    if isinstance(layer, nn.ConvTranspose):
        arguments = {
            "transposed": True,
            "transpose_kernel": layer.transpose_kernel,
            "preferred_element_type": layer.preferred_element_type,
        }
    else:
        hook = layer.conv_general_dilated
        if layer.conv_general_dilated_cls is not None:
            hook = layer.conv_general_dilated_cls()
        arguments = {
            "transposed": False,
            "hook": None if hook is lax.conv_general_dilated else hook,
            "input_dilation": layer.input_dilation,
            "feature_group_count": layer.feature_group_count,
        }
    with names.layer("/".join(layer.path) or type(layer).__name__):
        return kernels.convolution(
            inputs,
            kernel,
            bias,
            stored,
            strides=layer.strides,
            padding=layer.padding,
            kernel_dilation=layer.kernel_dilation,
            precision=layer.precision,
            implementation=implementation,
            grad=grad,
            **arguments,
        )


def taps_of(layer) -> tuple[int, ...]:
    """The kernel's axes that are not channels."""
    size = layer.kernel_size
    return (size,) if isinstance(size, int) else tuple(size)


class Conv(_SparseConv, nn.Conv):
    """A convolutional layer whose kernel is sparse.

    Without `format` and `pattern` it is `flax.linen.Conv`. Otherwise weights are those of Flax's
    layer for the same seed, zero where the pattern stores nothing, and `init` returns the pattern
    in the collection "sparsity", which `apply` needs too.

    Attributes:
        format: such as "unstructured", "grouped:8" or "32x32"; None for a dense layer. Blocks are
            those of the matrix `(prod(kernel_size) * in // feature_group_count, features)`.
        sparsity: the share of weights, groups or blocks that the first pattern leaves out: those of
            smallest norm in the initial kernel. From 0 to 1.
        pattern: a Pattern for the kernel's shape, in place of `sparsity`.
        grad: the kernel's gradient: "sparse", on the pattern; "dense", everywhere, to grow
            patterns by; "exact", as "sparse" and in forward mode too.
        implementation: None chooses; "ffi", "xla" and "dense" do that or raise.

    All other attributes are those of `flax.linen.Conv`. A `conv_general_dilated` of your own gets
    the whole masked kernel.
    """

    @nn.compact
    def __call__(self, inputs) -> jax.Array:
        """`[*batch, *output_space, features]` for inputs `[*batch, *space, in]`."""
        if self._options() is None:
            return _FLAX_CONV(self, inputs)
        groups, in_features = self.feature_group_count, inputs.shape[-1]
        if in_features % groups:  # the type of error is Flax's
            raise AssertionError(
                f"Conv: feature_group_count must divide the {in_features} channels of the input, "
                f"got feature_group_count={groups}."
            )
        return self._apply(inputs, (*taps_of(self), in_features // groups, self.features))


class ConvTranspose(_SparseConv, nn.ConvTranspose):
    """A transposed convolutional layer whose kernel is sparse.

    Without `format` and `pattern` it is `flax.linen.ConvTranspose`. Otherwise weights are those of
    Flax's layer for the same seed, zero where the pattern stores nothing, and `init` returns the
    pattern in the collection "sparsity", which `apply` needs too.

    Attributes:
        format, sparsity, pattern, grad, implementation: as in `Conv`. The kernel's shape is
            `(*kernel_size, in, features)`, the last two exchanged with `transpose_kernel`.

    All other attributes are those of `flax.linen.ConvTranspose`.
    """

    @nn.compact
    def __call__(self, inputs) -> jax.Array:
        """`[*batch, *output_space, features]` for inputs `[*batch, *space, in]`."""
        if self._options() is None:
            return _FLAX_CONV_TRANSPOSE(self, inputs)
        channels = (inputs.shape[-1], self.features)
        channels = channels[::-1] if self.transpose_kernel else channels
        return self._apply(inputs, (*taps_of(self), *channels))


# The bodies of Flax's methods, without what makes a call of a method: that is ours already.
_FLAX_CONV = inspect.unwrap(nn.Conv.__call__)
_FLAX_CONV_TRANSPOSE = inspect.unwrap(nn.ConvTranspose.__call__)
