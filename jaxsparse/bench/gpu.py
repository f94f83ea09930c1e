"""Block-sparse products on a GPU: rows of measurements, and the table that the dispatcher reads.

    python -m jaxsparse.bench.gpu dense ROWS.jsonl     XLA's dense products, in every dtype
    python -m jaxsparse.bench.gpu sweep ROWS.jsonl     block edge x density x pass, against dense
    python -m jaxsparse.bench.gpu peers ROWS.jsonl     block-sparse products of torch and Triton
    python -m jaxsparse.bench.gpu table ROWS.jsonl BREAK_EVEN.json

`scripts/gpu` runs all of it. A row is written as soon as it is measured, the most important first,
and rows that the file has are not measured again, so that a run that was cut short goes on.

Inputs are random and rotate through more than the L2 cache. Sparse and dense are timed in turn, in
one process; a sample is a program of several calls, that of dense and that of sparse alike.
"""

import argparse
import dataclasses
import functools
import importlib
import json
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Container, Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

import jaxsparse as js
from jaxsparse.bench import gpu_model, measure
from jaxsparse.core import dispatch, native
from jaxsparse.tune import environment

ROLES = ("forward", "input_grad", "weight_grad")
CALLS = 4  # in one program, each with inputs of its own: 128 MB and more at 4096 in bfloat16


@dataclasses.dataclass(frozen=True)
class Cell:
    """What is measured: a pass over `rows` rows of a square weight of `size` inputs and outputs.

    `role` is one of ROLES, or "step": the product and both its gradients, as in training.
    `block` and `density` are None for the dense product alone.
    """

    role: str
    dtype: str
    size: int
    rows: int
    block: int | None = None
    density: float | None = None
    precision: str | None = None

    @property
    def label(self) -> str:
        parts = [self.role, self.dtype, *([self.precision] if self.precision else [])]
        sparse = f"b{self.block} {self.density:g}" if self.block else "dense"
        return " ".join([*parts, f"{self.rows}x{self.size}x{self.size}", sparse])

    @property
    def goal(self) -> float | None:
        if self.dtype != "bfloat16" or self.rows < 4096:
            return None
        if self.block is None or self.density is None:
            return None
        return gpu_model.goal(self.role, self.block, self.density)


def modelled_speedup(cell: Cell) -> float | None:
    """What a model says of the kernels on an H200; None where it is silent."""
    if cell.dtype != "bfloat16" or cell.block is None or cell.density is None:
        return None
    return gpu_model.speedup(cell.role, cell.rows, cell.size, cell.block, cell.density)


# What is measured, the most important first ------------------------------------------------------


def sweep(is_dry: bool) -> Iterator[Cell]:
    """Every sparse cell, in the order of its worth."""
    sizes = (256,) if is_dry else (4096, 8192)
    blocks = (64, 16) if is_dry else (64, 128, 32, 16)
    for size in sizes:
        for density in (0.1,) if is_dry else (0.1, 0.2, 0.5, 0.3, 0.05, 0.7, 0.02):
            for block in blocks:
                if size == 4096 or density in (0.1, 0.2) or is_dry:
                    for role in ROLES:
                        yield Cell(role, "bfloat16", size, size, block, density)
                    if block == 64 and density in (0.1, 0.2):
                        yield Cell("step", "bfloat16", size, size, block, density)
    if is_dry:
        return
    for dtype, precision in (("float16", None), ("float32", None), ("float32", "highest")):
        for density in (0.1, 0.2):
            for block in (64, 32):
                for role in ROLES:
                    yield Cell(role, dtype, 4096, 4096, block, density, precision)
    for rows in (512, 16, 1):
        for role in ROLES:
            yield Cell(role, "bfloat16", 4096, rows, 64, 0.1)


def dense(is_dry: bool) -> Iterator[Cell]:
    """Every dense product that something is compared with."""
    kinds = [("bfloat16", None), ("float16", None), ("float32", None), ("float32", "highest")]
    for size in (256,) if is_dry else (4096, 8192):
        for dtype, precision in kinds:
            yield Cell("forward", dtype, size, size, precision=precision)


# Programs ----------------------------------------------------------------------------------------


@functools.cache
def _activations(dtype: str, rows: int, size: int) -> tuple:
    """`CALLS` pairs of x and an arriving gradient."""
    keys = jax.random.split(jax.random.key(1), 2 * CALLS)
    draw = lambda key: jax.random.normal(key, (rows, size), jnp.dtype(dtype))
    return tuple((draw(keys[2 * i]), draw(keys[2 * i + 1])) for i in range(CALLS))


def _weights(cell: Cell):
    """The pattern, `CALLS` values for it, and as many dense weights."""
    shape = (cell.size, cell.size)
    side = cell.block or cell.size
    format = js.Block((side, side))
    sparsity = 1 - (1.0 if cell.density is None else cell.density)
    pattern = js.patterns.random(jax.random.key(0), format, shape, sparsity=sparsity)
    keys = jax.random.split(jax.random.key(2), CALLS)
    scale = (cell.size * (cell.density or 1.0)) ** -0.5
    values = [
        (jax.random.normal(key, pattern.values_shape) * scale).astype(cell.dtype) for key in keys
    ]
    return pattern, values


def _sparse_pass(cell: Cell, implementation):
    """`pass(x, g, values, pattern)` of a cell, by the public functions."""
    options = {"precision": cell.precision, "implementation": implementation}

    def run(x, g, values, pattern):
        if cell.role == "weight_grad":
            return js.sddmm(x, g, pattern, **options)
        if cell.role == "step":
            product = lambda x, v: js.matmul(x, js.SparseWeight(v, pattern), **options)
            y, pull = jax.vjp(product, x, values)
            return y, *pull(g)
        forward = lambda x: js.matmul(x, js.SparseWeight(values, pattern), **options)
        return forward(x) if cell.role == "forward" else jax.linear_transpose(forward, x)(g)[0]

    return run


@functools.cache
def _dense_program(role: str, precision: str | None):
    """The program of `pass(x, g, w)`. Cells of the same sizes share what XLA compiled for it."""
    dot = functools.partial(jnp.matmul, precision=precision)
    passes = {
        "forward": lambda x, g, w: dot(x, w),
        "input_grad": lambda x, g, w: dot(g, w.T),
        "weight_grad": lambda x, g, w: dot(x.T, g),
        "step": lambda x, g, w: (dot(x, w), dot(g, w.T), dot(x.T, g)),
    }
    return _program(passes[role])


def _program(one_pass):
    """One pass for each of several inputs, as one compiled program."""
    return jax.jit(lambda inputs, *rest: [one_pass(*each, *rest) for each in inputs])


def measure_cell(cell: Cell, seconds: float, implementation: str | None = "ffi") -> dict:
    """A row: the cell, medians and minima of both, the largest error relative to dense."""
    pattern, values = _weights(cell)
    pairs = _activations(cell.dtype, cell.rows, cell.size)
    whole = [pattern.scatter(v) for v in values]
    for_dense = [(x, g, w) for (x, g), w in zip(pairs, whole)]
    theirs = _dense_program(cell.role, cell.precision)
    functions = {"dense": lambda: jax.block_until_ready(theirs(for_dense))}
    row = dataclasses.asdict(cell) | {"label": cell.label}
    if cell.block is not None:
        for_sparse = [(x, g, v) for (x, g), v in zip(pairs, values)]
        ours = _program(_sparse_pass(cell, implementation))
        functions["sparse"] = lambda: jax.block_until_ready(ours(for_sparse, pattern))
        row |= {
            "error": _error(cell, ours(for_sparse, pattern), theirs(for_dense), pattern),
            "goal": cell.goal,
            "modelled": modelled_speedup(cell),
            "implementation": implementation,
        }
    samples = measure.interleaved(functions, seconds=seconds, min_rounds=20, max_rounds=60)
    dense_seconds = statistics.median(samples["dense"]) / CALLS
    for name, its in samples.items():
        row[f"{name}_us"] = 1e6 * statistics.median(its) / CALLS
        row[f"{name}_min_us"] = 1e6 * min(its) / CALLS
    row["dense_tflops"] = 2e-12 * cell.rows * cell.size**2 / dense_seconds
    if cell.block is not None:
        row["speedup"] = measure.median_ratio(samples, "dense", "sparse")
    return row


def _error(cell: Cell, ours, theirs, pattern) -> float:
    """The largest difference of the two, in units of the largest result."""
    largest = 0.0
    if cell.role == "step":
        ours, theirs = ([result for step in all for result in step] for all in (ours, theirs))
    for i, (mine, other) in enumerate(zip(ours, theirs)):
        is_weight_grad = cell.role == "weight_grad" or (cell.role == "step" and i % 3 == 2)
        other = pattern.gather(other) if is_weight_grad else other
        mine, other = mine.astype(jnp.float32), other.astype(jnp.float32)
        error = jnp.max(jnp.abs(mine - other)) / jnp.maximum(jnp.max(jnp.abs(other)), 1e-30)
        largest = max(largest, float(jnp.where(jnp.isfinite(error), error, jnp.inf)))
    return largest


def peer_rows(is_dry: bool, done: Container[str] = ()) -> Iterator[dict]:
    """Rows of others' block-sparse products, where torch sees the GPU: forward, in bfloat16.

    torch's own choice, and, where Triton is installed, the Triton kernel that torch comes with.
    Rows whose label is among `done` are left out; a product that fails takes no other along.
    """
    try:
        torch = importlib.import_module("torch")
    except ImportError as error:
        print(f"no torch: {error}")
        return
    if not torch.cuda.is_available() and not is_dry:
        print("torch sees no GPU")
        return
    device = "cpu" if is_dry else "cuda"
    size = 256 if is_dry else 4096
    dtype = torch.float32 if is_dry else torch.bfloat16
    peers = {"torch BSR": torch.matmul}
    if triton := _triton_product():
        peers["Triton BSR"] = triton
    for block in (64, 32):
        for density in (0.1, 0.2, 0.5):
            labels = {peer: f"{peer} forward {size} b{block} {density:g}" for peer in peers}
            missing = {peer: label for peer, label in labels.items() if label not in done}
            if not missing:
                continue
            keep = torch.rand(size // block, size // block, device=device) < density
            keep[0, 0] = True  # a matrix without blocks is refused
            mask = keep.repeat_interleave(block, 0).repeat_interleave(block, 1)
            w = (torch.randn(size, size, device=device) * mask).to(dtype)
            sparse = w.to_sparse_bsr((block, block))
            xs = [torch.randn(size, size, device=device).to(dtype) for _ in range(CALLS)]
            cublas, right = _torch_seconds(torch, torch.matmul, w, xs), torch.matmul(w, xs[0])
            for peer, label in missing.items():
                try:
                    error = _torch_error(peers[peer](sparse, xs[0]), right)
                    theirs = _torch_seconds(torch, peers[peer], sparse, xs)
                except Exception as error:
                    print(f"{label}: {type(error).__name__}: {error}", flush=True)
                    continue
                yield {
                    "label": label,
                    "peer": peer,
                    "torch": torch.__version__,
                    "sparse_us": 1e6 * theirs,
                    "dense_us": 1e6 * cublas,
                    "speedup": cublas / theirs,
                    "error": error,
                }


def _triton_product():
    """`product(bsr, dense)` by torch's Triton kernel; None where there is none, with the reason."""
    try:
        importlib.import_module("triton")
        product = importlib.import_module("torch.sparse._triton_ops").bsr_dense_mm
    except (ImportError, AttributeError) as error:
        print(f"no Triton: {error}")
        return None
    if product is None:
        print("no Triton: torch has no kernels of it for this device")
    return product


def _torch_error(result, right) -> float:
    """The largest difference of two results, in units of the largest number."""
    right = right.float()
    return ((result.float() - right).abs().max() / right.abs().max()).item()


def _torch_seconds(torch, product, matrix, xs) -> float:
    """The median time of a product of the matrix with each of `xs`."""
    times = []
    for _ in range(12):
        start = time.perf_counter()
        for x in xs:
            product(matrix, x)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append((time.perf_counter() - start) / len(xs))
    return statistics.median(times[2:])


# Files -------------------------------------------------------------------------------------------


def read_rows(path: pathlib.Path) -> list[dict]:
    """The rows of a file; a last line that was cut short is dropped."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            print(f"{path.name}: a line was cut short, it is measured again")
    return rows


def append_row(path: pathlib.Path, row: dict) -> None:
    text = path.read_text() if path.exists() else ""
    if text and not text.endswith("\n"):
        text = text[: text.rfind("\n") + 1]
        path.write_text(text)
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def line(row: dict) -> str:
    """A row for people."""
    text = f"{row['label']:48s} dense {row['dense_us']:9.1f} us"
    if "speedup" in row:
        text += f"  sparse {row['sparse_us']:9.1f} us  {row['speedup']:5.2f}x"
    if row.get("goal"):
        text += f"  goal {row['goal']:g} {'met' if row['speedup'] >= row['goal'] else 'MISSED'}"
    if row.get("modelled"):
        text += f"  modelled {row['modelled']:.2f}"
    if "error" in row:
        text += f"  error {row['error']:.1e}"
    return text


def measure_all(cells: Iterable[Cell], path: pathlib.Path, seconds: float, implementation) -> int:
    """Measures the cells that the file has not; returns how many failed."""
    done = {row["label"] for row in read_rows(path)}
    failed = 0
    for cell in cells:
        if cell.label in done:
            continue
        try:
            row = measure_cell(cell, seconds, implementation)
        except Exception as error:  # one cell that fails must not take the others along
            print(f"{cell.label}: {type(error).__name__}: {error}", flush=True)
            failed += 1
            continue
        append_row(path, row)
        print(line(row), flush=True)
    return failed


def break_even(rows: Iterable[dict]) -> dict:
    """The dispatcher's table: the highest density, of those measured, from which on ours is faster.

    A point is for a member, a dtype and a class of problems; where several sizes were measured, the
    worst decides.
    """
    ratios = {}
    for row in rows:
        if row.get("block") is None or row["implementation"] != "ffi" or row["role"] == "step":
            continue
        format = js.Block((row["block"],) * 2)
        pattern = js.patterns.full(format, (row["size"], row["size"]))
        key = (row["role"], row["dtype"], _shape_class(pattern, row["rows"], row["precision"]))
        worst = ratios.setdefault(key, {})
        worst[row["density"]] = min(worst.get(row["density"], np.inf), row["speedup"])
    table = {}
    for (role, dtype, shape_class), by_density in ratios.items():
        point = 0.0
        for density in sorted(by_density):  # up to the first that loses
            if by_density[density] < 1:
                break
            point = density
        its = table.setdefault(f"block_matmul_{role}", {}).setdefault(dtype, {})
        its[shape_class] = point
    return table


def _shape_class(pattern, rows: int, precision: str | None) -> str:
    from jaxsparse.ops.cuda import BlockMatmulDevice
    from jaxsparse.ops.matmul import MatmulSpec

    return BlockMatmulDevice().shape_class(MatmulSpec(pattern.spec(), precision), rows)


def summary(rows: list[dict]) -> str:
    """The best and the worst of the rows, in a few lines."""
    sparse = [row for row in rows if row.get("role") and "speedup" in row]
    lines = [f"{len(rows)} rows, {len(sparse)} of them sparse"]
    for row in rows:
        if row.get("role") and "speedup" not in row:
            lines.append(f"{row['label']:48s} {row['dense_tflops']:7.1f} TFLOP/s")
    with_goal = [row for row in sparse if row.get("goal")]
    met = sum(row["speedup"] >= row["goal"] for row in with_goal)
    lines.append(f"goals met: {met} of {len(with_goal)}")
    important = [row for row in with_goal if row["size"] == 4096]
    lines += [line(row) for row in sorted(important, key=lambda row: row["label"])]
    by_share = sorted(with_goal, key=lambda row: row["speedup"] / row["goal"])
    lines += ["worst cells:", *map(line, by_share[:2])]
    lines += [line(row) for row in rows if "peer" in row]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m jaxsparse.bench.gpu")
    parser.add_argument("what", choices=["dense", "sweep", "peers", "table"])
    parser.add_argument("rows", type=pathlib.Path)
    parser.add_argument("table", type=pathlib.Path, nargs="?")
    parser.add_argument("--seconds", type=float, default=0.3, help="sampling time of a row")
    parser.add_argument("--dry-run", action="store_true", help="small sizes, on any device")
    options = parser.parse_args(arguments)
    if options.what == "table":
        rows = read_rows(options.rows)
        content = {"environment": environment.describe(), "break_even": break_even(rows)}
        if options.table:
            options.table.write_text(json.dumps(content, indent=1) + "\n")
        print(f"break-even points of {dispatch.device('cuda')}")
        print(summary(rows))
        return 0
    if not options.dry_run and (why := _why_not_here()):
        print(why, file=sys.stderr)
        return 1
    if options.what == "peers":
        done = {row["label"] for row in read_rows(options.rows)}
        for row in peer_rows(options.dry_run, done):
            append_row(options.rows, row)
            print(line(row), flush=True)
        return 0
    cells = (sweep if options.what == "sweep" else dense)(options.dry_run)
    return 1 if measure_all(cells, options.rows, options.seconds, "ffi") else 0


def _why_not_here() -> str | None:
    if jax.default_backend() != "gpu":
        return f"bench: needs a GPU that JAX may use, got {jax.default_backend()}. See --dry-run."
    return native.why_absent("cuda") or native.why_unsuitable("cuda")


if __name__ == "__main__":
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "true")
    sys.exit(main())
