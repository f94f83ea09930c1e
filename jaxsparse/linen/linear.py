"""Linear layers of Flax Linen with a sparse kernel."""

import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.core import meta
from jax import lax

from jaxsparse.core import names
from jaxsparse.layers import kernel as kernels
from jaxsparse.layers import options as layer_options
from jaxsparse.linen.kernel import SparseKernel


def _as_tuple(given) -> tuple[int, ...]:
    return tuple(given) if isinstance(given, Iterable) else (given,)


def _on_matrix(init, num_rows: int):
    """The initializer of an array that sees it as a matrix: as a vector if `num_rows` is 0.

    The variance of an initializer depends on the shape it sees; this is what Flax shows to it.
    """

    def init_and_reshape(key, shape, dtype):
        rows, cols = math.prod(shape[:num_rows]), math.prod(shape[num_rows:])
        array = init(key, (rows, cols) if num_rows else (cols,), dtype)
        return meta.replace_boxed(array, jnp.reshape(meta.unbox(array), shape))

    return init_and_reshape


class _SparseLinear(SparseKernel):
    """Parameters and forward pass that both layers share."""

    use_bias: bool
    kernel_init: Any
    bias_init: Any

    def _apply(self, inputs, features, axes, batch_axes) -> jax.Array:
        """The layer's result; axes as Flax normalizes them."""
        batch = tuple(inputs.shape[axis] for axis in batch_axes)
        kernel_shape = (*batch, *(inputs.shape[axis] for axis in axes), *features)
        seen = layer_options.matrix_of(kernel_shape, len(batch), len(axes))
        init = _on_matrix(self.kernel_init, len(batch) + len(axes))
        kernel, stored = self._kernel(init, kernel_shape, len(batch), seen)
        bias = None
        if self.use_bias:
            bias = self.param(
                "bias",
                _on_matrix(self.bias_init, 0),
                (*batch, *features),
                self.param_dtype,
            )
        return forward(
            self,
            inputs,
            kernel,
            bias,
            stored,
            axes=axes,
            batch_axes=batch_axes,
            implementation=self.implementation,
            grad=self.grad,
        )


def forward(
    layer, inputs, kernel, bias, stored, *, axes, batch_axes, implementation, grad
) -> jax.Array:
    """What a linear layer of Flax, or ours, returns with this kernel and its pattern."""
    inputs, kernel, bias = layer.promote_dtype(inputs, kernel, bias, dtype=layer.dtype)
    hook = layer.dot_general if layer.dot_general_cls is None else layer.dot_general_cls()
    with names.layer("/".join(layer.path) or type(layer).__name__):
        return kernels.linear(
            inputs,
            kernel,
            bias,
            stored,
            axes=axes,
            batch_axes=batch_axes,
            hook=None if hook is lax.dot_general else hook,
            implementation=implementation,
            grad=grad,
            precision=layer.precision,
        )


def axes_of(layer, inputs) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The contracted and the batch axes of a linear layer's inputs, as Flax normalizes them."""
    if not isinstance(layer, nn.DenseGeneral):
        return (jnp.ndim(inputs) - 1,), ()
    batch_dims = _as_tuple(layer.batch_dims)
    if set(batch_dims) != set(range(len(batch_dims))):
        raise ValueError(
            f"DenseGeneral: batch_dims {batch_dims} must be consecutive leading dimensions "
            "starting from 0."
        )
    axes, batch_axes = (
        tuple(sorted(axis + inputs.ndim if axis < 0 else axis for axis in given))
        for given in (_as_tuple(layer.axis), batch_dims)
    )
    return axes, batch_axes


class Dense(_SparseLinear, nn.Dense):
    """A linear layer whose kernel is sparse: `y = x @ kernel + bias`.

    Without `format` and `pattern` it is `flax.linen.Dense`. Otherwise weights are those of Flax's
    layer for the same seed, zero where the pattern stores nothing, and `init` returns the pattern
    in the collection "sparsity", which `apply` needs too.

    Attributes:
        format: such as "32x32" or `jaxsparse.Block((32, 32))`; None for a dense layer.
        sparsity: the share of blocks that the first pattern leaves out: those of smallest norm in
            the initial kernel. From 0 to 1.
        pattern: a Pattern for shape `(in, features)`, in place of `sparsity`.
        grad: the kernel's gradient: "sparse", on the pattern; "dense", everywhere, to grow
            patterns by; "exact", as "sparse" and in forward mode too.
        implementation: None chooses; "ffi", "xla" and "dense" do that or raise.

    All other attributes are those of `flax.linen.Dense`. A `dot_general` of your own gets the whole
    masked kernel.
    """

    @nn.compact
    def __call__(self, inputs) -> jax.Array:
        """`[*batch, features]` for inputs `[*batch, in]`."""
        return self._apply(inputs, (self.features,), *axes_of(self, inputs))


class DenseGeneral(_SparseLinear, nn.DenseGeneral):
    """A linear layer over any axes, whose kernel is sparse.

    Without `format` and `pattern` it is `flax.linen.DenseGeneral`. Otherwise weights are those of
    Flax's layer for the same seed, zero where the pattern stores nothing. The pattern sees the
    kernel as a matrix `(prod(in), prod(features))`; with `batch_dims` there is one pattern per
    batch element, all with equally many blocks.

    Attributes:
        format, sparsity, grad, implementation: as in `Dense`.
        pattern: a Pattern for the matrix, in place of `sparsity`: indices `[capacity]` for
            all batch elements, or `[*batch, capacity]`.

    All other attributes are those of `flax.linen.DenseGeneral`.
    """

    @nn.compact
    def __call__(self, inputs) -> jax.Array:
        """`[*batch, *other axes of inputs, *features]`."""
        return self._apply(inputs, _as_tuple(self.features), *axes_of(self, inputs))
