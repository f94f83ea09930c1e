"""Trees of parameters and, beside them, trees of patterns.

A tree of patterns has the structure of the parameters, with a pattern for each weight that is
sparse and None for what stays dense.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxsparse.formats.parse import as_format
from jaxsparse.formats.pattern import Pattern
from jaxsparse.formats.weight import SparseWeight
from jaxsparse.patterns import make


class Leaf(NamedTuple):
    """A parameter and what belongs to it."""

    name: str
    value: Any
    pattern: Pattern | None


def named_leaves(tree) -> list[tuple[str, Any]]:
    """The leaves with their paths, such as "encoder/0/kernel"."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [(jax.tree_util.keystr(p, simple=True, separator="/"), leaf) for p, leaf in leaves]


def aligned(function: str, params, tree, what: str) -> list:
    """What `tree` has in place of each leaf of `params`.

    Raises:
        ValueError: its structure is another one.
    """
    try:
        return jax.tree.structure(params).flatten_up_to(tree)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{function}: {what} must have the structure of the parameters, {what} or None for "
            f"each, got another one ({error}). Make the tree with jax.tree.map over the parameters."
        ) from error


def leaves_of(function: str, params, patterns) -> list[Leaf]:
    """The parameters with their patterns, checked.

    Raises:
        ValueError, TypeError: another structure, something that is no pattern, or one for another
            shape.
    """
    given = aligned(function, params, patterns, "patterns")
    leaves = [Leaf(name, value, p) for (name, value), p in zip(named_leaves(params), given)]
    for name, value, pattern in leaves:
        if pattern is None:
            continue
        if not isinstance(pattern, Pattern):
            raise TypeError(
                f"{function}: {name} needs a pattern or None, got {type(pattern).__name__}. Make "
                "patterns of masks with jaxsparse.pruning.from_masks."
            )
        check_fits(function, name, value, pattern)
    return leaves


def check_fits(function: str, name: str, value, pattern: Pattern) -> None:
    """Raises unless the pattern is for a parameter of this shape.

    Leading axes of the indices are stacked layers. Linear layers may have their inputs and outputs
    on several axes.
    """
    stacked, shape = len(pattern.group), jnp.shape(value)
    rest, matrix = shape[stacked:], pattern.spec().weight_shape
    views = [(math.prod(rest[:i]), math.prod(rest[i:])) for i in range(len(rest) + 1)]
    if shape[:stacked] != pattern.group or matrix not in views:
        expected = (*pattern.group, *pattern.shape)
        raise ValueError(
            f"{function}: {name} has shape {shape}, got a pattern for {expected}. Make a pattern "
            "for this shape."
        )


def over_layers(function, leaf: Leaf, *arrays, keys=()):
    """`function(value, pattern, *arrays, *keys)`, for each of the layers where some are stacked.

    `arrays` have the parameter's shape, the optional `keys` one entry per layer.
    """
    pattern = leaf.pattern
    assert pattern is not None
    shape = (*pattern.group, *pattern.shape)
    value, *arrays = (jnp.reshape(array, shape) for array in (leaf.value, *arrays))
    keys = () if isinstance(keys, tuple) else (keys,)
    return pattern.over_groups(function)(value, pattern, *arrays, *keys)


def rebuilt(params, leaves: list):
    """A tree of the structure of `params` with these leaves."""
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


def format_of(format, name: str, leaf) -> Any:
    """What a parameter is to be stored as; None for one that stays dense.

    Biases and scales may have several axes, of stacked layers or of several outputs: no weights.
    """
    if callable(format):
        return format(name, leaf)
    is_weight = leaf.ndim >= 2 and name.rpartition("/")[2] not in ("bias", "scale")
    return format if is_weight else None


def initial(function: str, params, format, patterns):
    """The given patterns, checked, or such that store everything."""
    if (format is None) == (patterns is None):
        raise ValueError(
            f"{function}: give a format, or the patterns to start from, one of them, "
            f"got format={format!r} and {'no ' if patterns is None else ''}patterns."
        )
    if patterns is not None:
        leaves_of(function, params, patterns)
        return patterns
    full = []
    for name, leaf in named_leaves(params):
        chosen = format_of(format, name, leaf)
        full.append(None if chosen is None else make.full(as_format(chosen), leaf.shape))
    return rebuilt(params, full)


def masks_of(function: str, params, patterns):
    """Bool arrays of the parameters' shapes, true where weights are stored; None for dense ones."""
    return rebuilt(
        params,
        [
            None if pattern is None else jnp.reshape(pattern.mask(), jnp.shape(value))
            for _, value, pattern in leaves_of(function, params, patterns)
        ],
    )


def apply_patterns(params, patterns):
    """The parameters with exact zeros off their patterns.

    Args:
        params: a tree of arrays.
        patterns: a tree of the same structure; None for what is dense.

    Returns:
        A tree like `params`. Works inside `jit`.

    Raises:
        ValueError, TypeError: patterns of another structure or for other shapes.
    """

    def masked(leaf: Leaf):
        if leaf.pattern is None:
            return leaf.value
        kept = over_layers(lambda value, pattern: pattern.restrict(value), leaf)
        return jnp.reshape(kept, jnp.shape(leaf.value))

    leaves = leaves_of("apply_patterns", params, patterns)
    return rebuilt(params, [masked(leaf) for leaf in leaves])


def sparse_weights(params, patterns):
    """The parameters with a SparseWeight for each that has a pattern.

    Ops such as `jaxsparse.matmul` take either: one loss does for dense and for sparse parameters.
    By the dense parameters it differentiates to zero where nothing is stored.

    Args:
        params: a tree of arrays.
        patterns: a tree of the same structure; None for what is dense.

    Raises:
        ValueError, TypeError: patterns of another structure or for other shapes.
    """

    def stored(leaf: Leaf):
        if leaf.pattern is None:
            return leaf.value
        values = over_layers(lambda value, pattern: pattern.gather(value), leaf)
        return SparseWeight(values, leaf.pattern)

    leaves = leaves_of("sparse_weights", params, patterns)
    return rebuilt(params, [stored(leaf) for leaf in leaves])


def from_masks(params, masks, format):
    """The patterns that store whatever parts these masks touch.

    Args:
        params: a tree of arrays.
        masks: a tree of the same structure: a bool array of the parameter's shape, or None for what
            is dense. Known outside `jit`.
        format: such as "unstructured", "32x32" or "grouped:8".

    Returns:
        A tree of patterns, for `init(params, patterns=...)` of any pruner.

    Raises:
        ValueError, TypeError: masks of another structure, shape or dtype.
    """
    patterns = []
    for (name, value), mask in zip(
        named_leaves(params), aligned("from_masks", params, masks, "masks"), strict=True
    ):
        if mask is not None:
            mask = make.as_array(mask)
            if tuple(mask.shape) != tuple(jnp.shape(value)):
                raise ValueError(
                    f"from_masks: {name} has shape {jnp.shape(value)}, got a mask of shape "
                    f"{tuple(mask.shape)}. Give one entry per weight."
                )
            if make.is_traced(mask):
                raise ValueError(
                    f"from_masks: masks must be known, got a traced one for {name}. Call it "
                    "outside jit, or use jaxsparse.patterns.from_mask with a capacity."
                )
            mask = make.from_mask(mask, format)
        patterns.append(mask)
    return rebuilt(params, patterns)


def shrink(patterns):
    """The patterns with room for what they store and no more.

    A pattern that is pruned inside `jit` keeps its first capacity, and kernels are chosen by that.
    Shrink when pruning has ended; what uses the patterns is compiled once more.

    Args:
        patterns: a tree of patterns, known outside `jit`.

    Raises:
        ValueError: a pattern is traced or not usable.
    """

    def smallest(pattern: Pattern):
        if make.is_traced(*pattern.indices):
            raise ValueError("shrink: the patterns are traced. Call it outside jit.")
        if not pattern.is_valid():
            raise ValueError(
                f"shrink: a pattern must be usable, got {pattern!r}, which lost parts. It was made "
                "inside jit with too small a capacity."
            )
        counts = pattern.grid_mask().sum((-2, -1))
        capacity = int(counts.max(initial=0))
        again = lambda pattern: make.from_grid(
            pattern.grid_mask(),
            pattern.format,
            pattern.shape,
            capacity=capacity,
            order=getattr(pattern, "order", None),
        )
        return pattern.over_groups(again)(pattern)

    return jax.tree.map(smallest, patterns, is_leaf=lambda leaf: isinstance(leaf, Pattern))


def rescale(params, patterns):
    """New parameters at a scale that suits how many weights each output has left.

    The weights of an output are divided by the square root of the share of them that is stored, so
    that its variance is that of the dense layer. Other entries become zero.

    Args:
        params: as they are initialized.
        patterns: a tree of the same structure; None for what is dense.

    Raises:
        ValueError, TypeError: patterns of another structure or for other shapes.

    Source: Evci et al., Gradient Flow in Sparse Neural Networks, 2022, arXiv:2010.03533.
    """

    def scaled(leaf: Leaf):
        if leaf.pattern is None:
            return leaf.value

        def one(value, pattern):
            mask = pattern.mask().reshape(-1, value.shape[-1])
            stored = jnp.maximum(mask.sum(0), 1)
            scale = jnp.sqrt(mask.shape[0] / stored).astype(value.dtype)
            matrix = pattern.restrict(value).reshape(mask.shape)
            return (matrix * scale[None]).reshape(value.shape)

        return jnp.reshape(over_layers(one, leaf), jnp.shape(leaf.value))

    return rebuilt(params, [scaled(leaf) for leaf in leaves_of("rescale", params, patterns)])


def reset_moments(opt_state, params, kept):
    """The optimizer state with zeros for weights that have no history.

    An optimizer's state has trees like the parameters inside (Adam's `mu` and `nu`, traces,
    averages); they are found by their paths, which end with that of a parameter, and by their
    shapes. All else, such as step counts, stays as it is.

    Args:
        opt_state: of any optax transformation, or `nnx.state(optimizer)`.
        params: the parameters that it belongs to.
        kept: a tree like `params`: bool arrays, true where moments stay, or None for all.

    Raises:
        ValueError: `kept` has another structure or another shape.
    """
    masks = {}
    flat, _ = jax.tree_util.tree_flatten_with_path(params)
    for (path, value), mask in zip(flat, aligned("reset_moments", params, kept, "masks")):
        if mask is not None and jnp.shape(mask) != jnp.shape(value):
            raise ValueError(
                f"reset_moments: masks must have the parameters' shapes, {jnp.shape(value)}, got "
                f"{jnp.shape(mask)}. Give one entry per weight."
            )
        masks[path] = mask

    def reset(path, moment):
        # The longest end that is a parameter's path: "a/kernel" also ends with "kernel".
        owner = next((path[i:] for i in range(len(path) + 1) if path[i:] in masks), None)
        mask = None if owner is None else masks[owner]
        if mask is None or jnp.shape(moment) != jnp.shape(mask):
            return moment
        return jnp.where(mask, moment, jnp.zeros((), moment.dtype))

    return jax.tree_util.tree_map_with_path(reset, opt_state)
