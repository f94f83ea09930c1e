"""Convolutions of sparse inputs against the best dense ones on the same inputs.

All sides run in the same process, in turn: ours through the public API under `jit`, XLA's dense
convolution, and torch's where it is installed. Ours is checked against the definition in
float64 before anything is timed.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

import jaxsparse as js
from jaxsparse import problems
from jaxsparse.bench import conv, definition, torch_dense
from jaxsparse.problems import ConvProblem


@dataclasses.dataclass(frozen=True)
class Case:
    """What one row measures.

    Attributes:
        problem: its sparsity does not count.
        role: forward, input_grad, weight_grad, all three ("step"), or "detection", which is to find
            out what is zero, against the dense convolution.
        kind: of zeros: whole "places" or single "numbers", at random.
        zeros: the share of them; with none, the rival is what the op runs then, XLA's convolution.
        goal: how many times faster than the best dense op to be, if a goal is set.
        variant: "" looks for zeros; "mask" is given the places; "submanifold" is too, and computes
            results only there; "masked" has the gradient of active places only.
        implementation: as in `jaxsparse.masked_conv`.
    """

    problem: ConvProblem
    role: str
    kind: str
    zeros: float
    goal: float | None = None
    variant: str = ""
    implementation: str | None = None
    dtype: str = "float32"

    @property
    def label(self) -> str:
        words = (self.dtype, self.problem, self.kind, self.zeros, self.role)
        words = (*words, self.variant, self.implementation)
        return " ".join(str(word) for word in words if word)


# The table ----------------------------------------------------------------------------------------

_FEW = ConvProblem("conv_56_16_32", (56, 56), (3, 3), (16, 32), source="the first layers of nets")
_PLACES, _NUMBERS = (0.7, 0.9, 0.95), (0.5, 0.7, 0.9, 0.95)


def cases() -> Iterator[Case]:
    """Every row of the table, with the goal for one thread of a CPU with AVX-512."""
    named = problems.conv_by_name
    many = [named("resnet50_2_3x3"), named("resnet50_3_3x3")]  # 64 channels, and 128
    for problem in many:
        for zeros, goal, submanifold in zip(_PLACES, (2.7, 7, 11), (2.7, 9, 18), strict=True):
            yield Case(problem, "forward", "places", zeros, goal)
            yield Case(problem, "forward", "places", zeros, submanifold, "submanifold")
    for zeros, goal in zip(_PLACES, (2, 4.5, 8), strict=True):
        yield Case(_FEW, "forward", "places", zeros, goal)
    for problem in many:
        for zeros, goal in zip(_NUMBERS, (1.25, 2.1, 5, 7), strict=True):
            yield Case(problem, "forward", "numbers", zeros, goal)
    for zeros, goal in ((0.9, 5), (0.95, 9)):
        yield Case(named("dcgan_16_to_32"), "forward", "places", zeros, goal)
    for problem in many:
        for zeros in _PLACES:
            yield Case(problem, "weight_grad", "numbers", zeros)
        yield Case(problem, "step", "numbers", 0.9)
    for problem in many:
        yield Case(problem, "step", "places", 0.9, 4, "masked")
        yield Case(problem, "step", "places", 0.9)
        for role in ("input_grad", "weight_grad"):
            yield Case(problem, role, "places", 0.9, None, "mask")
    for problem in (*many, _FEW, named("dcgan_16_to_32")):  # nothing to skip
        for role in ("forward", "step"):
            yield Case(problem, role, "places", 0.0, 0.97)
    for problem in (*many, _FEW):
        yield Case(problem, "detection", "places", 0.9)
        yield Case(problem, "forward", "places", 1.0)  # what is left without multiplications


def quick_cases() -> Iterator[Case]:
    small = ConvProblem("quick", (12, 12), (3, 3), (32, 32), source="a layer of no network")
    for role in ("forward", "step"):
        yield Case(small, role, "places", 0.9)
    yield Case(small, "forward", "places", 0.9, variant="submanifold")
    yield Case(small, "forward", "numbers", 0.9)
    yield Case(small, "detection", "places", 0.9)
    yield Case(small, "forward", "places", 1.0)


def labels(quick: bool) -> dict[str, Case]:
    """The rows by their labels, which are unique."""
    return {case.label: case for case in (quick_cases() if quick else cases())}


# Measuring ----------------------------------------------------------------------------------------


def measure_case(case: Case, seconds: float = 1.0) -> conv.Row:
    """Checks and times one row."""
    problem = case.problem
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape, np.float32), case.dtype)
    x, w = draw(*problem.x_shape), draw(*problem.weight_shape)
    y = draw(*jax.eval_shape(functools.partial(conv.dense_op, problem), x, w).shape)
    shape = x.shape if case.kind == "numbers" else (*x.shape[:-1], 1)
    active = np.zeros(shape, bool).reshape(-1)
    active[rng.permutation(active.size)[: round((1 - case.zeros) * active.size)]] = True
    active = active.reshape(shape)
    x = jnp.where(active, x, 0)
    mask = jnp.asarray(active[..., 0])

    roles = ("forward",) if case.role == "detection" else (case.role,)
    roles = conv.ROLES if case.role == "step" else roles
    arrays = [np.asarray(a, np.float64) for a in (x, w, y)]
    exact = [definition.conv(problem, role, *arrays) for role in roles]
    if case.variant == "submanifold":
        exact = [tuple(a * active for a in pair) for pair in exact]
    if case.variant in ("masked", "mask"):  # no gradient elsewhere
        exact = [
            tuple(a * active for a in pair) if role == "input_grad" else pair
            for role, pair in zip(roles, exact, strict=True)
        ]

    functions = {}
    if case.role == "detection":
        function = jax.jit(js.active_places)
        if not np.array_equal(function(x), active[..., 0]):
            raise RuntimeError("bench: the active places are wrong, so they are not timed.")
        functions["sparse"] = functools.partial(conv.waiting, function, (x,))
    else:
        function, args = _roles(_sparse_op(case), roles, x, w, y, mask)
        for result, (value, size) in zip(function(*args), exact, strict=True):
            conv.check_rounding(f"{case.label} of sparse", result, value, size)
        functions["sparse"] = functools.partial(conv.waiting, function, args)
    dense = lambda x, w, mask: conv.dense_op(problem, x, w)
    function, args = _roles(dense, roles, x, w, y, mask)
    functions["xla"] = functools.partial(conv.waiting, function, args)
    if torch_dense.is_installed() and torch_dense.takes(problem) and case.dtype == "float32":
        each = [torch_dense.conv(problem, role, *map(np.asarray, (x, w, y))) for role in roles]
        functions["torch"] = lambda: [function() for function in each]

    its = conv.timed(functions, "best" if case.zeros else "xla", seconds)
    positions = definition.positions(problem, x.shape, y.shape)
    products = 0 if case.role == "detection" else len(roles) * (1 - case.zeros) * positions * w.size
    return conv.Row(
        problem=str(problem),
        role=" ".join(filter(None, (case.role, case.variant))),
        dtype=case.dtype,
        format=case.kind,
        zeros=case.zeros,
        gflops=2e-6 * products / its["milliseconds"]["sparse"],
        goal=case.goal,
        **its,
    )


def _sparse_op(case: Case) -> Callable:
    """The op as users call it, of x, the weight and the mask, which it need not use."""
    problem = case.problem
    function = js.masked_conv_transpose if problem.transposed else js.masked_conv
    options = {
        "strides": problem.strides,
        "padding": problem.padding,
        "kernel_dilation": problem.kernel_dilation,
        "feature_group_count": problem.feature_group_count,
        "implementation": case.implementation,
        "threshold": None,
        "submanifold": case.variant == "submanifold",
        "grad": "masked" if case.variant == "masked" else "exact",
    }
    is_known = case.variant in ("mask", "submanifold")
    return lambda x, w, mask: function(x, w, mask=mask if is_known else None, **options)


def _roles(op: Callable, roles, x, w, y, mask) -> tuple[Callable, tuple]:
    """The results of roles of `op(x, w, mask)` as a jitted function, and its arguments."""

    def compute(x, w, g, mask):
        forward = functools.partial(op, mask=mask)
        if roles == ("forward",):
            return [forward(x, w)]
        y, pull = jax.vjp(forward, x, w)
        results = dict(zip(conv.ROLES, (y, *pull(g)), strict=True))
        return [results[role] for role in roles]

    return jax.jit(compute), (x, w, y, mask)


def run(quick=False, seconds=1.0, only="", threads=1) -> list[conv.Row]:
    """Measures and prints the table, a row at a time; `only` as in `table.select`."""
    return conv.run_cases("masked", labels(quick), measure_case, quick, seconds, only, threads)
