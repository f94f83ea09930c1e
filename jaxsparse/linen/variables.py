"""What can be done with the variables of sparse Linen layers."""

from collections.abc import Callable, Mapping
from typing import Any

from flax.core import FrozenDict, freeze, meta

from jaxsparse.formats.pattern import Pattern
from jaxsparse.layers import kernel as kernels

COLLECTION = "sparsity"


def apply_patterns(variables):
    """The variables with all kernel entries off the patterns set to zero.

    For after an optimizer step or a new pattern: momentum, noise and dense gradients move entries
    that are not stored. Works inside `jax.jit`.

    Args:
        variables: `{"params": ..., "sparsity": ..., ...}`, a dict or FrozenDict.

    Raises:
        ValueError: there is no collection "params" or "sparsity", or they do not fit.
    """

    def masked(kernel, stored):
        if isinstance(stored, kernels.PackedPattern):
            return kernel, stored
        return meta.replace_boxed(kernel, kernels.mask(meta.unbox(kernel), stored)), stored

    return _convert("apply_patterns", variables, masked)


def pack(variables):
    """The variables of the same modules with values in place of whole kernels.

    What the modules compute stays the same. Kernels take the shape of the pattern's values, so
    packed variables need a new optimizer state and their own checkpoints.

    Args:
        variables: `{"params": ..., "sparsity": ..., ...}`, a dict or FrozenDict; they stay as they
            are.

    Returns:
        New variables. Sparse kernels lose the names of axes that `nn.with_partitioning` gave them;
        kernels that are packed already stay.

    Raises:
        ValueError: there is no collection "params" or "sparsity", or they do not fit.
    """

    def packed(kernel, stored):
        if isinstance(stored, kernels.PackedPattern):
            return kernel, stored
        return kernels.pack(meta.unbox(kernel), stored)

    return _convert("pack", variables, packed)


def unpack(variables):
    """The inverse of `pack`: whole kernels, with the same bits.

    Args, Returns, Raises: as for `pack`.
    """

    def unpacked(kernel, stored):
        if isinstance(stored, Pattern):
            return kernel, stored
        return kernels.unpack(meta.unbox(kernel), stored)

    return _convert("unpack", variables, unpacked)


def _convert(function: str, variables, convert: Callable[[Any, Any], tuple[Any, Any]]):
    """The variables with `convert(kernel, stored)` in place of each sparse layer's two."""
    for name in ("params", COLLECTION):
        if name not in variables:
            raise ValueError(
                f'{function}: the variables must have the collections "params" and "{COLLECTION}", '
                f"got {sorted(variables)}. Pass all that init returned."
            )

    def visit(path, params, sparsity):
        if "pattern" in sparsity and isinstance(
            sparsity["pattern"], Pattern | kernels.PackedPattern
        ):
            if not isinstance(params, Mapping) or "kernel" not in params:
                raise ValueError(
                    f'{function}: each pattern must have a kernel in "params", got none at '
                    f"{'/'.join(path) or 'the root'}. Pass variables of one model."
                )
            kernel, stored = convert(params["kernel"], sparsity["pattern"])
            params = {**params, "kernel": kernel}
            sparsity = {**sparsity, "pattern": stored}
        for name, inner in sparsity.items():
            if isinstance(inner, Mapping):
                below = params.get(name, {})
                new_params, new_sparsity = visit((*path, name), below, inner)
                if new_params is not below:
                    params = {**params, name: new_params}
                    sparsity = {**sparsity, name: new_sparsity}
        return params, sparsity

    params, sparsity = visit((), variables["params"], variables[COLLECTION])
    result = {**variables, "params": params, COLLECTION: sparsity}
    return freeze(result) if isinstance(variables, FrozenDict) else result
