"""What a sparse call costs besides its arithmetic: eager calls, tracing and compiling, memory."""

import dataclasses
import functools
import math
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

import jaxsparse as js
from jaxsparse.bench import measure


@dataclasses.dataclass(frozen=True)
class Row:
    """One cost: `sparse` and `dense` in `unit`, and the bound we mean to keep."""

    name: str
    unit: str
    sparse: float
    dense: float
    bound: str
    is_kept: bool

    def line(self) -> str:
        return (
            f"{self.name:44s} sparse {self.sparse:9.4g} {self.unit}  dense {self.dense:9.4g} "
            f"{self.unit}  bound {self.bound} {'kept' if self.is_kept else 'BROKEN'}"
        )


def run(quick: bool = False) -> list[Row]:
    """Measures and prints every cost."""
    rows = []
    memory = [_memory(*each) for each in (("16x16", 1.05), ("32x32", 1.05), ("unstructured", 2.1))]
    for row in (_eager(), _index_check(), _compile(20 if quick else 100), *memory):
        print(row.line(), flush=True)
        rows.append(row)
    return rows


def _eager() -> Row:
    """A call outside jit whose arithmetic is negligible."""
    w = js.fromdense(np.ones((32, 32), np.float32), "16x16")
    x, dense = jnp.ones((1, 32)), w.todense()
    samples = measure.interleaved(
        {
            "sparse": lambda: jax.block_until_ready(js.matmul(x, w)),
            "dense": lambda: jax.block_until_ready(x @ dense),
        }
    )
    sparse, dense_time = (1e6 * statistics.median(samples[k]) for k in ("sparse", "dense"))
    return Row("eager call", "us", sparse, dense_time, "60 us", sparse < 60)


def _index_check(num_blocks: int = 128 * 128) -> Row:
    """What the check of one block's place costs: a gradient of no rows does nothing else."""
    side = math.isqrt(num_blocks)
    times = {}
    for size in (1, side):
        pattern = js.patterns.full("1x1", (size, size))
        gradient = jax.jit(functools.partial(js.sddmm, implementation="ffi"))
        none = jnp.zeros((0, size))
        samples = measure.interleaved(
            {"check": lambda f=gradient, x=none, p=pattern: jax.block_until_ready(f(x, x, p))}
        )
        times[size] = statistics.median(samples["check"])
    check = 1e9 * (times[side] - times[1]) / (num_blocks - 1)
    return Row("check of one index, and clearing 4 bytes", "ns", check, 0.0, "2 ns", check < 2)


def _compile(num_layers: int) -> Row:
    """Tracing and compiling the gradient of a chain of layers."""
    pattern = js.patterns.random(jax.random.key(0), "32x32", (256, 256), sparsity=0.9)
    values = [jnp.ones(pattern.values_shape) * i for i in range(num_layers)]
    dense = [pattern.scatter(v) for v in values]
    x = jnp.ones((8, 256))

    def seconds(layer, weights, salt):
        def loss(weights, x):
            for w in weights:
                x = jnp.tanh(layer(x, w)) + salt  # the salt keeps compiled programs apart
            return jnp.sum(x)

        start = time.perf_counter()
        jax.jit(jax.grad(loss)).lower(weights, x).compile()
        return time.perf_counter() - start

    sparse_layer = lambda x, v: js.matmul(x, js.SparseWeight(v, pattern))
    times = {"sparse": [], "dense": []}
    for salt in range(4):  # the first round warms up
        times["sparse"].append(seconds(sparse_layer, values, salt))
        times["dense"].append(seconds(jnp.matmul, dense, salt))
    sparse, plain = (statistics.median(times[k][1:]) for k in ("sparse", "dense"))
    return Row(
        f"trace and compile grad of {num_layers} layers",
        "s",
        sparse,
        plain,
        "2 x dense",
        sparse < 2 * plain,
    )


def _memory(format: str, bound: float) -> Row:
    """Bytes of values and indices, against the density's share of the dense weight."""
    shape, zeros = (4096, 4096), 0.9
    pattern = js.patterns.random(jax.random.key(0), format, shape, sparsity=zeros)
    w = js.SparseWeight(jnp.zeros(pattern.values_shape), pattern)
    dense = 4 * shape[0] * shape[1]
    return Row(
        f"memory, {format} at {100 * zeros:.0f} % zeros",
        "MB",
        w.nbytes / 1e6,
        dense / 1e6,
        f"{bound} x density x dense",
        w.nbytes <= bound * w.density * dense,
    )
