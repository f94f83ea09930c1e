"""Sparse layers for Flax Linen: Flax's own, with a sparse kernel where one is asked for.

The parameters stay Flax's while a model trains: `kernel` has its whole shape, with exact zeros
where the pattern stores nothing, and the pattern is in the collection "sparsity". `pack` makes the
variables that store values only; the same modules run them.
"""

from jaxsparse.layers.options import without_flax as _without_flax

try:
    import jaxsparse.layers.serialization  # noqa: F401 (flax.serialization then knows patterns)
    from jaxsparse.linen.conv import Conv, ConvTranspose
    from jaxsparse.linen.linear import Dense, DenseGeneral
    from jaxsparse.linen.masked import MaskedConv, MaskedConvTranspose
    from jaxsparse.linen.variables import apply_patterns, pack, unpack
except ModuleNotFoundError as error:
    raise _without_flax("jaxsparse.linen", error) from error

__all__ = [
    "Conv",
    "ConvTranspose",
    "Dense",
    "DenseGeneral",
    "MaskedConv",
    "MaskedConvTranspose",
    "apply_patterns",
    "pack",
    "unpack",
]
