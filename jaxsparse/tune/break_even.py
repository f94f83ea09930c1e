"""At which density a kernel stops being faster than XLA, measured on this machine.

    python -m jaxsparse tune

writes `<device>.json` into a folder that `core.dispatch` reads before the library's own
(`jaxsparse/tune/data`). A break-even point holds for a class of problems (`Spec.shape_class`), a
member and a dtype; a class is represented by its smallest batch and by a small and a large weight,
the worse of which decides. The rival is what the dispatcher would run instead: XLA's dense op on a
weight that compiled copies unpack.
"""

import functools
import json
import pathlib
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.core import dispatch, kernel
from jaxsparse.formats.block import Block
from jaxsparse.formats.columns import Grouped, Unstructured
from jaxsparse.ops.matmul import MATMUL, MatmulSpec
from jaxsparse.patterns import make

DENSITIES = (1.0, 0.9, 0.8, 0.65, 0.5, 0.35, 0.25, 0.15, 0.1, 0.05, 0.02, 0.0)
DTYPES = ("float32", "bfloat16", "float16", "float64")
BATCHES = (1, 16, 64, 512, 2048)
BLOCKS = tuple(Block((size, size)) for size in (4, 8, 16, 32))
FORMATS = (*BLOCKS, Unstructured(), Grouped(4), Grouped(8))
SHAPES = ((128, 128), (1024, 1024))

# How much faster a kernel has to be than what it replaces. From 2048 rows on, unpacking a weight is
# 3 % of a product or less, so the dense op is the safe choice, on machines that were not measured
# too. Below, neither is, and the faster one is the better guess.
SAFE_BATCH, SAFE_MARGIN = 2048, 1.1


def measure(compare: Callable, report: Callable[[str], None] = print, only: str = "") -> dict:
    """The table for this device.

    Args:
        compare: `compare(ours, theirs) -> ratio`, how many times faster the first function is.
        report: called with a line for every point found.
        only: measures the points whose line contains this.
    """
    table = {}
    for dtype in DTYPES:
        with jax.enable_x64(dtype == "float64"):
            for member, format, batch in _problems():
                margin = SAFE_MARGIN if batch >= SAFE_BATCH else 1.0
                shape_class = make.full(format, SHAPES[0]).spec().shape_class(batch)
                if only not in (label := f"{member.name} {dtype} {shape_class}"):
                    continue

                def pays(density, shape, problem=(member, format, batch, dtype), margin=margin):
                    return compare(*_functions(problem, shape, density)) >= margin

                point = highest(lambda density: all(pays(density, shape) for shape in SHAPES))
                table.setdefault(member.name, {}).setdefault(dtype, {})[shape_class] = point
                report(f"{label}: {point}")
    return table


def write(table: dict, environment: dict, folder: pathlib.Path) -> pathlib.Path:
    """Stores a table where the dispatcher looks for it; returns the file's path.

    Points that the table does not have stay as they are in the file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{dispatch.device()}.json"
    merged = json.loads(path.read_text())["break_even"] if path.exists() else {}
    for member, dtypes in table.items():
        for dtype, points in dtypes.items():
            merged.setdefault(member, {}).setdefault(dtype, {}).update(points)
    content = {"environment": environment, "break_even": merged}
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path


def highest(pays: Callable[[float], bool]) -> float:
    """The highest of DENSITIES at which a kernel pays: all of it, or else by halving."""
    if pays(DENSITIES[0]):
        return DENSITIES[0]
    low, high = 1, len(DENSITIES) - 1  # the answer is in DENSITIES[low : high + 1]
    while low < high:
        middle = (low + high) // 2
        if pays(DENSITIES[middle]):
            high = middle
        else:
            low = middle + 1
    return DENSITIES[low]


def _problems() -> Iterator[tuple]:
    for format in FORMATS:
        name = make.full(format, SHAPES[0]).spec().name
        for op in (MATMUL.packed[name], MATMUL.whole[name]):
            for member in (op.forward, op.input_grad, op.weight_grad):
                if not kernel.missing("cpu", member.handlers("cpu")):
                    yield from ((member, format, batch) for batch in BATCHES)


def _functions(problem: tuple, shape, density) -> tuple[Callable, Callable]:
    """The kernel and its rival on arrays of their own."""
    member, format, batch, dtype = problem
    rng = np.random.default_rng(0)
    pattern = make.random(jax.random.key(0), format, shape, sparsity=1 - density)
    dense = jnp.asarray(rng.standard_normal(shape), dtype)
    arrays = {
        "x": jnp.asarray(rng.standard_normal((batch, shape[0])), dtype),
        "y": jnp.asarray(rng.standard_normal((batch, shape[1])), dtype),
        "dense": dense,
        "w": pattern.gather(dense),
    }
    operands = [arrays[kind.name] for kind in member.operands]
    ours, theirs = (
        jax.jit(functools.partial(member, MatmulSpec(pattern.spec()), implementation=path))
        for path in ("ffi", "dense")
    )
    return (
        lambda: jax.block_until_ready(ours(*operands, *pattern.indices)),
        lambda: jax.block_until_ready(theirs(*operands, *pattern.indices)),
    )
