"""Training while pruning: steps of RigL on two feed-forward layers, against steps of dense ones.

The layers are those of examples/characters.py. A step is forward, backward and Adam; patterns move
every hundred steps, for which dense gradients are taken, at these steps only.
"""

import dataclasses
import functools
import statistics

import jax
import jax.numpy as jnp
import numpy as np

import jaxsparse as js
from jaxsparse import pruning
from jaxsparse.bench import measure, table

GOAL, MOST_SHARE = 2.0, 0.05
EVERY = 100
FORMAT = "32x32"


@dataclasses.dataclass(frozen=True)
class Row:
    """A batch.

    Attributes:
        milliseconds: medians of a step: "dense"; "fixed", with patterns that stay, outside of
            which weights stay zero; "quiet", with a pruner, when no pattern moves; "moving", when
            all do.
        ratio: of a dense step to a mean one of EVERY, of which one moves patterns; in each round.
        share: of the pruner in the mean step.
        command: what to type to measure this row again.
    """

    layers: str
    batch: int
    zeros: float
    milliseconds: dict[str, float]
    ratio: float
    share: float
    goal: float | None
    most_share: float | None
    command: str = ""

    def line(self) -> str:
        times = "  ".join(f"{name} {ms:.1f}" for name, ms in self.milliseconds.items())
        ends = ["", ""]
        if self.goal is not None and self.most_share is not None:
            ends[0] = f" goal {self.goal:g} {'met' if self.ratio >= self.goal else 'MISSED'}"
            met = "met" if self.share <= self.most_share else "MISSED"
            ends[1] = f" goal {100 * self.most_share:g} % {met}"
        return (
            f"{self.layers}, batch {self.batch}, {100 * self.zeros:.0f} % zeros, {FORMAT}  {times} "
            f"ms a step  mean {self.ratio:.2f}x{ends[0]}  pruning {100 * self.share:.1f} %{ends[1]}"
        )


def run(quick=False, seconds=1.0, only="", threads=1, zeros: float = 0.9) -> list[Row]:
    """Measures and prints a row per batch; `only` as in `table.select`."""
    width = 512 if quick else 2048
    cases = table.select({f"batch {n}": n for n in ((32,) if quick else (256, 512))}, only)

    def measure_row(batch, label):
        command = table.command("pruning", label, quick=quick, threads=threads, seconds=seconds)
        row = measure_batch(width, batch, seconds, zeros)
        goals = (None, None) if quick else (GOAL, MOST_SHARE)
        return dataclasses.replace(row, command=command, goal=goals[0], most_share=goals[1])

    return table.run("pruning", cases, measure_row)


def measure_batch(width: int, batch: int, seconds: float, zeros: float) -> Row:
    """Checks and times one row."""
    import optax  # an extra

    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape, np.float32))
    x, aim = draw(batch, width), draw(batch, width)
    params = {name: draw(width, width) / np.sqrt(width) for name in ("first", "second")}
    adam = optax.adam(1e-3)

    def loss(weights, patterns, grad="exact"):
        product = lambda x, name: js.matmul(
            x, weights[name], pattern=patterns and patterns[name], grad=grad
        )
        return jnp.mean((product(jax.nn.relu(product(x, "first")), "second") - aim) ** 2)

    def step_of(pruner):
        @functools.partial(jax.jit, donate_argnums=(0, 1, 2))
        def step(params, opt_state, state):
            patterns = None if state is None else state.patterns
            value, grads = jax.value_and_grad(loss)(params, patterns)
            updates, opt_state = adam.update(grads, opt_state, params)
            params = optax.apply_updates(params, updates)
            if pruner is not None:
                whole = lambda params: jax.grad(loss)(params, patterns, "dense")
                return *pruner.update(params, opt_state, state, whole), value
            if state is not None:
                params = pruning.apply_patterns(params, patterns)  # Adam's moments moved them
            return params, opt_state, state, value

        return step

    options = {"sparsity": zeros, "format": FORMAT, "distribution": "uniform", "end": 10**6}
    pruners = {
        "quiet": pruning.rigl(every=10**5, **options),
        "moving": pruning.rigl(every=1, begin=0, **options),
    }
    key = jax.random.key(0)
    states = {name: pruner.init(params, key=key) for name, pruner in pruners.items()}
    pruned = pruning.apply_patterns(params, states["quiet"].patterns)
    steps = {name: step_of(pruner) for name, pruner in pruners.items()}
    steps |= {"dense": step_of(None), "fixed": step_of(None)}
    arguments = {
        "dense": (pruned, adam.init(params), None),
        "fixed": (pruned, adam.init(params), states["quiet"]),
        "quiet": (pruned, adam.init(params), states["quiet"]),
        "moving": (pruned, adam.init(params), states["moving"]),
    }
    _check(steps, arguments)
    held = jax.tree.map(jnp.copy, arguments)  # each its own, as steps take over what they are given

    def train(name):
        *held[name], value = steps[name](*held[name])
        jax.block_until_ready((held[name], value))

    calls = {name: functools.partial(train, name) for name in arguments}
    samples = measure.interleaved(calls, seconds=seconds)
    means = [
        ((EVERY - 1) * quiet + moving) / EVERY
        for quiet, moving in zip(samples["quiet"], samples["moving"], strict=True)
    ]
    samples["mean"] = means
    medians = {name: statistics.median(times) for name, times in samples.items()}
    return Row(
        layers=f"2 layers {width} x {width}",
        batch=batch,
        zeros=zeros,
        milliseconds={name: 1e3 * median for name, median in medians.items()},
        ratio=measure.median_ratio(samples, "dense", "mean"),
        share=1 - medians["fixed"] / medians["mean"],
        goal=None,
        most_share=None,
    )


def _check(steps, arguments) -> None:
    """Raises unless losses agree, patterns move where they should, and nothing compiles anew."""
    fresh = lambda name: jax.tree.map(jnp.copy, arguments[name])
    losses = {name: steps[name](*fresh(name))[-1] for name in arguments}
    if not np.allclose(list(losses.values()), losses["dense"], rtol=1e-4):
        raise RuntimeError(
            f"bench: losses of the same weights differ, so nothing is timed: {losses}"
        )
    for name in ("quiet", "moving"):
        params, opt_state, state = fresh(name)
        for _ in range(3):
            before = jax.tree.map(jnp.copy, state.patterns)
            params, opt_state, state, _ = steps[name](params, opt_state, state)
            same = jax.tree.map(lambda a, b: bool((a == b).all()), before, state.patterns)
            if all(jax.tree.leaves(same)) != (name == "quiet"):
                raise RuntimeError(f"bench: patterns of the {name} step do what they should not.")
        if steps[name]._cache_size() != 1:
            raise RuntimeError("bench: a step with other patterns is compiled anew.")
