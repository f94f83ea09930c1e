"""Which weights stay: how density is spread over layers, and the choice by scores."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.formats.columns import Unstructured
from jaxsparse.formats.parse import as_format
from jaxsparse.formats.pattern import Format, Pattern
from jaxsparse.patterns import make
from jaxsparse.patterns.dense import block_norms
from jaxsparse.pruning import tree

DISTRIBUTIONS = ("uniform", "erk", "global")
POOLS = ("norm", "sum")


def densities(shapes: Mapping[str, tuple[int, ...]], sparsity, *, distribution="uniform") -> dict:
    """The density of each layer, such that all together have the sparsity asked for.

    "uniform" gives each layer the same. "erk" (Erdős-Rényi-Kernel) gives a layer of shape
    `[*kernel, in, out]` a density proportional to `(sum(kernel) + in + out) / prod(shape)`, so that
    small layers stay denser; what would exceed 1 is dense, and the others share the rest.

    Args:
        shapes: of the weights, by name.
        sparsity: the share of zeros of all weights together; a number or a traced scalar.
        distribution: "uniform", "erk", or densities by name: layers that are not named share
            what these leave of the budget, uniformly.

    Returns:
        Numbers by name (traced scalars for a traced sparsity).

    Raises:
        ValueError: a sparsity outside [0, 1], an unknown name, or a budget that cannot be met.

    Source: Mocanu et al. 2018, doi:10.1038/s41467-018-04316-3; Evci et al. 2020, arXiv:1911.11134.
    """
    is_traced = make.is_traced(sparsity)
    if not is_traced:
        make.num_kept("densities", 0, sparsity)
    given = _check_distribution("densities", distribution, list(shapes))
    if distribution == "global":
        raise ValueError(
            'densities: distribution is "uniform", "erk" or densities by path, got "global", under '
            "which densities follow from scores. Use jaxsparse.pruning.select."
        )
    xp: Any = jnp if is_traced else np
    free = [name for name in shapes if name not in given]
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    total = sum(sizes.values())
    taken = sum(given[name] * sizes[name] for name in given)
    budget = (1 - sparsity) * total - taken
    room = sum(sizes[name] for name in free)
    if not is_traced and not -1e-6 * total <= budget <= room + 1e-6 * total:
        raise ValueError(
            f"densities: the given densities must leave from 0 to {room} weights for the other "
            f"{len(free)} layers, got sparsity={sparsity}, which leaves {budget:.0f}. Change the "
            "sparsity or the given densities."
        )
    if not free:
        return dict(given)
    wanted = [
        sum(shapes[name]) / max(1, sizes[name]) if distribution == "erk" else 1.0 for name in free
    ]
    shared = _fill(wanted, [sizes[name] for name in free], xp.clip(budget, 0, room), xp)
    return {**dict.fromkeys(shapes), **given, **dict(zip(free, shared, strict=True))}


def _fill(wanted, sizes, budget, xp):
    """`min(1, scale * wanted)` for each layer, with the scale at which the budget is used up."""
    order = np.argsort(-np.asarray(wanted), kind="stable")
    wanted, sizes = np.asarray(wanted)[order], np.asarray(sizes, float)[order]
    # With the first k layers dense, the others share the rest. The right k is the first at which
    # none of the others would exceed 1.
    dense = np.concatenate([[0.0], np.cumsum(sizes)[:-1]])
    weight = np.maximum(np.cumsum((sizes * wanted)[::-1])[::-1], np.finfo(float).tiny)
    dtype = np.float32 if xp is jnp else float
    scales = xp.maximum(budget - dense.astype(dtype), 0) / weight.astype(dtype)
    is_possible = scales * wanted.astype(dtype) <= 1
    k = xp.minimum((~is_possible).sum(), len(sizes) - 1)
    filled = xp.minimum(scales[k] * wanted.astype(dtype), 1)
    return [filled[i] if xp is jnp else float(filled[i]) for i in np.argsort(order)]


def select(
    scores, sparsity, *, format=None, patterns=None, distribution="uniform", pool: str = "norm"
):
    """The patterns that store the parts of highest score.

    Args:
        scores: a tree of real arrays, one entry per weight, such as `magnitude(params)`.
        sparsity: the share of zeros of all chosen weights; a number, or a traced scalar.
        format: such as "unstructured", "32x32" or "grouped:8", for all leaves of two and more axes
            that are not called "bias" or "scale";
            or a function of a leaf's path ("encoder/0/kernel") and the leaf, which returns a format
            or None for what stays dense.
        patterns: instead of a format, a tree of patterns to choose from: only what they store may
            stay. The results have their formats and capacities, whatever the sparsity is.
        distribution: "uniform" or "erk", which fix each layer's density; "global", one threshold
            for all; or densities by path for some layers, as in `densities`.
        pool: the score of a part: the Euclidean "norm" of its weights' scores, or for scores that
            have signs their "sum".

    Returns:
        A tree of patterns, None for what stays dense. With `format` and a traced sparsity or
        traced scores under "global", capacities are those of the largest pattern possible.

    Raises:
        ValueError, TypeError: arguments that do not fit together, a layer that would keep nothing.
    """
    is_static = not make.is_traced(sparsity)
    if is_static:
        sparsity = _as_number("select", sparsity)
    if pool not in POOLS:
        raise ValueError(f'select: pool is "norm" or "sum", got {pool!r}.')
    layers = _layers(scores, format, patterns)
    chosen = [layer for layer in layers if layer is not None]
    _check_distribution("select", distribution, [layer.name for layer in chosen])
    if distribution == "global":
        made = _by_threshold(chosen, sparsity, pool)
    else:
        shapes = {layer.name: layer.shape for layer in chosen}
        shares = densities(shapes, sparsity, distribution=distribution)
        made = [_by_density(layer, shares[layer.name], sparsity, pool) for layer in chosen]
    made = iter(made)
    return tree.rebuilt(scores, [None if layer is None else next(made) for layer in layers])


def random_patterns(key, params, sparsity: float, *, format, distribution="uniform"):
    """Patterns of parts drawn evenly, as sparse training starts from.

    Args:
        key: a `jax.random` key.
        params: a tree of arrays, for its shapes.
        sparsity: the share of zeros of all chosen weights.
        format: as in `select`.
        distribution: "uniform", "erk", or densities by path, as in `densities`.

    Returns:
        A tree of patterns, None for what stays dense.

    Raises:
        ValueError: a layer that would keep nothing, a budget that cannot be met.
    """
    sparsity = _as_number("random_patterns", sparsity)
    layers = _layers(params, format, None)
    shapes = {layer.name: layer.shape for layer in layers if layer is not None}
    shares = densities(shapes, sparsity, distribution=distribution)
    keys = iter(jax.random.split(key, max(1, len(shapes))))
    made = []
    for layer in layers:
        if layer is not None:
            drawn = jax.random.uniform(next(keys), layer.format.grid(layer.shape))
            count = _num_parts(layer, shares[layer.name], sparsity)
            made.append(make.from_scores(drawn, layer.format, layer.shape, count))
        else:
            made.append(None)
    return tree.rebuilt(params, made)


def select_n_m(scores, n: int, m: int, *, format="unstructured"):
    """The patterns that store, of every `m` weights in a row, the `n` of highest score.

    The `m` weights are neighbours along the inputs of one output (of one tap of a convolution):
    N:M sparsity, stored as single weights. An array of three axes or more counts as a
    convolution's kernel: scores of a linear layer with several axes of inputs or outputs must be
    reshaped to `[in, out]`.

    Args:
        scores: a tree of real arrays, such as `magnitude(params)`.
        n, m: as in 2:4.
        format: "unstructured", or a function of a leaf's path and the leaf that returns it, or None
            for what stays dense.

    Returns:
        A tree of patterns, None for what stays dense. Works inside `jit`.

    Raises:
        ValueError: numbers that are none of N:M, inputs that are no multiple of `m`, another
            format.

    Source: Mishra et al., Accelerating Sparse Deep Neural Networks, 2021, arXiv:2104.08378.
    """
    are_ints = all(isinstance(k, int) and not isinstance(k, bool) for k in (n, m))
    if not are_ints or not 0 < n <= m:
        raise ValueError(f"select_n_m: n of m weights stay, 0 < n <= m, got n={n!r}, m={m!r}.")

    def one(layer: _Layer):
        *kernel, size_in, size_out = layer.shape
        if not isinstance(layer.format, Unstructured):
            raise ValueError(
                f"select_n_m: N:M weights are stored as single ones, got the format {layer.format} "
                f'for {layer.name}. Use "unstructured".'
            )
        if size_in % m:
            raise ValueError(
                f"select_n_m: the inputs must be a multiple of m={m}, got {layer.name} with "
                f"{size_in}. Leave it dense with a format function."
            )
        scores = jnp.where(jnp.isnan(layer.scores), jnp.inf, layer.scores)  # seen, not pruned away
        grouped = jnp.reshape(scores, (*kernel, size_in // m, m, size_out))
        ranks = jnp.argsort(jnp.argsort(-grouped, axis=-2, stable=True), axis=-2)
        mask = (ranks < n).reshape(layer.shape)
        return make.from_mask(mask, layer.format, capacity=mask.size // m * n)

    layers = _layers(scores, format, None)
    return tree.rebuilt(scores, [None if layer is None else one(layer) for layer in layers])


class _Layer(NamedTuple):
    """A weight of which parts are chosen."""

    name: str
    scores: Any
    format: Format
    shape: tuple[int, ...]
    pattern: Pattern | None  # whose parts alone may stay


def _layers(scores, format, patterns) -> list[_Layer | None]:
    """What there is to choose from; None in place of what stays dense."""
    if (format is None) == (patterns is None):
        raise ValueError("select: give a format or patterns, one of them. Patterns have formats.")
    if patterns is not None:
        leaves = tree.leaves_of("select", scores, patterns)
        return [
            None if p is None else _Layer(name, score, p.format, p.shape, p)
            for name, score, p in leaves
        ]
    layers = []
    for name, leaf in tree.named_leaves(scores):
        leaf = make.as_array(leaf)
        chosen = tree.format_of(format, name, leaf)
        if chosen is not None:
            shape, chosen = make.check_weight_shape("select", leaf.shape, as_format(chosen))
            chosen = _Layer(name, leaf, chosen, shape, None)
        layers.append(chosen)
    return layers


def _listed(layer: _Layer, scores, pattern, pool: str):
    """The scores of all parts of one weight, and which of them may stay (None for all)."""
    order = getattr(pattern, "order", None)
    if pool == "norm":
        parts = block_norms(scores, layer.format, order=order)
    else:
        parts = layer.format.reduce(jnp.asarray(scores), "sum", order)
    listed = _concrete(layer.format.listed(parts, layer.shape))
    if pattern is None:
        return listed, None
    return listed, _concrete(layer.format.listed(pattern.grid_mask(), layer.shape))


def _by_density(layer: _Layer, density, sparsity, pool: str) -> Pattern:
    count = _num_parts(layer, density, sparsity)
    parts = math.prod(layer.format.grid(layer.shape))
    if layer.pattern is None:
        listed, _ = _listed(layer, layer.scores, None, pool)
        capacity = parts if make.is_traced(count) else count
        stored = make.highest(listed, None, count) if capacity else np.zeros(parts, bool)
        return make.from_listed("select", stored, layer.format, layer.shape, capacity, None)

    def one(scores, pattern):
        if pattern.capacity == 0:
            return pattern
        listed, may_stay = _listed(layer, scores, pattern, pool)
        assert may_stay is not None
        kept = make.highest(listed, may_stay, _at_most(count, may_stay.sum()))
        return _with_listed(pattern, kept)

    return tree.over_layers(one, tree.Leaf(layer.name, layer.scores, layer.pattern))


def _by_threshold(layers: list[_Layer], sparsity, pool: str) -> list[Pattern]:
    """The parts above the one score that as many exceed as may stay."""
    if len({layer.format for layer in layers}) > 1:
        raise ValueError(
            "select: one threshold compares parts of one size, got the formats "
            f'{sorted({str(layer.format) for layer in layers})}. Use "uniform" or "erk", or one '
            "format."
        )
    for layer in layers:
        if layer.pattern is not None and layer.pattern.group:
            raise ValueError(
                f"select: one threshold is for single layers, got {layer.name}, a stack of "
                f'{layer.pattern.group}. Use "uniform" or "erk", which prune all of a stack alike.'
            )
    if not layers:
        return []
    listed, may_stay = zip(*(_listed(a, a.scores, a.pattern, pool) for a in layers), strict=True)
    lengths = [len(scores) for scores in listed]
    xp: Any = jnp if make.is_traced(sparsity, *listed) else np
    count = _rounded((1 - sparsity) * sum(lengths))
    eligible = None
    if layers[0].pattern is not None:
        eligible = xp.concatenate(may_stay)
        count = _at_most(count, eligible.sum())
    kept = make.highest(xp.concatenate(listed), eligible, count)
    made = []
    for layer, length, stored in zip(layers, lengths, xp.split(kept, np.cumsum(lengths)[:-1])):
        if layer.pattern is not None:
            made.append(
                layer.pattern if not layer.pattern.capacity else _with_listed(layer.pattern, stored)
            )
            continue
        capacity = None
        if xp is jnp:
            capacity = length if make.is_traced(count) else min(length, max(1, count))
        made.append(make.from_listed("select", stored, layer.format, layer.shape, capacity, None))
    return made


def _with_listed(pattern: Pattern, stored) -> Pattern:
    """A pattern of the same format, groups and capacity that stores these parts."""
    order = getattr(pattern, "order", None)
    new = make.from_listed("select", stored, pattern.format, pattern.shape, pattern.capacity, order)
    return new.lost_where(~pattern.is_valid())  # what was lost stays seen


def check_budget(params, sparsity: float, *, patterns, distribution) -> None:
    """Raises where pruning to this sparsity would leave a layer without weights."""
    layers = [layer for layer in _layers(params, None, patterns) if layer is not None]
    _check_distribution("select", distribution, [layer.name for layer in layers])
    if distribution != "global":
        shares = densities(
            {layer.name: layer.shape for layer in layers}, sparsity, distribution=distribution
        )
        for layer in layers:
            _num_parts(layer, shares[layer.name], sparsity)


def _num_parts(layer: _Layer, density, sparsity) -> Any:
    """How many parts of one weight stay."""
    parts = math.prod(layer.format.grid(layer.shape))
    count = _rounded(density * parts)
    if not make.is_traced(count) and count == 0 and density > 0 and parts and sparsity < 1:
        raise ValueError(
            f"select: each layer must keep a part, got {layer.name} with {parts} "
            f"{layer.format.noun} of {layer.format} at density {density:.3g}. Take smaller parts, "
            'less sparsity or distribution="erk", or leave the layer dense.'
        )
    return count


def _rounded(number) -> Any:
    if make.is_traced(number):
        return jnp.round(number).astype(jnp.int32)
    return round(float(number))


def _at_most(count, limit) -> Any:
    return jnp.minimum(count, limit) if make.is_traced(count, limit) else min(count, int(limit))


def _concrete(array):
    return array if make.is_traced(array) else np.asarray(array)


def _as_number(function: str, sparsity):
    """A sparsity as a float, checked; a scalar array that is known counts as its number."""
    if isinstance(sparsity, (jax.Array, np.ndarray)) and sparsity.ndim == 0:
        sparsity = float(sparsity)
    make.num_kept(function, 0, sparsity)
    return float(sparsity)


def _check_distribution(function: str, distribution, names: list[str]) -> dict[str, float]:
    """The densities that are given by name.

    Raises:
        ValueError: an unknown name of a distribution or a layer, a density outside [0, 1].
    """
    if isinstance(distribution, str) and distribution in DISTRIBUTIONS:
        return {}
    if not isinstance(distribution, Mapping):
        raise ValueError(
            f'{function}: distribution is "uniform", "erk", "global" or densities by path, got '
            f"{distribution!r}."
        )
    for name, density in distribution.items():
        if name not in names:
            raise ValueError(
                f"{function}: densities are given by the paths of weights that are pruned, "
                f"{names}, got {name!r}."
            )
        is_number = isinstance(density, (int, float)) and not isinstance(density, bool)
        if not is_number or not 0 <= density <= 1:
            raise ValueError(
                f"{function}: a density is a share, from 0 to 1, got {density!r} for {name}."
            )
    return {name: float(density) for name, density in distribution.items()}
