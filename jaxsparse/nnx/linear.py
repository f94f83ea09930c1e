"""Linear layers of Flax NNX with a sparse kernel."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.core import FrozenDict
from flax.nnx.nn.dtypes import promote_dtype
from flax.typing import Dtype, Initializer, PrecisionLike
from jax import lax

from jaxsparse.formats.pattern import Format, Pattern
from jaxsparse.layers import kernel as kernels
from jaxsparse.layers import options as layer_options
from jaxsparse.nnx.sparsity import SparseKernel, packable

_KERNEL_INIT = nnx.initializers.lecun_normal()
_BIAS_INIT = nnx.initializers.zeros_init()
_NO_METADATA: Mapping[str, Any] = MappingProxyType({})


class _SparseLinear(SparseKernel):
    """The forward pass that both layers share."""

    bias: nnx.Param | None
    promote_dtype: Any
    dtype: Any
    precision: Any
    preferred_element_type: Any
    grad: str
    implementation: str | None

    def _apply(self, inputs, out_sharding, *, axes, batch_axes, hook) -> jax.Array:
        assert self.sparsity is not None
        bias = None if self.bias is None else self.bias[...]
        arrays = (inputs, self.kernel[...], bias)
        inputs, kernel, bias = self.promote_dtype(arrays, dtype=self.dtype)
        arguments = {"precision": self.precision, "out_sharding": out_sharding}
        if self.preferred_element_type is not None:
            arguments["preferred_element_type"] = self.preferred_element_type
        with self._scope():
            return kernels.linear(
                inputs,
                kernel,
                bias,
                self.sparsity.get_value(),
                axes=axes,
                batch_axes=batch_axes,
                hook=None if hook is lax.dot_general else hook,
                implementation=self.implementation,
                grad=self.grad,
                **arguments,
            )


@packable
class Linear(_SparseLinear, nnx.Linear):
    """A linear layer whose kernel is sparse: `y = x @ kernel + bias`.

    Without `format` and `pattern` it is `flax.nnx.Linear`. Otherwise weights are those of Flax's
    layer for the same seed, zero where the pattern stores nothing.

    Args:
        in_features, out_features, use_bias, dtype, param_dtype, precision, kernel_init, bias_init,
        dot_general, promote_dtype, preferred_element_type, rngs, kernel_metadata, bias_metadata: as
            for `flax.nnx.Linear`. A `dot_general` of your own gets the whole masked kernel.
        format: such as "32x32" or `jaxsparse.Block((32, 32))`; None for a dense layer.
        sparsity: the share of blocks that the first pattern leaves out: those of smallest norm in
            the initial kernel. From 0 to 1.
        pattern: a Pattern for shape `(in_features, out_features)`, in place of `sparsity`.
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
        *,
        use_bias: bool = True,
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        precision: PrecisionLike = None,
        kernel_init: Initializer = _KERNEL_INIT,
        bias_init: Initializer = _BIAS_INIT,
        dot_general: Any = lax.dot_general,
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
            "Linear",
            format=format,
            sparsity=sparsity,
            pattern=pattern,
            grad=grad,
            implementation=implementation,
        )
        super().__init__(
            in_features,
            out_features,
            use_bias=use_bias,
            dtype=dtype,
            param_dtype=param_dtype,
            precision=precision,
            kernel_init=kernel_init,
            bias_init=bias_init,
            dot_general=dot_general,
            promote_dtype=promote_dtype,
            preferred_element_type=preferred_element_type,
            rngs=rngs,
            kernel_metadata=kernel_metadata,
            bias_metadata=bias_metadata,
        )
        self.grad = grad
        self.implementation = implementation
        self._make_sparse(options, num_batch=0, shape=(in_features, out_features))

    def __call__(self, inputs, out_sharding=None) -> jax.Array:
        """The layer's result.

        Args:
            inputs: `[*batch, in_features]`.
            out_sharding: of the result, on meshes with explicit axes.

        Returns:
            `[*batch, out_features]`.
        """
        if self.sparsity is None:
            return super().__call__(inputs, out_sharding)
        return self._apply(inputs, out_sharding, axes=(-1,), batch_axes=(), hook=self.dot_general)


@packable
class LinearGeneral(_SparseLinear, nnx.LinearGeneral):
    """A linear layer over any axes, whose kernel is sparse.

    Without `format` and `pattern` it is `flax.nnx.LinearGeneral`. Otherwise weights are those of
    Flax's layer for the same seed, zero where the pattern stores nothing. The pattern sees the
    kernel as a matrix `(prod(in_features), prod(out_features))`; with `batch_axis` there is one
    pattern per batch element, all with the same number of blocks.

    Args:
        in_features, out_features, axis, batch_axis, use_bias, dtype, param_dtype, kernel_init,
        bias_init, precision, promote_dtype, dot_general, dot_general_cls, preferred_element_type,
        rngs, kernel_metadata, bias_metadata: as for `flax.nnx.LinearGeneral`. A product of your own
            gets the whole masked kernel.
        format, sparsity, grad, implementation: as for `Linear`.
        pattern: a Pattern for the matrix, in place of `sparsity`: indices `[capacity]` for
            all batch elements, or `[*batch, capacity]`.

    Raises:
        ValueError, TypeError: options that contradict each other, or a pattern that does not fit.
    """

    def __init__(
        self,
        in_features: int | Sequence[int],
        out_features: int | Sequence[int],
        *,
        axis: int | Sequence[int] = -1,
        batch_axis: Mapping[int, int] = FrozenDict({}),
        use_bias: bool = True,
        dtype: Dtype | None = None,
        param_dtype: Dtype = jnp.float32,
        kernel_init: Initializer = _KERNEL_INIT,
        bias_init: Initializer = _BIAS_INIT,
        precision: PrecisionLike = None,
        promote_dtype: Any = promote_dtype,
        dot_general: Any = None,
        dot_general_cls: Any = None,
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
            "LinearGeneral",
            format=format,
            sparsity=sparsity,
            pattern=pattern,
            grad=grad,
            implementation=implementation,
        )
        super().__init__(
            in_features,
            out_features,
            axis=axis,
            batch_axis=batch_axis,
            use_bias=use_bias,
            dtype=dtype,
            param_dtype=param_dtype,
            kernel_init=kernel_init,
            bias_init=bias_init,
            precision=precision,
            promote_dtype=promote_dtype,
            dot_general=dot_general,
            dot_general_cls=dot_general_cls,
            preferred_element_type=preferred_element_type,
            rngs=rngs,
            kernel_metadata=kernel_metadata,
            bias_metadata=bias_metadata,
        )
        self.grad = grad
        self.implementation = implementation
        num_batch = len(self.batch_axis)
        matrix = layer_options.matrix_of(self.kernel.shape, num_batch, len(self.in_features))
        self._make_sparse(options, num_batch, matrix)

    def __call__(self, inputs, out_sharding=None) -> jax.Array:
        """The layer's result.

        Args:
            inputs: batch axes first; `axis` says which axes are `in_features`.
            out_sharding: of the result, on meshes with explicit axes.

        Returns:
            `[*batch, *other axes of inputs, *out_features]`.
        """
        if self.sparsity is None:
            return super().__call__(inputs, out_sharding)
        return self._apply(
            inputs,
            out_sharding,
            axes=self.axis,
            batch_axes=tuple(self.batch_axis),
            hook=self.dot_general if self.dot_general_cls is None else self.dot_general_cls(),
        )
