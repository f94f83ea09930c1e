"""Sparse layers for Flax NNX: Flax's own, with a sparse kernel where one is asked for.

The parameters stay Flax's while a model trains: `kernel` has its whole shape, with exact zeros
where the pattern stores nothing, and the pattern is a variable of another type. `pack` makes the
form that stores values only.
"""

from jaxsparse.layers.options import without_flax as _without_flax

try:
    import jaxsparse.layers.serialization  # noqa: F401 (flax.serialization then knows patterns)
    from jaxsparse.nnx.conv import Conv, ConvTranspose
    from jaxsparse.nnx.linear import Linear, LinearGeneral
    from jaxsparse.nnx.masked import MaskedConv, MaskedConvTranspose
    from jaxsparse.nnx.prune import prune, start_pruning
    from jaxsparse.nnx.sparsity import Sparsity, apply_patterns, pack, unpack
except ModuleNotFoundError as error:
    raise _without_flax("jaxsparse.nnx", error) from error

__all__ = [
    "Conv",
    "ConvTranspose",
    "Linear",
    "LinearGeneral",
    "MaskedConv",
    "MaskedConvTranspose",
    "Sparsity",
    "apply_patterns",
    "pack",
    "prune",
    "start_pruning",
    "unpack",
]
