"""Substitution in Linen models, whose layers exist only while the model runs.

A sparse model is of a subclass of the model's class. Around each of its methods it intercepts the
calls of Flax's layers: those that have a pattern take it. Variables are Flax's, and beside them the
collection "sparsity".
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from flax.core import FrozenDict, freeze, meta

import jaxsparse.linen as sparse
from jaxsparse.layers import kernel as kernels
from jaxsparse.layers import options as layer_options
from jaxsparse.linen import conv, linear
from jaxsparse.linen.kernel import SparseKernel
from jaxsparse.linen.variables import COLLECTION
from jaxsparse.models.program import Layer, Program, scope
from jaxsparse.models.rules import Rules, masked, options_of, pattern_for, why_dense
from jaxsparse.models.smaller import channel_axes, why_whole
from jaxsparse.models.summary import Replaced, Summary

# Matched exactly: a subclass may compute something else with its kernel.
LINEAR = (nn.Dense, nn.DenseGeneral)
CONVOLUTIONS = (nn.Conv, nn.ConvTranspose)
REPLACED = LINEAR + CONVOLUTIONS
_OURS = {
    sparse.Dense: nn.Dense,
    sparse.DenseGeneral: nn.DenseGeneral,
    sparse.Conv: nn.Conv,
    sparse.ConvTranspose: nn.ConvTranspose,
}


@dataclasses.dataclass(frozen=True)
class Substituted:
    """A layer of a sparse model that has a pattern, and what it takes from its rule.

    Attributes:
        path: from the model to the layer.
        grad, implementation: as in `jaxsparse.matmul`.
        has_pattern: false for a dense layer that is smaller than the model's code makes it.
        is_smaller: whether `pack` has taken channels out of it.
    """

    path: tuple[str, ...]
    grad: str = "sparse"
    implementation: str | None = None
    has_pattern: bool = True
    is_smaller: bool = False


@dataclasses.dataclass(frozen=True)
class Seen:
    """A module as it was when the model ran.

    Attributes:
        type: of the module.
        kernel_shape: in the module itself: nothing is stacked there. None if it has no kernel.
        num_lead: how many axes of it are batch axes.
        shape: the rest, as patterns see it.
        most_axes: that a parameter has in the module itself.
        channel_axes: of the kernel: where its input and output channels are.
        why_whole: why all of them must stay; None where they need not.
    """

    type: type
    kernel_shape: tuple[int, ...] | None
    num_lead: int
    shape: tuple[int, ...]
    most_axes: int
    channel_axes: tuple[int, int] = (-2, -1)
    why_whole: str | None = None


def sparsify(model, rules: Rules, variables, sample, call) -> tuple[Any, Any, Summary]:
    """The model and its variables with layers replaced as the rules say, and what became of each.

    Args:
        model: unbound.
        rules: and masks.
        variables: all that `init` returned.
        sample: what the model is called with, or the shapes of that.
        call: keyword arguments of that call, or of `apply`.
    """
    seen = modules(model, variables, sample, call)
    old = {layer.path: layer for layer in substituted_in(model)}
    params, patterns, new, rows = variables["params"], variables.get(COLLECTION, {}), [], []
    for path, weights in layers_with_weights(variables):
        name, module = "/".join(path), seen.get(path)
        known = stored_at(patterns, path)
        if known is None and module is not None and module.most_axes < 2:
            continue  # vectors that are stacked
        shape = weights.get("kernel", max(weights.values(), key=len))
        if isinstance(known, kernels.PackedPattern):
            shape = (*known.pattern.group, *known.kernel_shape)
        kind = "?" if module is None else module.type.__name__
        row = functools.partial(Replaced, name, kind, shape)
        if known is not None:
            pattern, why = kernels.pattern_of(known), "it is sparse already"
            rules.note_refused(name, object if module is None else module.type, why)
            rows.append(row(str(pattern.format), pattern.density, why))
            continue
        why = why_not(module)
        if why or module is None or module.kernel_shape is None:
            why = why or f"{kind} has no kernel"
            rules.note_refused(name, object if module is None else module.type, why)
            rows.append(row(None, 1.0, why))
            continue
        rule = rules.rule_for(name, module.type)
        if rule is None or rule.format is None:
            rows.append(row(None, 1.0, "no rule matches" if rule is None else f"{rule}: dense"))
            continue
        boxed = at(params, path)["kernel"]
        kernel = meta.unbox(boxed)
        num_stacked = kernel.ndim - len(module.kernel_shape)
        if kernel.shape[num_stacked:] != module.kernel_shape:
            raise ValueError(
                f"sparsify: layers must be stacked along the first axes of a kernel, got "
                f"{kernel.shape} for {name!r}, whose layers have kernels of shape "
                f'{module.kernel_shape}. Write variable_axes={{"params": 0}}.'
            )
        mask = rules.mask_for(name, kernel.shape)
        num_lead = num_stacked + module.num_lead
        pattern = pattern_for(name, kernel, num_lead, module.shape, rule, mask)
        boxed = meta.replace_boxed(boxed, masked(kernel, pattern, mask))
        params = with_value(params, path, "kernel", boxed)
        patterns = with_value(patterns, path, "pattern", jax.tree.map(jax.numpy.asarray, pattern))
        layer = old.get(path, Substituted(path))
        new.append(dataclasses.replace(layer, has_pattern=True, **options_of(rule)))
        rows.append(row(str(pattern.format), pattern.density, str(rule)))
    rules.check_all_used()
    result = {**variables, "params": params, COLLECTION: patterns}
    result = freeze(result) if isinstance(variables, FrozenDict) else result
    model = with_layers(model, new)
    _trace(model, result, sample, call)  # a layer that does not meet its pattern raises
    return model, result, Summary(tuple(rows))


def densify(model, variables):
    """The model of its first class, and its variables with whole kernels and no patterns of it.

    Layers of ours that the code of the model makes itself need theirs and keep them.
    """
    if smaller := [layer.path for layer in substituted_in(model) if layer.is_smaller]:
        raise ValueError(
            "densify: the layers of a linen model have the sizes that its code gives them, got "
            f"{'/'.join(smaller[0]) or 'the model'}, out of which pack took channels. Densify the "
            "model that pack was given."
        )
    kept = {name: value for name, value in variables.items() if name != COLLECTION}
    if COLLECTION in variables:
        whole = sparse.apply_patterns(sparse.unpack(variables))
        kept = {name: whole[name] for name in kept}
        replaced = {layer.path for layer in substituted_in(model)}
        if own := _without(whole[COLLECTION], replaced):
            kept[COLLECTION] = own
    kept = freeze(kept) if isinstance(variables, FrozenDict) else kept
    cls = _DENSE_CLASSES.get(type(model))
    return (model if cls is None else cls(**_fields(model))), kept


def _without(patterns, replaced: set, path: tuple[str, ...] = ()) -> dict[str, Any]:
    """The collection less the patterns of these layers."""
    kept = {}
    for name, inner in patterns.items():
        if not isinstance(inner, Mapping):
            if path not in replaced:
                kept[name] = inner
        elif below := _without(inner, replaced, (*path, name)):
            kept[name] = below
    return kept


# The model that intercepts its layers -------------------------------------------------------------

_DENSE_CLASSES: dict[type, type] = {}
_FIELD = "sparse_layers"


def check_patterns(function: str, model, variables) -> None:
    """Raises unless the variables have the pattern of every layer that the model runs sparse."""
    patterns = variables.get(COLLECTION, {})
    for layer in substituted_in(model):
        if layer.has_pattern and stored_at(patterns, layer.path) is None:
            name = "/".join(layer.path) or "the model itself"
            raise ValueError(
                f'{function}: the collection "{COLLECTION}" holds the pattern of {name}, got '
                "variables without it. Pass all that jaxsparse.sparsify returned."
            )


def substituted_in(model) -> tuple[Substituted, ...]:
    return getattr(model, _FIELD) if type(model) in _DENSE_CLASSES else ()


def with_layers(model, layers: Iterable[Substituted]):
    """The model with these layers in place of those of their paths, or beside them."""
    by_path = {layer.path: layer for layer in (*substituted_in(model), *layers)}
    return _sparse_model(model, tuple(by_path.values()))


def _sparse_model(model, substituted: tuple[Substituted, ...]):
    cls = _DENSE_CLASSES.get(type(model), type(model))
    return _sparse_class(cls)(**_fields(model), **{_FIELD: substituted})


def _fields(model) -> dict[str, Any]:
    fields = dataclasses.fields(model)
    names = [f.name for f in fields if f.init and f.name not in ("parent", _FIELD)]
    return {name: getattr(model, name) for name in names}


@functools.cache
def _sparse_class(cls: type) -> type:
    """The subclass whose methods intercept layers; one for each class, so that jit's cache hits."""
    namespace: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        if base in (nn.Module, object) or not issubclass(base, nn.Module):
            continue
        for name, function in vars(base).items():
            is_public = name == "__call__" or not name.startswith("__")
            if hasattr(function, "method_handler_wrapped") and is_public and name != "setup":
                namespace[name] = _entering(function)
    for name in ("apply", "init", "init_with_output"):
        namespace[name] = nn.nowrap(_entering(getattr(nn.Module, name)))
    namespace["__reduce__"] = nn.nowrap(
        lambda self: (_rebuilt, (cls, _fields(self), getattr(self, _FIELD)))
    )
    namespace["__annotations__"] = {_FIELD: tuple[Substituted, ...]}
    namespace[_FIELD] = dataclasses.field(default=(), kw_only=True)
    namespace["__module__"], namespace["__doc__"] = cls.__module__, cls.__doc__
    result = type(cls.__name__, (cls,), namespace)
    _DENSE_CLASSES[result] = cls
    return result


def _rebuilt(cls, fields, substituted):
    return _sparse_class(cls)(**fields, **{_FIELD: substituted})


def _entering(function: Callable) -> Callable:
    @functools.wraps(function)
    def entered(self, *args, **kwargs):
        layers = {layer.path: layer for layer in getattr(self, _FIELD)}
        around = () if self.scope is None else tuple(self.path)

        def intercept(next_function, args, kwargs, context):
            module = context.module
            path = None if module.scope is None else tuple(module.path)
            if context.method_name != "__call__" or path is None or path[: len(around)] != around:
                return next_function(*args, **kwargs)
            layer = layers.get(path[len(around) :])
            if layer is None or module.is_initializing():  # there are no patterns before `init`
                return next_function(*args, **kwargs)
            return _call(module, layer, *args, **kwargs)

        with nn.intercept_methods(intercept):
            return function(self, *args, **kwargs)

    return entered


def _call(module, layer: Substituted, inputs):
    """What the layer returns for its kernel and its pattern."""
    cls = _flax_type(module)
    name = "/".join(layer.path) or "the model itself"
    if cls not in REPLACED:
        raise ValueError(
            f"{cls.__name__}: a layer with a pattern is one of "
            f"{', '.join(t.__name__ for t in REPLACED)}, got one for {name}. Make the model's "
            "variables dense with jaxsparse.densify, and leave this layer out."
        )
    if layer.has_pattern and not module.has_variable(COLLECTION, "pattern"):
        raise ValueError(
            f'{cls.__name__}: the collection "{COLLECTION}" holds the pattern of {name}, got '
            "variables without it. Pass all that jaxsparse.sparsify returned, "
            f'{{"params": ..., "{COLLECTION}": ...}}; within nn.scan or nn.vmap, list '
            f'"{COLLECTION}" in variable_axes, as "params" is.'
        )
    stored = module.get_variable(COLLECTION, "pattern") if layer.has_pattern else None
    kernel: Any = meta.unbox(module.get_variable("params", "kernel"))
    bias = meta.unbox(module.get_variable("params", "bias"))  # None where there is none
    options = {"implementation": layer.implementation, "grad": layer.grad}
    if cls in LINEAR:
        axes, batch_axes = linear.axes_of(module, inputs)
        both = {"axes": axes, "batch_axes": batch_axes}
        return linear.forward(module, inputs, kernel, bias, stored, **both, **options)
    is_packed = isinstance(stored, kernels.PackedPattern)
    shape = stored.kernel_shape if is_packed else kernel.shape
    return conv.forward(module, inputs, kernel, bias, stored, shape, **options)


def _flax_type(module) -> type:
    """The type of a module: Flax's for dense layers of ours, the first for sparse models."""
    cls = _DENSE_CLASSES.get(type(module), type(module))
    is_dense = isinstance(module, SparseKernel) and module.format is None
    return _OURS.get(cls, cls) if is_dense else cls


# The model as a function --------------------------------------------------------------------------


def program(model, variables, sample: tuple, call) -> Program:
    """A call of a model, whose layers are named."""
    seen, patterns = modules(model, variables, sample, call), variables.get(COLLECTION, {})
    weights = dict(layers_with_weights(variables))
    call = {"mutable": nn.DenyList(("params", COLLECTION)), **call}

    def name(next_function, args, kwargs, context):
        module = context.module
        path = None if module.scope is None else tuple(module.path)
        if context.method_name != "__call__" or path not in weights:
            return next_function(*args, **kwargs)
        with jax.named_scope(scope("/".join(path))):
            return next_function(*args, **kwargs)

    def function(variables, *sample):
        with nn.intercept_methods(name):
            return model.apply(variables, *sample, **call)

    layers = [
        _described(path, seen.get(path), variables["params"], patterns)
        for path in weights
        if path not in seen or seen[path].most_axes > 1 or stored_at(patterns, path) is not None
    ]
    return Program(function, (variables, *sample), tuple(layers), True)


def _described(path, module: Seen | None, params, patterns) -> Layer:
    stored = stored_at(patterns, path)
    own = {
        name: meta.unbox(leaf)
        for name, leaf in at(params, path).items()
        if not isinstance(leaf, Mapping)
    }
    weight = own.get("kernel", max(own.values(), key=np.ndim))
    kind = "?" if module is None else module.type.__name__
    nbytes, name = weight.size * weight.dtype.itemsize, "/".join(path)
    if stored is None:
        why = why_not(module) or "it has no pattern"
        return Layer(name, kind, tuple(weight.shape), None, 1.0, nbytes, why)
    pattern = kernels.pattern_of(stored)
    shape = tuple(weight.shape)
    if isinstance(stored, kernels.PackedPattern):
        shape = (*pattern.group, *stored.kernel_shape)
    nbytes += pattern.nbytes
    return Layer(name, kind, shape, str(pattern.format), pattern.density, nbytes)


# What the model consists of -----------------------------------------------------------------------


def _trace(model, variables, sample, call):
    """Runs the model without computing anything."""
    call = {"mutable": nn.DenyList(("params", COLLECTION)), **call}
    return jax.eval_shape(
        lambda variables, *x: model.apply(variables, *x, **call), variables, *sample
    )


def modules(model, variables, sample, call) -> dict[tuple[str, ...], Seen]:
    """Every module that the model calls, by its path."""
    seen = {}

    def record(next_function, args, kwargs, context):
        module = context.module
        if context.method_name == "__call__" and module.scope is not None:
            seen.setdefault(tuple(module.path), _describe(module))
        return next_function(*args, **kwargs)

    with nn.intercept_methods(record):
        _trace(model, variables, sample, call)
    return seen


def _describe(module) -> Seen:
    cls = _flax_type(module)
    own = [meta.unbox(p) for p in module.variables.get("params", {}).values()]
    most_axes = max((np.ndim(p) for p in own if not isinstance(p, Mapping)), default=0)
    if not module.has_variable("params", "kernel"):
        return Seen(cls, None, 0, (), most_axes)
    shape = tuple(meta.unbox(module.get_variable("params", "kernel")).shape)
    num_lead, rest = 0, shape
    if cls is nn.DenseGeneral:
        count = lambda given: len(given) if isinstance(given, (tuple, list)) else 1
        num_lead = count(module.batch_dims)
        rest = layer_options.matrix_of(shape, num_lead, count(module.axis))
    has_channels = cls in (nn.Dense, *CONVOLUTIONS)
    if cls is nn.DenseGeneral:
        has_channels = len(shape) == 2 and num_lead == 0 and module.axis in (-1, (-1,), [-1])
    why = why_whole(module, has_channels)
    return Seen(cls, shape, num_lead, rest, most_axes, channel_axes(module), why)


def why_not(module: Seen | None) -> str | None:
    """Why a module stays dense; None where it need not."""
    if module is None:
        return "the sample does not reach it"
    return why_dense(module.type, REPLACED)


def layers_with_weights(variables):
    """(path, shapes by name) of each module with a pattern, or a parameter of two axes or more."""
    patterns = variables.get(COLLECTION, {})

    def visit(params, path: tuple[str, ...]):
        arrays = {
            name: tuple(np.shape(meta.unbox(leaf)))
            for name, leaf in params.items()
            if not isinstance(leaf, Mapping)
        }
        if (
            any(len(shape) > 1 for shape in arrays.values())
            or stored_at(patterns, path) is not None
        ):
            yield path, arrays
        for name, inner in params.items():
            if isinstance(inner, Mapping):
                yield from visit(inner, (*path, name))

    return visit(variables["params"], ())


def stored_at(patterns, path):
    """The pattern of a layer, packed or not; None where it has none."""
    return at(patterns, path).get("pattern") if has(patterns, path) else None


def has(tree, path) -> bool:
    return not path or (path[0] in tree and has(tree[path[0]], path[1:]))


def at(tree, path):
    return functools.reduce(lambda tree, name: tree[name], path, tree)


def with_value(tree, path, name: str, value):
    """The nested dict with `value` at `path` and `name`; what was given stays as it is."""
    if not path:
        return {**tree, name: value}
    return {**tree, path[0]: with_value(tree.get(path[0], {}), path[1:], name, value)}
