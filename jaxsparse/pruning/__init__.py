"""Pruning while a model trains, pure and jittable, on trees of dense parameters.

Scores say what matters, `select` makes patterns of them; a `Pruner` is a pair of functions, like
those of optax, that does so inside a jitted step. Schedules are optax's, or any function of a step.
"""

from jaxsparse.pruning.distribution import densities, random_patterns, select, select_n_m
from jaxsparse.pruning.imp import Ticket, iterate
from jaxsparse.pruning.refill import refill
from jaxsparse.pruning.schedule import cosine, cubic
from jaxsparse.pruning.score import gradient, grasp, magnitude, movement, random, snip, synflow
from jaxsparse.pruning.tree import (
    apply_patterns,
    from_masks,
    rescale,
    reset_moments,
    shrink,
    sparse_weights,
)
from jaxsparse.pruning.updater import (
    Pruner,
    PruningState,
    admm,
    admm_penalty,
    gradual,
    rigl,
    set_,
)

__all__ = [
    "Pruner",
    "PruningState",
    "Ticket",
    "admm",
    "admm_penalty",
    "apply_patterns",
    "cosine",
    "cubic",
    "densities",
    "from_masks",
    "gradient",
    "gradual",
    "grasp",
    "iterate",
    "magnitude",
    "movement",
    "random",
    "random_patterns",
    "refill",
    "rescale",
    "reset_moments",
    "rigl",
    "select",
    "select_n_m",
    "set_",
    "shrink",
    "snip",
    "sparse_weights",
    "synflow",
]
