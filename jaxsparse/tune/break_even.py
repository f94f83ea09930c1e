"""At which density a kernel stops being faster than XLA, measured on this machine.

    python -m jaxsparse tune

writes `<device>.json` into a folder that `core.dispatch` reads before the library's own
(`jaxsparse/tune/data`). A break-even point holds
for a class of problems (`BlockSpec.shape_class`), a member and a dtype; the class is represented by
one problem in the middle of it.
"""

import functools
import json
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.core import dispatch
from jaxsparse.formats.block import Block
from jaxsparse.ops.matmul import MATMUL, MatmulSpec
from jaxsparse.patterns import make

DENSITIES = (1.0, 0.9, 0.8, 0.65, 0.5, 0.35, 0.25, 0.15, 0.1, 0.05, 0.02, 0.0)
DTYPES = ("float32", "bfloat16", "float16", "float64")
BATCHES = (1, 16, 256)
BLOCKS = (4, 8, 16, 32)
SHAPE = (1024, 1024)
MEMBERS = [
    getattr(op, role)
    for op in (MATMUL.packed["block"], MATMUL.whole["block"])
    for role in ("forward", "input_grad", "weight_grad")
]


def measure(compare: Callable, report: Callable[[str], None] = print) -> dict:
    """The table for this device.

    Args:
        compare: `compare(ours, theirs) -> ratio`, how many times faster the first function is.
        report: called with a line for every point found.
    """
    table = {}
    for dtype in DTYPES:
        with jax.enable_x64(dtype == "float64"):
            for batch in BATCHES:
                for block in BLOCKS:
                    _measure_class(table, dtype, batch, block, compare, report)
    return table


def write(table: dict, environment: dict, folder: pathlib.Path) -> pathlib.Path:
    """Stores a table where the dispatcher looks for it; returns the file's path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{dispatch.device()}.json"
    content = {"environment": environment, "break_even": table}
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path


def _measure_class(table, dtype, batch, block, compare, report):
    rng = np.random.default_rng(0)
    size_in, size_out = SHAPE
    format = Block((block, block))
    kinds = {
        "x": jnp.asarray(rng.standard_normal((batch, size_in)), dtype),
        "y": jnp.asarray(rng.standard_normal((batch, size_out)), dtype),
        "dense": jnp.asarray(rng.standard_normal(SHAPE), dtype),
    }
    for member in MEMBERS:

        def ratio(density, member=member):
            pattern = make.random(jax.random.key(0), format, SHAPE, sparsity=1 - density)
            arrays = {**kinds, "w": pattern.gather(kinds["dense"])}
            operands = [arrays[kind.name] for kind in member.operands]
            spec = MatmulSpec(pattern.spec())
            ours, theirs = (
                jax.jit(functools.partial(member, spec, implementation=implementation))
                for implementation in ("ffi", "xla")
            )
            return compare(
                lambda: jax.block_until_ready(ours(*operands, *pattern.indices)),
                lambda: jax.block_until_ready(theirs(*operands, *pattern.indices)),
            )

        point = _highest(ratio)
        shape_class = make.full(format, SHAPE).spec().shape_class(batch)
        table.setdefault(member.name, {}).setdefault(dtype, {})[shape_class] = point
        report(f"{member.name} {dtype} {shape_class}: {point}")


def _highest(ratio: Callable[[float], float]) -> float:
    """The highest density at which the ratio is at least 1; by halving, for ratios fall with it."""
    low, high = 0, len(DENSITIES) - 1  # the answer is in DENSITIES[low : high + 1]
    while low < high:
        middle = (low + high) // 2
        if ratio(DENSITIES[middle]) >= 1:
            high = middle
        else:
            low = middle + 1
    return DENSITIES[low]
