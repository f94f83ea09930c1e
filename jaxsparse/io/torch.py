"""State dicts of PyTorch in Flax models, dense or sparse, and back."""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from jaxsparse.formats.torch_layout import weight_from_torch, weight_to_torch
from jaxsparse.io.dense import PATTERNS, fill, random_states
from jaxsparse.io.entries import entries_of, is_nnx

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
    given = {name: a for name, a in state_dict.items() if not _is_counter(name)}
    is_transposed = _transposed_layers(like, transposed)

    def find(name: str, shape):
        key, layer, parameter = _theirs(name, names)
        if key not in given:
            return None
        if parameter != "kernel":
            return _of_axes(np.asarray(given[key]), shape), key
        kernel = weight_from_torch(given[key], transposed=is_transposed(layer))
        if len(shape) != kernel.ndim and kernel.ndim == 2:
            kernel = jax.numpy.reshape(kernel, shape)  # inputs or outputs on several axes
        return kernel, key

    return fill("from_torch", like, find, patterns, set(given))


def to_torch(
    model,
    like,
    *,
    names: Mapping[str, str] | Callable[[str], str] | None = None,
    transposed: str | None = None,
) -> dict[str, np.ndarray]:
    """The state dict that gives a PyTorch model the weights of this one: the way back.

        state = to_torch(model, network.state_dict())
        network.load_state_dict({name: torch.from_numpy(a) for name, a in state.items()})

    Args:
        model: a model of `flax.nnx`, or variables of a linen one, dense or sparse, packed or not.
        like: `network.state_dict()` of the PyTorch model, of which names and shapes count.
        names, transposed: as for `from_torch`.

    Returns:
        Arrays of NumPy by PyTorch's names, with zeros where nothing is stored. Those of bfloat16,
        which PyTorch does not take from NumPy, are in float32.

    Raises:
        ValueError: names or shapes that do not fit; something is left over on either side.
    """
    given = {name: tuple(a.shape) for name, a in like.items() if not _is_counter(name)}
    is_transposed, skipped = _transposed_layers(model, transposed), random_states(model)
    state, lacking = {}, []
    for name, value in entries_of("to_torch", _dense(model)).values.items():
        if name in skipped:
            continue
        key, layer, parameter = _theirs(name, names)
        if key not in given:
            lacking.append(name)
            continue
        shape, array = given[key], np.array(value)  # PyTorch wants to write into it
        if parameter == "kernel":
            if array.ndim != len(shape) == 2:  # inputs or outputs on several axes
                array = _of_axes(array, shape[::-1])
            array = weight_to_torch(array, transposed=is_transposed(layer))
        elif array.dtype == jax.numpy.bfloat16:
            array = array.astype(np.float32)
        state[key] = _of_axes(array, shape)
        if state[key].shape != shape:
            raise ValueError(
                f"to_torch: {name!r} must have PyTorch's shape {shape} in its order of axes, got "
                f"{state[key].shape}. Make the PyTorch model for this one."
            )
    left = sorted(given.keys() - state.keys())
    for wrong, what in ((lacking, "that PyTorch's lacks"), (left, "that this one lacks")):
        if wrong:
            shown = ", ".join(map(repr, wrong[:4])) + (", ..." if len(wrong) > 4 else "")
            raise ValueError(
                f"to_torch: both models must have the same weights, got {shown}, {what}. Give "
                "names for layers that are called otherwise."
            )
    return state


def _is_counter(name: str) -> bool:
    """Whether this counts batches, which nothing here does."""
    return name.rpartition(".")[2] == "num_batches_tracked"


def _theirs(name: str, names) -> tuple[str, str, str]:
    """PyTorch's name of an entry, and the entry's layer and parameter."""
    for collection in _COLLECTIONS:
        name = name.removeprefix(collection)
    layer, _, parameter = name.removesuffix("/value").rpartition("/")
    theirs = layer.replace("/", ".")
    if callable(names):
        theirs = names(layer)
    elif names is not None:
        theirs = names.get(layer, theirs)
    own = _NAMES.get(parameter, parameter)
    return f"{theirs}.{own}" if theirs else own, layer, parameter


def _of_axes(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The array on as many axes as the shape has, where it has as many entries."""
    return (
        array.reshape(shape)
        if array.ndim != len(shape) and array.size == math.prod(shape)
        else array
    )


def _dense(model) -> Any:
    """The model with whole kernels, zero where nothing is stored, and without patterns."""
    if is_nnx(model):
        from jaxsparse.models import nnx

        return nnx.densify(model)
    from jaxsparse.linen import apply_patterns, unpack
    from jaxsparse.linen.variables import COLLECTION

    if COLLECTION not in model:
        return model
    whole = apply_patterns(unpack(model))
    return {name: whole[name] for name in whole if name != COLLECTION}


def _transposed_layers(model, expression: str | None) -> Callable[[str], bool]:
    """Whether the layer of a path is a transposed convolution whose kernel has Flax's order."""
    known: dict[str, bool] = {}
    if is_nnx(model):
        from flax import nnx

        known = {
            "/".join(map(str, path)): not module.transpose_kernel
            for path, module in nnx.iter_modules(model)
            if isinstance(module, nnx.ConvTranspose)
        }
    is_named = lambda path: expression is not None and re.fullmatch(expression, path) is not None
    return lambda path: known.get(path, False) or is_named(path)
