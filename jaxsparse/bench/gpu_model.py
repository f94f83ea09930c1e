"""What a model says of the CUDA kernels on an H200, in bfloat16, beside what we aim for.

    python -m jaxsparse.bench.gpu_model     the table of xla_ffi/cuda/README.md

Nothing here is measured on a GPU with our kernels. A pass takes the longest of three: products on
tensor cores, operands from L2 into shared memory, arrays from and to device memory; that, times how
unevenly tiles of a random pattern share the multiprocessors, plus what launches cost. The share of
tiles is computed from the very order in which the kernels take them.
"""

import dataclasses
import heapq

import numpy as np


@dataclasses.dataclass(frozen=True)
class Gpu:
    """Rates of an H200: what the model assumes. Of these, `dense` and `memory` come from others'
    measurements of cuBLAS and of copies; all else is a guess until scripts/gpu has run.

    Attributes:
        dense: FLOP/s that cuBLAS reaches on large products.
        memory: bytes/s of device memory.
        l2: bytes/s from L2 into shared memory.
        reached: the share of `dense` that wgmma reaches on tiles as wide as a block.
        mma_sync: how much slower mma.sync feeds tensor cores than wgmma.
        multiprocessors: of the chip.
        l2_bytes: how much of `a` may be in L2 for tiles to be taken by line first.
        fill: the factor for filling and draining the rings.
        launch, next_launch: seconds to the first kernel of a call and from each to the next.
        check, prepare: seconds to check a pattern and order its columns; to sort it by row, too.
    """

    dense: float = 790e12
    memory: float = 4.0e12
    l2: float = 5.5e12
    reached: tuple[tuple[int, float], ...] = ((128, 0.85), (64, 0.78), (32, 0.50), (16, 0.28))
    mma_sync: float = 0.5
    multiprocessors: int = 132
    l2_bytes: float = 37.5e6
    fill: float = 1.06
    launch: float = 4e-6
    next_launch: float = 1.5e-6
    check: float = 4e-6
    prepare: float = 8e-6


H200 = Gpu()

# Speedups over cuBLAS that we aim for, at 4096 and 8192 rows, inputs and outputs, by kind of pass
# and block edge: {density: goal}.
GOALS = {
    ("product", 128): {0.5: 1.3, 0.3: 2.1, 0.2: 3.1, 0.1: 5.5},
    ("product", 64): {0.3: 1.2, 0.2: 1.8, 0.1: 3.5},
    ("product", 32): {0.2: 1.0, 0.1: 1.9},
    ("product", 16): {0.1: 1.0},
    ("weight_grad", 128): {0.3: 1.3, 0.1: 3.5},
    ("weight_grad", 64): {0.2: 1.0, 0.1: 2.0, 0.05: 4.0},
    ("weight_grad", 32): {0.1: 1.0, 0.05: 2.0},
    ("step", 64): {0.2: 1.5, 0.1: 2.8},
}
BREAK_EVEN_GOALS = {128: 0.7, 64: 0.4, 32: 0.2, 16: 0.1}


def goal(role: str, block: int, density: float) -> float | None:
    """The speedup that we aim for; None where there is no goal."""
    kind = "product" if role in ("forward", "input_grad") else role
    return GOALS.get((kind, block), {}).get(density)


def kernel(role: str, rows: int, block: int) -> str:
    """The instructions of the kernel that an H200 takes, as `select` in C++ has it."""
    is_hopper = role in ("forward", "input_grad") and block >= 64 and rows > 128
    return "wgmma" if is_hopper else "mma.sync"


@dataclasses.dataclass(frozen=True)
class Modelled:
    """Seconds of a pass, and what limits it."""

    seconds: float
    limit: str


def modelled(
    role: str, rows: int, size: int, block: int, density: float, gpu: Gpu = H200
) -> Modelled:
    """A pass over `rows` rows with a random pattern of square blocks in a square weight.

    `role` is "forward", "input_grad", "weight_grad", or "step" for the three of them.
    """
    if role == "step":
        passes = ("forward", "input_grad", "weight_grad")
        parts = [modelled(part, rows, size, block, density, gpu) for part in passes]
        longest = max(parts, key=lambda part: part.seconds)
        return Modelled(sum(part.seconds for part in parts), longest.limit)
    is_hopper = kernel(role, rows, block) == "wgmma"
    flop = 2 * rows * size**2 * density
    unit = dict(gpu.reached)[block] * (1 if is_hopper else gpu.mma_sync)
    # An operand's tile is as wide as a block; the other has 256 rows, or 128.
    per_flop = 1 / block + (1 / 256 if is_hopper else 1 / 128)
    limits = {
        "tensor cores": flop / (gpu.dense * unit),
        "L2": flop * per_flop / gpu.l2,
        "memory": 2 * size * (2 * rows + density * size) / gpu.memory,
    }
    limit = max(limits, key=lambda name: limits[name])
    launches = gpu.launch + gpu.next_launch
    launches += gpu.prepare if role == "input_grad" else gpu.check
    share = 1.0
    if role != "weight_grad":
        share = _unevenness(_lengths(size, block, density), rows, size, block, is_hopper, gpu)
    return Modelled(limits[limit] * gpu.fill * share + launches, limit)


def dense_seconds(role: str, rows: int, size: int, gpu: Gpu = H200) -> float:
    """The same by cuBLAS."""
    return (3 if role == "step" else 1) * (2 * rows * size**2 / gpu.dense + gpu.launch)


def speedup(role: str, rows: int, size: int, block: int, density: float, gpu: Gpu = H200) -> float:
    ours = modelled(role, rows, size, block, density, gpu).seconds
    return dense_seconds(role, rows, size, gpu) / ours


def break_even(role: str, size: int, block: int, gpu: Gpu = H200) -> float:
    """The density at which the model has both draw level, in steps of 0.01."""
    densities = [i / 100 for i in range(1, 101)]
    wins = [d for d in densities if speedup(role, size, size, block, d, gpu) >= 1]
    return max(wins, default=0.0)


def slowed_by_a_long_line(times: float, size: int, block: int, density: float) -> float:
    """How much longer a product takes where one line has `times` the mean number of blocks."""
    lengths = _lengths(size, block, density)
    skewed = np.append(lengths[:-1], times * lengths.mean())
    args = size, size, block, kernel("forward", size, block) == "wgmma", H200
    work = (skewed.sum() + len(skewed)) / (lengths.sum() + len(lengths))
    return work * _unevenness(skewed, *args) / _unevenness(lengths, *args) - 1


def _lengths(size: int, block: int, density: float) -> np.ndarray:
    """How many blocks the lines of a random pattern have."""
    lines = size // block
    places = np.random.default_rng(0).permutation(lines * lines)[: round(density * lines * lines)]
    return np.bincount(places % lines, minlength=lines)


def _unevenness(
    lengths: np.ndarray, rows: int, size: int, block: int, is_hopper: bool, gpu: Gpu
) -> float:
    """The time of the multiprocessor that works longest, over the mean."""
    # A tile costs its steps, 64 deep, and one for the result.
    costs = np.sort(lengths)[::-1] * max(1, block / 64) + 1.0
    rows_of_tiles = -(-rows // (256 if is_hopper else 128))
    by_line = 2 * rows * size <= gpu.l2_bytes
    order = np.repeat(costs, rows_of_tiles) if by_line else np.tile(costs, rows_of_tiles)
    if is_hopper:  # in turns, every other in the other direction
        count = gpu.multiprocessors
        turn, place = np.divmod(np.arange(len(order)), count)
        owner = np.where(turn % 2 == 0, place, count - 1 - place)
        loads = np.bincount(owner, order, count)
    else:  # two blocks of threads on a multiprocessor, the next tile to whoever is free
        queue: list[float] = [0.0] * (2 * gpu.multiprocessors)
        for cost in order:
            heapq.heapreplace(queue, queue[0] + float(cost))
        loads = np.array(queue)
    return float(np.max(loads) / np.mean(loads))


def tables(gpu: Gpu = H200) -> str:
    """The modelled time of every kind of pass that has a goal, and break-even, in Markdown."""
    lines = [
        "| pass | block | density | kernels | at 4096 | at 8192 | limit | goal |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (kind, block), goals in GOALS.items():
        role = "forward" if kind == "product" else kind
        for density, its_goal in goals.items():
            cells = [role.replace("_", " "), f"{block}", f"{density:.0%}"]
            cells.append("both" if role == "step" else kernel(role, 4096, block))
            for size in (4096, 8192):
                micros = 1e6 * modelled(role, size, size, block, density, gpu).seconds
                ratio = speedup(role, size, size, block, density, gpu)
                cells.append(f"{micros:.0f} us, {ratio:.1f}x")
            cells += [modelled(role, 4096, 4096, block, density, gpu).limit, f"{its_goal:g}x"]
            lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| forward: block | break-even at 4096 | at 8192 | goal |", "|---|---|---|---|"]
    for block, its_goal in BREAK_EVEN_GOALS.items():
        points = [break_even("forward", size, block, gpu) for size in (4096, 8192)]
        lines.append(f"| {block} | {points[0]:.0%} | {points[1]:.0%} | {its_goal:.0%} |")
    factors = (2, 3, 4, 6)
    head = "".join(f" {factor}x |" for factor in factors)
    lines += ["", f"| forward at 4096, 10 %, a line of so many times the mean: block |{head}"]
    lines += ["|---|" + "---|" * len(factors)]
    for block in (128, 64):
        slower = [slowed_by_a_long_line(factor, 4096, block, 0.1) for factor in factors]
        lines.append(f"| {block} | {' | '.join(f'{x:+.0%}' for x in slower)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(tables())
