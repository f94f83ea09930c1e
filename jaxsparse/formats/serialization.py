"""How `jax.export` writes down our pytrees: the static parts as JSON."""

import json
from collections.abc import Callable

from jax import export

from jaxsparse.formats.block import BlockPattern
from jaxsparse.formats.columns import ColumnPattern
from jaxsparse.formats.parse import as_format
from jaxsparse.formats.pattern import Format
from jaxsparse.formats.split import SplitWeight
from jaxsparse.formats.weight import SparseWeight, WeightSum


def register(cls: type, name: str, decode: Callable[..., tuple]) -> None:
    """Lets exported functions take and return a dataclass that is registered as a pytree.

    Args:
        cls: with static fields that are tuples, strings, formats or None.
        name: in the serialized form.
        decode: the static fields from what JSON makes of them, which knows no tuples.
    """
    export.register_pytree_node_serialization(
        cls,
        serialized_name=f"jaxsparse.{name}",
        serialize_auxdata=lambda static: json.dumps(static, default=_encode).encode(),
        deserialize_auxdata=lambda data: decode(*json.loads(bytes(data))),
    )


def _encode(format: Format):
    return str(format)


def _pattern(shape, format):
    return tuple(shape), as_format(format)


register(BlockPattern, "BlockPattern", _pattern)
register(ColumnPattern, "ColumnPattern", _pattern)
register(SparseWeight, "SparseWeight", lambda: ())
register(WeightSum, "WeightSum", lambda: ())
register(SplitWeight, "SplitWeight", lambda features: (features,))
