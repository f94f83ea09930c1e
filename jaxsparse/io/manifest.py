"""What a checkpoint says of itself, and whether that is what is wanted."""

import hashlib
import json
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.dtypes import prng_key

from jaxsparse.formats.pattern import Pattern
from jaxsparse.io.entries import Entries

VERSION = 1


def make(entries: Entries, facts: dict[str, dict]) -> dict[str, Any]:
    """The manifest of a tree.

    Args:
        entries: of the tree.
        facts: of each entry, as `stored` returns them.
    """
    manifest = {
        "jaxsparse_checkpoint": VERSION,
        "entries": facts,
        "nodes": entries.nodes,
        "lists": entries.lists,
    }
    return manifest | {"fingerprint": fingerprint(manifest)}


def fingerprint(manifest: dict[str, Any]) -> str:
    """A hash of all that a manifest says, patterns included."""
    said = {name: value for name, value in manifest.items() if name != "fingerprint"}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def check(function: str, manifest) -> None:
    """Raises unless this is a manifest of ours that nobody has changed."""
    if not isinstance(manifest, dict) or "jaxsparse_checkpoint" not in manifest:
        raise ValueError(
            f"{function}: the checkpoint must have a manifest of jaxsparse.io.save, got another "
            "one. For a checkpoint of something else use jaxsparse.io.load_dense."
        )
    if manifest["jaxsparse_checkpoint"] > VERSION:
        raise ValueError(
            f"{function}: checkpoints up to version {VERSION} can be read, got "
            f"{manifest['jaxsparse_checkpoint']}. Install a newer jaxsparse."
        )
    if manifest.get("fingerprint") != fingerprint(manifest):
        raise ValueError(
            f"{function}: the manifest's fingerprint must be that of its entries, got another one. "
            "The manifest was changed after it was written."
        )


def check_matches(
    function: str, manifest: dict[str, Any], target: Entries, any_capacity: bool
) -> None:
    """Raises unless everything in the checkpoint can take its place in the target.

    Args:
        function: for errors.
        manifest: of the checkpoint.
        target: what is wanted.
        any_capacity: whether patterns may store another number of parts than those of the target.
    """
    for name in sorted(set(manifest["nodes"]) | set(target.nodes)):
        if manifest["nodes"].get(name) != target.nodes.get(name):
            raise ValueError(
                f"{function}: {name!r} must be stored as in the target, "
                f"{_node(target.nodes.get(name))}, got {_node(manifest['nodes'].get(name))}. Load "
                "into a model of the same kind; pack or unpack it then."
            )
    saved = manifest["entries"]
    for missing, what, advice in (
        (sorted(set(target.values) - set(saved)), "the checkpoint lacks", "the target has"),
        (sorted(set(saved) - set(target.values)), "the target lacks", "the checkpoint has"),
    ):
        if missing:
            shown = ", ".join(map(repr, missing[:4])) + (", ..." if len(missing) > 4 else "")
            raise ValueError(
                f"{function}: checkpoint and target must have the same entries, got {shown}, which "
                f"{advice} and {what}. Load without a target to see what there is; for a dense "
                "checkpoint use jaxsparse.io.load_dense."
            )
    sizes = set()  # of the values that a pattern places: in the target, in the checkpoint
    for name, value in target.values.items():
        if isinstance(value, Pattern):
            _check_pattern(function, name, value, saved[name], any_capacity)
            here = tuple(value.values_shape)
            lead = len(value.group)
            sizes.add((here, (*here[:lead], saved[name]["capacity"], *here[lead + 1 :])))
    for name, value in target.values.items():
        if not isinstance(value, Pattern):
            _check_array(function, name, value, saved[name], sizes if any_capacity else set())


def _check_pattern(function, name, pattern: Pattern, facts, any_capacity) -> None:
    if facts["kind"] != "pattern":
        raise ValueError(
            f"{function}: {name!r} must be a pattern as in the target, got an array. Load into a "
            "model of the same kind."
        )
    wanted = {
        "format": str(pattern.format),
        "shape": list(pattern.shape),
        "group": list(pattern.group),
    }
    for what, value in wanted.items():
        if facts[what] != value:
            raise ValueError(
                f"{function}: the pattern {name!r} must have the target's {what}, {value}, got "
                f"{facts[what]}. Make the model as it was made when the checkpoint was written."
            )
    if facts["capacity"] != pattern.capacity and not any_capacity:
        noun = pattern.format.noun
        raise ValueError(
            f"{function}: the pattern {name!r} has room for {pattern.capacity} {noun} in the "
            f"target, got {facts['capacity']} in the checkpoint. Give any_capacity=True to take "
            "the checkpoint's."
        )


def _check_array(function, name, value, facts, sizes) -> None:
    shape = tuple(np.shape(value))
    dtype = getattr(value, "dtype", None)
    dtype = np.asarray(value).dtype if dtype is None else dtype
    is_key = jnp.issubdtype(dtype, prng_key)
    wanted = "key" if is_key else np.dtype(dtype).name
    if facts["kind"] == "pattern":
        raise ValueError(
            f"{function}: {name!r} must be an array as in the target, got a pattern. Load into a "
            "model of the same kind."
        )
    if facts["dtype"] != wanted:
        raise ValueError(
            f"{function}: {name!r} must have the target's dtype, {wanted}, got {facts['dtype']}. "
            "Change the target, or load without one and cast."
        )
    found = tuple(facts["shape"])
    if found != shape and (shape, found) not in sizes:
        raise ValueError(
            f"{function}: {name!r} must have the target's shape, {shape}, got {found}. Make the "
            "target as it was made when the checkpoint was written."
        )


def _node(node) -> str:
    if node is None:
        return "plain"
    facts = ", ".join(f"{name}={value}" for name, value in node.items() if name != "type")
    return f"{node['type']}({facts})"
