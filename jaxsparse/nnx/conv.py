"""Convolutional layers of Flax NNX with a sparse kernel."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn.dtypes import promote_dtype
from flax.typing import Dtype, Initializer, PaddingLike, PrecisionLike
from jax import lax

from jaxsparse.formats.pattern import Format, Pattern
from jaxsparse.layers import kernel as kernels
from jaxsparse.layers import options as layer_options
from jaxsparse.nnx.sparsity import SparseKernel, packable

_KERNEL_INIT = nnx.initializers.lecun_normal()
_BIAS_INIT = nnx.initializers.zeros_init()
_NO_METADATA: Mapping[str, Any] = MappingProxyType({})


class _SparseConv(SparseKernel):
    """The forward pass that both layers share."""

    bias: nnx.Param | None
    mask: Any
    kernel_shape: Any
    strides: Any
    padding: Any
    kernel_dilation: Any
    promote_dtype: Any
    dtype: Any
    precision: Any
    preferred_element_type: Any
    grad: str
    implementation: str | None

    def _apply(self, inputs, **arguments) -> jax.Array:
        assert self.sparsity is not None
        stored = self.sparsity.get_value()
        kernel = kernels.apply_mask(self.kernel[...], stored, self.mask, self.kernel_shape)
        bias = None if self.bias is None else self.bias[...]
        inputs, kernel, bias = self.promote_dtype((inputs, kernel, bias), dtype=self.dtype)
        if self.preferred_element_type is not None:
            arguments["preferred_element_type"] = self.preferred_element_type
        with self._scope():
            return kernels.convolution(
                inputs,
                kernel,
                bias,
                stored,
                strides=self.strides,
                padding=self.padding,
                kernel_dilation=self.kernel_dilation,
                precision=self.precision,
                implementation=self.implementation,
                grad=self.grad,
                **arguments,
            )


@packable
class Conv(_SparseConv, nnx.Conv):
    """A convolutional layer whose kernel is sparse.

    Without `format` and `pattern` it is `flax.nnx.Conv`. Otherwise weights are those of Flax's
    layer for the same seed, zero where the pattern stores nothing.

    Args:
        in_features, out_features, kernel_size, strides, padding, input_dilation, kernel_dilation,
        feature_group_count, use_bias, mask, dtype, param_dtype, precision, kernel_init, bias_init,
        conv_general_dilated, promote_dtype, preferred_element_type, rngs, kernel_metadata,
        bias_metadata: as for `flax.nnx.Conv`. A `conv_general_dilated` of your own gets the whole
            masked kernel.
        format: such as "unstructured", "grouped:8" or "32x32"; None for a dense layer. Blocks are
            those of the matrix `(prod(kernel_size) * in_features // feature_group_count,
            out_features)`.
        sparsity: the share of weights, groups or blocks that the first pattern leaves out: those of
            smallest norm in the initial kernel. From 0 to 1.
        pattern: a Pattern for the kernel's shape, in place of `sparsity`.
        grad: the kernel's gradient: "sparse", on the pattern; "dense", everywhere, to grow
            patterns by; "exact", as "sparse" and in forward mode too.
        implementation: None chooses; "ffi", "xla" and "dense" do that or raise.

    Raises:
        ValueError, TypeError: options that contradict each other, or a pattern that does not fit.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int | Sequence[int],
        strides: int | Sequence[int] = 1,
        *,
        padding: PaddingLike = "SAME",
        input_dilation: int | Sequence[int] = 1,
        kernel_dilation: int | Sequence[int] = 1,
        feature_group_count: int = 1,
        use_bias: bool = True,
        mask: jax.Array | None = None,
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        precision: PrecisionLike = None,
        kernel_init: Initializer = _KERNEL_INIT,
        bias_init: Initializer = _BIAS_INIT,
        conv_general_dilated: Any = lax.conv_general_dilated,
        promote_dtype: Any = promote_dtype,
        preferred_element_type: Dtype | None = None,
        rngs: nnx.Rngs,
        kernel_metadata: Mapping[str, Any] = _NO_METADATA,
        bias_metadata: Mapping[str, Any] = _NO_METADATA,
        format: Format | str | tuple[int, int] | None = None,
        sparsity: float = 0.0,
        pattern: Pattern | None = None,
        grad: str = "sparse",
        implementation: str | None = None,
    ):
        options = layer_options.check(
            "Conv",
            format=format,
            sparsity=sparsity,
            pattern=pattern,
            grad=grad,
            implementation=implementation,
        )
        super().__init__(
            in_features,
            out_features,
            kernel_size,
            strides,
            padding=padding,
            input_dilation=input_dilation,
            kernel_dilation=kernel_dilation,
            feature_group_count=feature_group_count,
            use_bias=use_bias,
            mask=mask,
            dtype=dtype,
            param_dtype=param_dtype,
            precision=precision,
            kernel_init=kernel_init,
            bias_init=bias_init,
            conv_general_dilated=conv_general_dilated,
            promote_dtype=promote_dtype,
            preferred_element_type=preferred_element_type,
            rngs=rngs,
            kernel_metadata=kernel_metadata,
            bias_metadata=bias_metadata,
        )
        self.grad = grad
        self.implementation = implementation
        self._make_sparse(options, num_batch=0, shape=self.kernel_shape)

    def __call__(self, inputs, out_sharding=None) -> jax.Array:
        """The layer's result.

        Args:
            inputs: `[*batch, *space, in_features]`, with one space axis for each entry of
                `kernel_size` and any number of batch axes.
            out_sharding: of the result, on meshes with explicit axes.

        Returns:
            `[*batch, *output_space, out_features]`.
        """
        if self.sparsity is None:
            return super().__call__(inputs, out_sharding)
        hook = self.conv_general_dilated
        return self._apply(
            inputs,
            transposed=False,
            hook=None if hook is lax.conv_general_dilated else hook,
            out_sharding=out_sharding,
            input_dilation=self.input_dilation,
            feature_group_count=self.feature_group_count,
        )


@packable
class ConvTranspose(_SparseConv, nnx.ConvTranspose):
    """A transposed convolutional layer whose kernel is sparse.

    Without `format` and `pattern` it is `flax.nnx.ConvTranspose`. Otherwise weights are those of
    Flax's layer for the same seed, zero where the pattern stores nothing.

    Args:
        in_features, out_features, kernel_size, strides, padding, kernel_dilation, use_bias, mask,
        dtype, param_dtype, precision, kernel_init, bias_init, transpose_kernel, promote_dtype,
        preferred_element_type, rngs, kernel_metadata, bias_metadata: as for
            `flax.nnx.ConvTranspose`.
        format, sparsity, pattern, grad, implementation: as for `Conv`. The kernel's shape is
            `(*kernel_size, in_features, out_features)`, the last two exchanged with
            `transpose_kernel`.

    Raises:
        ValueError, TypeError: options that contradict each other, or a pattern that does not fit.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int | Sequence[int],
        strides: int | Sequence[int] | None = None,
        *,
        padding: PaddingLike = "SAME",
        kernel_dilation: int | Sequence[int] | None = None,
        use_bias: bool = True,
        mask: jax.Array | None = None,
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        precision: PrecisionLike | None = None,
        kernel_init: Initializer = _KERNEL_INIT,
        bias_init: Initializer = _BIAS_INIT,
        transpose_kernel: bool = False,
        promote_dtype: Any = promote_dtype,
        preferred_element_type: Dtype | None = None,
        rngs: nnx.Rngs,
        kernel_metadata: Mapping[str, Any] = _NO_METADATA,
        bias_metadata: Mapping[str, Any] = _NO_METADATA,
        format: Format | str | tuple[int, int] | None = None,
        sparsity: float = 0.0,
        pattern: Pattern | None = None,
        grad: str = "sparse",
        implementation: str | None = None,
    ):
        options = layer_options.check(
            "ConvTranspose",
            format=format,
            sparsity=sparsity,
            pattern=pattern,
            grad=grad,
            implementation=implementation,
        )
        super().__init__(
            in_features,
            out_features,
            kernel_size,
            strides,
            padding=padding,
            kernel_dilation=kernel_dilation,
            use_bias=use_bias,
            mask=mask,
            dtype=dtype,
            param_dtype=param_dtype,
            precision=precision,
            kernel_init=kernel_init,
            bias_init=bias_init,
            transpose_kernel=transpose_kernel,
            promote_dtype=promote_dtype,
            preferred_element_type=preferred_element_type,
            rngs=rngs,
            kernel_metadata=kernel_metadata,
            bias_metadata=bias_metadata,
        )
        self.grad = grad
        self.implementation = implementation
        self._make_sparse(options, num_batch=0, shape=self.kernel_shape)

    def __call__(self, inputs) -> jax.Array:
        """`[*batch, *output_space, out_features]` for `[*batch, *space, in_features]`."""
        if self.sparsity is None:
            return super().__call__(inputs)
        return self._apply(inputs, transposed=True, transpose_kernel=self.transpose_kernel)
