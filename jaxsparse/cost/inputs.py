"""Multiply-adds of convolutions of sparse inputs: what is there, and what zeros leave of it."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.core.nonzeros import nonzeros
from jaxsparse.ops.conv import conv
from jaxsparse.ops.conv_transpose import conv_transpose


@dataclasses.dataclass(frozen=True)
class InputMacs:
    """What a convolution costs for each sample. A MAC is a multiplication and an addition.

    Attributes:
        input_shape, kernel_shape, output_shape: of the arrays.
        nonzeros: `[batch]`, how many numbers of each sample are not zero.
        dense: `[batch]`, MACs of the dense op, those with padding included.
        sparse: `[batch]`, MACs of nonzeros with the weights that they meet.
    """

    input_shape: tuple[int, ...]
    kernel_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    nonzeros: np.ndarray
    dense: np.ndarray
    sparse: np.ndarray

    @property
    def sparsity(self) -> float:
        """The share of zeros of the whole input."""
        return _saved(float(self.nonzeros.sum()), math.prod(self.input_shape))

    @property
    def reduction(self) -> float:
        """The share of MACs that zeros save."""
        return _saved(float(self.sparse.sum()), float(self.dense.sum()))

    def __str__(self) -> str:
        lines = [
            f"input {self.input_shape}, {self.sparsity:.1%} zeros; kernel {self.kernel_shape}; "
            f"output {self.output_shape}",
            f"{'sample':>6s} {'nonzeros':>12s} {'dense MACs':>16s} {'sparse MACs':>16s}",
        ]
        rows = enumerate(zip(self.nonzeros, self.dense, self.sparse, strict=True))
        lines += [f"{i:6d} {n:12,d} {dense:16,d} {sparse:16,d}" for i, (n, dense, sparse) in rows]
        return "\n".join([*lines, f"{self.reduction:.1%} of all MACs are with zeros or padding"])


def _saved(part: float, whole: float) -> float:
    return 1 - part / whole if whole else 0.0


def input_macs(
    x,
    kernel_shape: Sequence[int],
    *,
    transposed: bool = False,
    transpose_kernel: bool = False,
    feature_group_count: int = 1,
    bias: bool = False,
    **geometry: Any,
) -> InputMacs:
    """The multiply-adds of a convolution of `x`, dense and with zeros left out.

    dense, of a convolution: outputs * taps * in // groups; of a transposed one: inputs * taps *
    out // groups, before anything is cut off. sparse: for each nonzero, the results that it reaches
    times out // groups.

    Args:
        x: `[batch, *space, in]`, not traced.
        kernel_shape: of the weight, as `jaxsparse.masked_conv` takes it.
        transposed: whether it is `masked_conv_transpose`.
        transpose_kernel, feature_group_count: as there.
        bias: whether to add one MAC for each result, to both.
        **geometry: strides, padding and dilations as of the op.

    Raises:
        ValueError, TypeError: as these ops.
    """
    x = jnp.asarray(x)
    kernel_shape = tuple(map(int, kernel_shape))
    if x.ndim != len(kernel_shape):
        raise ValueError(
            f"input_macs: x is [batch, *space, in] and has as many axes as the kernel, got "
            f"x.shape={x.shape} and kernel_shape={kernel_shape}."
        )
    taps, groups = math.prod(kernel_shape[:-2]), feature_group_count
    op = conv_transpose if transposed else conv
    options = {**geometry, "transpose_kernel": transpose_kernel} if transposed else geometry
    weight = jax.ShapeDtypeStruct(kernel_shape, x.dtype)
    whole = lambda x, w: op(x, w, feature_group_count=groups, **options)
    output = jax.eval_shape(whole, x, weight).shape

    # How many results each place reaches: the transpose of a window of ones, applied to ones.
    rank = len(kernel_shape) - 2
    single = lambda x: op(x, jnp.ones((*kernel_shape[:-2], 1, 1)), **options)
    places = jax.ShapeDtypeStruct((1, *x.shape[1 : 1 + rank], 1), jnp.float32)
    results = jnp.ones(jax.eval_shape(single, places).shape)
    reached = np.asarray(jax.linear_transpose(single, places)(results)[0], np.int64)[0, ..., 0]

    counts = np.asarray(nonzeros(x), np.int64)
    axes = tuple(range(1, counts.ndim))
    per_group = output[-1] // groups
    dense = math.prod(output[1:]) * taps * (x.shape[-1] // groups)
    if transposed:
        dense = math.prod(x.shape[1:]) * taps * per_group
    sparse = (counts * reached).sum(axes) * per_group
    more = math.prod(output[1:]) if bias else 0
    return InputMacs(
        tuple(x.shape),
        kernel_shape,
        tuple(output),
        counts.sum(axes),
        np.full(len(x), dense + more, np.int64),
        sparse + more,
    )
