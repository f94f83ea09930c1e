"""Iterative magnitude pruning: train, prune, rewind, and again."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from jaxsparse.pruning import distribution as distributions
from jaxsparse.pruning import score as scores_of
from jaxsparse.pruning import tree
from jaxsparse.pruning.schedule import check_share


class Ticket(NamedTuple):
    """A round of iterative pruning.

    Attributes:
        round: from 0, which is dense.
        sparsity: that was asked for.
        patterns: that were trained with.
        params: what training started from: the first parameters, with zeros off the patterns.
        trained: what it ended with.
    """

    round: int
    sparsity: float
    patterns: Any
    params: Any
    trained: Any


def iterate(
    train: Callable,
    params,
    *,
    rounds: int,
    format=None,
    patterns=None,
    rate: float = 0.2,
    score: Callable = scores_of.magnitude,
    pool: str = "norm",
    distribution="global",
) -> Iterator[Ticket]:
    """Iterative magnitude pruning with rewinding, as an iterator over lottery tickets.

    Each round trains, drops the share `rate` of the parts that are left, and goes back to the
    parameters of the beginning. It stops where you stop asking.

        for ticket in iterate(train, params, rounds=10, format="unstructured"):
            print(ticket.sparsity, accuracy(ticket.trained))

    Args:
        train: `train(params, patterns) -> trained params`; it keeps zeros off the patterns, as the
            gradients of `sparse_weights` and `apply_patterns` do.
        params: to rewind to: the initial ones, or those after a few steps ("late rewinding").
        rounds: of pruning; the dense one before them comes on top.
        format: as in `jaxsparse.pruning.select`, or
        patterns: a tree of them to begin with.
        rate: the share of what is left that a round drops.
        score: a function of the trained parameters.
        pool, distribution: as in `jaxsparse.pruning.select`.

    Raises:
        ValueError: a rate outside [0, 1], a layer that would keep nothing.

    Source: Frankle and Carbin, The Lottery Ticket Hypothesis, 2019, arXiv:1803.03635; Frankle et
    al., Linear Mode Connectivity and the Lottery Ticket Hypothesis, 2020, arXiv:1912.05671.
    """
    check_share("iterate", "rate", rate)
    if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 0:
        raise ValueError(f"iterate: rounds is how often to prune, an int from 0, got {rounds!r}.")
    patterns = tree.initial("iterate", params, format, patterns)
    return _rounds(train, params, patterns, rounds, rate, score, pool, distribution)


def _rounds(train, params, patterns, rounds, rate, score, pool, distribution):
    for number in range(rounds + 1):
        sparsity = 1 - (1 - rate) ** number
        rewound = tree.apply_patterns(params, patterns)
        trained = tree.apply_patterns(train(rewound, patterns), patterns)
        yield Ticket(number, sparsity, patterns, rewound, trained)
        if number < rounds:
            patterns = tree.shrink(
                distributions.select(
                    score(trained),
                    1 - (1 - rate) ** (number + 1),
                    patterns=patterns,
                    pool=pool,
                    distribution=distribution,
                )
            )
