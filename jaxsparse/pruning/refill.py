"""Refill: whole outputs out of unstructured masks; what is left is a smaller dense layer."""

import jax.numpy as jnp
import numpy as np

from jaxsparse.patterns import make
from jaxsparse.pruning import schedule as schedules
from jaxsparse.pruning import tree

CRITERIA = ("remaining", "l1", "feature_l1", "feature_l2", "feature_gradient")


def refill(masks, params, *, rate: float = 0.0, criterion: str = "l1", features=None, grads=None):
    """Masks of whole outputs: the best ones are filled up, the others emptied.

    A layer whose mask has as many weights as q whole outputs keeps floor(q + (outputs - q) * rate)
    of them. With a rate above 0 this is Refill+.

    Args:
        masks: a tree of bool arrays of the parameters' shapes, such as lottery tickets have, or
            None for what stays dense; known outside `jit`.
        params: a tree of arrays of the same structure, `[*kernel, in, out]`.
        rate: the share of the outputs that would be dropped which stay after all.
        criterion: what outputs are kept by: the number of "remaining" weights; "l1", the sum of the
            magnitudes of these; "feature_l1" and "feature_l2", the norms of what the layer returns;
            "feature_gradient", the sum of |feature * gradient|.
        features: for the last three, a tree of what the layers return, `[..., out]`.
        grads: for the last one, the gradients of the loss by these.

    Returns:
        A tree of masks. `jaxsparse.pruning.from_masks` makes patterns of it.

    Raises:
        ValueError, TypeError: a rate outside [0, 1], an unknown criterion, arrays that are missing
            or of another shape.

    On ties the first outputs stay, so that exactly as many are kept as the formula says.

    Source: Chen et al., Coarsening the Granularity: Towards Structurally Sparse Lottery Tickets,
    2022, arXiv:2202.04736.
    """
    schedules.check_share("refill", "rate", rate)
    if criterion not in CRITERIA:
        raise ValueError(f"refill: criterion is one of {', '.join(CRITERIA)}, got {criterion!r}.")
    layers = tree.named_leaves(params)
    given = tree.aligned("refill", params, masks, "masks")
    absent = [None] * len(layers)
    if (features is None) == criterion.startswith("feature"):
        raise ValueError(
            f"refill: features go with the criteria of their name, got criterion={criterion!r} and "
            f"{'no ' if features is None else ''}features."
        )
    if (grads is None) == (criterion == "feature_gradient"):
        raise ValueError(
            f'refill: grads go with "feature_gradient", got criterion={criterion!r} and '
            f"{'no ' if grads is None else ''}grads."
        )
    outputs = absent if features is None else tree.aligned("refill", params, features, "features")
    slopes = absent if grads is None else tree.aligned("refill", params, grads, "gradients")
    filled = []
    for (name, value), mask, feature, slope in zip(layers, given, outputs, slopes, strict=True):
        if mask is None:
            filled.append(None)
            continue
        mask = _checked(name, mask, value)
        scores = _scores(name, criterion, mask, value, feature, slope)
        filled.append(jnp.asarray(_filled(mask, scores, rate)))
    return tree.rebuilt(params, filled)


def _scores(name: str, criterion: str, mask, value, feature, slope) -> np.ndarray:
    """How much each output matters."""
    size_out = mask.shape[-1]
    if criterion == "remaining":
        return mask.reshape(-1, size_out).sum(0)
    if criterion == "l1":
        weights = np.where(mask, np.abs(np.asarray(value, np.float64)), 0)
        return weights.reshape(-1, size_out).sum(0)
    feature = _flat(name, feature, size_out)
    if criterion == "feature_l1":
        return abs(feature).sum(0)
    if criterion == "feature_l2":
        return (feature**2).sum(0)
    return abs(feature * _flat(name, slope, size_out)).sum(0)


def _filled(mask: np.ndarray, scores: np.ndarray, rate: float) -> np.ndarray:
    """The mask with whole outputs, those of highest scores."""
    size_out = mask.shape[-1]
    whole = mask.sum() / max(1, mask.size // max(1, size_out))
    # 1e-9: what is a whole number in exact arithmetic is not rounded down.
    number = int(whole + (size_out - whole) * rate + 1e-9)
    kept = np.zeros(size_out, bool)
    kept[np.argsort(-scores, kind="stable")[:number]] = True
    return np.broadcast_to(kept, mask.shape)


def _checked(name: str, mask, value) -> np.ndarray:
    if make.is_traced(mask, value):
        raise ValueError(f"refill: masks must be known, got a traced one for {name}.")
    mask = np.asarray(mask)
    if mask.dtype != bool or mask.shape != jnp.shape(value) or mask.ndim < 2:
        raise ValueError(
            f"refill: a mask is bool and of the shape of its weight, {jnp.shape(value)} for "
            f"{name}, got {mask.dtype} of shape {mask.shape}."
        )
    return mask


def _flat(name: str, array, size_out: int) -> np.ndarray:
    """What a layer returns, or its gradient, as `[values, out]`."""
    array = None if array is None else np.asarray(array, np.float64)
    if array is None or array.shape[-1:] != (size_out,):
        raise ValueError(
            f"refill: features and gradients have the outputs last, {size_out} for {name}, got "
            f"{None if array is None else array.shape}."
        )
    return array.reshape(-1, size_out)
