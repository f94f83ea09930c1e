"""What makes an NNX layer sparse: a variable with the pattern, and functions that walk a model."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
from flax import nnx

from jaxsparse.core import names
from jaxsparse.formats.block import BlockPattern
from jaxsparse.formats.columns import ColumnPattern
from jaxsparse.formats.pattern import Pattern
from jaxsparse.formats.weight import SparseWeight, WeightSum
from jaxsparse.layers import kernel as kernels
from jaxsparse.layers import options as layer_options

Model = TypeVar("Model")


# So that a weight or a pattern may be an attribute of a module as it is.
for _type in (SparseWeight, WeightSum, BlockPattern, ColumnPattern, kernels.PackedPattern):
    nnx.register_data_type(_type)


class Sparsity(nnx.Variable):
    """Where a layer's kernel may be non-zero. Filters for parameters do not see it."""


class SparseKernel:
    """A layer whose `kernel` may be sparse.

    Attributes:
        sparsity: a Sparsity variable, or None for a dense layer. Its value is the pattern of a
            kernel that is stored dense, or a PackedPattern.
        grad, implementation: as in `jaxsparse.matmul`.
        name: of the layer in what `jaxsparse.explain` and `jaxsparse.check` say: its path, once
            `jaxsparse.sparsify` has made it.
    """

    kernel: nnx.Param
    sparsity: Sparsity | None
    grad: str
    name: str | None = None

    def _make_sparse(
        self, options: layer_options.Options | None, num_batch: int, shape: tuple[int, ...]
    ):
        """Masks the kernel that Flax has initialized, and stores its pattern for `shape`."""
        if options is None:
            self.sparsity = nnx.data(None)
            return
        kernel = self.kernel.get_value()
        name = type(self).__name__
        pattern = layer_options.initial_pattern(name, options, kernel, num_batch, shape)
        self.kernel.set_value(kernels.mask(kernel, pattern))
        self.sparsity = Sparsity(pattern)

    @contextlib.contextmanager
    def _scope(self):
        """Names what the layer does, for `explain`, `check` and profiles."""
        name = self.name or type(self).__name__
        with names.layer(name), jax.named_scope(name):
            yield

    @property
    def pattern(self) -> Pattern | None:
        """Which blocks of the kernel are stored; None for a dense layer."""
        return None if self.sparsity is None else kernels.pattern_of(self.sparsity.get_value())

    @property
    def is_packed(self) -> bool:
        """Whether the kernel holds values only."""
        return self.sparsity is not None and _is_packed(self.sparsity)

    def set_pattern(self, pattern: Pattern) -> None:
        """Gives the layer another pattern; blocks that it did not store before start as zeros.

        Also inside `jit`, where a new pattern does not compile anew.

        Args:
            pattern: of the shape, format and capacity of the present one.

        Raises:
            ValueError, TypeError: a pattern that does not fit, or the layer is dense.
        """
        name = f"{type(self).__name__}.set_pattern"
        if self.sparsity is None:
            raise ValueError(
                f'{name}: the layer must be sparse, got format=None. Make it with format="32x32", '
                "for example."
            )
        value, stored = kernels.change_pattern(
            name, self.kernel.get_value(), self.sparsity.get_value(), pattern
        )
        self.kernel.set_value(value)
        self.sparsity.set_value(stored)


def _is_packed(sparsity: Sparsity) -> bool:
    return isinstance(sparsity.get_value(), kernels.PackedPattern)


def sparse_layers(model) -> Iterator[tuple[tuple, SparseKernel, Sparsity]]:
    """The layers of a model that have a pattern, each once: path, layer, pattern variable."""
    for path, module in nnx.iter_modules(model):
        if isinstance(module, SparseKernel) and module.sparsity is not None:
            yield path, module, module.sparsity


def apply_patterns(model) -> None:
    """Sets all kernel entries off the patterns back to zero, in place.

    For after an optimizer step: momentum, noise and dense gradients move entries that are not
    stored, and weight decay with a pattern that changes does too. Works inside `nnx.jit`.

    Args:
        model: a module with sparse layers anywhere inside. Packed layers have nothing to mask.
    """
    for _, layer, sparsity in sparse_layers(model):
        pattern = sparsity.get_value()
        if isinstance(pattern, Pattern):
            layer.kernel.set_value(kernels.mask(layer.kernel.get_value(), pattern))


def pack(model: Model) -> Model:
    """A copy of the model whose sparse layers store values only.

    What they compute stays the same. `kernel` parameters take the shape of the pattern's values,
    so a packed model needs a new optimizer state and its own checkpoints.

    Args:
        model: a module with sparse layers anywhere inside; it stays as it is. Instances of
            subclasses of the sparse layers stay dense: they may use `kernel` in other ways.

    Returns:
        A new model that shares no variables with the old one. Layers and kernels that were tied
        still are. Packed layers are as they were.

    Raises:
        ValueError: a kernel is tied to something that must see the whole of it.
    """
    return _convert("pack", model, kernels.pack)


def unpack(model: Model) -> Model:
    """The inverse of `pack`: a copy of the model that stores whole kernels, with the same bits.

    Args, Returns, Raises: as for `pack`.
    """
    return _convert("unpack", model, kernels.unpack)


def packable(layer_type):
    """Declares that `pack` may convert layers of exactly this type."""
    _packable.add(layer_type)
    return layer_type


_packable: set[type] = set()


def _convert(function: str, model, convert: Callable[[Any, Any], tuple[Any, Any]]):
    model = nnx.clone(model)
    users = users_of_variables(model)
    new_kernels, new_sparsities = {}, {}
    changes = []
    for path, layer, sparsity in sparse_layers(model):
        if type(layer) not in _packable or layer.is_packed == (function == "pack"):
            continue
        for other, name in users[id(layer.kernel)]:
            is_alike = type(other) in _packable and name == "kernel"
            if not is_alike or other.sparsity is not sparsity:
                raise ValueError(
                    f"{function}: a kernel may be shared by layers with one pattern, got "
                    f"{'/'.join(map(str, path))}, whose kernel is also {name!r} of a "
                    f"{type(other).__name__}. Give one of them a kernel of its own."
                )
        both = id(layer.kernel), id(sparsity)
        if both not in new_kernels:
            value, stored = convert(layer.kernel.get_value(), sparsity.get_value())
            new_kernels[both], sharding = _resharded(layer, value)
            key = id(sparsity), getattr(stored, "kernel_shape", None)
            if key not in new_sparsities:
                new_sparsities[key] = Sparsity(stored, **sharding)
            new_sparsities[both] = new_sparsities[key]
        changes.append((layer, new_kernels[both], new_sparsities[both]))
    for layer, kernel, sparsity in changes:
        layer.kernel, layer.sparsity = kernel, sparsity
    return model


def _resharded(layer, value):
    """The kernel with another value, and metadata for its Sparsity variable.

    Names of the whole kernel's axes mean nothing for values: they wait there until `unpack`.
    """
    kernel = layer.kernel.copy(value)
    if layer.is_packed:
        if (names := layer.sparsity.get_metadata("kernel_sharding", None)) is not None:
            kernel.set_metadata(out_sharding=names)
        return kernel, {}
    if kernel.get_metadata("out_sharding", None) is None:
        return kernel, {}
    names = kernel.get_metadata("out_sharding")
    kernel.del_metadata("out_sharding")
    return kernel, {"kernel_sharding": names}


def users_of_variables(model) -> dict[int, list[tuple[Any, Any]]]:
    """For the id of each variable, what holds it and under which name."""
    users = {}
    for _, node in nnx.iter_graph(model):
        if isinstance(node, nnx.Pytree):
            items = vars(node).items()
        elif isinstance(node, dict):
            items = node.items()
        elif isinstance(node, (list, tuple)):
            items = enumerate(node)
        else:
            continue
        for name, value in items:
            if isinstance(value, nnx.Variable):
                users.setdefault(id(value), []).append((node, name))
    return users
