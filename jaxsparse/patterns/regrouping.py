"""Regrouping: dense blocks out of unstructured masks, of outputs that use the same inputs.

A block is a set of outputs and a set of inputs (taps of input channels, for convolutions), anywhere
in the weight. In *mask form* a block is filled up and all outside of blocks is dropped; in
*lossless form* what is left outside stays, as single weights beside the blocks.

Source: Chen et al., Coarsening the Granularity: Towards Structurally Sparse Lottery Tickets, 2022,
arXiv:2202.04736. The grouping is our own, see `jaxsparse.patterns.partition`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxsparse.formats.columns import Grouped
from jaxsparse.formats.pattern import matrix_view
from jaxsparse.formats.weight import SparseWeight, WeightSum
from jaxsparse.patterns import make
from jaxsparse.patterns.dense import check_tolerance, dense_and_nonzero
from jaxsparse.patterns.partition import partition
from jaxsparse.patterns.similar import similar_outputs

WIDTH = 8  # of the groups that blocks are stored in: one vector of AVX2, half of one of AVX-512

# What a strip of so many outputs costs, in single weights, and what a weight of the dense op costs.
# Medians of three convolutions and a product, [3, 3, 128, 128], [3, 3, 256, 256], [1, 1, 1024, 256]
# and [768, 3072], at 80, 90 and 95 % zeros, one core of a Zen 5, AVX-512; strips of 8 were from 4.2
# to 6.5 single weights.
COSTS = {"dense": 0.47, 4: 3.0, 8: 5.6, 16: 11.7}


class Group(NamedTuple):
    """A block: all weights from these inputs to these outputs.

    Attributes:
        outputs: `int[...]`, columns of the weight's matrix view.
        inputs: `int[...]`, its rows, in the order in which they were chosen.
    """

    outputs: np.ndarray
    inputs: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Regrouping:
    """Blocks that were found in a weight.

    Attributes:
        shape: of the weight.
        groups: the blocks. They may overlap. None at all means that regrouping does not pay.
        order: `int32[out]`: outputs of one group are neighbours in it.
        width: of the groups of outputs that the blocks are stored in.
        predicted: for groups that were chosen by cost, what "dense", "unstructured" and "regrouped"
            weights cost, in single weights; empty otherwise.
    """

    shape: tuple[int, ...]
    groups: tuple[Group, ...]
    order: np.ndarray
    width: int
    predicted: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def mask(self) -> np.ndarray:
        """Bool, of the weight's shape: what lies in a block."""
        inside = np.zeros(matrix_view(self.shape), bool)
        for group in self.groups:
            inside[np.ix_(group.inputs, group.outputs)] = True
        return inside.reshape(self.shape)

    @property
    def density(self) -> float:
        """The share of the weight that lies in blocks: what mask form stores."""
        return float(self.mask().mean()) if np.prod(self.shape) else 0.0

    def kept(self, w, *, tolerance=0) -> float:
        """The share of a weight's non-zero entries that lie in blocks.

        Args:
            w: a mask, a dense array or a sparse weight.
            tolerance: as in `jaxsparse.fromdense`.
        """
        used = _used("kept", w, tolerance)[1]
        return float((used & self.mask()).sum() / max(1, used.sum()))

    def filled(self, w) -> SparseWeight:
        """Mask form: the weight inside the blocks, pruned before or not, and nothing else.

        Args:
            w: the dense weight, with the values that the mask has dropped, too.
        """
        w = make.as_array(w)
        pattern = self._pattern(self.mask())
        inside = jnp.asarray(self.mask())
        return SparseWeight(pattern.gather(jnp.where(inside, w, jnp.zeros((), w.dtype))), pattern)

    def lossless(self, w, *, tolerance=0) -> WeightSum:
        """Lossless form: the same weight, as blocks and single weights beside them.

        Args:
            w: a dense array or a sparse weight, known outside `jit`.
            tolerance: as in `jaxsparse.fromdense`.
        """
        dense, used = dense_and_nonzero("lossless", w, tolerance)
        self._check_shape("lossless", dense)
        inside = self.mask()
        rest = make.from_mask(used & ~inside, "unstructured")
        blocks = self._pattern(inside)
        dense = jnp.asarray(dense)
        within = jnp.where(jnp.asarray(inside), dense, jnp.zeros((), dense.dtype))
        parts = SparseWeight(blocks.gather(within), blocks), SparseWeight(rest.gather(dense), rest)
        return WeightSum(parts)

    def _pattern(self, inside):
        return make.from_mask(inside, Grouped(self.width), order=self.order)

    def _check_shape(self, function: str, w) -> None:
        if tuple(w.shape) != self.shape:
            raise ValueError(
                f"{function}: the weight must have the shape of the one that was regrouped, "
                f"{self.shape}, got {tuple(w.shape)}."
            )

    def __repr__(self) -> str:
        return f"Regrouping({len(self.groups)} blocks, density={self.density:.3g}, {self.shape})"


def regroup(
    w,
    *,
    num_groups: int | None = None,
    width_factor: float = 1.5,
    multiple: int = 32,
    min_outputs: int = 16,
    imbalance: float = 10,
    seed: int = 0,
    width: int = WIDTH,
    tolerance=0,
) -> Regrouping:
    """Blocks by the rule that no output may leave too much outside.

    Outputs are partitioned into groups. A group takes its most used inputs, of which it takes as
    few as leave each of its outputs less than `len(inputs) / width_factor` weights outside.

    Args:
        w: a mask, a dense array or a sparse weight, `[*kernel, in, out]`, known outside `jit`.
        num_groups: into how many groups outputs are partitioned; by default up to 8, of `multiple`
            outputs or more.
        width_factor: larger ones make blocks that have more inputs and leave less outside.
        multiple: a group of more outputs is cut into one block of a multiple of them, and one of
            the rest.
        min_outputs: groups of no more than that become no block.
        imbalance: of the sizes of groups: by how many percent of its outputs each bisection may
            miss the middle.
        seed: the same one gives the same blocks.
        width: of the groups in which blocks are stored.
        tolerance: as in `jaxsparse.fromdense`.

    Returns:
        A Regrouping.

    Raises:
        ValueError: a number that cannot be; the weight is traced.
    """
    _check_counts("regroup", multiple=(multiple, 1), min_outputs=(min_outputs, 0), width=(width, 1))
    _check_number("regroup", imbalance=(imbalance, 50), width_factor=(width_factor, np.inf))
    shape, used = _used("regroup", w, tolerance)
    rows = used.reshape(matrix_view(shape)).T  # one for each output
    if num_groups is None:
        num_groups = max(1, min(8, len(rows) // multiple))
    _check_counts("regroup", num_groups=(num_groups, 1))
    groups, parts = [], _partitioned(rows, num_groups, imbalance, seed)
    for outputs in parts:
        if len(outputs) <= min_outputs:
            continue
        inputs = _inputs_by_width(rows[outputs], width_factor)
        whole = len(outputs) // multiple * multiple
        for part in (outputs[:whole], outputs[whole:]) if whole else (outputs,):
            if len(part):
                groups.append(Group(part, inputs))
    return _made(shape, groups, parts, width)


def regroup_passes(
    w,
    *,
    num_groups: int = 8,
    min_nonzero: int,
    min_outputs: int = 16,
    min_inputs: int = 16,
    imbalance: float = 10,
    seed: int = 0,
    width: int = WIDTH,
    tolerance=0,
) -> Regrouping:
    """Blocks by least numbers, in passes until there are no more: the algorithm of the paper.

    Each pass partitions the outputs, and of each group with enough outputs takes the inputs that
    enough of them use, if these are enough. What is covered is cleared before the next pass.

    Args:
        w: as for `regroup`.
        num_groups: into how many groups outputs are partitioned (t1 in the paper).
        min_nonzero: how many outputs of a group must use an input (t2).
        min_outputs: of a block (b1).
        min_inputs: of a block (b2).
        imbalance, seed, width, tolerance: as for `regroup`.

    Returns:
        A Regrouping. Blocks of different passes may have outputs in common.

    Raises:
        ValueError: a number that cannot be; the weight is traced.
    """
    _check_counts(
        "regroup_passes",
        width=(width, 1),
        num_groups=(num_groups, 1),
        min_nonzero=(min_nonzero, 1),
        min_outputs=(min_outputs, 1),
        min_inputs=(min_inputs, 1),
    )
    _check_number("regroup_passes", imbalance=(imbalance, 50))
    shape, used = _used("regroup_passes", w, tolerance)
    left = used.reshape(matrix_view(shape)).T.copy()
    groups, first = [], None
    while True:
        found, parts = [], _partitioned(left, num_groups, imbalance, seed)
        first = parts if first is None else first  # its blocks hold the most
        for outputs in parts:
            inputs = np.flatnonzero(left[outputs].sum(0) >= min_nonzero)
            if len(outputs) >= min_outputs and len(inputs) >= min_inputs:
                found.append(Group(outputs, inputs))
        if not found:
            return _made(shape, groups, first, width)
        groups += found
        for group in found:
            left[np.ix_(group.outputs, group.inputs)] = False


def regroup_by_cost(
    w,
    *,
    keep: float | None = None,
    costs: Mapping[Any, float] | None = None,
    widths: tuple[int, ...] = (4, 8, 16),
    tolerance=0,
) -> Regrouping:
    """Blocks by what they are predicted to cost: groups of equally many outputs, as stored.

    A group takes an input if to compute it for all of its outputs costs less than the weights that
    are there one by one. The width is the one of which all together cost least.

    Args:
        w: as for `regroup`.
        keep: for mask form: the share of each group's non-zero weights that must lie in blocks,
            from 0 to 1. A group takes inputs, the most used ones first, until that is so, and the
            width is that of least cost without a residual.
        costs: by the width, what a strip of so many outputs costs, and for "dense", what a weight
            costs in the dense op; in single weights. By default as measured on one machine.
        widths: from which to choose.
        tolerance: as in `jaxsparse.fromdense`.

    Returns:
        A Regrouping with what it is predicted to cost. It has no groups where single weights, or
        the dense op, are predicted to be faster.

    Raises:
        ValueError: a number that cannot be, a width without a cost; the weight is traced.
    """
    costs = COSTS if costs is None else {**COSTS, **costs}
    for width in widths:
        _check_counts("regroup_by_cost", width=(width, 1))
        if width not in costs:
            raise ValueError(
                f"regroup_by_cost: each width needs a cost, got none for {width}. Pass "
                f"costs={{{width}: ...}}, in single weights."
            )
    if keep is not None and not 0 <= keep <= 1:
        raise ValueError(f"regroup_by_cost: keep is a share, from 0 to 1, got {keep!r}.")
    shape, used = _used("regroup_by_cost", w, tolerance)
    matrix = used.reshape(matrix_view(shape))
    total = int(matrix.sum())
    best, least = None, np.inf
    for width in widths:
        order = similar_outputs(used.astype(np.float32), width)
        members = [order[i : i + width] for i in range(0, len(order), width)]
        counts = np.stack([matrix[:, m].sum(1) for m in members], 1) if members else matrix[:, :0]
        chosen = counts > costs[width] if keep is None else _most_used(counts, keep)
        outside = total - counts[chosen].sum() if keep is None else 0
        cost = costs[width] * chosen.sum() + outside
        if cost < least:
            groups = [Group(m, np.flatnonzero(c)) for m, c in zip(members, chosen.T) if c.any()]
            best, least = (groups, order, width), float(cost)
    predicted = {"dense": costs["dense"] * matrix.size, "unstructured": float(total)}
    assert best is not None
    groups, order, width = best
    if keep is None and least >= min(predicted.values()):
        groups = []
    return _made(shape, groups, [order], width, {**predicted, "regrouped": least})


def _most_used(counts: np.ndarray, keep: float) -> np.ndarray:
    """Of each group the fewest strips, the most used ones, that hold this share of its weights.

    On ties the first ones. Not of all groups together: strips of a short last group hold few
    weights, so all of them would go, and with them all that its outputs are made of.
    """
    order = np.argsort(-counts, axis=0, kind="stable")
    held = np.cumsum(np.take_along_axis(counts, order, 0), axis=0)
    totals = counts.sum(0)
    needed = keep * totals - 1e-9 * np.maximum(1.0, keep * totals)
    chosen = np.zeros(counts.shape, bool)
    np.put_along_axis(chosen, order, np.vstack([0 * totals, held])[:-1] < needed, 0)
    return chosen


def _inputs_by_width(rows: np.ndarray, width_factor: float) -> np.ndarray:
    """The most used inputs, as few as leave each row less than a share of their number outside."""
    order = np.argsort(-rows.sum(0), kind="stable")
    inside = np.cumsum(rows[:, order], axis=1, dtype=np.int32)
    most_outside = (rows.sum(1, dtype=np.int32)[:, None] - inside).max(0)
    widths = np.arange(1, len(order) + 1)
    is_enough = widths > width_factor * most_outside
    return order[: int(np.argmax(is_enough)) + 1]  # with all inputs nothing is outside


def _partitioned(rows: np.ndarray, num_groups: int, imbalance: float, seed: int):
    """The rows that are not empty, in groups, the largest first."""
    kept = np.flatnonzero(rows.any(1))
    if not len(kept):
        return []
    columns = rows[kept].any(0)
    parts = partition(
        rows[kept][:, columns], min(num_groups, len(kept)), imbalance=imbalance, seed=seed
    )
    groups = [kept[parts == part] for part in range(parts.max() + 1)]
    return sorted(groups, key=len, reverse=True)


def _made(shape, groups, parts, width: int, predicted=None) -> Regrouping:
    """The regrouping, with an order in which few stored groups have outputs of several parts."""
    whole = [outputs[: len(outputs) // width * width] for outputs in parts]
    rest = [outputs[len(taken) :] for outputs, taken in zip(parts, whole)]
    order = np.concatenate([np.zeros(0, np.int64), *whole, *rest])
    others = np.setdiff1d(np.arange(shape[-1]), order)
    order = np.concatenate([order, others]).astype(np.int32)
    return Regrouping(shape, tuple(groups), order, width, predicted or {})


def _used(function: str, w, tolerance) -> tuple[tuple[int, ...], np.ndarray]:
    check_tolerance(function, tolerance)
    if not make.is_traced(w) and getattr(w, "dtype", np.float32) == np.bool_:
        w = np.asarray(w).astype(np.int8)
    _, used = dense_and_nonzero(function, w, tolerance)
    shape, _ = make.check_weight_shape(function, used.shape, "unstructured")
    return shape, used


def _check_counts(function: str, **counts: tuple[Any, int]) -> None:
    for name, (value, least) in counts.items():
        is_int = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
        if not is_int or value < least:
            raise ValueError(f"{function}: {name} is an int from {least} on, got {value!r}.")


def _check_number(function: str, **numbers: tuple[Any, float]) -> None:
    for name, (value, end) in numbers.items():
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not 0 <= value < end:
            raise ValueError(
                f"{function}: {name} is a number from 0 to less than {end}, got {value!r}."
            )
