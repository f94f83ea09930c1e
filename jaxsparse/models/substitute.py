"""`sparsify` and `densify`, for models of both Flax frameworks."""

from collections.abc import Iterable, Mapping
from typing import Any

from jaxsparse.layers.options import without_flax
from jaxsparse.models.rules import Rule, Rules


def sparsify(
    model,
    rules: Rule | Iterable[Rule],
    variables=None,
    *sample,
    masks: Mapping | None = None,
    **call,
) -> Any:
    """The model with sparse layers in place of dense ones, and a table of what became of each.

    Every linear and convolutional layer of Flax whose path a rule matches gets a pattern; its
    kernel stays a parameter of the same name and shape, zero where the pattern stores nothing. The
    first rule that matches decides. What was given stays as it is, and shares no variables with
    the result.

        model, summary = sparsify(model, Rule(".*", "32x32", sparsity=0.9))                # nnx
        model, variables, summary = sparsify(model, Rule(".*", "32x32"), variables, x)     # linen

    Args:
        model: a `flax.nnx.Module`, or an unbound `flax.linen.Module`. Only layers of exactly
            Flax's types are replaced, in containers of every kind; layers that are tied stay tied,
            and those that `vmap` or `scan` has stacked get a pattern each, all of one size.
        rules: a Rule or several.
        variables: of a linen model, all that `init` returned.
        *sample: what a linen model is called with, arrays or `jax.ShapeDtypeStruct`s: its layers
            exist only while it runs. Nothing is computed. Layers that this call does not reach stay
            dense.
        masks: bool arrays of the shapes of kernels, by the paths of layers: which weights are
            stored, in place of a rule's `sparsity`. A dict, or dicts in one another as parameters
            are. Patterns stand for their masks, such as those that `jaxsparse.pruning.select` and
            `select_n_m` make of parameters.
        **call: keyword arguments of that call, or of `apply`, such as `train=False`, `rngs=...`.

    Returns:
        `(model, summary)`, or `(model, variables, summary)` for linen. The summary prints as a
        table of every layer with its path, shape, format and density, and why it is dense if it
        is. A linen model is of a subclass of its class; its variables have the collection
        "sparsity", which `nn.scan` and `nn.vmap` must have in `variable_axes` where "params" is.

    Raises:
        ValueError: a rule or a mask that is for no layer, a format that does not fit a layer, a
            mask of another shape, zeros that are not known because they are traced.
        TypeError: what is no model, rule or mask.
    """
    if is_nnx("sparsify", model, variables):
        from jaxsparse.models import nnx

        if sample or call:
            raise TypeError("sparsify: an nnx model needs no sample, got one. Leave it out.")
        return nnx.sparsify(model, Rules(rules, masks))
    from jaxsparse.models import linen

    if not sample and not call:
        raise ValueError(
            "sparsify: the layers of a linen model exist only while it runs, got no sample to run "
            "it with. Write sparsify(model, rules, variables, x), with arrays or "
            "jax.ShapeDtypeStructs as init takes them."
        )
    return linen.sparsify(model, Rules(rules, masks), variables, sample, call)


def densify(model, variables=None) -> Any:
    """The inverse of `sparsify`: Flax's own layers, with zeros where weights were not stored.

    Args:
        model: as for `sparsify`; stays as it is. Layers of `jaxsparse.nnx` that were made by hand
            become Flax's, too; those of `jaxsparse.linen`, which the model's own code makes, keep
            their patterns. Packed ones are unpacked.
        variables: of a linen model.

    Returns:
        The model, or `(model, variables)` for linen, as plain Flax makes them.

    Raises:
        ValueError, TypeError: what is no model, or variables that are missing.
    """
    if is_nnx("densify", model, variables):
        from jaxsparse.models import nnx

        return nnx.densify(model)
    from jaxsparse.models import linen

    return linen.densify(model, variables)


def is_nnx(function: str, model, variables) -> bool:
    """Whether this is an NNX model, and not one of Linen with its variables."""
    try:
        from flax import linen, nnx
    except ModuleNotFoundError as error:
        raise without_flax(f"jaxsparse.{function}", error) from error
    if isinstance(model, nnx.Module):
        if variables is not None:
            raise TypeError(
                f"{function}: an nnx model holds its variables, got others. Leave them out."
            )
        return True
    if not isinstance(model, linen.Module):
        raise TypeError(
            f"{function}: a model is a flax.nnx.Module or a flax.linen.Module, got "
            f"{type(model).__name__}."
        )
    check_linen(function, model, variables)
    return False


def check_linen(function: str, model, variables) -> None:
    """Raises unless this is an unbound Linen model with its variables."""
    if not isinstance(variables, Mapping) or "params" not in variables:
        raise ValueError(
            f'{function}: a linen model comes with its variables, {{"params": ...}}, got '
            f"{sorted(variables) if isinstance(variables, Mapping) else type(variables).__name__}. "
            "Pass all that init returned."
        )
    if model.scope is not None:
        raise ValueError(
            f"{function}: a linen model must be unbound, got one with variables inside. Use "
            "model.unbind()."
        )
