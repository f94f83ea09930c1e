"""A whole network: ResNet-50 in Flax with nine tenths of its weights missing, against XLA's dense.

Both are the same network, with the same random weights, under `jit`: all convolutions but the first
are pruned by magnitude, and packed in ours; the dense one multiplies by the zeros.
"""

import dataclasses
import functools
import statistics

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import jaxsparse.nnx as jsnnx
from jaxsparse.bench import measure, table

GOAL = 3.0
STAGES = ((64, 3), (128, 4), (256, 6), (512, 3))
QUICK_STAGES = ((16, 1), (32, 1))


class Block(nnx.Module):
    """1x1, 3x3, 1x1 and a short cut; the 3x3 layer takes the stride."""

    def __init__(self, conv, size_in: int, inner: int, stride: int, rngs: nnx.Rngs):
        norm = functools.partial(nnx.BatchNorm, use_running_average=True, rngs=rngs)
        conv = functools.partial(conv, use_bias=False, rngs=rngs)
        self.reduce = conv(size_in, inner, (1, 1))
        self.middle = conv(inner, inner, (3, 3), strides=stride, padding=1)
        self.expand = conv(inner, 4 * inner, (1, 1))
        self.norms = nnx.List([norm(n) for n in (inner, inner, 4 * inner)])
        self.has_project = stride > 1 or size_in != 4 * inner
        if self.has_project:
            self.project = conv(size_in, 4 * inner, (1, 1), strides=stride)
            self.project_norm = norm(4 * inner)

    def __call__(self, x):
        y = nnx.relu(self.norms[0](self.reduce(x)))
        y = nnx.relu(self.norms[1](self.middle(y)))
        y = self.norms[2](self.expand(y))
        return nnx.relu(y + (self.project_norm(self.project(x)) if self.has_project else x))


class ResNet(nnx.Module):
    """He et al. 2015, with the strides in the 3x3 layers.

    Args:
        conv: what makes the convolutions after the first, such as `nnx.Conv`.
        stages: inner channels and the number of blocks of each; STAGES for ResNet-50.
    """

    def __init__(self, conv, stages, rngs: nnx.Rngs):
        self.stem = nnx.Conv(3, 64, (7, 7), strides=2, padding=3, use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(64, use_running_average=True, rngs=rngs)
        self.blocks = nnx.List([])
        size = 64
        for stage, (inner, depth) in enumerate(stages):
            for i in range(depth):
                stride = 2 if stage > 0 and i == 0 else 1
                self.blocks.append(Block(conv, size, inner, stride, rngs))
                size = 4 * inner
        self.head = nnx.Linear(size, 1000, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.stem(x)))
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))  # after relu: nothing is below zero
        x = nnx.max_pool(x, (3, 3), (2, 2))
        for block in self.blocks:
            x = block(x)
        return self.head(jnp.mean(x, axis=(1, 2)))


@dataclasses.dataclass(frozen=True)
class Row:
    """The network on one batch.

    Attributes:
        sparse_ms, dense_ms: medians, in milliseconds.
        ratio: the median over rounds of dense over sparse.
        spread: the ratio's quartiles.
        megabytes: of all that the sparse and the dense model store.
        command: what to type to measure this row again.
    """

    network: str
    batch: int
    zeros: float
    sparse_ms: float
    dense_ms: float
    ratio: float
    spread: tuple[float, float]
    megabytes: tuple[float, float]
    goal: float | None
    command: str = ""

    def line(self) -> str:
        met = "" if self.goal is None else ("met" if self.ratio >= self.goal else "MISSED")
        return (
            f"{self.network}, batch {self.batch}, {100 * self.zeros:.0f} % zeros  "
            f"sparse {self.sparse_ms:.1f} ms, {self.megabytes[0]:.1f} MB  "
            f"dense {self.dense_ms:.1f} ms, {self.megabytes[1]:.1f} MB  "
            f"{self.ratio:.2f}x [{self.spread[0]:.2f}, {self.spread[1]:.2f}]  "
            + ("" if self.goal is None else f"goal {self.goal:g} {met}")
        )


def models(zeros: float, stages) -> tuple[nnx.Module, nnx.Module]:
    """The packed network, and the dense one with the same weights."""

    @nnx.jit(static_argnames="make")
    def create(make):
        return ResNet(make, stages, nnx.Rngs(0))

    sparse = create(functools.partial(jsnnx.Conv, format="unstructured", sparsity=zeros))
    dense = create(nnx.Conv)
    nnx.update(dense, nnx.state(sparse, nnx.Param))
    return jsnnx.pack(sparse), dense


def run(quick=False, seconds=1.0, only="", threads=1, zeros: float = 0.9) -> list[Row]:
    """Measures and prints a row per batch; `only` as in `table.select`."""
    sizes = ((1, 32),) if quick else ((1, 224), (8, 224))
    cases = table.select({f"batch {batch}": (batch, size) for batch, size in sizes}, only)
    stages = QUICK_STAGES if quick else STAGES
    both = dict(zip(("sparse", "dense"), models(zeros, stages)))
    megabytes = [sum(a.nbytes for a in jax.tree.leaves(nnx.state(m))) / 1e6 for m in both.values()]
    split = {name: nnx.split(model) for name, model in both.items()}
    applied = {
        name: jax.jit(lambda state, x, graph=graph: nnx.merge(graph, state)(x))
        for name, (graph, _) in split.items()
    }

    def measure_row(case, label):
        batch, size = case
        images = np.random.default_rng(0).standard_normal((batch, size, size, 3), np.float32)
        x = jnp.asarray(images)
        calls = {
            name: lambda name=name: jax.block_until_ready(applied[name](split[name][1], x))
            for name in both
        }
        ours, theirs = (np.asarray(call()) for call in calls.values())
        # Some fifty sums of products one after the other, each rounded.
        if not np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max():
            raise RuntimeError(
                f"bench: the sparse network on {label} is wrong, so it is not timed."
            )
        samples = measure.interleaved(calls, seconds=seconds)
        ratios = [d / s for d, s in zip(samples["dense"], samples["sparse"], strict=True)]
        quartiles = statistics.quantiles(ratios, n=4)
        return Row(
            network="a part of ResNet-50" if quick else "ResNet-50",
            batch=batch,
            zeros=zeros,
            sparse_ms=1e3 * statistics.median(samples["sparse"]),
            dense_ms=1e3 * statistics.median(samples["dense"]),
            ratio=measure.median_ratio(samples, "dense", "sparse"),
            spread=(quartiles[0], quartiles[2]),
            megabytes=(megabytes[0], megabytes[1]),
            goal=None if quick else GOAL,
            command=table.command("resnet", label, quick=quick, threads=threads, seconds=seconds),
        )

    return table.run("resnet", cases, measure_row)
