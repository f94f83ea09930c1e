"""Checkpoints: arrays as Orbax writes them, with a manifest beside them."""

import contextlib
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.io import manifest as manifests
from jaxsparse.io.entries import entries_of, nested
from jaxsparse.io.stored import restored, stored


def save(path, tree, *, overwrite: bool = False) -> None:
    """Writes a tree or a model to a folder, all or nothing.

    Zeros are left out, wherever they are: a kernel that is stored dense takes as much room as one
    that is packed. All bits come back.

    Args:
        path: of the folder.
        tree: a pytree of arrays, SparseWeights and patterns, such as the variables of a linen
            model or the state of a pruner; or a model or optimizer of `flax.nnx`.
        overwrite: whether a checkpoint that is there may go.

    Raises:
        ValueError: the folder exists; something is traced; a pattern that nothing takes.
        TypeError: a leaf is no array.
        RuntimeError: Orbax is not installed.
    """
    path = pathlib.Path(path).absolute()
    if path.exists() and not overwrite:
        raise ValueError(
            f"save: the folder must be new, got {path}. Give overwrite=True to replace it."
        )
    arrays, manifest = to_arrays(tree)
    ocp = orbax("save")
    parts = ocp.args.Composite(
        state=ocp.args.StandardSave(_by_part(arrays)), manifest=ocp.args.JsonSave(manifest)
    )
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        checkpointer.save(path, parts, force=overwrite)


def load(path, like=None, *, any_capacity: bool = False) -> Any:
    """What `save` wrote.

    Args:
        path: of the folder.
        like: a tree or model of the same structure, whose arrays may be
            `jax.ShapeDtypeStruct`s; it stays as it is. Names, shapes, dtypes, formats and numbers
            of stored parts must be those of the checkpoint; which parts are stored comes from
            there. Arrays go where those of `like` are. Without it, containers are dicts, and lists
            where there were lists or tuples.
        any_capacity: whether the checkpoint's patterns may store another number of parts, as after
            pruning.

    Returns:
        The tree, or a new model.

    Raises:
        ValueError: what is there is no such checkpoint, is damaged, or does not fit `like`.
        RuntimeError: Orbax is not installed.
    """
    ocp = orbax("load")
    path = existing("load", path)
    manifest = manifest_of(path)
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        state = {}
        if any(facts["arrays"] for facts in manifest["entries"].values()):
            parts = ocp.args.Composite(state=ocp.args.StandardRestore())
            with _damage_named(path):
                state = checkpointer.restore(path, parts).state
    arrays = {
        name: _at(state, name) if facts["arrays"] else {}
        for name, facts in manifest["entries"].items()
    }
    return from_arrays(arrays, manifest, like, any_capacity=any_capacity)


def manifest_of(path) -> dict[str, Any]:
    """What a checkpoint of `save` says of itself: "entries" by name, "nodes", "fingerprint".

    Args:
        path: of the folder.

    Raises:
        ValueError: what is there is no such checkpoint, or its manifest was changed.
        RuntimeError: Orbax is not installed.
    """
    ocp = orbax("load")
    path = existing("load", path)
    if not (path / "manifest").exists():
        raise ValueError(
            f"load: {path} must be a checkpoint of jaxsparse.io.save, got one without a manifest. "
            "For a checkpoint of something else use jaxsparse.io.load_dense."
        )
    parts = ocp.args.Composite(manifest=ocp.args.JsonRestore())
    handler = ocp.CompositeCheckpointHandler()
    with ocp.Checkpointer(handler) as checkpointer, _damage_named(path):
        manifest = checkpointer.restore(path, parts).manifest
    manifests.check("load", manifest)
    return manifest


@contextlib.contextmanager
def _damage_named(path) -> Iterator[None]:
    """Says which checkpoint it is that cannot be read."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError) as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(
            f"load: the checkpoint {path} is damaged, something in it cannot be read ({first}). "
            "Take another copy."
        ) from error


def to_arrays(tree) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """A tree as plain arrays and a manifest for JSON, for files of your own.

    With a CheckpointManager of Orbax: `Composite(state=StandardSave(arrays),
    manifest=JsonSave(manifest))`.

    Args:
        tree: as for `save`.

    Returns:
        `(arrays, manifest)`: for the name of each entry a dict of its arrays, "whole", or "values"
        and "places", and for groups their "order"; entries of zeros only have none.
    """
    entries = entries_of("save", tree)
    arrays, facts = {}, {}
    for name, value in entries.values.items():
        arrays[name], facts[name] = stored("save", name, value)
        facts[name]["arrays"] = sorted(arrays[name])
    return arrays, manifests.make(entries, facts)


def from_arrays(arrays, manifest, like=None, *, any_capacity: bool = False) -> Any:
    """The inverse of `to_arrays`.

    Args:
        arrays, manifest: as `to_arrays` returned them.
        like, any_capacity: as for `load`.

    Raises:
        ValueError: arrays and manifest do not belong together, or do not fit `like`.
    """
    manifests.check("load", manifest)
    target = None if like is None else entries_of("load", like)
    if target is not None:
        manifests.check_matches("load", manifest, target, any_capacity)
    values = {}
    for name, facts in manifest["entries"].items():
        value = restored(name, arrays.get(name, {}), facts)
        values[name] = placed(value, None if target is None else target.values[name])
    if target is None:
        return nested(values, manifest["nodes"], manifest["lists"])
    return target.rebuild(values, manifest["nodes"])


def load_plain(function: str, path) -> Any:
    """The tree that plain Orbax has written to a folder."""
    path = existing(function, path)
    ocp = orbax(function)
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            return checkpointer.restore(path)
    except (FileNotFoundError, ValueError, KeyError) as error:
        raise ValueError(
            f"{function}: {path} must be a checkpoint of jaxsparse.io.save or of Orbax's "
            f"StandardCheckpointer, got something else ({str(error).splitlines()[0]})."
        ) from error


def save_plain(function: str, path, tree, *, overwrite: bool) -> None:
    """Writes a tree of arrays to a folder as plain Orbax does."""
    ocp = orbax(function)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(pathlib.Path(path).absolute(), tree, force=overwrite)


def placed(value, like):
    """The value as a `jax.Array`, on the devices of `like`."""
    sharding = getattr(like, "sharding", None)
    if not isinstance(value, np.ndarray):
        is_array = isinstance(value, jax.Array) and isinstance(sharding, jax.sharding.Sharding)
        return jax.device_put(value, sharding) if is_array else value
    if jax.dtypes.canonicalize_dtype(value.dtype) != value.dtype:
        return value  # 64 bits, where JAX has 32
    if isinstance(sharding, jax.sharding.Sharding) and value.shape == like.shape:
        return jax.device_put(value, sharding)
    return jnp.asarray(value)


def _by_part(arrays: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Nested dicts, in which plain Orbax shows the tree."""
    whole: dict[str, Any] = {}
    for name, parts in arrays.items():
        if parts:
            place = whole
            for part in name.split("/"):
                place = place.setdefault(part or "root", {})
            place.update(parts)
    return whole or {"empty": np.zeros(1, np.uint8)}


def _at(state, name: str):
    for part in name.split("/"):
        state = state[part or "root"]
    return state


def existing(function: str, path) -> pathlib.Path:
    path = pathlib.Path(path).absolute()
    if not path.is_dir():
        raise ValueError(f"{function}: a checkpoint is a folder, got {path}, which is none.")
    return path


def orbax(function: str):
    try:
        from orbax import checkpoint
    except ModuleNotFoundError as error:
        raise RuntimeError(
            f"{function}: checkpoints take Orbax. Install it: pip install orbax-checkpoint."
        ) from error
    return checkpoint
