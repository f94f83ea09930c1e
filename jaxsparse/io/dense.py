"""Dense weights into sparse models: from checkpoints of any kind, or from trees of arrays."""

import pathlib
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.formats.pattern import Pattern
from jaxsparse.formats.weight import SparseWeight
from jaxsparse.io import checkpoint
from jaxsparse.io.entries import Entries, entries_of, is_nnx
from jaxsparse.layers import kernel as kernels
from jaxsparse.models.rules import masked
from jaxsparse.patterns import make
from jaxsparse.patterns.dense import block_norms

PATTERNS = ("kept", "largest", "nonzero")


def load_dense(source, like, *, patterns: str = "kept") -> Any:
    """A sparse tree or model with the weights of a dense one.

    Args:
        source: the folder of a checkpoint, of `save` or of Orbax's StandardCheckpointer; a
            safetensors file; or a tree or model of dense arrays. Its entries must have the names of
            those of `like`, less the patterns; the variables of a linen model may be there without
            "params".
        like: a model of `flax.nnx` with sparse layers, dense-stored or packed; variables of a linen
            one; or a tree with SparseWeights. It stays as it is.
        patterns: which parts are stored: "kept", those of `like`; "largest", as many as there, of
            the largest norms; "nonzero", all that are not zero, such as after pruning elsewhere.

    Returns:
        The tree, or a new model.

    Raises:
        ValueError: names or shapes that do not fit, patterns of which nothing can be read.
        TypeError: dtypes that do not fit.
    """
    if patterns not in PATTERNS:
        raise ValueError(
            f'load_dense: patterns is "kept", "largest" or "nonzero", got {patterns!r}.'
        )
    given = _arrays_of(source)
    return fill("load_dense", like, _finder(given), patterns, set(given))


def fill(function: str, like, find: Callable, patterns: str, given: set[str]) -> Any:
    """`like` with dense arrays in place of its own.

    Args:
        function: for errors.
        like: as for `load_dense`.
        find: `find(name, shape)` returns the dense array for an entry, and its name in the source;
            or None.
        patterns: as for `load_dense`.
        given: all names in the source, of which none may be left over.
    """
    target = entries_of(function, like)
    patterned = [name for name, value in target.values.items() if isinstance(value, Pattern)]
    found = [kernel_of(function, name, target) for name in patterned]
    sparse = {kernel.entry: kernel for kernel in found}
    optional = random_states(like)
    values, used, missing = {}, set(), []
    for name, value in target.values.items():
        if isinstance(value, Pattern):
            continue
        if name in optional:
            values[name] = value
            used.add(name)
            continue
        kernel = sparse.get(name)
        shape = tuple(np.shape(value)) if kernel is None else kernel.shape
        dense = find(name if kernel is None else kernel.name, shape)
        if dense is None:
            missing.append(name if kernel is None else kernel.name)
            continue
        array, source_name = dense
        used.add(source_name)
        _check(function, name, array, shape, value)
        if kernel is None:
            values[name] = checkpoint.placed(array, value)
            continue
        pattern = _chosen(array, kernel.pattern, patterns)
        if kernel.is_packed:
            values[name], _ = kernels.pack(jnp.asarray(array), pattern)
        else:
            values[name] = checkpoint.placed(masked(np.asarray(array), pattern), value)
        values[kernel.pattern_entry] = pattern
    left = sorted(given - used)
    for names, what in ((missing, "that the source lacks"), (left, "that the target lacks")):
        if names:
            shown = ", ".join(map(repr, names[:4])) + (", ..." if len(names) > 4 else "")
            raise ValueError(
                f"{function}: source and target must have the same weights, got {shown}, {what}. "
                "Pass the part of the tree that is the model, with the same names."
            )
    return target.rebuild(values, target.nodes)


class _Kernel(NamedTuple):
    """A kernel that has a pattern.

    Attributes:
        entry: the name of its values, or of its dense array.
        name: of the dense kernel.
        pattern_entry: the name of its pattern.
        pattern: itself.
        shape: of the dense kernel, stacked layers first.
        is_packed: whether the entry holds values only.
    """

    entry: str
    name: str
    pattern_entry: str
    pattern: Pattern
    shape: tuple[int, ...]
    is_packed: bool


def kernel_of(function: str, name: str, target: Entries) -> _Kernel:
    """The kernel that a pattern belongs to, by the names that layers and variables have."""
    pattern = target.values[name]
    owner, _, last = name.rpartition("/")
    node = target.nodes.get(owner, {}).get("type")
    if node == SparseWeight.__name__ and last == "pattern":
        values = f"{owner}/values" if owner else "values"
        shape = (*pattern.group, *pattern.shape)
        return _Kernel(values, owner, name, pattern, shape, True)
    variable = owner if node == kernels.PackedPattern.__name__ else name
    layer, _, last = variable.rpartition("/")
    entry = f"{layer}/kernel" if layer else "kernel"  # of nnx
    if last == "pattern" and layer.partition("/")[0] == "sparsity":  # of linen
        entry = f"params{entry.removeprefix('sparsity')}"
        boxed = f"{entry}/value"  # with names of its axes
        entry = boxed if boxed in target.values else entry
    if entry not in target.values or isinstance(target.values[entry], Pattern):
        raise ValueError(
            f"{function}: every pattern must be that of a kernel, got {name!r} without one. Use "
            "models of jaxsparse.sparsify, their variables, or trees of SparseWeights."
        )
    shape = tuple(np.shape(target.values[entry]))
    if variable != name:
        shape = (*pattern.group, *target.nodes[owner]["kernel_shape"])
    return _Kernel(entry, entry, name, pattern, shape, variable != name)


def _chosen(array, pattern: Pattern, patterns: str) -> Pattern:
    """The pattern for a dense kernel."""
    if patterns == "kept":
        return pattern
    format, shape = pattern.format, pattern.shape
    each = np.asarray(array).reshape(-1, *shape)
    orders = getattr(pattern, "order", None)
    orders = [None] * len(each) if orders is None else np.asarray(orders).reshape(len(each), -1)
    if patterns == "largest":
        made = [
            make.from_scores(
                block_norms(one, format, order=order), format, shape, pattern.capacity, order=order
            )
            for one, order in zip(each, orders)
        ]
    else:
        used = [make.from_mask(one != 0, format, order=o) for one, o in zip(each, orders)]
        capacity = max(p.capacity for p in used)
        made = [
            make.from_mask(one != 0, format, capacity=capacity, order=order)
            for one, order in zip(each, orders)
        ]
    return make.stack(made, pattern.group)


def _check(function: str, name: str, array, shape: tuple[int, ...], like) -> None:
    if tuple(array.shape) != shape:
        raise ValueError(
            f"{function}: {name!r} must have shape {shape} in the source as in the target, got "
            f"{tuple(array.shape)}. Make the target for this source."
        )
    if array.dtype != like.dtype:
        raise TypeError(
            f"{function}: {name!r} must have the target's dtype, {like.dtype}, got {array.dtype}. "
            "Cast the one or the other."
        )


def _finder(given: Mapping[str, Any]) -> Callable:
    def find(name, shape):
        bare = name.removesuffix("/value")
        for tried in (name, bare, f"{bare}/value"):
            for form in (tried, tried.removeprefix("params/")):
                if form in given:
                    return given[form], form
        return None

    return find


def _arrays_of(source) -> dict[str, Any]:
    """The dense arrays of a source by name."""
    if isinstance(source, (str, pathlib.Path)):
        source = read("load_dense", source)
    optional = random_states(source)
    entries = entries_of("load_dense", source)
    for name, value in entries.values.items():
        if isinstance(value, Pattern):
            raise ValueError(
                f"load_dense: the source must be dense, got the pattern {name!r} in it. Use "
                "jaxsparse.io.load, or jaxsparse.densify the source first."
            )
    return {
        name: value if isinstance(value, jax.Array) else np.asarray(value)
        for name, value in entries.values.items()
        if name not in optional
    }


def read(function: str, path) -> Any:
    """The tree of a checkpoint: a folder of `save` or of plain Orbax, or a safetensors file.

    Raises:
        ValueError: there is none.
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise ValueError(f"{function}: a checkpoint is a folder or a file, got {path}.")
    if path.is_file():
        from jaxsparse.io.safetensors import from_safetensors

        return from_safetensors(path)
    if (path / "manifest").exists():
        return checkpoint.load(path)
    return checkpoint.load_plain(function, path)


def random_states(tree) -> set[str]:
    """The entries of an NNX model that are states of random streams: no weights."""
    if not is_nnx(tree):
        return set()
    nnx = sys.modules["flax.nnx"]
    return set(entries_of("load_dense", nnx.to_pure_dict(nnx.state(tree, nnx.RngState))).values)
