"""The sparse kernel of a Linen layer: its options, its parameter and its pattern."""

import dataclasses
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
from flax.core import meta

from jaxsparse.formats.pattern import Format, Pattern
from jaxsparse.layers import kernel as kernels
from jaxsparse.layers import options as layer_options
from jaxsparse.linen.variables import COLLECTION


@dataclasses.dataclass(kw_only=True, repr=False, eq=False)
class SparseKernel(Any if TYPE_CHECKING else object):
    """What sparse layers share: their options, as fields that come after those of Flax.

    Not a Module: Flax would wrap these methods, and they would show up among the intermediates.
    """

    format: Format | str | tuple[int, int] | None = None
    sparsity: float = 0.0
    pattern: Pattern | None = None
    grad: str = "sparse"
    implementation: str | None = None

    def __post_init__(self):
        options = self._options()
        self.format = None if options is None else options.format
        self.pattern = layer_options.hashable(self.pattern)
        super().__post_init__()

    def _options(self) -> layer_options.Options | None:
        return layer_options.check(
            type(self).__name__,
            format=self.format,
            sparsity=self.sparsity,
            pattern=self.pattern,
            grad=self.grad,
            implementation=self.implementation,
        )

    def _kernel(self, init, shape, num_batch: int, seen: tuple[int, ...]):
        """The kernel and what is stored of its pattern, both made if there are none yet.

        Args:
            init: of a kernel of this shape.
            num_batch: how many batch axes come first.
            seen: the shape of the rest for patterns.
        """
        options, name = self._options(), type(self).__name__
        if options is None:
            return self.param("kernel", init, shape, self.param_dtype), None

        def first_pattern(kernel):
            return layer_options.initial_pattern(name, options, kernel, num_batch, seen)

        def masked_init(*args):
            kernel = init(*args)
            value = meta.unbox(kernel)
            value = kernels.mask(value, first_pattern(value))
            return meta.replace_boxed(kernel, value)

        has_pattern = self.has_variable(COLLECTION, "pattern")
        if not has_pattern and not self.is_mutable_collection(COLLECTION):
            raise ValueError(
                f'{name}: the collection "{COLLECTION}" holds the pattern of '
                f"{'/'.join(self.path) or 'the layer'}, got variables without it. Pass all that "
                f'init returned, {{"params": ..., "{COLLECTION}": ...}}; within nn.scan or '
                f'nn.vmap, list "{COLLECTION}" in variable_axes.'
            )
        if has_pattern:
            stored = self.get_variable(COLLECTION, "pattern")
            if isinstance(stored, kernels.PackedPattern):
                values_shape = stored.pattern.values_shape
                zeros = lambda _: jnp.zeros(values_shape, self.param_dtype)
                return self.param("kernel", zeros), stored
        kernel = self.param("kernel", masked_init, shape, self.param_dtype)
        return kernel, self.variable(COLLECTION, "pattern", lambda: first_pattern(kernel)).value
