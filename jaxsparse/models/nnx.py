"""Substitution in NNX models: a walk over the graph of modules that replaces layers."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from flax import nnx

import jaxsparse.nnx as sparse
from jaxsparse.formats.pattern import Pattern
from jaxsparse.layers import options as layer_options
from jaxsparse.models.program import Layer, Program, scope
from jaxsparse.models.rules import Rules, masked, options_of, pattern_for, why_dense
from jaxsparse.models.summary import Replaced, Summary
from jaxsparse.nnx.sparsity import SparseKernel, Sparsity, users_of_variables

# Matched exactly: a subclass may compute something else with its kernel.
SPARSE_TYPES: dict[type, type] = {
    nnx.Linear: sparse.Linear,
    nnx.LinearGeneral: sparse.LinearGeneral,
    nnx.Conv: sparse.Conv,
    nnx.ConvTranspose: sparse.ConvTranspose,
}
_DATA = ("bias", "sparsity")  # what Flax and we keep as data even where it is None
DENSE_TYPES = {ours: flax for flax, ours in SPARSE_TYPES.items()}


def sparsify(model, rules: Rules) -> tuple[Any, Summary]:
    """The model with layers replaced as the rules say, and what became of each layer."""
    model = nnx.clone(model)
    decided = {id(layer): (path, layer) for path, layer in layers(model)}
    users = users_of_variables(model)
    rows, replacements, shared = {}, {}, {}
    for path, layer in decided.values():
        kind = type(layer)
        kernel_shape = whole_shape(layer)
        row = functools.partial(Replaced, path, kind.__name__, kernel_shape)
        if isinstance(layer, SparseKernel) and layer.pattern is not None:
            pattern, why = layer.pattern, "it is sparse already"
            layer.name = layer.name or path
            rules.note_refused(path, kind, why)
            rows[path] = row(str(pattern.format), pattern.density, why)
            continue
        if why := why_not(kind):
            rules.note_refused(path, kind, why)
            rows[path] = row(None, 1.0, why)
            continue
        rule = rules.rule_for(path, kind)
        if rule is None or rule.format is None:
            rows[path] = row(None, 1.0, "no rule matches" if rule is None else f"{rule}: dense")
            continue
        mask = rules.mask_for(path, kernel_shape)
        if other := _other_user(layer, users):
            rows[path] = row(None, 1.0, f"its kernel is shared with {other}")
            continue
        if id(layer.kernel) not in shared:
            shared[id(layer.kernel)] = _masked(path, layer, rule, mask)
        kernel, sparsity = shared[id(layer.kernel)]
        new = _of_type(SPARSE_TYPES.get(kind, kind), layer)
        new.kernel, new.sparsity, new.name = kernel, sparsity, path
        for name, value in options_of(rule).items():
            setattr(new, name, value)
        replacements[id(layer)] = new
        pattern = new.pattern
        rows[path] = row(str(pattern.format), pattern.density, str(rule))
    rules.check_all_used()
    return substituted(model, replacements), Summary(tuple(rows.values()))


def densify(model):
    """The model with Flax's own layers in place of ours, whose kernels are whole."""
    model = sparse.unpack(model)
    sparse.apply_patterns(model)
    replacements = {
        id(layer): dense(layer) for _, layer in layers(model) if type(layer) in DENSE_TYPES
    }
    return substituted(model, replacements)


def layers(model) -> Iterator[tuple[str, Any]]:
    """The modules that hold a weight, each once, with its path."""
    found = {}

    def note(path, module):
        weights = (v for v in vars(module).values() if isinstance(v, nnx.Param))
        if any(np.ndim(v.get_value()) > 1 for v in weights) or isinstance(module, SparseKernel):
            found[id(module)] = path, module
        return module

    _walk(model, note)
    return iter(found.values())


def why_not(kind: type) -> str | None:
    """Why a module of this type stays dense; None where it need not."""
    return why_dense(kind, (*SPARSE_TYPES, *DENSE_TYPES))


def _other_user(layer, users) -> str | None:
    """What else uses the kernel of a layer in a way that does not bear a pattern."""
    for other, name in users[id(layer.kernel)]:
        if type(other) is not type(layer) or name != "kernel":
            return f"{name!r} of a {type(other).__name__}"
    return None


def whole_shape(layer) -> tuple[int, ...]:
    if isinstance(layer, SparseKernel) and layer.sparsity is not None and layer.is_packed:
        stored = layer.sparsity.get_value()
        return (*stored.pattern.group, *stored.kernel_shape)
    return tuple(_weight(layer).shape)


def _weight(layer):
    """The kernel of a layer, or the array of most axes where nothing has that name."""
    kernel = getattr(layer, "kernel", None)
    if isinstance(kernel, nnx.Param):
        return kernel.get_value()
    params = (v.get_value() for v in vars(layer).values() if isinstance(v, nnx.Param))
    return max(params, key=np.ndim)


def seen_shape(layer) -> tuple[int, tuple[int, ...]]:
    """How many axes of a kernel are stacked or batched, and the rest as patterns see it."""
    shape = tuple(layer.kernel.get_value().shape)
    if isinstance(layer, nnx.Linear):
        return len(shape) - 2, shape[-2:]
    if isinstance(layer, nnx.LinearGeneral):
        num_in, num_out = len(layer.in_features), len(layer.out_features)
        num_lead = len(shape) - num_in - num_out
        return num_lead, layer_options.matrix_of(shape, num_lead, num_in)
    rank = len(layer.kernel_shape)
    return len(shape) - rank, shape[-rank:]


def _masked(path: str, layer, rule, mask) -> tuple[nnx.Param, Sparsity]:
    """The layer's kernel with zeros off its pattern, and the pattern."""
    kernel = layer.kernel.get_value()
    num_lead, shape = seen_shape(layer)
    pattern: Pattern = pattern_for(path, kernel, num_lead, shape, rule, mask)
    return layer.kernel.copy(masked(kernel, pattern, mask)), Sparsity(pattern)


def dense(layer):
    new = _of_type(DENSE_TYPES[type(layer)], layer)
    for name in ("sparsity", "name", "grad", "implementation"):
        if name in vars(new):
            delattr(new, name)
    return new


@functools.cache
def _shell(layer_type: type) -> type:
    """A subclass whose constructor takes over the attributes of another layer.

    A constructor, because Flax marks modules with the trace that makes them.
    """

    def take_over(self, layer):
        for name, value in vars(layer).items():
            if not name.startswith("_pytree__"):
                setattr(self, name, nnx.data(None) if value is None and name in _DATA else value)

    return type(layer_type.__name__, (layer_type,), {"__init__": take_over})


def _of_type(layer_type: type, layer):
    """A layer of this type with the attributes, and the variables, of another."""
    new = _shell(layer_type)(layer)
    object.__setattr__(new, "__class__", layer_type)
    return new


def substituted(model, replacements: dict[int, Any]):
    """The model with some of its modules, by their ids, replaced wherever they are."""
    return _walk(model, lambda path, module: replacements.get(id(module), module))


def _walk(root, visit: Callable[[str, Any], Any]):
    """Calls `visit(path, module)` for every module, once, and puts what it returns in its place.

    `nnx.iter_modules` says nothing of lists, tuples and dicts that are not modules.
    """
    memo = {}  # by id: the old and the new; the old one is kept so that ids stay unique

    def of(path, value):
        if id(value) in memo:
            return memo[id(value)][1]
        if isinstance(value, nnx.Pytree):
            new = visit("/".join(map(str, path)), value) if isinstance(value, nnx.Module) else value
            memo[id(value)] = value, new
            if new is value:
                for name, inner in list(vars(value).items()):
                    if name.startswith("_pytree__"):
                        continue
                    changed = of((*path, name), inner)
                    if changed is not inner:
                        is_container = isinstance(changed, (list, tuple, dict))
                        setattr(value, name, nnx.data(changed) if is_container else changed)
            return new
        if isinstance(value, (list, tuple)):
            items = [of((*path, i), item) for i, item in enumerate(value)]
            if all(a is b for a, b in zip(items, value)):
                return value
            new = type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
        elif isinstance(value, dict):
            items = {name: of((*path, name), item) for name, item in value.items()}
            if all(items[name] is value[name] for name in value):
                return value
            new = type(value)(items)
        else:
            return value
        memo[id(value)] = value, new
        return new

    return of((), root)


# The model as a function --------------------------------------------------------------------------


def program(model, sample: tuple, call) -> Program:
    """A call of a model, whose layers are named."""
    found = tuple(_described(path, layer) for path, layer in layers(model))
    named = nnx.clone(model, variables=False)

    def name(path, module):
        if id(module) in holders:
            object.__setattr__(module, "__class__", _named(type(module)))
            object.__setattr__(module, "path_in_program", path)
        return module

    holders = {id(layer) for _, layer in layers(named)}
    graph, state = nnx.split(_walk(named, name))

    def function(state, *sample):
        merged: Any = nnx.merge(graph, state)
        return merged(*sample, **call)

    return Program(function, (state, *sample), found, True)


@functools.cache
def _named(layer_type: type) -> type:
    """A subclass whose calls are in the scope of the layer's path."""

    def call(self, *args, **kwargs):
        with jax.named_scope(scope(self.path_in_program)):
            return layer_type.__call__(self, *args, **kwargs)

    return type(layer_type.__name__, (layer_type,), {"__call__": call})


def _described(path: str, layer) -> Layer:
    pattern = layer.pattern if isinstance(layer, SparseKernel) else None
    weight, kind = _weight(layer), type(layer).__name__
    nbytes = weight.size * weight.dtype.itemsize
    if pattern is None:
        why = why_not(type(layer)) or "it has no pattern"
        return Layer(path, kind, whole_shape(layer), None, 1.0, nbytes, why)
    nbytes += pattern.nbytes
    return Layer(path, kind, whole_shape(layer), str(pattern.format), pattern.density, nbytes)
