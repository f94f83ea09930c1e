"""Trees and models as named entries, each an array or a pattern, and back.

What has a pattern inside is taken apart by hand: its static parts, which a pytree hides, are what a
checkpoint must not lose.
"""

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from jaxsparse.formats.pattern import Pattern
from jaxsparse.formats.split import SplitWeight
from jaxsparse.formats.weight import SparseWeight, WeightSum
from jaxsparse.layers.kernel import PackedPattern

_NODES = (SparseWeight, WeightSum, SplitWeight, PackedPattern)


class Entries(NamedTuple):
    """What a tree consists of.

    Attributes:
        values: by name, such as "encoder/0/kernel": arrays and patterns.
        nodes: by name, what has a pattern inside: its type and its static parts, for JSON.
        lists: the names of lists and tuples; all other containers have names in them.
        rebuild: the tree, of entries like these by name.
    """

    values: dict[str, Any]
    nodes: dict[str, dict]
    lists: list[str]
    rebuild: Callable[[dict[str, Any], dict[str, dict]], Any]


def entries_of(function: str, tree) -> Entries:
    """The entries of a pytree or of an NNX model.

    Raises:
        ValueError: two entries with one name.
    """
    if is_nnx(tree):
        return _of_model(function, tree)
    leaves, treedef = jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_own)
    values, nodes, lists, names = {}, {}, set(), []
    for path, leaf in leaves:
        parts = [jax.tree_util.keystr((key,), simple=True) for key in path]
        for i, key in enumerate(path):
            if isinstance(key, jax.tree_util.SequenceKey):
                lists.add("/".join(parts[:i]))
        name = "/".join(parts)
        names.append(name)
        for below, value in _taken_apart(name, leaf, nodes):
            if below in values:
                raise ValueError(
                    f"{function}: each entry must have a name of its own, got {below!r} twice. "
                    'Leave "/" out of the keys of dicts.'
                )
            values[below] = value

    def rebuild(values, nodes):
        return treedef.unflatten([put_together(name, values, nodes) for name in names])

    return Entries(values, nodes, sorted(lists), rebuild)


def nested(values: dict[str, Any], nodes: dict[str, dict], lists: list[str]) -> Any:
    """Entries without a tree to put them into: as nested dicts, and lists where there were some."""
    whole: Any = {}
    tops = [name for name in nodes if not any(name.startswith(f"{n}/") for n in nodes if n != name)]
    inside = lambda name: any(name == top or name.startswith(_prefix(top)) for top in tops)
    for name in (*tops, *(name for name in values if not inside(name))):
        value = put_together(name, values, nodes)
        if not name:
            return value  # the tree is one weight
        place, parts = whole, name.split("/")
        for part in parts[:-1]:
            place = place.setdefault(part, {})
        place[parts[-1]] = value

    def listed(name, tree):
        if not isinstance(tree, dict):
            return tree
        items = {key: listed(f"{name}/{key}" if name else key, item) for key, item in tree.items()}
        if name not in lists:
            return items
        return [items.get(str(i)) for i in range(1 + max(map(int, items)))]  # None is no entry

    return listed("", whole)


def put_together(name: str, values: dict[str, Any], nodes: dict[str, dict]) -> Any:
    """The leaf of this name: an array, a pattern, or what has a pattern inside."""
    node = nodes.get(name)
    if node is None:
        return values[name]
    inner = lambda part: put_together(f"{_prefix(name)}{part}", values, nodes)
    if node["type"] == "WeightSum":
        return WeightSum(tuple(inner(f"parts/{i}") for i in range(node["parts"])))
    if node["type"] == "PackedPattern":
        return PackedPattern(inner("pattern"), tuple(node["kernel_shape"]))
    if node["type"] == "SplitWeight":
        return SplitWeight(inner("values"), inner("pattern"), node["features"])
    return SparseWeight(inner("values"), inner("pattern"))


def is_nnx(tree) -> bool:
    """Whether this is a model of NNX, or another of its objects such as an optimizer."""
    nnx = sys.modules.get("flax.nnx")  # whoever has a model has imported it
    return nnx is not None and isinstance(tree, nnx.Pytree)


def _of_model(function: str, model) -> Entries:
    nnx = sys.modules["flax.nnx"]
    graph, state = nnx.split(model)
    inner = entries_of(function, nnx.to_pure_dict(state))

    def rebuild(values, nodes):
        new = jax.tree.map(lambda leaf: leaf, state)  # a copy: this changes it in place
        nnx.replace_by_pure_dict(new, inner.rebuild(values, nodes))
        return nnx.merge(graph, new)

    return inner._replace(rebuild=rebuild)


def _is_own(leaf) -> bool:
    return isinstance(leaf, (Pattern, *_NODES))


def _prefix(name: str) -> str:
    return f"{name}/" if name else ""


def _taken_apart(name: str, leaf, nodes: dict[str, dict]):
    """(name, array or pattern) of what is in a leaf; its nodes are added to those given."""
    if not isinstance(leaf, _NODES):
        yield name, leaf
        return
    node: dict[str, Any] = {"type": type(leaf).__name__}
    if isinstance(leaf, WeightSum):
        parts = {f"parts/{i}": part for i, part in enumerate(leaf.parts)}
        node["parts"] = len(leaf.parts)
    elif isinstance(leaf, PackedPattern):
        parts = {"pattern": leaf.pattern}
        node["kernel_shape"] = list(leaf.kernel_shape)
    else:
        parts = {"values": leaf.values, "pattern": leaf.pattern}
        if isinstance(leaf, SplitWeight):
            node["features"] = leaf.features
    nodes[name] = node
    for part, value in parts.items():
        yield from _taken_apart(f"{_prefix(name)}{part}", value, nodes)
