"""Which outputs of a weight should share one list of inputs: those that use the same ones."""

import numpy as np

from jaxsparse.formats.pattern import matrix_view
from jaxsparse.patterns import make
from jaxsparse.patterns.dense import check_tolerance, dense_and_nonzero

_MAX_PASSES = 10  # of exchanges; most weights settle after three


def similar_outputs(w, width: int, *, tolerance=0) -> np.ndarray:
    """The outputs of a weight in an order in which neighbours use the same inputs.

    Groups of `width` neighbours then have more in common: `fromdense(w, "grouped:8", order=order)`
    stores fewer zeros, and `with_residual` leaves less over. The objective is the number of weights
    that two outputs of a group have in the same place, over all pairs. Each group is filled with
    what fits best to its members; then outputs of two groups change places while that gains.

    Args:
        w: a dense array or a sparse weight, `[*kernel, in, out]`, known outside `jit`. Needs memory
            for `out * out` floats.
        width: outputs in a group.
        tolerance: as in `fromdense`.

    Returns:
        `int32[out]`; the same weight gives the same order. What is left over where `width` does not
        divide the outputs comes last.

    Raises:
        ValueError: the weight is traced or no weight, or `width` not positive.
    """
    check_tolerance("similar_outputs", tolerance)
    dense, is_used = dense_and_nonzero("similar_outputs", w, tolerance)
    shape, format = make.check_weight_shape("similar_outputs", dense.shape, f"grouped:{width}")
    used = is_used.reshape(matrix_view(shape)).astype(np.float32)
    shared = used.T @ used
    sizes = np.diagonal(shared).copy()
    np.fill_diagonal(shared, 0)
    groups = _filled(shared, sizes, format.extent[1])
    for _ in range(_MAX_PASSES):
        if not _exchange(shared, groups):
            break
    return np.argsort(groups, kind="stable").astype(np.int32)


def _filled(shared, sizes, width) -> np.ndarray:
    """The group of each output: the largest one left, then what shares most with the members."""
    groups = np.full(len(sizes), -1)
    for group in range(-(-len(sizes) // width)):
        with_group = sizes.copy()  # of the first member: how many weights it has
        for member in range(min(width, len(sizes) - group * width)):
            best = np.argmax(np.where(groups < 0, with_group, -1))
            groups[best] = group
            with_group = shared[best] + (with_group if member else 0)
    return groups


def _exchange(shared, groups) -> bool:
    """One pass over the outputs: each changes places with the best partner, if that gains."""
    num_groups = groups.max(initial=-1) + 1
    # How much each output shares with each group, itself not counted.
    with_group = shared @ (groups[:, None] == np.arange(num_groups)).astype(np.float32)
    everyone = np.arange(len(groups))
    own = with_group[everyone, groups]
    has_changed = False
    for one in everyone:
        here = groups[one]
        gains = with_group[one, groups] - own[one] + with_group[:, here] - own - 2 * shared[one]
        gains[groups == here] = 0
        other = int(np.argmax(gains))
        if gains[other] <= 0:
            continue
        there = groups[other]
        groups[one], groups[other] = there, here
        moved = shared[other] - shared[one]
        with_group[:, here] += moved
        with_group[:, there] -= moved
        own = with_group[everyone, groups]
        has_changed = True
    return has_changed
