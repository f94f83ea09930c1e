"""Which layers of a model become sparse, and where: rules, masks, and the patterns they give."""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.formats.parse import as_format
from jaxsparse.formats.pattern import Format, Pattern, matrix_view
from jaxsparse.layers import kernel as kernels
from jaxsparse.layers import options as layer_options
from jaxsparse.patterns import from_mask
from jaxsparse.patterns.dense import dense_and_nonzero, largest_parts
from jaxsparse.patterns.make import is_traced, stack


@dataclasses.dataclass(frozen=True)
class Rule:
    """Which layers of a model become sparse, and how. For `sparsify`.

    Attributes:
        path: a regular expression that a layer's whole path must match, such as "blocks/.*/fc1".
            Paths are the names of attributes and the indices of containers, joined with "/"; the
            model itself has the path "".
        format: such as "32x32"; None leaves the layers dense.
        sparsity: the share of weights, groups or blocks to leave out, those of smallest norm; None
            leaves out what is zero already.
        module_types: types, or names of types, one of which a layer must have exactly; empty for
            all.
        grad, implementation: as in the layers of `jaxsparse.nnx` and `jaxsparse.linen`.

    Raises:
        ValueError, TypeError: values that say nothing.
    """

    path: str
    format: Format | str | tuple[int, int] | None
    sparsity: float | None = None
    module_types: tuple[type | str, ...] = ()
    grad: str = "sparse"
    implementation: str | None = None

    def __post_init__(self):
        if not isinstance(self.path, str):
            raise TypeError(f"Rule: path is a regular expression, got {self.path!r}.")
        try:
            re.compile(self.path)
        except re.error as error:
            raise ValueError(
                f"Rule: path must be a regular expression, got {self.path!r} ({error})."
            ) from error
        types = self.module_types
        types = (types,) if isinstance(types, (str, type)) else tuple(types)
        object.__setattr__(self, "module_types", types)
        if self.format is not None:
            object.__setattr__(self, "format", as_format(self.format))
        layer_options.check(
            "Rule",
            format=self.format,
            sparsity=self.sparsity or 0.0,
            pattern=None,
            grad=self.grad,
            implementation=self.implementation,
        )

    def matches(self, path: str, module_type: type) -> bool:
        """Whether this rule is about a layer of this path and type."""
        is_listed = not self.module_types or any(
            given in (module_type, module_type.__name__) for given in self.module_types
        )
        return is_listed and re.fullmatch(self.path, path) is not None

    def __str__(self) -> str:
        types = [t if isinstance(t, str) else t.__name__ for t in self.module_types]
        return f"rule {self.path!r}" + (f" of {', '.join(types)}" if types else "")


class Rules:
    """The rules and masks of one call of `sparsify`, and which of them were of use.

    Args:
        rules: a Rule or several; the first one that matches a layer is the one for it.
        masks: bool arrays or patterns by the paths of layers, or in nested dicts of the same names,
            in which they may be called "kernel". None stands for no mask.
    """

    def __init__(self, rules: Rule | Iterable[Rule], masks: Mapping | None):
        self._rules = (rules,) if isinstance(rules, (Rule, str)) else tuple(rules)
        for rule in self._rules:
            if not isinstance(rule, Rule):
                raise TypeError(
                    f"sparsify: rules are of type jaxsparse.Rule, got {rule!r}. Write, for example,"
                    ' jaxsparse.Rule(".*", "32x32", sparsity=0.9).'
                )
        self._masks = dict(_flat(masks or {}))
        self._first: set[int] = set()  # rules that were the first to match a layer
        self._shadowed: dict[int, Rule] = {}
        self._refused: dict[int, str] = {}  # what a rule matched that cannot be sparse
        self._masked: set[str] = set()
        self._paths: list[str] = []

    def rule_for(self, path: str, module_type: type) -> Rule | None:
        """The rule for a layer that can be sparse."""
        self._paths.append(path)
        first = None
        for i, rule in enumerate(self._rules):
            if not rule.matches(path, module_type):
                continue
            if first is None:
                first = rule
                self._first.add(i)
            else:
                self._shadowed.setdefault(i, first)
        return first

    def note_refused(self, path: str, module_type: type, why: str) -> None:
        """Remembers that something of this path cannot be sparse, for the error of unused rules."""
        for i, rule in enumerate(self._rules):
            if rule.matches(path, module_type):
                self._refused.setdefault(i, f"{path or 'the root'} ({why})")

    def mask_for(self, path: str, kernel_shape: tuple[int, ...]):
        """The mask of a layer's kernel, or None.

        Raises:
            TypeError, ValueError: not bool, or of another shape.
        """
        mask = self._masks.get(path)
        if mask is None:
            return None
        self._masked.add(path)
        dtype, shape = getattr(mask, "dtype", None), np.shape(mask)
        if dtype is None or np.dtype(dtype) != np.bool_:
            raise TypeError(f"sparsify: a mask must be bool, got {dtype} for {path!r}.")
        if shape != kernel_shape:
            raise ValueError(
                f"sparsify: a mask must have the shape of its layer's kernel, {kernel_shape} for "
                f"{path!r}, got {shape}."
            )
        return mask

    def check_all_used(self) -> None:
        """Raises where a rule is for no layer, or a mask for none that becomes sparse."""
        for i, rule in enumerate(self._rules):
            if i in self._first:
                continue
            if i in self._shadowed:
                raise ValueError(
                    f"sparsify: every rule must be the first for some layer, got {rule}, all of "
                    f"whose layers go to {self._shadowed[i]} before it. Put it first, or drop it."
                )
            found = f"; it matches {self._refused[i]}" if i in self._refused else ""
            raise ValueError(
                f"sparsify: every rule must match a layer that can be sparse, got {rule}, which "
                f"matches none{found}. {self._known_paths()}"
            )
        if unused := sorted(set(self._masks) - self._masked):
            raise ValueError(
                "sparsify: every mask must be that of a layer which a rule makes sparse, got one "
                f"for {unused[0]!r}. {self._known_paths()}"
            )

    def _known_paths(self) -> str:
        if not self._paths:
            return "The model has no such layers."
        shown = ", ".join(map(repr, self._paths[:12]))
        return f"Layers are {shown}{', ...' if len(self._paths) > 12 else ''}."


def _flat(masks: Mapping, path: tuple = ()):
    """(path, array) for each leaf of nested dicts."""
    for name, inner in masks.items():
        if isinstance(inner, Mapping):
            yield from _flat(inner, (*path, str(name)))
        elif inner is not None:
            names = path if str(name) == "kernel" else (*path, str(name))
            yield "/".join(names), inner.mask() if isinstance(inner, Pattern) else inner


def pattern_for(
    path: str, kernel, num_lead: int, shape: tuple[int, ...], rule: Rule, mask
) -> Pattern:
    """The pattern of a layer's kernel.

    Args:
        path: of the layer, for errors.
        kernel: `[*lead, ...]`; what is stacked or batched comes first.
        num_lead: how many axes those are.
        shape: as which patterns see the rest: the matrix of a linear layer, or
            `[*kernel, in, out]`.
        rule: says how.
        mask: bool, of the kernel's shape: which entries are stored; or None.

    Returns:
        A pattern for `shape` with indices `[*lead, capacity]`: one for each layer that is stacked,
        all with room for equally many parts.

    Raises:
        ValueError: a format that does not fit, or zeros that are not known yet.
    """
    format = as_format(rule.format)
    _check_fit(path, format, shape, rule)
    lead, weight = kernel.shape[:num_lead], kernel if mask is None else mask
    if isinstance(kernel, jax.ShapeDtypeStruct):
        raise ValueError(
            f"sparsify: patterns are those of kernels, got the shape of one only for {path!r}. "
            "Pass a model with arrays, or call it inside jax.eval_shape with a sparsity."
        )
    if is_traced(weight):
        if mask is not None or rule.sparsity is None:
            raise ValueError(
                f"sparsify: how many weights of {path!r} are stored must be known, got a traced "
                f"{'kernel' if mask is None else 'mask'}. Call it outside jit, or give the rule a "
                "sparsity."
            )
        options = layer_options.Options(format, rule.sparsity, None, "sparse", None)
        return layer_options.initial_pattern("sparsify", options, kernel, num_lead, shape)
    each = np.asarray(weight).reshape(-1, *shape)
    if mask is None and rule.sparsity is not None:
        patterns = [largest_parts("sparsify", one, format, rule.sparsity) for one in each]
    else:
        stored = each if mask is not None else dense_and_nonzero("sparsify", each)[1]
        patterns = [from_mask(one, format) for one in stored]
        capacity = max((p.capacity for p in patterns), default=0)
        if num_lead:
            patterns = [from_mask(one, format, capacity=capacity) for one in stored]
    return stack(patterns, lead)


def masked(kernel, pattern: Pattern, mask=None):
    """The kernel with exact zeros off a pattern of `pattern_for`, and where `mask` is false.

    On the host where all is known: XLA would compile a program for each shape and pattern.
    """
    given = kernel
    if mask is not None:
        xp = jnp if is_traced(kernel, mask) else np
        kernel = xp.where(mask, kernel, xp.zeros((), kernel.dtype))
    if is_traced(kernel, *pattern.indices):
        return kernels.mask(kernel, pattern)
    spec, indices = pattern.spec(), [np.asarray(index) for index in pattern.indices]
    stored = np.zeros((*pattern.group, *spec.weight_shape), bool)
    for group in np.ndindex(*pattern.group):
        rows, cols = spec.positions(*(index[group] for index in indices))
        grid_mask, is_used = np.zeros(spec.grid, bool), cols < spec.grid[1]
        grid_mask[rows[is_used], cols[is_used]] = True
        stored[group] = spec.format.spread(grid_mask, spec.weight_shape)
    whole = np.where(stored.reshape(kernel.shape), kernel, np.zeros((), kernel.dtype))
    return jax.device_put(whole, given.sharding) if isinstance(given, jax.Array) else whole


def _check_fit(path: str, format: Format, shape: tuple[int, ...], rule: Rule) -> None:
    """Raises where even one part is larger than the weight along some axis."""
    sizes = matrix_view(shape)
    if all(part <= size for part, size in zip(format.extent, sizes)):
        return
    fitting = tuple(_largest_power(min(p, n)) for p, n in zip(format.extent, sizes))
    name = f"grouped:{fitting[1]}" if fitting[0] == 1 else f"{fitting[0]}x{fitting[1]}"
    raise ValueError(
        f"sparsify: a part of the format must fit into the layer, got {format} for {path!r}, whose "
        f"kernel is a matrix of shape {sizes}, by {rule}. Before that rule, put one for this layer "
        f'with format "{name}" or "unstructured", or None to leave it dense.'
    )


def why_dense(kind: type, replaced: Iterable[type]) -> str | None:
    """Why a module of this type stays dense; None for exactly those types that are replaced."""
    base = next((t for t in replaced if issubclass(kind, t)), None)
    if base is None:
        return f"{kind.__name__} has no sparse form"
    if kind in replaced:
        return None
    return f"it is a subclass of {base.__name__}, which may compute something else"


def _largest_power(limit: int) -> int:
    """The largest power of two up to `limit`."""
    return 2 ** int(math.log2(max(1, limit)))


def options_of(rule: Rule) -> dict[str, Any]:
    """What a layer takes from its rule besides its pattern."""
    return {"grad": rule.grad, "implementation": rule.implementation}
