"""Saving and loading: trees and models with patterns, as Orbax checkpoints and in safetensors.

Every checkpoint has a manifest that says what was saved, so that nothing is restored into another
shape or onto another pattern. What is zero takes no room.
"""

from jaxsparse.io.checkpoint import from_arrays, load, manifest_of, save, to_arrays
from jaxsparse.io.dense import load_dense
from jaxsparse.io.safetensors import from_safetensors, to_safetensors
from jaxsparse.io.torch import from_torch, to_torch

__all__ = [
    "from_arrays",
    "from_safetensors",
    "from_torch",
    "load",
    "load_dense",
    "manifest_of",
    "save",
    "to_arrays",
    "to_safetensors",
    "to_torch",
]
