"""Pruners: pairs of functions, like those of optax, that change patterns while a model trains."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsparse.patterns import make
from jaxsparse.patterns.dense import block_norms
from jaxsparse.pruning import distribution as distributions
from jaxsparse.pruning import schedule as schedules
from jaxsparse.pruning import score as scores_of
from jaxsparse.pruning import tree


class PruningState(NamedTuple):
    """What a pruner knows between steps. A pytree of arrays, which orbax saves as it is.

    Attributes:
        step: how many updates there were.
        patterns: a tree like the parameters, a pattern for each sparse weight and None for others.
        key: from which everything random is drawn.
        memory: what a method sums up, such as scores of movement or ADMM's variables; or None.
    """

    step: Any
    patterns: Any
    key: Any
    memory: Any = None


class Pruner(NamedTuple):
    """A method of pruning, as a pair of pure functions; `update` belongs into a jitted step.

    Attributes:
        init: `init(params, *, key=None, patterns=None) -> state`. `params` is a tree of dense
            arrays; `patterns` are those to start from, a tree like it, in place of the method's
            own.
        update: `update(params, opt_state, state, grads=None) -> (params, opt_state, state)`, after
            each step of the optimizer. `opt_state` is that of any optax transformation, or None.
            `grads` are the gradients of all weights, stored or not: a tree, or a function of the
            parameters, which is called only at the steps at which patterns change. Shapes and
            capacities stay, so nothing is compiled anew.

    In the parameters that `update` returns, whatever is not stored is exactly zero. Moments of an
    optimizer start from zero where a weight is new.
    """

    init: Callable[..., PruningState]
    update: Callable[..., tuple[Any, Any, PruningState]]


def gradual(
    sparsity,
    *,
    format=None,
    score: Callable = scores_of.magnitude,
    accumulate: bool = False,
    pool: str = "norm",
    distribution="uniform",
    every: int = 100,
    begin: int = 0,
    end: int | None = None,
) -> Pruner:
    """Prunes step by step, by magnitude by default; what is gone stays gone.

    Args:
        sparsity: the share of zeros of all chosen weights: a schedule, such as `cubic(0.9, end=
            1000)` or one of optax, from a step to a share; or a number.
        format: as in `jaxsparse.pruning.select`; or give `init` the patterns to start from. Without
            these all weights are stored at first.
        score: a function of the parameters and the dense gradients, such as `magnitude`, `snip`,
            `gradient`, `movement`.
        accumulate: sum the scores over all steps, with the gradients of each.
        pool, distribution: as in `jaxsparse.pruning.select`.
        every, begin, end: patterns change at step `begin`, each `every` steps after it, and at
            `end`, after which they rest.

    Raises:
        ValueError: steps, a schedule or a budget that cannot be; by `init`, where it is known.

    Patterns keep the capacity they start with. When pruning has ended, `shrink` them.

    Source: Zhu and Gupta 2017, arXiv:1710.01878; with `score=movement, accumulate=True,
    pool="sum"`, Sanh et al. 2020, arXiv:2005.07683, but that what was dropped does not return.
    """
    sparsity = schedules.as_schedule("gradual", "sparsity", sparsity)
    clock = _Clock.make("gradual", every, begin, end)

    def init(params, *, key=None, patterns=None):
        shares = clock.check_schedule("gradual", "sparsity", sparsity)
        patterns = tree.initial("gradual", params, format, patterns)
        distributions.check_budget(
            params, float(shares.max()), patterns=patterns, distribution=distribution
        )
        memory = jax.tree.map(jnp.zeros_like, scores_of.magnitude(params)) if accumulate else None
        return _state(key, patterns, memory)

    def scored(params, grads):
        return score(params, _evaluate(grads, params))

    def update(params, opt_state, state, grads=None):
        patterns = state.patterns
        params = tree.apply_patterns(params, patterns)
        memory = state.memory
        if accumulate:
            memory = jax.tree.map(jnp.add, memory, scored(params, grads))

        def prune(patterns):
            scores = memory if accumulate else scored(params, grads)
            return distributions.select(
                scores,
                jnp.clip(sparsity(state.step), 0, 1),
                patterns=patterns,
                pool=pool,
                distribution=distribution,
            )

        is_due = clock.is_due(state.step)
        new = lax.cond(is_due, prune, lambda patterns: patterns, patterns)
        return _changed(is_due, params, opt_state, state, new, memory)

    return Pruner(init, update)


def set_(
    sparsity: float | None = None,
    *,
    format=None,
    fraction=0.3,
    distribution="erk",
    initializer: Callable | None = None,
    every: int = 100,
    begin: int | None = None,
    end: int | None = None,
) -> Pruner:
    """Sparse evolutionary training: the weakest weights make room for others, drawn at random.

    Args:
        sparsity: of the random patterns to start from; none if `init` is given patterns.
        format: as in `jaxsparse.pruning.select`.
        fraction: the share of stored parts that are exchanged; a schedule or a number.
        distribution: "erk", "uniform", or densities by path.
        initializer: of the weights that are new, as `jax.nn.initializers` has them; zeros by
            default. They have no gradient of the past.
        every, begin, end: patterns change at step `begin` (by default `every`), each `every` steps
            after it, and at `end`, after which they rest.

    Raises:
        ValueError: steps, a schedule or a budget that cannot be; by `init`, where it is known.

    What was just dropped is not drawn. The same key gives the same patterns.

    Source: Mocanu et al. 2018, doi:10.1038/s41467-018-04316-3.
    """
    return _exchanging(
        "set_", None, sparsity, format, fraction, distribution, initializer, every, begin, end
    )


def rigl(
    sparsity: float | None = None,
    *,
    end: int,
    format=None,
    fraction=None,
    distribution="erk",
    initializer: Callable | None = None,
    every: int = 100,
    begin: int | None = None,
) -> Pruner:
    """RigL: the weakest weights make room for those whose gradients are largest.

    `update` needs dense gradients: pass a function of the parameters, which is called at the steps
    at which patterns change and at no others.

    Args:
        sparsity: of the random patterns to start from; none if `init` is given patterns.
        end: the last step at which patterns change; the paper takes 3/4 of the training.
        format: as in `jaxsparse.pruning.select`.
        fraction: the share of stored parts that are exchanged; a schedule or a number, by default
            `cosine(0.3, end=end)`.
        distribution: "erk", "uniform", or densities by path.
        initializer: of the weights that are new; zeros by default, as in the paper.
        every, begin: patterns change at step `begin` (by default `every`) and each `every` steps
            after it.

    Raises:
        ValueError: steps, a schedule or a budget that cannot be; by `init`, where it is known.

    What was just dropped is not grown in the same step.

    Source: Evci et al. 2020, arXiv:1911.11134.
    """
    if fraction is None:
        fraction = schedules.cosine(0.3, end=end)
    return _exchanging(
        "rigl",
        scores_of.gradient,
        sparsity,
        format,
        fraction,
        distribution,
        initializer,
        every,
        begin,
        end,
    )


def admm(
    sparsity: float,
    *,
    format,
    distribution="uniform",
    every: int = 100,
    begin: int | None = None,
    end: int | None = None,
) -> Pruner:
    """ADMM pruning: weights are drawn towards sparse ones, and cut when training has ended.

    Training minimizes loss(w) + `admm_penalty(w, state, rho)`. Every so often

        z = the sparse weights nearest to w + u,    u = u + w - z

    Weights stay dense until `apply_patterns(params, state.patterns)` cuts them.

    Args:
        sparsity: the share of zeros of all chosen weights.
        format, distribution: as in `jaxsparse.pruning.select`.
        every, begin, end: `z` and `u` change at step `begin` (by default `every`), each `every`
            steps after it, and at `end`, after which they rest.

    Raises:
        ValueError: steps or a budget that cannot be; by `init`, where it is known.

    Source: Zhang et al., A Systematic DNN Weight Pruning Framework, 2018, arXiv:1804.03294.
    """
    schedules.check_share("admm", "sparsity", sparsity)
    clock = _Clock.make("admm", every, every if begin is None else begin, end)

    def nearest(weights):
        patterns = distributions.select(
            scores_of.magnitude(weights), sparsity, format=format, distribution=distribution
        )
        return patterns, tree.apply_patterns(weights, patterns)

    def init(params, *, key=None, patterns=None):
        if patterns is not None:
            raise ValueError(
                "admm.init: patterns are found by projection, got some to start from. Leave them "
                "out."
            )
        patterns, z = jax.jit(nearest)(params)  # the same capacities as in `update`
        return _state(key, patterns, (z, jax.tree.map(jnp.zeros_like, params)))

    def update(params, opt_state, state, grads=None):
        def project(patterns, memory):
            _, u = memory
            shifted = jax.tree.map(jnp.add, params, u)
            patterns, z = nearest(shifted)
            return patterns, (z, jax.tree.map(jnp.subtract, shifted, z))

        stay = lambda patterns, memory: (patterns, memory)
        patterns, memory = lax.cond(
            clock.is_due(state.step), project, stay, state.patterns, state.memory
        )
        return params, opt_state, PruningState(state.step + 1, patterns, state.key, memory)

    return Pruner(init, update)


def admm_penalty(params, state: PruningState, rho):
    """The term that draws weights towards sparse ones, to be added to the loss.

    rho / 2 * sum((w - z + u) ** 2), over the weights that are pruned

    Args:
        params: a tree of arrays.
        state: of the pruner `admm`.
        rho: the weight of the penalty, a number or scalar; the paper starts from 1e-4 or so and
            lets it grow.
    """
    leaves = tree.leaves_of("admm_penalty", params, state.patterns)
    total = jnp.zeros((), jnp.float32)
    for leaf, z, u in zip(leaves, *map(jax.tree.leaves, state.memory), strict=True):
        if leaf.pattern is not None:
            total = total + jnp.sum((leaf.value - z + u).astype(jnp.float32) ** 2)
    return rho / 2 * total


def _exchanging(
    name, grow, sparsity, format, fraction, distribution, initializer, every, begin, end
) -> Pruner:
    """A pruner that drops parts of smallest norm; it grows others by a score, or at random."""
    fraction = schedules.as_schedule(name, "fraction", fraction)
    clock = _Clock.make(name, every, every if begin is None else begin, end)

    def init(params, *, key=None, patterns=None):
        clock.check_schedule(name, "fraction", fraction)
        key = jax.random.key(0) if key is None else key
        if (sparsity is None) == (patterns is None):
            raise ValueError(
                f"{name}.init: give sparsity to start from random patterns, or patterns, one of "
                f"them, got sparsity={sparsity} and {'no ' if patterns is None else ''}patterns."
            )
        if patterns is not None:
            return _state(key, tree.initial(name, params, None, patterns))
        if format is None:
            raise ValueError(
                f"{name}.init: random patterns need a format, got None. Give, for example, "
                'format="32x32".'
            )
        schedules.check_share(name, "sparsity", sparsity)
        drawn, key = jax.random.split(key)
        return _state(
            key,
            distributions.random_patterns(
                drawn, params, sparsity, format=format, distribution=distribution
            ),
        )

    def update(params, opt_state, state, grads=None):
        params = tree.apply_patterns(params, state.patterns)
        leaves = tree.leaves_of(name, params, state.patterns)
        is_due = clock.is_due(state.step)
        key = jax.random.fold_in(state.key, state.step)
        share = jnp.clip(fraction(state.step), 0, 1)

        def one(value, pattern, wanted, key):
            order = getattr(pattern, "order", None)
            if grow is None:
                scores = jax.random.uniform(key, pattern.grid)
            else:
                scores = block_norms(wanted, pattern.format, order=order)
            return make.exchange(
                pattern,
                keep_scores=block_norms(value, pattern.format, order=order),
                grow_scores=scores,
                count=jnp.floor(share * pattern.capacity).astype(jnp.int32),
            )

        def move(patterns):
            wanted = params if grow is None else grow(params, _evaluate(grads, params, name))
            given = tree.aligned(name, params, wanted, "gradients")
            moved = []
            for i, (leaf, scores) in enumerate(zip(leaves, given, strict=True)):
                if leaf.pattern is not None:
                    keys = jax.random.split(jax.random.fold_in(key, i), leaf.pattern.group)
                    moved.append(tree.over_layers(one, leaf, scores, keys=keys))
                else:
                    moved.append(None)
            return tree.rebuilt(params, moved)

        new = lax.cond(is_due, move, lambda patterns: patterns, state.patterns)

        def start(params):
            """The parameters with new weights drawn."""
            assert initializer is not None
            old = tree.aligned(name, params, tree.masks_of(name, params, state.patterns), "masks")
            now = tree.aligned(name, params, tree.masks_of(name, params, new), "masks")
            drawn = []
            for i, (leaf, before, after) in enumerate(zip(leaves, old, now, strict=True)):
                if leaf.pattern is None:
                    drawn.append(leaf.value)
                    continue
                init_key = jax.random.fold_in(jax.random.fold_in(key, len(leaves)), i)
                fresh = initializer(init_key, jnp.shape(leaf.value), leaf.value.dtype)
                drawn.append(jnp.where(after & ~before, fresh, leaf.value))
            return tree.rebuilt(params, drawn)

        if initializer is not None:
            params = lax.cond(is_due, start, lambda params: params, params)
        return _changed(is_due, params, opt_state, state, new, state.memory)

    return Pruner(init, update)


def _changed(is_due, params, opt_state, state: PruningState, patterns, memory):
    """What `update` returns after patterns may have changed."""

    def change(params, opt_state):
        old = tree.masks_of("update", params, state.patterns)
        new = tree.masks_of("update", params, patterns)
        kept = jax.tree.map(jnp.logical_and, old, new)
        opt_state = tree.reset_moments(opt_state, params, kept)
        return tree.apply_patterns(params, patterns), opt_state

    stay = lambda params, opt_state: (params, opt_state)
    params, opt_state = lax.cond(is_due, change, stay, params, opt_state)
    return params, opt_state, PruningState(state.step + 1, patterns, state.key, memory)


def _evaluate(grads, params, function: str | None = None):
    """The dense gradients, if they were given as a function."""
    if grads is None and function is not None:
        raise ValueError(
            f"{function}.update: growing needs the gradients of all weights, got grads=None. Pass "
            "a function of the parameters that returns them; it is called only when patterns "
            "change."
        )
    return grads(params) if callable(grads) else grads


def _state(key, patterns, memory=None) -> PruningState:
    key = jax.random.key(0) if key is None else key
    return PruningState(jnp.zeros((), jnp.int32), patterns, key, memory)


class _Clock(NamedTuple):
    """When patterns change."""

    every: int
    begin: int
    end: int | None

    @classmethod
    def make(cls, function: str, every, begin, end) -> "_Clock":
        for name, step, least in (("every", every, 1), ("begin", begin, 0), ("end", end, begin)):
            if step is None and name == "end":
                continue
            if isinstance(step, bool) or not isinstance(step, (int, np.integer)) or step < least:
                raise ValueError(
                    f"{function}: {name} counts steps, an int from {least} on, got {step!r}."
                )
        return cls(every, begin, end)

    def is_due(self, step):
        since = step - self.begin
        is_due = (since >= 0) & (since % self.every == 0)
        if self.end is not None:
            is_due = (is_due & (step < self.end)) | (step == self.end)
        return is_due

    def check_schedule(self, function: str, name: str, schedule):
        """The shares at the steps at which patterns change, of which the first 1000 are looked at.

        Raises:
            ValueError: one of them is outside [0, 1].
        """
        last = self.begin + 1000 * self.every
        steps = np.arange(self.begin, last if self.end is None else self.end, self.every)[:1000]
        if self.end is not None:
            steps = np.append(steps, self.end)
        return schedules.check_schedule(function, name, schedule, steps)
