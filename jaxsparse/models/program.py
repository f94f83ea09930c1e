"""A model and what it is called with, as one function whose layers are named."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

from jaxsparse.models.substitute import check_linen


@dataclasses.dataclass(frozen=True)
class Layer:
    """A layer with a weight.

    Attributes:
        path: from the model to the layer.
        kind: the name of its type.
        shape: of its whole kernel, stacked axes first.
        format: of its pattern; None for a dense layer.
        density: the share of the kernel that is stored.
        nbytes: of the kernel as it is stored, and of the pattern.
        why_dense: why there is no pattern; empty where there is one.
    """

    path: str
    kind: str
    shape: tuple[int, ...]
    format: str | None
    density: float
    nbytes: int
    why_dense: str = ""


@dataclasses.dataclass(frozen=True)
class Program:
    """A call of a model, or of a function.

    Attributes:
        function: takes `arguments`. What a layer does is in the scope `scope(path)`.
        arguments: trees of arrays, or of shapes; the parameters of a model come first.
        layers: of the model; empty for a function.
        is_model: whether the first argument holds parameters.
    """

    function: Callable
    arguments: tuple
    layers: tuple[Layer, ...]
    is_model: bool


def scope(path: str) -> str:
    """The name under which a layer runs, which `path_in` finds again."""
    return f"layer[{path}]"


def path_in(name_stack: str) -> str | None:
    """The path of the innermost layer in a name stack; None outside of all."""
    found = re.findall(r"layer\[(.*?)\]", name_stack)
    return found[-1] if found else None


def program(function: str, model, sample: tuple, call: Mapping[str, Any]) -> Program:
    """A call of a model or a function.

    Args:
        function: the public one, for errors.
        model: a `flax.nnx.Module`, an unbound `flax.linen.Module`, or any function.
        sample: what it is called with; the variables of a linen model come first.
        call: keyword arguments of that call, or of `apply` of a linen model.

    Raises:
        TypeError: what cannot be called.
        ValueError: variables that are missing.
    """
    flax = framework(model)
    if flax == "nnx":
        from jaxsparse.models import nnx

        return nnx.program(model, sample, call)
    if flax == "linen":
        from jaxsparse.models import linen

        variables = sample[0] if sample else None
        check_linen(function, model, variables)
        return linen.program(model, variables, sample[1:], call)
    if not callable(model):
        raise TypeError(
            f"{function}: a model is a flax.nnx.Module, a flax.linen.Module or a function, got "
            f"{type(model).__name__}."
        )
    return Program(lambda *sample: model(*sample, **call), sample, (), False)


def framework(model) -> str | None:
    """Either "nnx" or "linen" for their modules; Flax need not be there for anything else."""
    for base in type(model).__mro__:
        package, _, rest = base.__module__.partition(".")
        if package == "flax" and base.__name__ == "Module":
            return rest.partition(".")[0]
    return None
