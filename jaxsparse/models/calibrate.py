"""`calibrate`: measures which way each call of a model is faster, and makes a plan of it."""

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.core import modes
from jaxsparse.models.program import Program, path_in, program
from jaxsparse.tune import calls, progress, timing
from jaxsparse.tune.plan import Plan, Planned, fingerprint

MODES = ("forward", "forward_and_vjp")
# Of the budget: what may pass before the last call is begun, and before the whole is.
_FOR_CALLS, _FOR_WHOLE = 0.6, 0.8
# Where one mode for all is this much faster than the plan, it is the plan: what was measured call
# by call does not hold in the whole.
_MARGIN = 1.01


def calibrate(model, *sample, mode: str = "forward", budget_s: float = 60.0, **call) -> Plan:
    """Measures the kernel and the dense op for every kind of call of a model; plans the faster one.

        plan = calibrate(model, x)                                    # nnx, or a function
        plan = calibrate(model, variables, x, mode="forward_and_vjp")   # linen
        with plan:
            y = jax.jit(...)(...)

    A kind of call is all that is static about it: op, direction, shapes and so the batch, dtype,
    format and number of stored weights. Each is measured by itself, with the patterns of the model;
    then the whole, dense, sparse and by plan, and if one of the former is faster, the plan takes
    that way for all calls. Calls on sparse inputs are left out: they decide when they run.

    Args:
        model: a `flax.nnx.Module`, an unbound `flax.linen.Module`, or a function.
        *sample: arrays that it is called with; the variables of a linen model come first.
        mode: "forward"; or "forward_and_vjp", with the gradients of the model's parameters, or of
            all arrays for a function.
        budget_s: seconds that this may take, compiling included. Calls with the most arithmetic
            come first; what the budget does not suffice for goes by break-even points, and the plan
            says so (`skipped`).
        **call: keyword arguments of the call, or of `apply` of a linen model.

    Returns:
        A Plan.

    Raises:
        ValueError: another mode, or no budget.
        TypeError, ValueError: what is no model, or variables that are missing.
    """
    if mode not in MODES:
        raise ValueError(f'calibrate: mode is "forward" or "forward_and_vjp", got {mode!r}.')
    if not budget_s > 0:
        raise ValueError(f"calibrate: budget_s must be positive, got {budget_s}.")
    start = time.monotonic()
    elapsed = lambda: (time.monotonic() - start) / budget_s
    one = program("calibrate", model, sample, call)
    function = one.function if mode == "forward" else _with_gradients(one)
    with modes.set_to(mode=None, plan=None, check=None):
        kinds = calls.of_function(function, one.arguments)
        in_order = sorted(kinds.values(), key=lambda kind: -kind.macs)
        planned, skipped = [], []
        for i, kind in enumerate(progress.over(in_order, "calibrate")):
            if kind.member.family.choose:
                skipped.append(f"{kind.key}: it decides when it runs, by the zeros of its input")
            elif kind.indices is None:
                skipped.append(f"{kind.key}: its pattern is not known before the model runs")
            elif elapsed() > _FOR_CALLS:
                skipped.append(f"{kind.key}: the budget of {budget_s:g} s did not suffice")
            else:
                left = (_FOR_CALLS - elapsed()) * budget_s / (len(in_order) - i)
                planned.append(_measured(kind, seconds=min(0.5, left / 3)))
    plan = Plan(fingerprint(), tuple(planned), tuple(skipped))
    if not planned:
        return plan
    return _against_whole(plan, function, one.arguments, elapsed, budget_s)


def _measured(kind: calls.KindOfCall, seconds: float) -> Planned:
    operands = calls.operands_for(kind, np.random.default_rng(0))

    def compiled(path):
        member = functools.partial(
            kind.member, kind.spec, n_group=kind.n_group, implementation=path
        )
        executable = jax.jit(member).lower(*operands).compile()
        return lambda: jax.block_until_ready(executable(*operands))

    functions = {path: compiled(path) for path in ("ffi", "dense")}
    samples = timing.interleaved(functions, seconds=seconds, min_rounds=5)
    is_faster = timing.median_ratio(samples, "dense", "ffi") >= 1
    ffi, dense = (1e3 * statistics.median(samples[path]) for path in ("ffi", "dense"))
    found = ((path_in(name), name) for name in kind.names)
    layers = dict.fromkeys(name if of_layer is None else of_layer for of_layer, name in found)
    path = "ffi" if is_faster else "dense"
    return Planned(kind.key, path, ffi, dense, kind.calls, tuple(layers))


def _against_whole(plan, function, arguments, elapsed, budget_s) -> Plan:
    """The plan, or one way for all calls, whichever makes the whole program fastest."""
    contexts = {
        "plan": plan,
        "dense": modes.mode("dense"),
        "sparse": modes.mode("sparse"),
    }
    functions = {}
    for name, context in contexts.items():
        if elapsed() > _FOR_WHOLE:
            return plan
        with context:
            executable = jax.jit(function).lower(*arguments).compile()
        functions[name] = lambda run=executable: jax.block_until_ready(run(*arguments))
        functions[name]()
    seconds = min(5.0, max(0.0, 1 - elapsed()) * budget_s / 2)
    samples = timing.interleaved(functions, seconds=seconds, min_rounds=3)
    whole = {name: 1e3 * statistics.median(own) for name, own in samples.items()}
    for mode, path in (("dense", "dense"), ("sparse", "ffi")):
        if timing.median_ratio(samples, "plan", mode) > _MARGIN:
            plan = plan.all_by(path)
            whole["plan"] = whole[mode]
            break
    return dataclasses.replace(plan, whole_ms=whole)


def _with_gradients(one: Program) -> Callable:
    """The program with the gradient of the sum of its results."""

    def function(*arguments):
        leaves, tree = jax.tree.flatten(arguments[:1] if one.is_model else arguments)
        others = arguments[1:] if one.is_model else ()
        is_free = [jnp.issubdtype(jnp.result_type(leaf), jnp.inexact) for leaf in leaves]

        def results(free: Sequence) -> Iterable:
            given = iter(free)
            all_leaves = [next(given) if f else leaf for f, leaf in zip(is_free, leaves)]
            y = one.function(*jax.tree.unflatten(tree, all_leaves), *others)
            return [a for a in jax.tree.leaves(y) if jnp.issubdtype(a.dtype, jnp.inexact)]

        y, pull = jax.vjp(results, [leaf for f, leaf in zip(is_free, leaves) if f])
        return y, pull([jnp.ones_like(a) for a in y])

    return function
