"""How long substitution takes: a hundred layers, in both frameworks and every format."""

import dataclasses
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx

import jaxsparse as js
from jaxsparse.bench import resnet, table

GOAL_SECONDS = 2.0
# ResNet-101: 104 convolutions and a linear layer.
STAGES = ((64, 3), (128, 4), (256, 23), (512, 3))
FORMATS = ("unstructured", "16x16", "grouped:8")
WIDTH, DEPTH = 512, 100  # of the Linen network


@dataclasses.dataclass(frozen=True)
class Row:
    """One network and format.

    Attributes:
        layers: how many become sparse.
        first: seconds of the first call, with whatever JAX compiles for it.
        again: the median of three more.
    """

    name: str
    layers: int
    first: float
    again: float
    goal: float

    def line(self) -> str:
        met = "met" if self.first <= self.goal else "MISSED"
        return (
            f"{self.name:40s} {self.layers:4d} layers  first {self.first:5.2f} s  "
            f"again {self.again:5.2f} s  goal {self.goal:g} s {met}"
        )


class Stack(nn.Module):
    """Linear layers, one after another."""

    width: int
    depth: int

    @nn.compact
    def __call__(self, x):
        for _ in range(self.depth):
            x = nn.relu(nn.Dense(self.width)(x))
        return x


def run(quick: bool = False, only: str = "") -> list[Row]:
    """Measures and prints a row for each network and format; `only` as in `table.select`."""
    stages, width = (resnet.QUICK_STAGES, 32) if quick else (STAGES, WIDTH)
    depth = 5 if quick else DEPTH
    networks = {"nnx": lambda: _resnet(stages), "linen": lambda: _stack(width, depth)}
    cases = {f"{one} {format}": (one, format) for one in networks for format in FORMATS}
    rows, made = [], {}
    for name, (framework, format) in table.select(cases, only).items():
        if framework not in made:
            made[framework] = networks[framework]()
        network, arguments = made[framework]
        rule, seconds, summary = js.Rule(".*", format, sparsity=0.9), [], ()
        for _ in range(4):
            start = time.monotonic()
            *_, summary = js.sparsify(network, rule, *arguments)
            seconds.append(time.monotonic() - start)
        row = Row(name, len(summary), seconds[0], statistics.median(seconds[1:]), GOAL_SECONDS)
        rows.append(row)
        print(row.line(), flush=True)
    return rows


def _resnet(stages):
    make = lambda: resnet.ResNet(nnx.Conv, stages, nnx.Rngs(0))
    graph, state = nnx.split(nnx.eval_shape(make))
    return nnx.merge(graph, _filled(state)), ()


def _stack(width: int, depth: int):
    model, x = Stack(width, depth), jnp.ones((1, width))
    return model, (_filled(jax.eval_shape(model.init, jax.random.key(0), x)), x)


def _filled(shapes):
    """Arrays of normal numbers, without the programs that initializers would compile."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.array(rng.standard_normal(leaf.shape, np.float32)), shapes)
