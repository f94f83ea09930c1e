"""Sparse convolutions, transposed ones and products against the best dense ones.

All sides run in the same process, in turn: ours through the public API under `jit`, XLA's dense op
on the same weight, and torch's where it is installed. Every result is checked against the
definition in float64 before anything is timed.
"""

import dataclasses
import functools
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import jaxsparse as js
from jaxsparse import problems
from jaxsparse.bench import definition, measure, table, torch_dense
from jaxsparse.problems import ConvProblem

ROLES = ("forward", "input_grad", "weight_grad")
ZEROS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98)


@dataclasses.dataclass(frozen=True)
class Case:
    """What one row measures.

    Attributes:
        problem: without its sparsity.
        role: forward, input_grad or weight_grad.
        zeros: the share of weights that are not stored, at random places.
        rival: whose time counts: "xla", "torch", "best" of these two, or the name of a format:
            ours in that format, with as many stored weights.
        goal: how many times faster than the rival to be, if a goal is set.
        implementation: as in `jaxsparse.conv`.
    """

    problem: ConvProblem
    role: str
    format: str
    zeros: float
    goal: float | None = None
    rival: str = "best"
    dtype: str = "float32"
    implementation: str | None = None

    @property
    def label(self) -> str:
        words = (self.dtype, self.problem, self.format, self.zeros, self.role, self.implementation)
        return " ".join(str(word) for word in words if word is not None)


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table: what was computed, and how it went.

    Attributes:
        milliseconds: medians, by who computed: "sparse" is ours.
        rival: to whom `ratio` refers.
        ratio: the median over rounds of the rival's time over ours.
        spread: the ratio's quartiles.
        warm: the ratio where each side is called again and again by itself.
        warm_ms: our time there.
        gflops: of the stored weights, 1e9 multiplications and additions a second.
        goal: the ratio to reach, where one is set.
        command: what to type to measure this row again.
    """

    problem: str
    role: str
    dtype: str
    format: str
    zeros: float
    milliseconds: dict[str, float]
    rival: str
    ratio: float
    spread: tuple[float, float]
    warm: float
    warm_ms: float
    gflops: float
    goal: float | None
    command: str = ""

    @property
    def panel(self) -> str:
        return self.problem

    @property
    def series(self) -> str:
        return f"{self.role} {self.format} {self.dtype}"

    def line(self) -> str:
        goal = "" if self.goal is None else f"  goal {self.goal:g}"
        met = "" if self.goal is None else (" met" if self.ratio >= self.goal else " MISSED")
        times = "  ".join(f"{name} {ms:.3f}" for name, ms in self.milliseconds.items())
        return (
            f"{self.role:11s} {self.dtype:8s} {self.problem:30s} {self.format:12s} "
            f"{100 * self.zeros:3.0f} %  {times} ms  {self.gflops:6.0f} GF/s  "
            f"{self.ratio:6.2f}x {self.rival} [{self.spread[0]:.2f}, {self.spread[1]:.2f}]"
            f"{goal}{met}  warm {self.warm:.2f}x"
        )


# The tables ---------------------------------------------------------------------------------------

_WIDE = ("resnet50_3_3x3", "resnet50_4_3x3", "resnet50_5_3x3")  # 3x3, 128 channels and more
_FORWARD = (1.4, 2.2, 3.2, 5.5, 9, 16)
_MATMUL = ConvProblem("matmul_512", (), (), (768, 3072), batch=(512,), source="GPT-2 small")


def cases() -> Iterator[Case]:
    """Every row of the table, with the goal for one thread of a CPU with AVX-512."""
    wide, named = [problems.conv_by_name(name) for name in _WIDE], problems.conv_by_name
    transposed = [named("dcgan_8_to_16"), named("dcgan_16_to_32")]
    for problem in wide:
        yield from _unstructured(problem, "forward", _FORWARD)
    yield from _unstructured(named("resnet50_2_3x3"), "forward", (1.3, 2.0, 2.7, 4.5, 6, 9))
    yield from _unstructured(named("resnet50_4_reduce"), "forward", (1.5, 2.1, 2.9, 5, 7, 10))
    yield from _unstructured(_MATMUL, "forward", (1.3, 2.1, 2.9, 5, 8, 13))
    for problem in transposed:
        yield from _unstructured(problem, "forward", (None, 2.3, 3.3, 5.5, 9, 12))
    for problem in wide:
        yield from _unstructured(problem, "input_grad", (1.3, 2.1, 3, 5, 8, 14))
        yield from _unstructured(problem, "weight_grad", (None, 1.8, 2.7, 5, 8, 12), "torch")
    for problem in transposed:
        yield Case(problem, "weight_grad", "unstructured", 0.5, 20, "xla")

    # Strides and dilation keep four fifths of the speed-up.
    dilated = dataclasses.replace(
        named("resnet50_3_3x3"), name="resnet50_3_3x3_dilated", kernel_dilation=(2, 2)
    )
    for problem in (named("resnet50_3_down"), named("resnet50_4_down"), dilated):
        yield from _unstructured(problem, "forward", tuple(0.8 * goal for goal in _FORWARD))

    for problem in wide:
        for zeros, goal in ((0.5, 1.8), (0.75, 3.3), (0.9, 7)):
            yield Case(problem, "forward", "32x32", zeros, goal)
    for problem in (*wide, _MATMUL):
        for format in ("grouped:4", "grouped:8"):
            for zeros in (0.7, 0.9):
                yield Case(problem, "forward", format, zeros, 1.15, rival="unstructured")
    for problem in (*wide, _MATMUL):  # where sparse starts to be faster
        for zeros in (0.2, 0.3, 0.4):
            goal = 1.0 if zeros == 0.4 else None
            yield Case(problem, "forward", "unstructured", zeros, goal, implementation="ffi")
    for zeros in (0.7, 0.9):
        yield Case(wide[0], "forward", "unstructured", zeros, rival="xla", dtype="bfloat16")
    for rows in (1, 8, 32):  # decoding, a word at a time
        problem = dataclasses.replace(
            _MATMUL, name=f"matmul_{rows}_rows", features=(4096, 4096), batch=(rows,), source="wide"
        )
        for zeros in (0.5, 0.8, 0.9, 0.95):
            yield Case(problem, "forward", "unstructured", zeros)


def _unstructured(problem, role, goals, rival="best") -> Iterator[Case]:
    for zeros, goal in zip(ZEROS, goals, strict=True):
        if goal is not None:
            yield Case(problem, role, "unstructured", zeros, goal, rival)


def floor_cases() -> Iterator[Case]:
    """From no zeros to 99 %, layers of every network: never slower than XLA's dense op."""
    for name in (
        "resnet50_2_3x3",
        "resnet50_4_3x3",
        "resnet50_4_down",
        "resnet50_3_expand",
        "mobilenetv1_pointwise_14_512_512",
        "dcgan_16_to_32",
    ):
        for zeros in (0.0, 0.2, 0.4, 0.6, 0.8, 0.99):
            for role in ROLES:
                problem = problems.conv_by_name(name)
                yield Case(problem, role, "unstructured", zeros, 0.97, "xla")


def quick_cases() -> Iterator[Case]:
    small = ConvProblem("quick", (12, 12), (3, 3), (32, 32), source="a layer of no network")
    for role in ROLES:
        yield Case(small, role, "unstructured", 0.9, rival="xla")
    transposed = dataclasses.replace(small, name="quick_transposed", transposed=True)
    transposed = dataclasses.replace(transposed, kernel=(4, 4), strides=(2, 2))
    yield Case(transposed, "forward", "unstructured", 0.9, rival="xla")
    yield Case(small, "forward", "grouped:8", 0.9, rival="unstructured")


TABLES: dict[str, Callable[[], Iterator[Case]]] = {"conv": cases, "conv-floor": floor_cases}


def labels(name: str, quick: bool) -> dict[str, Case]:
    """The rows of a table by their labels, which are unique."""
    return {case.label: case for case in (quick_cases if quick else TABLES[name])()}


# Measuring ----------------------------------------------------------------------------------------


def sparse_op(problem: ConvProblem, x, w, implementation=None) -> jax.Array:
    """The problem's op as users call it."""
    if not problem.kernel:
        return js.matmul(x, w, implementation=implementation)
    options: dict[str, Any] = {
        "strides": problem.strides,
        "padding": problem.padding,
        "kernel_dilation": problem.kernel_dilation,
        "feature_group_count": problem.feature_group_count,
        "implementation": implementation,
    }
    return (js.conv_transpose if problem.transposed else js.conv)(x, w, **options)


def dense_op(problem: ConvProblem, x, w) -> jax.Array:
    """The same in XLA, for a dense weight."""
    if not problem.kernel:
        return x @ w
    letters = "DHW"[-len(problem.kernel) :]
    layout = (f"N{letters}C", f"{letters}IO", f"N{letters}C")
    options: dict[str, Any] = {
        "rhs_dilation": problem.kernel_dilation,
        "dimension_numbers": layout,
    }
    if problem.transposed:
        return lax.conv_transpose(x, w, problem.strides, problem.padding, **options)
    options["feature_group_count"] = problem.feature_group_count
    return lax.conv_general_dilated(x, w, problem.strides, problem.padding, **options)


def member(op: Callable, role: str, x, w, y) -> tuple[Callable, tuple]:
    """A role of `op(x, w)` as a jitted function, and its arguments.

    Args:
        op: bilinear.
        role: of ROLES.
        x, w, y: its operands, and an array like its result.
    """
    if role == "forward":
        return jax.jit(op), (x, w)
    like = functools.partial(jax.tree.map, lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype))
    if role == "input_grad":
        transpose = lambda g, w: jax.linear_transpose(lambda x: op(x, w), like(x))(g)[0]
        return jax.jit(transpose), (y, w)
    transpose = lambda x, g: jax.linear_transpose(lambda w: op(x, w), like(w))(g)[0]
    return jax.jit(transpose), (x, y)


def measure_case(case: Case, seconds: float = 1.0) -> Row:
    """Checks and times one row."""
    problem, role = case.problem, case.role
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape, np.float32), case.dtype)
    shape = problem.weight_shape
    x, whole = draw(*problem.x_shape), draw(*shape)
    y = draw(*jax.eval_shape(functools.partial(dense_op, problem), x, whole).shape)

    def ours(format):
        """The function of our weight in this format, what to give to it, and the pattern."""
        pattern = js.patterns.random(jax.random.key(0), format, shape, sparsity=case.zeros)
        values = pattern.gather(whole)

        def op(x, pair):
            values, pattern = pair
            return sparse_op(problem, x, js.SparseWeight(values, pattern), case.implementation)

        if role != "weight_grad":
            return *member(op, role, x, (values, pattern), y), pattern

        def weight_grad(x, g, pattern):
            like = jax.ShapeDtypeStruct(values.shape, values.dtype)
            return jax.linear_transpose(lambda v: op(x, (v, pattern)), like)(g)[0]

        return jax.jit(weight_grad), (x, y, pattern), pattern

    functions = {}
    function, args, pattern = ours(case.format)
    dense = pattern.scatter(pattern.gather(whole))
    exact, size = definition.conv(problem, role, *(_float64(a) for a in (x, dense, y)))
    check = functools.partial(_check, case, exact, size)
    check("sparse", function(*args), pattern)
    functions["sparse"] = functools.partial(waiting, function, args)

    has_torch = torch_dense.is_installed() and torch_dense.takes(problem)
    rivals = {"xla", "torch"} if has_torch and case.dtype == "float32" else {"xla"}
    if case.rival not in ("xla", "torch", "best"):
        other, other_args, other_pattern = ours(case.rival)
        jax.block_until_ready(other(*other_args))
        if abs(other_pattern.density - pattern.density) > 0.01:
            raise RuntimeError(f"bench: {case.label} and its rival store different numbers.")
        functions[case.rival] = functools.partial(waiting, other, other_args)
        rivals = set()
    if "xla" in rivals:
        op = functools.partial(dense_op, problem)
        function, args = member(op, role, x, dense, y)
        check("xla", function(*args))
        functions["xla"] = functools.partial(waiting, function, args)
    if "torch" in rivals:
        functions["torch"] = torch_dense.conv(problem, role, *map(np.asarray, (x, dense, y)))
        check("torch", jnp.asarray(torch_dense.as_numpy(problem, role, functions["torch"]())))

    its = timed(functions, case.rival, seconds)
    positions = definition.positions(problem, x.shape, y.shape)
    return Row(
        problem=str(problem),
        role=role,
        dtype=case.dtype,
        format=case.format,
        zeros=case.zeros,
        gflops=2e-6 * positions * pattern.density * dense.size / its["milliseconds"]["sparse"],
        goal=case.goal,
        **its,
    )


def timed(functions: dict[str, Callable], rival: str, seconds: float) -> dict[str, Any]:
    """What a row says of the times of functions, of which "sparse" is ours.

    Args:
        functions: by name, of nothing; they wait for their results.
        rival: as in Case. Where it is not among them, as torch need not be, the fastest one is.
        seconds: how long to sample.
    """
    samples = measure.interleaved(functions, seconds=seconds)
    medians = {name: statistics.median(times) for name, times in samples.items()}
    if rival == "best" or rival not in medians:
        rival = min(medians.keys() - {"sparse"}, key=medians.__getitem__)
    ratios = [a / b for a, b in zip(samples[rival], samples["sparse"], strict=True)]
    quartiles = statistics.quantiles(ratios, n=4)
    alone = measure.warm({name: functions[name] for name in (rival, "sparse")}, seconds=seconds / 2)
    return {
        "milliseconds": {name: 1e3 * median for name, median in medians.items()},
        "rival": rival,
        "ratio": measure.median_ratio(samples, rival, "sparse"),
        "spread": (quartiles[0], quartiles[2]),
        "warm": alone[rival] / alone["sparse"],
        "warm_ms": 1e3 * alone["sparse"],
    }


def waiting(function, args):
    """A call that waits for its result."""
    return jax.block_until_ready(function(*args))


def _float64(array):
    return np.asarray(array.astype(jnp.float32), np.float64)


def _check(case, exact, size, name, result, pattern=None):
    if pattern is not None and case.role == "weight_grad":
        result, mask = pattern.scatter(result), np.asarray(pattern.mask())
        exact, size = exact * mask, size * mask
    check_rounding(f"the {case.role} of {name}", result, exact, size)


def check_rounding(what: str, result, exact, size) -> None:
    """Raises unless a result is right to rounding, by the forward-error bound.

    Args:
        what: the result, for the error.
        exact, size: as `definition.conv` returns them.
    """
    unit = 2.0**-8 if result.dtype == jnp.bfloat16 else 2.0**-24
    error = np.abs(_float64(result) - exact)
    # 16, not the suite's 8: among millions of results the tail is longer.
    if not (error <= 16 * unit * size).all():
        raise RuntimeError(f"bench: {what} is wrong, so it is not timed.")


def run(name: str, quick=False, seconds=1.0, only="", threads=1) -> list[Row]:
    """Measures and prints a table, a row at a time; `only` as in `table.select`."""
    return run_cases(name, labels(name, quick), measure_case, quick, seconds, only, threads)


def run_cases(name, cases, measure_one, quick, seconds, only, threads) -> list[Row]:
    """The same for any cases by their labels, and what makes a Row of one in some seconds."""
    if not torch_dense.is_installed():
        print("torch is not installed: XLA is the only rival", flush=True)

    def measure_row(case, label):
        command = table.command(name, label, quick=quick, threads=threads, seconds=seconds)
        return dataclasses.replace(measure_one(case, seconds), command=command)

    rows = table.run(name, table.select(cases, only), measure_row)
    missed = [row for row in rows if row.goal is not None and row.ratio < row.goal]
    print(f"{len(missed)} of {sum(row.goal is not None for row in rows)} goals missed")
    return rows
