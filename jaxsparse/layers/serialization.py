"""Patterns in `flax.serialization`: `to_state_dict`, `to_bytes` and their inverses."""

import dataclasses

from flax import serialization

from jaxsparse.formats.block import BlockPattern
from jaxsparse.formats.columns import ColumnPattern
from jaxsparse.formats.weight import SparseWeight, WeightSum
from jaxsparse.layers.kernel import PackedPattern


def _register(cls, *names):
    def to_state(value):
        return {name: serialization.to_state_dict(getattr(value, name)) for name in names}

    def from_state(value, state):
        parts = {
            name: serialization.from_state_dict(getattr(value, name), state[name], name=name)
            for name in names
        }
        return dataclasses.replace(value, **parts)

    serialization.register_serialization_state(cls, to_state, from_state)


_register(BlockPattern, "rows", "cols")
_register(ColumnPattern, "places", "order")
_register(SparseWeight, "values", "pattern")
_register(WeightSum, "parts")
_register(PackedPattern, "pattern")
