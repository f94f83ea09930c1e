"""How `jax.export` writes down our pytrees: the static parts as JSON."""

import dataclasses
import json
from collections.abc import Callable

from jax import export

from jaxsparse.formats.block import Block, BlockPattern
from jaxsparse.formats.split import SplitWeight
from jaxsparse.formats.weight import SparseWeight


def register(cls: type, name: str, decode: Callable[..., tuple]) -> None:
    """Lets exported functions take and return a dataclass that is registered as a pytree.

    Args:
        cls: with static fields that are tuples, strings, Blocks or None.
        name: in the serialized form.
        decode: the static fields from what JSON makes of them, which knows no tuples.
    """
    export.register_pytree_node_serialization(
        cls,
        serialized_name=f"jaxsparse.{name}",
        serialize_auxdata=lambda static: json.dumps(static, default=_encode).encode(),
        deserialize_auxdata=lambda data: decode(*json.loads(bytes(data))),
    )


def _encode(value):
    if isinstance(value, Block):
        return value.shape
    return dataclasses.asdict(value)


register(BlockPattern, "BlockPattern", lambda shape, block: (tuple(shape), Block(tuple(block))))
register(SparseWeight, "SparseWeight", lambda: ())
register(SplitWeight, "SplitWeight", lambda features: (features,))
