"""`pack`, for models of both Flax frameworks: what they store for deployment."""

from typing import Any

import numpy as np

from jaxsparse.models.channels import Channels, Kept
from jaxsparse.models.program import framework
from jaxsparse.models.substitute import is_nnx


def pack(model, *sample, remove_empty: bool = False, **call) -> Any:
    """The model for deployment: sparse layers store values only; channels that do nothing can go.

        model, summary = pack(model)                                         # nnx
        model, variables, summary = pack(model, variables)                   # linen
        model, summary = pack(model, x, remove_empty=True)                   # nnx
        model, variables, summary = pack(model, variables, x, remove_empty=True)

    What the model returns stays the same. With `remove_empty` it does to the rounding of sums that
    are shorter: an output channel goes where no layer has a weight for what it becomes; or where
    its layer has none, and its bias is zero once it gets there, as behind ReLU if negative. With it
    go the weights of the layers that took it, entries of batch normalization in between, and
    channels that did nothing but feed it. That is proven by the program of the model, never
    assumed: through functions of each element, sums of branches, pooling, and batch normalization
    by running averages. Everything else, such as what the model returns, keeps all its channels,
    and the summary says why. A layer of which every weight is stored is then Flax's dense one.

    Args:
        model: a `flax.nnx.Module`, or an unbound `flax.linen.Module`; stays as it is, and shares no
            variables with the result.
        *sample: the variables of a linen model; and with `remove_empty` what the model is called
            with, arrays or `jax.ShapeDtypeStruct`s. Nothing is computed.
        remove_empty: whether to remove channels, of linear layers, convolutions and transposed
            ones. As with weights that are not stored, what would have multiplied Inf or NaN by zero
            no longer does.
        **call: keyword arguments of that call, or of `apply`, such as `train=False`.

    Returns:
        `(model, summary)`, or `(model, variables, summary)` for linen. The summary is a table of
        every layer with its kernel's new shape, its format and density, and what was done.

    Raises:
        TypeError, ValueError: what is no model, variables or a sample that are missing, a kernel
            that must be seen whole by something else.
    """
    of_linen = framework(model) == "linen"
    variables = sample[0] if of_linen and sample else None
    inputs = sample[1:] if of_linen else sample
    if is_nnx("pack", model, variables):
        from jaxsparse.models import pack_nnx as road
    else:
        from jaxsparse.models import pack_linen as road
    if (inputs or call) and not remove_empty:
        raise TypeError(
            "pack: a sample is for finding channels that do nothing, got one with "
            "remove_empty=False. Leave it out, or set remove_empty=True."
        )
    given = road.Whole(model, variables, inputs, call)
    if not remove_empty:
        return given.packed({})
    if not inputs and not call:
        raise ValueError(
            "pack: channels that do nothing are found in the program of a model, got no sample to "
            "trace it with. Write pack(model, x, remove_empty=True), with the variables before x "
            "for a linen model."
        )
    smaller, notes = _without_idle_channels(given)
    return smaller.packed(notes)


def _without_idle_channels(given) -> tuple[Any, dict[str, str]]:
    """The model without channels that do nothing, and a note for each layer."""
    weights, reasons = given.weights()
    channels = Channels(given.program(), weights)
    among = [group for group in channels.groups if group.why_not is None]
    kept = channels.kept(among)
    smaller = given.without(kept)
    if kept and not _is_same_outside(channels, smaller):
        why = "code outside of layers depends on how many channels there are"
        for group in list(among):  # one by one, to blame no other
            alone = channels.kept([group])
            if alone and not _is_same_outside(channels, given.without(alone)):
                group.must_stay(why)
        among = [group for group in among if group.why_not is None]
        kept = channels.kept(among)
        smaller = given.without(kept)
        if kept and not _is_same_outside(channels, smaller):
            for group in among:
                group.must_stay(why)
            kept = channels.kept([])
            smaller = given.without(kept)
    return smaller, {**reasons, **_notes(channels, weights, kept)}


def _is_same_outside(channels: Channels, smaller) -> bool:
    """Whether a model without channels still does the same around its layers."""
    try:
        found = Channels(smaller.program(), smaller.weights()[0], with_values=False)
        return found.outside == channels.outside
    except Exception:  # of the user's code, which has a size written into it
        return False


def _notes(channels: Channels, weights, kept: Kept) -> dict[str, str]:
    """What became of the channels of each layer, by its path."""
    sides = (
        ("inputs", (0, 2), channels.of_inputs, kept.inputs, "another layer takes them"),
        (
            "outputs",
            (0, 1),
            channels.of_outputs,
            kept.outputs,
            "their biases do not come to zero where they are taken, or another layer adds to them",
        ),
    )
    notes = {}
    for path, weight in weights.items():
        said = []
        for noun, axes, groups, keeps, otherwise in sides:
            idle = ~weight.kernel.any(axes)
            keep = keeps.get(path, np.ones_like(idle))
            if not keep.all():
                said.append(f"{(~keep).sum()} of {keep.size} {noun} removed")
            if count := (idle & keep).sum():
                group = groups.get(path)
                why = "they come from elsewhere" if group is None else group.why_not or otherwise
                why = "it runs in a loop, or not at all" if path in channels.unseen else why
                said.append(f"{count} {noun} without weights stay, as {why}")
        notes[path] = "; ".join(said) or "every channel has weights"
    return notes
