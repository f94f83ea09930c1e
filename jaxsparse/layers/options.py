"""The sparse options of a layer: what they may be, and the pattern that they ask for."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.core import dispatch
from jaxsparse.formats.block import BlockPattern
from jaxsparse.formats.columns import ColumnPattern
from jaxsparse.formats.parse import as_format
from jaxsparse.formats.pattern import Format, Pattern, matrix_view
from jaxsparse.layers.placement import gathered
from jaxsparse.ops.options import GRADS
from jaxsparse.patterns import full
from jaxsparse.patterns.dense import largest_parts
from jaxsparse.patterns.make import is_traced, num_kept


@dataclasses.dataclass(frozen=True)
class Options:
    """The checked options of a sparse layer.

    Attributes:
        format: of the pattern.
        sparsity: the share of blocks that the initial pattern leaves out.
        pattern: the initial pattern, if it is given.
        grad: the gradient contract, as in `jaxsparse.matmul`.
        implementation: as in `jaxsparse.matmul`.
    """

    format: Format
    sparsity: Any
    pattern: Pattern | None
    grad: str
    implementation: str | None


def check(layer: str, *, format, sparsity, pattern, grad, implementation) -> Options | None:
    """The options of a layer, or None if they ask for a dense one.

    Args:
        layer: its name, for errors.
        format, sparsity, pattern, grad, implementation: as the user gave them.

    Raises:
        ValueError, TypeError: values that are no options, or that contradict each other.
    """
    if grad not in GRADS:
        raise ValueError(f'{layer}: grad is "sparse", "dense" or "exact", got {grad!r}.')
    if implementation not in dispatch.IMPLEMENTATIONS:
        raise ValueError(
            f'{layer}: implementation is None, "ffi", "xla" or "dense", got {implementation!r}.'
        )
    num_kept(layer, 0, sparsity)
    if pattern is not None:
        if not isinstance(pattern, Pattern):
            raise TypeError(
                f"{layer}: pattern is a Pattern, got {type(pattern).__name__}. Make one with "
                "jaxsparse.patterns."
            )
        if sparsity != 0:
            raise ValueError(
                f"{layer}: a pattern says which blocks are stored, got sparsity={sparsity} as "
                "well. Give one of them."
            )
        if format is not None and as_format(format) != pattern.format:
            raise ValueError(
                f"{layer}: format must be that of the pattern, {pattern.format}, got "
                f"{as_format(format)}. Leave format out."
            )
        format = pattern.format
    if format is None:
        if sparsity != 0:
            raise ValueError(
                f"{layer}: sparsity needs a format, got sparsity={sparsity} and format=None. Give, "
                'for example, format="32x32".'
            )
        if implementation == "ffi":
            raise ValueError(
                f'{layer}: implementation="ffi" needs a sparse weight, got format=None. Give, for '
                'example, format="32x32".'
            )
        return None
    return Options(as_format(format), sparsity, pattern, grad, implementation)


def matrix_of(kernel_shape: tuple[int, ...], num_batch: int, num_in: int) -> tuple[int, int]:
    """`(prod(in), prod(out))` of the kernel `[*batch, *in, *out]` of a linear layer."""
    first_out = num_batch + num_in
    return math.prod(kernel_shape[num_batch:first_out]), math.prod(kernel_shape[first_out:])


def initial_pattern(layer: str, options: Options, kernel, num_batch: int, shape: tuple[int, ...]):
    """The pattern of a new layer: the given one, or the kernel's parts of largest norm.

    Args:
        layer: its name, for errors.
        options: of the layer.
        kernel: `[*batch, ...]`, concrete or traced.
        num_batch: how many batch axes it has.
        shape: as which patterns see the rest of it: the matrix of a linear layer, or
            `[*kernel, in, out]`.

    Returns:
        A Pattern for `shape`; with batch axes, one per element, all with equally many parts, as
        indices `[*batch, capacity]`.

    Raises:
        ValueError: the given pattern is for another shape.
    """
    batch = kernel.shape[:num_batch]
    if options.pattern is None and options.sparsity != 0:
        make = lambda w: largest_parts(layer, w, options.format, options.sparsity)
        for _ in batch:
            make = jax.vmap(make)
        whole = gathered(kernel, range(num_batch, kernel.ndim))
        return make(jnp.reshape(whole, (*batch, *shape)))
    pattern = options.pattern or full(options.format, shape)
    # Blocks are those of the matrix view; lists of single weights know the kernel's taps.
    is_listed_by_tap = isinstance(pattern, ColumnPattern) and pattern.shape != shape
    if pattern.spec().weight_shape != matrix_view(shape) or is_listed_by_tap:
        raise ValueError(
            f"{layer}: the pattern must be for a weight of shape {shape}, the kernel's inputs and "
            f"outputs, got one for shape {pattern.shape}. Make it for this shape."
        )
    if pattern.group not in ((), batch):
        raise ValueError(
            f"{layer}: the pattern's indices must be [capacity] or [*batch, capacity] with batch "
            f"axes {batch}, got indices of shape {pattern.indices[0].shape}."
        )
    # A copy for each batch element: from here on they may change apart.
    indices = (
        jnp.broadcast_to(jnp.asarray(index), (*batch, index.shape[-1])) for index in pattern.indices
    )
    return pattern.with_indices(*indices, shape=shape)


class _Hashable(Pattern):
    """Compares and hashes by content, as what configures a layer must.

    Not a pytree: JAX and Flax see it as one static value.
    """

    def __eq__(self, other):
        if self is other:
            return True
        return isinstance(other, _Hashable) and self._content() == other._content()

    def __hash__(self):
        return hash(self._content())

    def _content(self):
        if is_traced(*self.indices):
            return id(self)
        indices = [np.asarray(index) for index in self.indices]
        return (*((i.shape, i.tobytes()) for i in indices), self.shape, self.format)


class _HashableBlockPattern(_Hashable, BlockPattern):
    pass


class _HashableColumnPattern(_Hashable, ColumnPattern):
    pass


_HASHABLE = {BlockPattern: _HashableBlockPattern, ColumnPattern: _HashableColumnPattern}


def hashable(pattern: Pattern | None) -> Pattern | None:
    """The pattern in a form that can be compared and hashed."""
    if pattern is None or isinstance(pattern, _Hashable):
        return pattern
    return _HASHABLE[type(pattern)](**vars(pattern))


def refuse_hook(layer: str, given) -> None:
    """Raises where a layer that has a convolution of its own is given another."""
    for name in ("conv_general_dilated", "conv_general_dilated_cls"):
        if given.get(name) is not None:
            raise ValueError(
                f"{layer}: the convolution is jaxsparse.masked_conv, got {name}={given[name]!r}. "
                "Drop it."
            )


def without_flax(module: str, error: ModuleNotFoundError) -> ImportError:
    """The error of a module that needs Flax, given the one that its import met."""
    if error.name != "flax":
        return error
    return ImportError(
        f"{module}: it needs Flax, which is not installed. pip install jaxsparse[flax]",
        name="flax",
    )
