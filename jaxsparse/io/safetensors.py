"""Trees with patterns in safetensors files: flat arrays, and the manifest as their metadata."""

import json
import pathlib
from typing import Any

import jax
import numpy as np

from jaxsparse.io import checkpoint
from jaxsparse.io.entries import entries_of, nested

_KEY = "jaxsparse"


def to_safetensors(path, tree) -> None:
    """Writes a tree or a model to a safetensors file, with zeros left out.

    Array names are those of the entries with "." for "/", and their parts: "Dense_0.kernel" where
    it is stored whole, "Dense_0.kernel.values" and "Dense_0.kernel.places" where zeros are left
    out. The manifest is the metadata "jaxsparse".

    Args:
        path: of the file; one that is there is replaced.
        tree: as for `jaxsparse.io.save`.

    Raises:
        ValueError, TypeError: as for `jaxsparse.io.save`.
        RuntimeError: safetensors is not installed.
    """
    safetensors = _safetensors("to_safetensors")
    arrays, manifest = checkpoint.to_arrays(tree)
    flat = {}
    for name, parts in arrays.items():
        for part, array in parts.items():
            flat[_flat_name(name, part)] = np.asarray(array, order="C")
    safetensors.numpy.save_file(flat, pathlib.Path(path), metadata={_KEY: json.dumps(manifest)})


def from_safetensors(path, like=None, *, any_capacity: bool = False) -> Any:
    """What `to_safetensors` wrote.

    Args:
        path: of the file. One of another program is read as nested dicts, if there is no `like`;
            for one into a sparse model see `jaxsparse.io.load_dense`.
        like, any_capacity: as for `jaxsparse.io.load`.

    Raises:
        ValueError: as for `jaxsparse.io.load`.
        RuntimeError: safetensors is not installed.
    """
    safetensors = _safetensors("from_safetensors")
    path = pathlib.Path(path)
    if not path.is_file():
        raise ValueError(f"from_safetensors: a safetensors file is needed, got {path}.")
    try:
        with safetensors.safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
        flat = safetensors.numpy.load_file(path)
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"from_safetensors: {path} must be a safetensors file, got another one ({error})."
        ) from error
    if _KEY not in metadata:
        if like is not None:
            raise ValueError(
                f"from_safetensors: {path} must be a file of to_safetensors, got one of another "
                "program. For its weights in a sparse model use jaxsparse.io.load_dense."
            )
        names = {name: name.replace(".", "/") for name in flat}
        return nested({names[n]: checkpoint.placed(a, None) for n, a in flat.items()}, {}, [])
    manifest = json.loads(metadata[_KEY])
    arrays = {
        name: {
            part: flat[_flat_name(name, part)]
            for part in facts["arrays"]
            if _flat_name(name, part) in flat
        }
        for name, facts in manifest["entries"].items()
    }
    return checkpoint.from_arrays(arrays, manifest, like, any_capacity=any_capacity)


def save_plain(path, tree) -> None:
    """Writes a tree of arrays as other programs do: whole, with "." in names, no random keys."""
    safetensors = _safetensors("to_safetensors")
    values = entries_of("to_safetensors", tree).values
    flat = {
        _flat_name(name, "whole"): np.asarray(array, order="C")
        for name, array in values.items()
        if not _is_random(array)
    }
    safetensors.numpy.save_file(flat, pathlib.Path(path))


def _is_random(array) -> bool:
    """Whether this is an array of random keys, which only JAX knows."""
    return isinstance(array, jax.Array) and jax.numpy.issubdtype(array.dtype, jax.dtypes.prng_key)


def _flat_name(name: str, part: str) -> str:
    flat = name.replace("/", ".")
    if part == "whole":
        return flat or "root"
    return f"{flat}.{part}" if flat else part


def _safetensors(function: str):
    try:
        import safetensors
        import safetensors.numpy
    except ModuleNotFoundError as error:
        raise RuntimeError(
            f"{function}: such files take safetensors. Install it: pip install safetensors."
        ) from error
    return safetensors
