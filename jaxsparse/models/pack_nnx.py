"""Packing NNX models, and taking channels out of them."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

import jaxsparse.nnx as sparse
from jaxsparse.layers import kernel as kernels
from jaxsparse.models import nnx as substitution
from jaxsparse.models.channels import Kept, Weight
from jaxsparse.models.program import Program
from jaxsparse.models.smaller import channel_axes, some, taken, why_whole
from jaxsparse.models.summary import Summary, packed_row
from jaxsparse.nnx.sparsity import SparseKernel, Sparsity

_WITH_CHANNELS = (nnx.Linear, nnx.Conv, nnx.ConvTranspose)


@dataclasses.dataclass(frozen=True)
class Whole:
    """A model, and what it is called with."""

    model: Any
    variables: None
    sample: tuple
    call: Mapping[str, Any]

    def program(self) -> Program:
        return substitution.program(self.model, self.sample, self.call)

    def weights(self) -> tuple[dict[str, Weight], dict[str, str]]:
        """The layers that channels can be taken out of, and why not of others, by their paths."""
        found, reasons = {}, {}
        for path, layer in substitution.layers(self.model):
            if why := _why_whole(layer):
                reasons[path] = why
                continue
            kernel = np.moveaxis(_whole_kernel(layer), channel_axes(layer), (-2, -1))
            bias = None if layer.bias is None else layer.bias.get_value()
            found[path] = Weight(kernel.reshape(-1, *kernel.shape[-2:]), bias)
        return found, reasons

    def without(self, kept: Kept) -> "Whole":
        """The same with fewer channels, and with kernels that are whole."""
        graph, state = nnx.split(sparse.unpack(self.model))
        leaves, tree = jax.tree.flatten(state)
        for index, keep in kept.leaves.items():
            leaves[index] = some(leaves[index], keep)
        model, dense = nnx.merge(graph, jax.tree.unflatten(tree, leaves)), {}
        for path, layer in substitution.layers(model):
            if path in kept.inputs or path in kept.outputs:
                _take(layer, kept.inputs.get(path), kept.outputs.get(path))
                if isinstance(layer, SparseKernel) and layer.sparsity is None:
                    dense[id(layer)] = substitution.dense(layer)
        for _, module in nnx.iter_modules(model):
            if type(module) is nnx.BatchNorm:
                module.num_features = module.mean.get_value().shape[-1]
        return dataclasses.replace(self, model=substitution.substituted(model, dense))

    def packed(self, notes: dict[str, str]) -> tuple[Any, Summary]:
        """The model whose sparse layers store values only, and what became of each layer."""
        model, rows = sparse.pack(self.model), []
        for path, layer in substitution.layers(model):
            pattern = layer.pattern if isinstance(layer, SparseKernel) else None
            if pattern is None:
                why = substitution.why_not(type(layer)) or "it has no pattern"
            else:
                why = "values only" if layer.is_packed else "a subclass of ours stays whole"
            shape = substitution.whole_shape(layer)
            rows.append(
                packed_row(path, type(layer).__name__, shape, pattern, why, notes.get(path))
            )
        return model, Summary(tuple(rows))


def _why_whole(layer) -> str | None:
    """Why all channels of a layer stay; None where they need not."""
    kind = substitution.DENSE_TYPES.get(type(layer), type(layer))
    has_channels = kind in _WITH_CHANNELS
    if kind is nnx.LinearGeneral:
        sizes = (len(layer.in_features), len(layer.out_features), len(layer.batch_axis))
        has_channels = sizes == (1, 1, 0) and tuple(layer.axis) == (-1,)
    if not has_channels:
        return substitution.why_not(type(layer)) or why_whole(layer, has_channels=False)
    is_linear = kind in (nnx.Linear, nnx.LinearGeneral)
    num_axes = 2 if is_linear else len(layer.kernel_shape)
    is_stacked = len(substitution.whole_shape(layer)) != num_axes
    return "it is stacked" if is_stacked else why_whole(layer, has_channels=True)


def _whole_kernel(layer) -> np.ndarray:
    """The kernel with zeros where nothing is stored."""
    kernel = layer.kernel.get_value()
    if isinstance(layer, SparseKernel) and layer.sparsity is not None:
        stored = layer.sparsity.get_value()
        kernel = (
            kernels.unpack(kernel, stored)[0] if layer.is_packed else kernels.mask(kernel, stored)
        )
    return np.asarray(kernel)


def _take(layer, inputs, outputs) -> None:
    """Takes channels out of a layer, in place."""
    is_ours, axes = isinstance(layer, SparseKernel), channel_axes(layer)
    pattern = layer.pattern if is_ours else None
    kernel, pattern = taken(_whole_kernel(layer), pattern, axes, inputs, outputs)
    layer.kernel = layer.kernel.copy(kernel)
    if is_ours:
        layer.sparsity = nnx.data(None) if pattern is None else Sparsity(pattern)
    if outputs is not None and layer.bias is not None:
        layer.bias = layer.bias.copy(some(layer.bias.get_value(), outputs))
    sizes = [kernel.shape[axis] for axis in axes]
    if isinstance(layer, nnx.LinearGeneral):
        layer.in_features, layer.out_features = ((size,) for size in sizes)
        return
    layer.in_features, layer.out_features = sizes
    if not isinstance(layer, nnx.Linear):
        layer.kernel_shape = kernel.shape
