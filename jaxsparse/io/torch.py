"""State dicts of PyTorch in Flax models, dense or sparse."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from jaxsparse.formats.torch_layout import weight_from_torch
from jaxsparse.io.dense import PATTERNS, fill
from jaxsparse.io.entries import is_nnx

# What Flax calls the parameters of a layer, and PyTorch.
_NAMES = {
    "kernel": "weight",
    "scale": "weight",
    "embedding": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
_COLLECTIONS = ("params/", "batch_stats/")  # of linen
_NO_WEIGHT = "num_batches_tracked"


def from_torch(
    state_dict,
    like,
    *,
    names: Mapping[str, str] | Callable[[str], str] | None = None,
    transposed: str | None = None,
    patterns: str = "kept",
) -> Any:
    """A model with the weights of a PyTorch model: Linear, Conv, ConvTranspose, norms, embeddings.

    Kernels are brought into Flax's order of axes. What the layers compute is then the same where
    their arguments are; for transposed convolutions see `jaxsparse.weight_from_torch`.

    Args:
        state_dict: `model.state_dict()`, or what safetensors has read of one.
        like: a model of `flax.nnx`, or variables of a linen one, dense or sparse; it stays as it
            is.
        names: PyTorch's name of a layer for its path here, "features.0" for "features/0" by
            default: a dict for those that differ, or a function.
        transposed: a regular expression for the whole paths of layers that are transposed
            convolutions, in variables of linen, which do not say so.
        patterns: as for `jaxsparse.io.load_dense`.

    Returns:
        A new model, or variables.

    Raises:
        ValueError: names or shapes that do not fit; something is left over.
        TypeError: dtypes that do not fit.
    """
    if patterns not in PATTERNS:
        raise ValueError(
            f'from_torch: patterns is "kept", "largest" or "nonzero", got {patterns!r}.'
        )
    given = {name: a for name, a in state_dict.items() if name.rpartition(".")[2] != _NO_WEIGHT}
    kinds = _transposed_layers(like)

    def find(name: str, shape):
        for collection in _COLLECTIONS:
            name = name.removeprefix(collection)
        layer, _, parameter = name.removesuffix("/value").rpartition("/")
        theirs = layer.replace("/", ".")
        if callable(names):
            theirs = names(layer)
        elif names is not None:
            theirs = names.get(layer, theirs)
        key = ".".join(filter(None, (theirs, _NAMES.get(parameter, parameter))))
        if key not in given:
            return None
        array = given[key]
        if parameter != "kernel":
            return np.asarray(array), key
        is_transposed = kinds.get(layer, False)
        if transposed is not None and re.fullmatch(transposed, layer):
            is_transposed = True
        kernel = weight_from_torch(array, transposed=is_transposed)
        if len(shape) != kernel.ndim and kernel.ndim == 2:
            kernel = jax.numpy.reshape(kernel, shape)  # inputs or outputs on several axes
        return kernel, key

    return fill("from_torch", like, find, patterns, set(given))


def _transposed_layers(model) -> dict[str, bool]:
    """The paths of an NNX model's transposed convolutions whose kernels have Flax's order."""
    if not is_nnx(model):
        return {}
    from flax import nnx

    return {
        "/".join(map(str, path)): not module.transpose_kernel
        for path, module in nnx.iter_modules(model)
        if isinstance(module, nnx.ConvTranspose)
    }
