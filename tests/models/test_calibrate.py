"""Calibration: what is measured and chosen, what a plan changes, and where it may be used."""

import dataclasses
import json
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax_networks import TOKENS, LinenTransformer, make_linen
from machine import need

import jaxsparse as js
from jaxsparse.core import modes
from jaxsparse.models import calibrate as calibration
from jaxsparse.tune import calls, timing

X = jax.random.normal(jax.random.key(0), (6, 32))
DENSE = jax.random.normal(jax.random.key(1), (32, 48))
FIRST = js.fromdense(DENSE, "8x8", sparsity=0.75)
LAST = js.fromdense(DENSE.T, "unstructured", sparsity=0.5)


@pytest.fixture(autouse=True)
def _kernels():
    need("cpu_kernels")


@pytest.fixture
def times(monkeypatch):
    """Sets what measurements find, in milliseconds; by default kernels are twice as fast."""
    table = {"ffi": [1.0], "dense": [2.0], "plan": [1.0], "sparse": [1.0], "whole dense": [1.0]}
    table["asked"] = []

    def interleaved(functions, **_):
        for function in functions.values():
            function()
        if set(functions) == {"ffi", "dense"}:
            table["asked"].append(functions)
            ffi, dense = (
                table[path].pop(0) if table[path][1:] else table[path][0]
                for path in ("ffi", "dense")
            )
            return {"ffi": [1e-3 * ffi] * 3, "dense": [1e-3 * dense] * 3}
        names = {name: "whole dense" if name == "dense" else name for name in functions}
        return {name: [1e-3 * table[key][0]] * 3 for name, key in names.items()}

    monkeypatch.setattr(timing, "interleaved", interleaved)
    return table


def two_layers(x):
    return js.matmul(js.matmul(x, FIRST), LAST)


def paths(function, *args):
    return [call.path for call in js.explain(function, *args)]


# Seeds' trap: calibration that measures, prints, and changes nothing -----------------------------


def test_calibration_selects_per_call_and_the_plan_changes_what_runs(times):
    times["ffi"], times["dense"] = [1.0, 3.0], [2.0, 2.0]
    plan = js.calibrate(two_layers, X)
    assert len(plan) == 2
    chosen = {call.key.split()[0]: call.path for call in plan}
    assert sorted(chosen.values()) == ["dense", "ffi"]
    with plan:
        assert paths(two_layers, X) == [
            chosen["block_matmul_forward"],
            chosen["unstructured_matmul_forward"],
        ]
        reasons = [call.reason for call in js.explain(two_layers, X)]
    assert all(reason.startswith("planned: kernel ") for reason in reasons)


def test_a_plan_is_kept_in_a_file_and_chooses_the_same(times, tmp_path):
    times["ffi"], times["dense"] = [1.0, 3.0], [2.0, 2.0]
    plan = js.calibrate(two_layers, X)
    plan.save(tmp_path / "plan.json")
    again = js.Plan.load(tmp_path / "plan.json")
    assert again == plan
    assert hash(again) == hash(plan)
    assert again.calls == plan.calls
    assert again.whole_ms == plan.whole_ms
    with plan:
        expected = paths(two_layers, X)
    with again:
        assert paths(two_layers, X) == expected
    assert expected == ["dense", "ffi"] or expected == ["ffi", "dense"]


def test_a_plan_is_part_of_the_key_of_compiled_functions(times):
    traces = []

    @jax.jit
    def f(x):
        traces.append(len(traces))
        return two_layers(x)

    sparse = js.calibrate(two_layers, X)
    dense = sparse.all_by("dense")
    for plan in (sparse, dense, sparse, dense):
        with plan:
            f(X)
    assert len(traces) == 2
    f(X)
    assert len(traces) == 3


def test_directions_and_batches_are_planned_apart(times):
    times["ffi"], times["dense"] = [1.0, 9.0, 1.0], [2.0, 2.0, 2.0]
    f = lambda x: js.matmul(x, FIRST)
    plan = js.calibrate(f, X, mode="forward_and_vjp")
    assert {call.key.split()[0] for call in plan} == {
        "block_matmul_forward",
        "block_matmul_input_grad",
    }
    wide = js.calibrate(f, jnp.ones((9, 32)))
    assert {call.key for call in wide}.isdisjoint(call.key for call in plan)
    merged = plan.merge(wide)
    assert {call.key for call in merged} == {call.key for call in (*plan, *wide)}


def test_merging_takes_the_other_ones_measurement(times):
    plan = js.calibrate(two_layers, X)
    assert {call.path for call in plan} == {"ffi"}
    assert {call.path for call in plan.merge(plan.all_by("dense"))} == {"dense"}


def test_if_one_mode_alone_is_faster_than_the_plan_it_is_the_plan(times):
    times["plan"], times["whole dense"], times["sparse"] = [3.0], [2.0], [4.0]
    plan = js.calibrate(two_layers, X)
    assert {call.path for call in plan} == {"dense"}
    assert plan.whole_ms == {"plan": 2.0, "dense": 2.0, "sparse": 4.0}
    times["plan"] = [2.01]
    assert {call.path for call in js.calibrate(two_layers, X)} == {"ffi"}


# What is measured ---------------------------------------------------------------------------------


def test_calls_are_measured_with_the_patterns_of_the_model_and_compute_the_same(times):
    js.calibrate(jax.jit(two_layers), X, mode="forward_and_vjp")
    assert len(times["asked"]) == 4
    for functions in times["asked"]:
        ffi, dense = functions["ffi"](), functions["dense"]()
        np.testing.assert_allclose(ffi, dense, atol=1e-4)
        assert np.abs(np.asarray(dense)).max() > 0
    kinds = calls.of_function(jax.jit(two_layers), (X,))
    found = {kind.spec.weight.name: kind.indices for kind in kinds.values()}
    for name, weight in (("block", FIRST), ("unstructured", LAST)):
        for mine, its in zip(found[name], weight.pattern.indices, strict=True):
            np.testing.assert_array_equal(mine, its)


def test_a_loop_counts_and_each_layer_is_named(times):
    model = LinenTransformer()
    rule = js.Rule("blocks/(up|down)", "8x8", sparsity=0.5)
    model, variables, _ = js.sparsify(model, rule, make_linen(model, TOKENS), TOKENS)
    plan = js.calibrate(model, variables, TOKENS)
    assert {(call.layers, call.calls) for call in plan} == {
        (("blocks/up",), 2),
        (("blocks/down",), 2),
    }
    assert not plan.skipped
    with plan:
        assert {row.path_taken for row in js.report(model, variables, TOKENS) if row.format} == {
            "ffi"
        }


def test_layers_that_are_alike_are_measured_once(times):
    rngs = nnx.Rngs(0)
    model = nnx.Sequential(*[nnx.Linear(32, 32, rngs=rngs) for _ in range(3)])
    model, _ = js.sparsify(model, js.Rule(".*", "8x8", sparsity=0.5))
    (planned,) = js.calibrate(model, X)
    assert planned.calls == 3
    assert planned.layers == ("layers/0", "layers/1", "layers/2")
    assert len(times["asked"]) == 1


def test_a_sparse_input_is_not_planned_as_its_zeros_decide(times):
    """Measured on numbers without a zero, the kernel would never be the faster way."""
    times["ffi"], times["dense"] = [3.0], [1.0]
    x, w = jnp.zeros((2, 6, 5, 32)), jnp.ones((3, 3, 32, 32))
    both = lambda x, w: js.matmul(js.masked_conv(x, w), FIRST)
    plan = js.calibrate(both, x, w, mode="forward_and_vjp")
    assert {call.key.split("_")[0] for call in plan} == {"block"}
    left_out = [why for why in plan.skipped if why.startswith("masked_conv")]
    assert len(left_out) == 2  # the third gradient has nothing to choose from
    assert all("decides when it runs" in why for why in left_out)
    with plan, js.decisions() as taken:
        jax.block_until_ready(js.masked_conv(x, w))
    assert [one.is_sparse for one in taken] == [True]


def test_a_strict_implementation_is_not_planned(times):
    f = lambda x: js.matmul(x, FIRST, implementation="xla")
    plan = js.calibrate(f, X)
    assert len(plan) == 0
    with plan:
        assert paths(f, X) == ["xla"]


def test_a_pattern_that_is_not_known_beforehand_is_skipped_and_named(times):
    def f(x):
        return js.matmul(x, js.fromdense(x.T @ x, "8x8", sparsity=0.5))

    plan = js.calibrate(f, X)
    assert len(plan) == 0
    (sentence,) = plan.skipped
    assert "block_matmul_forward" in sentence
    assert "not known before the model runs" in sentence


def test_the_budget_is_kept_and_what_it_left_out_is_named(monkeypatch):
    now = iter(range(1000))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(now)))
    measured = []
    monkeypatch.setattr(
        calibration, "_measured", lambda kind, seconds: measured.append(kind) or planned(kind)
    )
    monkeypatch.setattr(calibration, "_against_whole", lambda plan, *_: plan)
    plan = js.calibrate(two_layers, X, budget_s=3.0)
    assert len(measured) == len(plan) == 1
    assert "the budget of 3 s did not suffice" in plan.skipped[0]
    assert measured[0].macs == max(k.macs for k in calls.of_function(two_layers, (X,)).values())


def planned(kind):
    return js.Planned(kind.key, "ffi", 1.0, 2.0, 1, ())


# Stale plans, and bad input -----------------------------------------------------------------------


def a_plan():
    (kind, *_) = calls.of_function(two_layers, (X,)).values()
    return js.Plan(calibration.fingerprint(), (planned(kind),))


def test_a_plan_prints_a_line_for_each_layer_and_call_and_what_was_not_measured():
    key = "stored_dense_block_matmul_forward float32 4x16 16x8 3 3 groups=0 MatmulSpec(...)"
    planned = js.Planned(key, "ffi", 0.25, 0.5, 3, ("blocks/up", ""))
    plan = js.Plan({"cpu": "a fast one"}, (planned,), ("no time for this",), {"plan": 1.5})
    _, _, *lines = str(plan).splitlines()
    row = "block_matmul_forward 4x16 16x8 3 3 ffi 0.25 0.5 3"
    assert [" ".join(line.split()) for line in lines] == [
        f"blocks/up {row}",
        f"(root) {row}",
        "the whole: plan 1.5 ms",
        "not measured: no time for this",
        "cpu a fast one",
    ]
    assert str(js.Plan({"cpu": "a fast one"}, ())) == "no call was measured\ncpu a fast one"


def test_a_plan_of_another_machine_or_version_is_stale(tmp_path):
    plan = a_plan()
    other = dataclasses.replace(plan, machine={**plan.machine, "jax": "0.1.0"})
    other.save(tmp_path / "plan.json")
    with pytest.raises(ValueError, match=r"machine and these versions, jax '.*', got '0.1.0'"):
        js.Plan.load(tmp_path / "plan.json")
    assert js.Plan.load(tmp_path / "plan.json", anywhere=True).calls == plan.calls
    with pytest.raises(ValueError, match="merge: "):
        plan.merge(other)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "other"}'])
def test_a_file_that_is_no_plan_is_refused(tmp_path, text):
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(ValueError, match=r"plan.json must hold a plan, got"):
        js.Plan.load(tmp_path / "plan.json")


def test_a_path_that_there_is_not_is_refused(tmp_path):
    a_plan().save(tmp_path / "plan.json")
    content = json.loads((tmp_path / "plan.json").read_text())
    content["calls"][0]["path"] = "fast"
    (tmp_path / "plan.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="Calibrate again"):
        js.Plan.load(tmp_path / "plan.json")


def test_the_innermost_of_modes_and_plans_decides():
    plan = a_plan()
    with js.mode("dense"):
        with plan:
            assert paths(two_layers, X)[0] == "ffi"
            with js.mode("dense"):
                assert paths(two_layers, X) == ["dense"] * 2
        assert paths(two_layers, X) == ["dense"] * 2


@pytest.mark.parametrize(
    ("options", "words"),
    [({"mode": "backward"}, "got 'backward'"), ({"budget_s": 0}, "must be positive, got 0")],
)
def test_bad_options_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        js.calibrate(two_layers, X, **options)


def test_a_plan_that_holds_in_two_threads_leaves_each_as_it_was():
    plan, before = js.Plan({}, ()), modes.current()
    entered, may_leave, after = threading.Event(), threading.Event(), []

    def other():
        with js.mode("sparse"):
            with plan:
                entered.set()
                may_leave.wait()
            after.append(modes.current().mode)

    thread = threading.Thread(target=other)
    with plan:
        thread.start()
        entered.wait()
    assert modes.current() == before
    may_leave.set()
    thread.join()
    assert after == ["sparse"]
