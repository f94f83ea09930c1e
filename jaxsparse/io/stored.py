"""How an entry of a checkpoint is stored: plain arrays, and facts for the manifest.

Zeros are left out where that saves room, so that a kernel which is stored dense takes as much as
one that is packed. Where the others are is stored as one bit for each place or as a list, whichever
is smaller: at 90 % zeros a float32 weight takes 0.4 bytes of values and 0.125 of places, where
SparseWeights have 0.8 in memory.
"""

import hashlib
import json
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.formats.columns import Grouped
from jaxsparse.formats.parse import as_format
from jaxsparse.formats.pattern import Pattern
from jaxsparse.patterns.make import is_traced, stack

_WORTH = 0.75  # of the bytes of a whole array: zeros are left out below it


def stored(function: str, name: str, value) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arrays in which an entry is stored, by role, and what the manifest says of it.

    Raises:
        ValueError: a pattern that nothing takes; what is traced.
        TypeError: what is no array.
    """
    if isinstance(value, Pattern):
        return _stored_pattern(function, name, value)
    if is_traced(value):
        raise ValueError(f"{function}: {name!r} is traced. Call it outside jit.")
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        facts = {"kind": "key", "impl": str(jax.random.key_impl(value)), "shape": value.shape}
        return {"whole": jax.random.key_data(value)}, _plain(facts | {"dtype": "key"})
    if not isinstance(value, jax.Array):
        value = np.asarray(value)
        if value.dtype.kind in "OSUM":
            raise TypeError(
                f"{function}: entries are arrays and patterns, got {value.dtype} for {name!r}. "
                "Leave it out of the tree."
            )
    facts = {"kind": "array", "shape": value.shape, "dtype": np.dtype(value.dtype).name}
    if value.size == 0:
        return {}, _plain(facts | {"stored": "zeros"})
    if isinstance(value, jax.Array) and not value.is_fully_addressable:
        return {"whole": value}, _plain(facts | {"stored": "whole"})
    host = np.asarray(value)
    is_set = _is_nonzero(host.ravel())
    count = int(is_set.sum())
    if count == 0:
        return {}, _plain(facts | {"stored": "zeros"})
    places, form = _stored_places(is_set)
    if count * host.itemsize + places.nbytes > _WORTH * host.nbytes:
        return {"whole": value}, _plain(facts | {"stored": "whole"})
    arrays = {"values": host.ravel()[is_set], "places": places}
    return arrays, _plain(facts | {"stored": form})


def restored(name: str, arrays: dict[str, Any], facts: dict[str, Any]) -> Any:
    """The entry again: a host array, a key or a pattern.

    Raises:
        ValueError: arrays that are not those of which the manifest speaks.
    """
    try:
        if facts["kind"] == "pattern":
            return _restored_pattern(name, arrays, facts)
        if facts["kind"] == "key":
            return jax.random.wrap_key_data(jnp.asarray(arrays["whole"]), impl=facts["impl"])
        shape, dtype = tuple(facts["shape"]), jnp.dtype(facts["dtype"])
        if facts["stored"] == "zeros":
            return np.zeros(shape, dtype)
        if facts["stored"] == "whole":
            whole = arrays["whole"]
        else:
            whole = np.zeros(math.prod(shape), dtype)
            is_set = _restored_places(arrays["places"], facts["stored"], whole.size)
            whole[is_set] = np.asarray(arrays["values"])
            whole = whole.reshape(shape)
        if tuple(whole.shape) != shape or whole.dtype != dtype:
            raise ValueError(f"{whole.dtype}{list(whole.shape)}")
    except (KeyError, ValueError, IndexError, TypeError) as error:
        raise ValueError(
            f"load: the arrays of {name!r} must be those that its manifest describes, "
            f"{facts['kind']} of shape {tuple(facts['shape'])}, got others ({error}). The "
            "checkpoint is damaged or was put together from two."
        ) from error
    return whole


def _stored_pattern(function: str, name: str, pattern: Pattern):
    if is_traced(*pattern.indices):
        raise ValueError(f"{function}: the pattern {name!r} is traced. Call it outside jit.")
    format, shape = pattern.format, pattern.shape
    indices = [np.asarray(index) for index in pattern.indices]
    is_stored = _is_stored(pattern, indices)
    order = indices[1] if isinstance(format, Grouped) else None
    made = _pattern(format, shape, pattern.group, pattern.capacity, is_stored, order)
    is_usable = all(np.array_equal(a, b) for a, b in zip(made.indices, indices))
    if isinstance(format, Grouped):
        is_usable &= bool((np.sort(indices[1]) == format.default_order(shape)).all())
    if not is_usable:
        raise ValueError(
            f"{function}: a pattern must be usable, got {pattern!r} for {name!r}, whose parts are "
            "out of order or range, or which was made inside jit with too small a capacity."
        )
    places, form = _stored_places(is_stored)
    arrays = {"places": places} if places.size else {}
    facts = {
        "kind": "pattern",
        "format": str(format),
        "shape": shape,
        "group": pattern.group,
        "capacity": pattern.capacity,
        "count": int(is_stored.sum()),
        "stored": form,
    }
    if isinstance(format, Grouped):
        is_default = (order == format.default_order(shape)).all()
        facts["order"] = "default" if is_default else "stored"
        if facts["order"] == "stored":
            arrays["order"] = indices[1]
    facts = _plain(facts)
    return arrays, facts | {"sha256": _digest(is_stored, arrays.get("order"))}


def _restored_pattern(name: str, arrays: dict[str, Any], facts: dict[str, Any]) -> Pattern:
    format, shape, group = as_format(facts["format"]), tuple(facts["shape"]), facts["group"]
    total, layers = math.prod(format.grid(shape)), math.prod(group)
    places = arrays.get("places", np.zeros(0, np.uint8))
    is_stored = _restored_places(places, facts["stored"], total * layers)
    order = arrays.get("order")
    if _digest(is_stored, order) != facts["sha256"]:
        raise ValueError("another pattern: its fingerprint differs")
    if isinstance(format, Grouped) and facts["order"] == "default":
        order = np.tile(format.default_order(shape), (layers, 1))
    return _pattern(format, shape, tuple(group), facts["capacity"], is_stored, order)


def _is_stored(pattern: Pattern, indices: list[np.ndarray]) -> np.ndarray:
    """For each place of each stacked pattern, one after the other, whether it is stored."""
    grid, spec, masks = pattern.grid, pattern.spec(), []
    for group in np.ndindex(*pattern.group):
        rows, cols = spec.positions(*(index[group] for index in indices))
        is_used = (rows >= 0) & (rows < grid[0]) & (cols >= 0) & (cols < grid[1])
        mask = np.zeros(grid, bool)
        mask[rows[is_used], cols[is_used]] = True
        masks.append(pattern.format.listed(mask, pattern.shape))
    return np.concatenate([np.zeros(0, bool), *masks])


def _pattern(format, shape, group, capacity: int, is_stored, order) -> Pattern:
    """The pattern of the places that are stored, the inverse of `_is_stored`."""
    layers, total = math.prod(group), math.prod(format.grid(shape))
    places = np.full((layers, capacity), total)
    for row, stored in zip(places, is_stored.reshape(layers, total)):
        found = np.flatnonzero(stored)[:capacity]
        row[: len(found)] = found
    orders = [None] * layers if order is None else np.asarray(order).reshape(layers, -1)
    patterns = [format.pattern(row, shape, order) for row, order in zip(places, orders)]
    return stack(patterns, group)


def _stored_places(is_set: np.ndarray) -> tuple[np.ndarray, str]:
    """Where true entries are: bits, or their numbers, whichever takes less; and which it is."""
    count = int(is_set.sum())
    width = 4 if is_set.size <= np.iinfo(np.int32).max else 8
    if count * width < is_set.size / 8:
        return np.flatnonzero(is_set).astype(f"int{8 * width}"), "list"
    return np.packbits(is_set), "bits"


def _restored_places(places, form: str, size: int) -> np.ndarray:
    places = np.asarray(places)
    if form == "bits":
        return np.unpackbits(places, count=size).astype(bool)
    is_set = np.zeros(size, bool)
    is_set[places] = True
    return is_set


def _is_nonzero(flat: np.ndarray) -> np.ndarray:
    """Where any bit is set: -0 is kept, and so is every NaN."""
    if flat.dtype.itemsize in (1, 2, 4, 8):
        return np.asarray(flat.view(f"uint{8 * flat.dtype.itemsize}") != 0)
    return np.asarray(flat.view(np.uint8).reshape(flat.size, -1).any(axis=1))


def _digest(is_stored: np.ndarray, order) -> str:
    digest = hashlib.sha256(np.packbits(is_stored).tobytes())
    if order is not None:
        digest.update(np.asarray(order, np.int32).tobytes())
    return digest.hexdigest()


def _plain(facts: dict[str, Any]) -> dict[str, Any]:
    """As JSON will give it back: lists for tuples."""
    return json.loads(json.dumps(facts))
