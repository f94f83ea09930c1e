"""Convolutions over eight devices: numbers, and communication counted in compiled programs."""

import functools

import conv_cases
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from machine import collectives, compiled, handler_calls, need

import jaxsparse as js
from jaxsparse.problems import ConvProblem

PROBLEMS = {
    "conv": ConvProblem("sharded", (5, 4), (3, 2), (8, 12), (2, 1), sparsity=0.5),
    "conv_transpose": ConvProblem(
        "sharded_up", (4, 3), (3, 2), (8, 12), (2, 1), sparsity=0.5, transposed=True
    ),
}
KINDS = {"auto": AxisType.Auto, "explicit": AxisType.Explicit}
DATA, WHOLE = P("data"), P()
every_op = pytest.mark.parametrize("op", PROBLEMS)
every_kind = pytest.mark.parametrize("kind", KINDS)
every_format = pytest.mark.parametrize("format", conv_cases.FORMATS)


def layer_of(op, format="unstructured"):
    return conv_cases.make(PROBLEMS[op], format)


def mesh_of(kind):
    return jax.make_mesh((4, 2), ("data", "model"), axis_types=(KINDS[kind],) * 2)


def put(array, mesh, spec):
    return jax.device_put(array, NamedSharding(mesh, spec))


def product(layer, path, x, values):
    return layer.convolve(x, js.SparseWeight(values, layer.pattern), implementation=path)


def pulled_back(f, x, values, g):
    return (f(x, values), *jax.vjp(f, x, values)[1](g))


@every_op
@every_kind
@every_format
def test_a_split_batch_needs_no_communication_but_the_sum_of_weight_gradients(
    format, kind, op, path
):
    layer, mesh = layer_of(op, format), mesh_of(kind)
    f = functools.partial(product, layer, path)
    w = layer.weight(garbage=False)
    with jax.set_mesh(mesh):
        x, g = (put(layer.array(name), mesh, DATA) for name in ("x", "g"))
        values = put(w.values, mesh, WHOLE)
        forward, all_three = (
            compiled(f, x, values),
            compiled(functools.partial(pulled_back, f), x, values, g),
        )
        y, dx, dvalues = all_three(x, values, g)
    oracle.equal_exactly(y, layer.y())
    oracle.equal_exactly(dx, layer.dx())
    oracle.equal_exactly(dvalues, layer.dvalues())
    if path == "ffi":
        assert collectives(forward) == []
        assert collectives(all_three) == ["all-reduce"]
        assert y.sharding.is_equivalent_to(NamedSharding(mesh, DATA), y.ndim)


@every_op
def test_stored_weights_that_are_split_are_summed_over_devices(op):
    need("cpu_kernels")
    layer, mesh = layer_of(op), mesh_of("auto")
    w = layer.weight(garbage=False)
    values = put(w.values[: w.values.size // 8 * 8], mesh, P(("data", "model")))
    pattern = w.pattern.with_indices(w.pattern.places[: values.size])
    f = lambda x, v: layer.convolve(x, js.SparseWeight(v, pattern), implementation="ffi")
    x = layer.array("x")
    program = compiled(f, x, values)
    assert collectives(program) == ["all-reduce"]
    oracle.equal_exactly(program(x, values), np.asarray(f(x, np.asarray(values))))


@every_op
def test_vmap_over_a_split_axis_needs_no_communication(op):
    need("cpu_kernels")
    layer, mesh = layer_of(op), mesh_of("auto")
    f = functools.partial(product, layer, "ffi")
    values = layer.weight(garbage=False).values
    xs = put(jnp.stack([layer.array("x"), -layer.array("x")] * 4), mesh, DATA)
    program = compiled(jax.vmap(f, (0, None)), xs, values)
    assert collectives(program) == []
    oracle.equal_exactly(program(xs, values), np.stack([layer.y(), -layer.y()] * 4))
    several = put(jnp.stack([values, 2 * values] * 2), mesh, DATA)
    program = compiled(jax.vmap(f, (None, 0)), layer.array("x"), several)
    assert collectives(program) == []
    oracle.equal_exactly(
        program(layer.array("x"), several), np.stack([layer.y(), 2 * layer.y()] * 2)
    )


# shard_map ----------------------------------------------------------------------------------------


@every_op
@every_kind
def test_gradient_in_and_around_shard_map_is_summed_over_devices(kind, op, path):
    layer, mesh = layer_of(op), mesh_of(kind)
    f = functools.partial(product, layer, path)
    mapped = functools.partial(jax.shard_map, mesh=mesh)
    inside = mapped(
        functools.partial(pulled_back, f),
        in_specs=(DATA, WHOLE, DATA),
        out_specs=(DATA, DATA, WHOLE),
    )
    around = functools.partial(pulled_back, mapped(f, in_specs=(DATA, WHOLE), out_specs=DATA))
    with jax.set_mesh(mesh):
        x, g = (put(layer.array(name), mesh, DATA) for name in ("x", "g"))
        values = put(layer.weight(garbage=False).values, mesh, WHOLE)
        for function in (inside, around):
            y, dx, dvalues = jax.jit(function)(x, values, g)
            oracle.equal_exactly(y, layer.y())
            oracle.equal_exactly(dx, layer.dx())
            oracle.equal_exactly(dvalues, layer.dvalues())


# Weights in parts ---------------------------------------------------------------------------------

FORMATS_IN_PARTS = ("unstructured", "2x3")
in_parts = pytest.mark.parametrize("features", ["out", "in"])
every_format_in_parts = pytest.mark.parametrize("format", FORMATS_IN_PARTS)


@in_parts
@every_format_in_parts
def test_a_split_kernel_is_the_same_weight(format, features):
    layer = layer_of("conv", format)
    w = js.split_features(layer.weight(garbage=False), 2, features)
    assert w.shape == layer.pattern.shape
    oracle.equal_exactly(w.todense(), layer.dense())


@every_op
@in_parts
@every_format_in_parts
@pytest.mark.parametrize("grad", ["exact", "sparse"])
def test_convolution_with_a_split_kernel_equals_definition(grad, format, features, op, path):
    layer = layer_of(op, format)
    w = js.split_features(layer.weight(garbage=False), 2, features)
    of_values = lambda values: js.SplitWeight(values, w.pattern, features)
    f = lambda x, v: layer.convolve(x, of_values(v), implementation=path, grad=grad)
    y, dx, dv = jax.jit(functools.partial(pulled_back, f))(
        layer.array("x"), w.values, layer.array("g")
    )
    oracle.equal_exactly(y, layer.y())
    oracle.equal_exactly(dx, layer.dx())
    stored = np.asarray(layer.pattern.mask())
    oracle.equal_exactly(of_values(dv).todense(), np.where(stored, layer.dw(), 0))


@every_kind
@in_parts
def test_a_kernel_transposed_in_parts_equals_definition(features, kind, path):
    """With `transpose_kernel` the weight's last axis is the input's features."""
    layer = layer_of("conv")
    w = js.split_features(layer.weight(garbage=False), 2, features)
    x = jnp.float32(oracle.small_integers(np.random.default_rng(0), (8, 3, 4, 12)))
    f = functools.partial(
        js.conv_transpose, strides=(2, 1), transpose_kernel=True, implementation=path
    )
    mesh = mesh_of(kind)
    spec = P("data", None, None, "model") if features == "out" else DATA
    with jax.set_mesh(mesh):
        y = jax.jit(f)(put(x, mesh, spec), jax.device_put(w, NamedSharding(mesh, P("model"))))
    oracle.equal_exactly(y, np.asarray(jax.jit(f)(x, layer.weight())))


@every_op
@every_kind
@in_parts
def test_a_split_kernel_communicates_only_sums(features, kind, op):
    need("cpu_kernels")
    layer, mesh = layer_of(op), mesh_of(kind)
    w = js.split_features(layer.weight(garbage=False), 2, features)
    f = lambda x, w: layer.convolve(x, w, implementation="ffi")
    with jax.set_mesh(mesh):
        placed = jax.device_put(w, NamedSharding(mesh, P("model")))
        spec = P("data", None, None, "model") if features == "in" else DATA
        x = put(layer.array("x"), mesh, spec)
        program = compiled(f, x, placed)
        y = program(x, placed)
    member = "forward" if op == "conv" else "input_grad"
    assert handler_calls(program) == [f"unstructured_conv_{member}"]
    assert collectives(program) == ([] if features == "out" else ["all-reduce"])
    oracle.equal_exactly(y, layer.y())
