"""Packing Linen models, and taking channels out of them."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax.core import FrozenDict, freeze, meta

import jaxsparse.linen as sparse
from jaxsparse.formats.pattern import Pattern
from jaxsparse.layers import kernel as kernels
from jaxsparse.linen.variables import COLLECTION
from jaxsparse.models import linen as substitution
from jaxsparse.models.channels import Kept, Weight
from jaxsparse.models.linen import Seen, Substituted, at, layers_with_weights, stored_at, with_value
from jaxsparse.models.program import Program
from jaxsparse.models.smaller import some, taken
from jaxsparse.models.summary import Summary, packed_row


@dataclasses.dataclass(frozen=True)
class Whole:
    """A model with its variables, and what it is called with."""

    model: Any
    variables: Any
    sample: tuple
    call: Mapping[str, Any]

    def program(self) -> Program:
        one = substitution.program(self.model, self._unpacked, self.sample, self.call)
        if self.call.get("mutable", True) is False:
            return one
        # Less the variables that it may change: they are not what the model computes.
        return dataclasses.replace(one, function=lambda *given: one.function(*given)[0])

    def weights(self) -> tuple[dict[str, Weight], dict[str, str]]:
        """The layers that channels can be taken out of, and why not of others, by their paths."""
        found, reasons = {}, {}
        for path, _ in layers_with_weights(self._unpacked):
            name, module = "/".join(path), self._modules.get(path)
            why = self._why_whole(path, module)
            if module is None or why is not None:
                reasons[name] = str(why)
                continue
            kernel, _ = self._layer(path)
            kernel = np.moveaxis(np.asarray(kernel), module.channel_axes, (-2, -1))
            bias = meta.unbox(at(self._unpacked["params"], path).get("bias"))
            found[name] = Weight(kernel.reshape(-1, *kernel.shape[-2:]), bias)
        return found, reasons

    def without(self, kept: Kept) -> "Whole":
        """The same with fewer channels, and with kernels that are whole."""
        leaves, tree = jax.tree.flatten(self._unpacked)
        for index, keep in kept.leaves.items():
            leaves[index] = some(leaves[index], keep)
        variables, changed = dict(jax.tree.unflatten(tree, leaves)), []
        old = {layer.path: layer for layer in substitution.substituted_in(self.model)}
        for name in dict.fromkeys((*kept.inputs, *kept.outputs)):
            path = tuple(filter(None, name.split("/")))
            pattern = self._take(variables, path, kept.inputs.get(name), kept.outputs.get(name))
            layer = old.get(path, Substituted(path))
            has_pattern = pattern is not None
            changed.append(dataclasses.replace(layer, has_pattern=has_pattern, is_smaller=True))
        variables = freeze(variables) if isinstance(self.variables, FrozenDict) else variables
        model = substitution.with_layers(self.model, changed) if changed else self.model
        return dataclasses.replace(self, model=model, variables=variables)

    def packed(self, notes: dict[str, str]) -> tuple[Any, Any, Summary]:
        """The model, its variables with values only, and what became of each layer."""
        substitution.check_patterns("pack", self.model, self.variables)
        variables, rows = self.variables, []
        if COLLECTION in variables:
            variables = sparse.pack(variables)
        for path, shapes in layers_with_weights(self.variables):
            name, stored = "/".join(path), stored_at(variables.get(COLLECTION, {}), path)
            matrices = {param for param, shape in shapes.items() if len(shape) > 1}
            if stored is None and matrices <= {"scale", "bias"}:
                continue  # vectors that are stacked
            shape = shapes.get("kernel", max(shapes.values(), key=len))
            pattern, why = None, "it has no pattern"
            if stored is not None:
                pattern, why = stored.pattern, "values only"
                shape = (*pattern.group, *stored.kernel_shape)
            rows.append(packed_row(name, "", shape, pattern, why, notes.get(name)))
        return self.model, variables, Summary(tuple(rows))

    def _take(self, variables, path, inputs, outputs) -> Pattern | None:
        """Takes channels out of a layer, in `variables`."""
        own = at(variables["params"], path)
        kernel, pattern = taken(
            *self._layer(path), self._modules[path].channel_axes, inputs, outputs
        )
        new = {"kernel": meta.replace_boxed(own["kernel"], kernel)}
        if outputs is not None and "bias" in own:
            bias = some(meta.unbox(own["bias"]), outputs)
            new["bias"] = meta.replace_boxed(own["bias"], bias)
        for name, value in new.items():
            variables["params"] = with_value(variables["params"], path, name, value)
        if stored_at(variables.get(COLLECTION, {}), path) is not None:
            new = {} if pattern is None else {"pattern": pattern}
            variables[COLLECTION] = _with_only(variables[COLLECTION], path, new)
        return pattern

    @functools.cached_property
    def _unpacked(self):
        """The variables with whole kernels."""
        return sparse.unpack(self.variables) if COLLECTION in self.variables else self.variables

    @functools.cached_property
    def _modules(self) -> dict[tuple[str, ...], Seen]:
        return substitution.modules(self.model, self._unpacked, self.sample, self.call)

    def _layer(self, path):
        """The kernel of a layer, zero where nothing is stored, and its pattern or None."""
        kernel = meta.unbox(at(self._unpacked["params"], path)["kernel"])
        pattern = stored_at(self._unpacked.get(COLLECTION, {}), path)
        return kernel if pattern is None else kernels.mask(kernel, pattern), pattern

    def _why_whole(self, path, module: Seen | None) -> str | None:
        """Why all channels of a layer stay; None where they need not."""
        why = substitution.why_not(module)
        if module is None or why or module.why_whole:
            return why or str(module and module.why_whole)
        is_stacked = np.shape(self._layer(path)[0]) != module.kernel_shape
        return "it is stacked" if is_stacked else None


def _with_only(patterns, path, new):
    """The collection with `new` in place of what a layer has."""
    if not path:
        return {**{name: value for name, value in patterns.items() if name != "pattern"}, **new}
    return {**patterns, path[0]: _with_only(patterns[path[0]], path[1:], new)}
