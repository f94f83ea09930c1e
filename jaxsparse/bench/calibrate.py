"""What a plan is worth: a whole ResNet-50 calibrated, then timed by plan, all dense and all sparse.

With 30 % zeros some of its layers are faster dense and others sparse; with 80 % all are sparse.
"""

import dataclasses
import time

import jax

import jaxsparse as js
from jaxsparse.bench import resnet, table

GOAL = 0.98  # as fast as either way for all layers, within two percent
BUDGET_S = 40.0
ZEROS = (0.3, 0.8)


@dataclasses.dataclass(frozen=True)
class Row:
    """One network.

    Attributes:
        sparse, dense: kinds of calls that the plan takes these ways.
        seconds, budget: that calibration took, and that it was given.
        plan_ms: the median of a call by plan.
        over_dense, over_sparse: how many times as fast the plan is as either way for all layers.
        command: what to type to measure this row again.
    """

    network: str
    zeros: float
    sparse: int
    dense: int
    seconds: float
    budget: float
    plan_ms: float
    over_dense: float
    over_sparse: float
    goal: float | None
    command: str = ""

    def line(self) -> str:
        is_met = min(self.over_dense, self.over_sparse) >= (self.goal or 0)
        met = is_met and self.seconds <= self.budget
        return (
            f"{self.network}, {100 * self.zeros:.0f} % zeros  {self.sparse} kinds of calls sparse, "
            f"{self.dense} dense, in {self.seconds:.0f} of {self.budget:.0f} s  "
            f"plan {self.plan_ms:.1f} ms, {self.over_dense:.2f}x all dense, "
            f"{self.over_sparse:.2f}x all sparse  "
            + ("" if self.goal is None else f"goal {self.goal:g} {'met' if met else 'MISSED'}")
        )


def run(quick=False, seconds=1.0, only="", threads=1, budget_s: float = BUDGET_S) -> list[Row]:
    """Measures and prints a row for each share of zeros; `only` as in `table.select`."""
    stages, size = (resnet.QUICK_STAGES, 32) if quick else (resnet.STAGES, 224)
    cases = table.select({f"{100 * zeros:.0f} % zeros": zeros for zeros in ZEROS}, only)

    def measure_row(zeros, label):
        model, _ = resnet.models(zeros, stages)
        x = jax.random.normal(jax.random.key(0), (1, size, size, 3))
        start = time.monotonic()
        plan = js.calibrate(model, x, budget_s=budget_s)
        spent = time.monotonic() - start
        with plan:  # measured again, and results compared
            timed = js.benchmark(model, x, seconds=seconds, rtol=1e-4)
        return Row(
            network="a part of ResNet-50" if quick else "ResNet-50",
            zeros=zeros,
            sparse=sum(call.path == "ffi" for call in plan),
            dense=sum(call.path == "dense" for call in plan),
            seconds=spent,
            budget=budget_s,
            plan_ms=timed["chosen"].ms,
            over_dense=timed["chosen"].ratio,
            over_sparse=timed["chosen"].ratio / timed["sparse"].ratio,
            goal=None if quick else GOAL,
            command=table.command(
                "calibrate", label, quick=quick, threads=threads, seconds=seconds
            ),
        )

    return table.run("calibrate", cases, measure_row)
