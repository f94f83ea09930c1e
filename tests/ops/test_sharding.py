"""Calls split over eight devices: the same numbers, and no communication that is not needed."""

import functools
import re

import cases
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from machine import collectives, compiled, need

import jaxsparse as js
from jaxsparse.problems import Problem

LAYER = cases.make(Problem("sharding", (16,), (64, 96), (8, 8), 0.5, ""), unused=0)
X, G, W = LAYER.array("x"), LAYER.array("g"), LAYER.weight()
VALUES = W.values  # 48 blocks
XS = jnp.stack([X, 2 * X, -X, -2 * X, X, X, -X, X])
WS = jnp.stack([VALUES, -VALUES] * 4)
X3 = jnp.stack([X, -X], 1)  # two batch axes
DATA, WHOLE = P("data"), P()
KINDS = {"auto": AxisType.Auto, "explicit": AxisType.Explicit}


def mesh_of(data, model):
    return jax.make_mesh((4, 2), ("data", "model"), axis_types=(KINDS[data], KINDS[model]))


def put(array, mesh, spec):
    return jax.device_put(array, NamedSharding(mesh, spec))


def matmul(x, values, implementation=None):
    return js.matmul(x, W.with_values(values), implementation=implementation)


def squares(f, x, values):
    return jnp.sum(f(x, values) ** 2)


def gradients(f):
    return jax.grad(functools.partial(squares, f), (0, 1))


def per_example(f):
    return jax.vmap(jax.grad(functools.partial(squares, f), 1), (0, None))


def gradient_of_vmap(f):
    total = lambda x, v: jnp.sum(jax.vmap(functools.partial(squares, f), (0, None))(x, v))
    return jax.grad(total, 1)


CASES = {
    # name: (function of an op, operands, their shardings, the collectives it needs)
    "batch": (lambda f: f, (X, VALUES), (DATA, WHOLE), []),
    "batch_over_both_axes": (lambda f: f, (X, VALUES), (P(("data", "model")), WHOLE), []),
    "batch_grad": (gradients, (X, VALUES), (DATA, WHOLE), ["all-reduce"]),
    "batch_grad_by_x": (
        lambda f: jax.grad(functools.partial(squares, f)),
        (X, VALUES),
        (DATA, WHOLE),
        [],
    ),
    "two_batch_axes": (lambda f: f, (X3, VALUES), (P("data", "model"), WHOLE), []),
    "two_batch_axes_grad": (gradients, (X3, VALUES), (P("data", "model"), WHOLE), ["all-reduce"]),
    "inner_batch_axis": (lambda f: f, (X3.swapaxes(0, 1), VALUES), (P(None, "data"), WHOLE), []),
    "vmap_inner_axis": (
        lambda f: jax.vmap(f, (0, None)),
        (XS, VALUES),
        (P(None, "data"), WHOLE),
        [],
    ),
    "vmap_mapped_axis": (lambda f: jax.vmap(f, (0, None)), (XS, VALUES), (DATA, WHOLE), []),
    "vmap_weights": (lambda f: jax.vmap(f, (None, 0)), (X, WS), (WHOLE, DATA), []),
    "vmap_weights_and_batch": (lambda f: jax.vmap(f), (XS, WS), (DATA, DATA), []),
    "vmap_weights_over_model_batch_over_data": (
        lambda f: jax.vmap(f, (None, 0)),
        (X, WS),
        (DATA, P("model")),
        [],
    ),
    "vmap_of_grad": (per_example, (XS, VALUES), (DATA, WHOLE), []),
    "grad_of_vmap": (gradient_of_vmap, (XS, VALUES), (DATA, WHOLE), ["all-reduce"]),
    "remat": (
        lambda f: jax.grad(jax.checkpoint(functools.partial(squares, f)), (0, 1)),
        (X, VALUES),
        (DATA, WHOLE),
        ["all-reduce"],
    ),
    "jvp": (
        lambda f: lambda x, v: jax.jvp(f, (x, v), (x, v))[1],
        (X, VALUES),
        (DATA, WHOLE),
        [],
    ),
    "nothing_split": (gradients, (X, VALUES), (WHOLE, WHOLE), []),
}
AUTO_CASES = {
    "blocks": (lambda f: f, (X, VALUES), (WHOLE, P("model")), ["all-reduce"]),
    "blocks_and_batch": (lambda f: f, (X, VALUES), (DATA, P("model")), ["all-reduce"]),
    "blocks_and_batch_grad": (gradients, (X, VALUES), (DATA, P("model")), ["all-reduce"]),
    "blocks_over_all": (lambda f: f, (X, VALUES), (WHOLE, P(("data", "model"))), ["all-reduce"]),
    "vmap_blocks": (
        lambda f: jax.vmap(f, (None, 0)),
        (X, WS),
        (WHOLE, P("data", "model")),
        ["all-reduce"],
    ),
    # What cannot be split is gathered; the rest is not.
    "features": (lambda f: f, (X, VALUES), (P("data", "model"), WHOLE), ["all-gather"]),
    "inside_blocks": (lambda f: f, (X, VALUES), (DATA, P(None, "model")), ["all-gather"]),
}
# The blocks may be split where the compiler decides, while the user decides about the batch.
MIXED_CASES = {
    "blocks_and_batch": AUTO_CASES["blocks_and_batch"],
    "blocks": AUTO_CASES["blocks"],
    **{name: case for name, case in CASES.items() if "model" not in str(case[2])},
}
MODES = {
    "auto": (mesh_of("auto", "auto"), {**CASES, **AUTO_CASES}),
    "explicit": (mesh_of("explicit", "explicit"), CASES),
    "mixed": (mesh_of("explicit", "auto"), MIXED_CASES),
}
every_case = pytest.mark.parametrize(
    ("mode", "name"),
    [(mode, name) for mode, (_, table) in MODES.items() for name in table],
)


@functools.cache
def on_one_device(name):
    of, operands, _, _ = {**CASES, **AUTO_CASES}[name]
    return jax.tree.map(np.asarray, jax.jit(of(matmul))(*operands))


def equal(got, name):
    expected = on_one_device(name)
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        oracle.equal_exactly(one, other)


@every_case
def test_sharded_call_equals_the_call_on_one_device(mode, name, path):
    mesh, table = MODES[mode]
    of, operands, specs, _ = table[name]
    with jax.set_mesh(mesh):
        placed = [put(a, mesh, spec) for a, spec in zip(operands, specs)]
        got = jax.jit(of(functools.partial(matmul, implementation=path)))(*placed)
    equal(got, name)


@every_case
def test_sharded_call_communicates_only_what_it_must(mode, name):
    need("cpu_kernels")
    mesh, table = MODES[mode]
    of, operands, specs, expected = table[name]
    with jax.set_mesh(mesh):
        placed = [put(a, mesh, spec) for a, spec in zip(operands, specs)]
        program = compiled(of(functools.partial(matmul, implementation="ffi")), *placed)
    assert collectives(program) == expected


# What is computed where ---------------------------------------------------------------------------


def call_shapes(program, member):
    """The result shapes of a member's handler calls on one device."""
    line = rf'= (\S+)\[([\d,]*)\]\S* custom-call\(.*custom_call_target="jaxsparse\.block_{member}'
    return [
        tuple(int(n) for n in sizes.split(",")) for _, sizes in re.findall(line, program.as_text())
    ]


@pytest.mark.parametrize("mode", ["auto", "explicit"])
@pytest.mark.parametrize(
    ("name", "member", "shape"),
    [
        ("batch", "matmul_forward", (4, 96)),
        ("batch_over_both_axes", "matmul_forward", (2, 96)),
        ("two_batch_axes", "matmul_forward", (4, 1, 96)),
        ("vmap_mapped_axis", "matmul_forward", (2, 16, 96)),
        ("vmap_weights", "matmul_forward", (2, 16, 96)),
        ("vmap_of_grad", "matmul_weight_grad", (2, 48, 8, 8)),
        ("grad_of_vmap", "matmul_weight_grad", (48, 8, 8)),
    ],
)
def test_each_device_computes_its_own_part_only(mode, name, member, shape):
    need("cpu_kernels")
    mesh, table = MODES[mode]
    of, operands, specs, _ = table[name]
    with jax.set_mesh(mesh):
        placed = [put(a, mesh, spec) for a, spec in zip(operands, specs)]
        program = compiled(of(functools.partial(matmul, implementation="ffi")), *placed)
    assert call_shapes(program, member) == [shape]


def test_gradient_of_split_blocks_is_computed_for_local_blocks_only():
    need("cpu_kernels")
    mesh, _ = MODES["auto"]
    x, v = put(X, mesh, DATA), put(VALUES, mesh, P("model"))
    function = jax.grad(functools.partial(squares, matmul), 1)
    program = jax.jit(function, out_shardings=v.sharding).lower(x, v).compile()
    assert call_shapes(program, "matmul_weight_grad") == [(24, 8, 8)]
    assert "all-gather" not in collectives(program)
    oracle.equal_exactly(program(x, v), on_one_device("batch_grad")[1])


@pytest.mark.parametrize("mode", ["auto", "explicit"])
def test_eager_call_on_split_arrays_keeps_their_sharding(mode, path):
    mesh, _ = MODES[mode]
    with jax.set_mesh(mesh):
        y = matmul(put(X, mesh, DATA), put(VALUES, mesh, WHOLE), path)
    if path == "ffi" or mode == "explicit":
        assert y.sharding.is_equivalent_to(NamedSharding(mesh, P("data", None)), 2)
    oracle.equal_exactly(y, LAYER.y())


@pytest.mark.parametrize("mode", ["auto", "explicit"])
def test_eager_gradients_of_split_arrays_equal_those_on_one_device(mode, path):
    mesh, _ = MODES[mode]
    f = functools.partial(matmul, implementation=path)
    with jax.set_mesh(mesh):
        got = gradients(f)(put(X, mesh, DATA), put(VALUES, mesh, WHOLE))
    equal(got, "batch_grad")


@pytest.mark.parametrize("mode", list(MODES))
def test_host_arrays_while_a_mesh_is_set_give_the_same(mode, path):
    mesh, _ = MODES[mode]
    f = functools.partial(matmul, implementation=path)
    with jax.set_mesh(mesh):
        equal(gradients(f)(np.asarray(X), np.asarray(VALUES)), "batch_grad")
        equal(jax.jit(gradients(f))(np.asarray(X), np.asarray(VALUES)), "batch_grad")


@pytest.mark.parametrize("mode", list(MODES))
def test_a_whole_weight_placed_on_the_mesh_gives_the_same(mode, path):
    mesh, _ = MODES[mode]
    with jax.set_mesh(mesh):
        w = jax.device_put(W, NamedSharding(mesh, WHOLE))
        y = jax.jit(functools.partial(js.matmul, implementation=path))(put(X, mesh, DATA), w)
    oracle.equal_exactly(y, LAYER.y())


# Explicit mode: types -----------------------------------------------------------------------------


def test_explicit_types_carry_the_sharding_of_the_batch(path):
    mesh, _ = MODES["explicit"]
    f = functools.partial(matmul, implementation=path)
    with jax.set_mesh(mesh):
        x, v = put(X3, mesh, P("data", "model")), put(VALUES, mesh, WHOLE)
        y = jax.jit(f).eval_shape(x, v)
        dx, dv = jax.jit(lambda x, v: jax.vjp(f, x, v)[1](f(x, v))).eval_shape(x, v)
    assert tuple(y.sharding.spec) == ("data", "model", None)
    assert tuple(dx.sharding.spec) == ("data", "model", None)
    assert set(dv.sharding.spec) <= {None}


def test_explicit_types_carry_the_sharding_of_mapped_weights(path):
    mesh, _ = MODES["explicit"]
    f = jax.vmap(functools.partial(matmul, implementation=path), (None, 0))
    with jax.set_mesh(mesh):
        y = jax.jit(f).eval_shape(put(X, mesh, P("data")), put(WS, mesh, P("model")))
    assert tuple(y.sharding.spec) == ("model", "data", None)


@pytest.mark.parametrize(
    ("spec_x", "spec_values"),
    [(P(None, "model"), WHOLE), (WHOLE, P("model")), (WHOLE, P(None, "model"))],
    ids=["features", "blocks", "inside_blocks"],
)
def test_explicit_sharding_of_what_cannot_be_split_is_refused(spec_x, spec_values, path):
    mesh, _ = MODES["explicit"]
    f = functools.partial(matmul, implementation=path)
    with (
        jax.set_mesh(mesh),
        pytest.raises(ValueError, match="may be sharded.*split_features"),
    ):
        jax.jit(f)(put(X, mesh, spec_x), put(VALUES, mesh, spec_values))


# shard_map ----------------------------------------------------------------------------------------

sharded_modes = pytest.mark.parametrize("mode", ["auto", "explicit"])


def mapped(mode, f, in_specs, out_specs, **options):
    mesh, _ = MODES[mode]
    return jax.shard_map(f, mesh=mesh, in_specs=in_specs, out_specs=out_specs, **options)


def run_mapped(mode, function):
    """The jitted function of arrays placed as `mapped` with a split batch wants them."""
    mesh, _ = MODES[mode]
    with jax.set_mesh(mesh):
        return jax.jit(function)(put(X, mesh, DATA), put(VALUES, mesh, WHOLE))


@sharded_modes
@pytest.mark.parametrize("check_vma", [True, False], ids=["checked", "unchecked"])
def test_call_in_shard_map_equals_the_call_outside(mode, check_vma, path):
    f = functools.partial(matmul, implementation=path)
    y = run_mapped(mode, mapped(mode, f, (DATA, WHOLE), DATA, check_vma=check_vma))
    oracle.equal_exactly(y, LAYER.y())


@sharded_modes
@pytest.mark.parametrize("grad", ["exact", "sparse"])
def test_gradient_around_shard_map_is_summed_over_devices(mode, grad, path):
    f = lambda x, v: js.matmul(x, W.with_values(v), grad=grad, implementation=path)
    inside = mapped(mode, f, (DATA, WHOLE), DATA)
    equal(run_mapped(mode, gradients(inside)), "batch_grad")


@sharded_modes
@pytest.mark.parametrize("grad", ["exact", "sparse"])
def test_gradient_in_shard_map_is_summed_over_devices(mode, grad, path):
    f = lambda x, v: js.matmul(x, W.with_values(v), grad=grad, implementation=path)
    inside = mapped(mode, gradients(f), (DATA, WHOLE), (DATA, WHOLE))
    equal(run_mapped(mode, inside), "batch_grad")


@pytest.mark.parametrize("grad", ["sparse", "dense"])
def test_gradient_of_dense_storage_in_shard_map_holds_its_contract(grad, path):
    f = lambda x, w: js.matmul(x, w, pattern=W.pattern, grad=grad, implementation=path)
    inside = mapped("auto", f, (DATA, WHOLE), DATA)
    dense = jnp.float32(LAYER.dense())
    dx, dw = jax.jit(lambda x, w: jax.vjp(inside, x, w)[1](G))(X, dense)
    whole = LAYER.x.T @ LAYER.g
    stored = oracle.todense(np.ones_like(LAYER.clean), *LAYER.places)
    oracle.equal_exactly(dx, LAYER.dx())
    oracle.equal_exactly(dw, whole if grad == "dense" else whole * stored)


def test_partly_manual_shard_map_gives_the_same(path):
    f = functools.partial(matmul, implementation=path)
    partly = mapped("auto", f, (DATA, WHOLE), DATA, axis_names={"data"})
    mesh, _ = MODES["auto"]
    x, v = put(X, mesh, P(("data", "model"))), put(VALUES, mesh, WHOLE)
    oracle.equal_exactly(jax.jit(partly)(x, v), LAYER.y())
    equal(jax.jit(gradients(partly))(x, v), "batch_grad")


def test_vmap_in_shard_map_and_around_it_give_the_same(path):
    f = functools.partial(matmul, implementation=path)
    inside = mapped("auto", jax.vmap(f, (0, None)), (DATA, WHOLE), DATA)
    equal(jax.jit(inside)(XS, VALUES), "vmap_mapped_axis")
    around = jax.vmap(mapped("auto", f, (DATA, WHOLE), DATA), (0, None))
    equal(jax.jit(around)(XS, VALUES), "vmap_mapped_axis")


def test_jvp_in_shard_map_gives_the_same(path):
    f = functools.partial(matmul, implementation=path)
    tangent = lambda x, v: jax.jvp(f, (x, v), (x, v))[1]
    equal(jax.jit(mapped("auto", tangent, (DATA, WHOLE), DATA))(X, VALUES), "jvp")


def test_mapped_weights_of_their_own_on_each_device(path):
    """Experts: each device holds some weights with their patterns."""
    several = [cases.make("tiles", seed=seed) for seed in range(8)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[one.weight() for one in several])
    x = several[0].array("x")
    product = jax.vmap(functools.partial(js.matmul, implementation=path), (None, 0))
    over_all = P(("data", "model"))
    ys = jax.jit(mapped("auto", product, (WHOLE, over_all), over_all))(x, stacked)
    for y, one in zip(ys, several, strict=True):
        oracle.equal_exactly(y, oracle.forward(several[0].x, one.values, *one.places))
    mesh, _ = MODES["auto"]
    placed = jax.device_put(stacked, NamedSharding(mesh, over_all))
    automatic = jax.jit(product)(x, placed)
    np.testing.assert_array_equal(automatic, ys)
    if path == "ffi":
        assert collectives(compiled(product, x, placed)) == []
