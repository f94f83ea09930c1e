"""Convolutional layers in programs: stacked, scanned, mapped, saved, split over devices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracle
import orbax.checkpoint as ocp
import pytest
from flax import linen as nn
from flax import nnx, serialization
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxsparse.linen as jlinen
import jaxsparse.nnx as jnnx

FORMATS = {
    "unstructured": {"format": "unstructured", "sparsity": 0.5},
    "grouped": {"format": "grouped:2", "sparsity": 0.5},
    "blocks": {"format": "2x2", "sparsity": 0.5},
}
every_format = pytest.mark.parametrize("options", FORMATS.values(), ids=FORMATS)
layers = pytest.mark.parametrize("layer", ["Conv", "ConvTranspose"])
OPTIONS = {"use_bias": False}


def integers(rng, shape):
    return jnp.asarray(oracle.small_integers(rng, shape), jnp.float32)


def definition(layer, x, kernel):
    """What Flax's layer of this name makes of it."""
    module = getattr(nn, layer)(kernel.shape[-1], kernel.shape[:-2], use_bias=False)
    return module.apply({"params": {"kernel": kernel}}, x)


def masks(pattern, number):
    each = (jax.tree.map(lambda a, i=i: a[i], pattern) for i in range(number))
    return [np.asarray(pattern.mask(), np.float32) for pattern in each]


# Stacked layers -----------------------------------------------------------------------------------


def stacked_nnx(layer, options):
    make = lambda key: getattr(jnnx, layer)(4, 4, (3, 3), rngs=nnx.Rngs(key), **OPTIONS, **options)
    return nnx.jit(nnx.vmap(make))(jax.random.split(jax.random.key(0), 3))


@every_format
@layers
def test_scan_over_packed_nnx_layers_equals_a_loop(layer, options, rng):
    stacked = stacked_nnx(layer, options)
    stacked.kernel[...] = kernels = integers(rng, (3, 3, 3, 4, 4))
    x = integers(rng, (2, 4, 5, 4))
    expected = x
    for kernel, mask in zip(kernels, masks(stacked.pattern, 3)):
        expected = definition(layer, expected, kernel * mask)
    scan = nnx.scan(
        nnx.remat(lambda x, layer: layer(x)), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry
    )
    oracle.equal_exactly(nnx.jit(scan)(x, jnnx.pack(stacked)), expected, "y")


@layers
def test_vmap_over_stacked_nnx_layers_equals_a_loop(layer, rng):
    stacked = stacked_nnx(layer, FORMATS["unstructured"])
    stacked.kernel[...] = kernels = integers(rng, (3, 3, 3, 4, 4))
    x = integers(rng, (2, 4, 5, 4))
    y = nnx.jit(nnx.vmap(lambda layer, x: layer(x), in_axes=(0, None)))(stacked, x)
    for got, kernel, mask in zip(y, kernels, masks(stacked.pattern, 3)):
        oracle.equal_exactly(got, definition(layer, x, kernel * mask), "y")


@every_format
@layers
def test_scan_over_linen_layers_equals_a_loop(layer, options, rng):
    class Scanned(nn.Module):
        @nn.compact
        def __call__(self, x):
            scan = nn.scan(
                lambda layer, x, _: (layer(x), None),
                variable_axes={"params": 0, "sparsity": 0},
                split_rngs={"params": True},
                length=3,
            )
            cls = nn.remat(getattr(jlinen, layer))
            return scan(cls(4, (3, 3), name="layer", **OPTIONS, **options), x, None)[0]

    x = integers(rng, (2, 4, 5, 4))
    variables = jax.jit(Scanned().init)(jax.random.key(0), x)
    kernels = integers(rng, (3, 3, 3, 4, 4))
    variables = {**variables, "params": {"layer": {"kernel": kernels}}}
    expected = x
    for kernel, mask in zip(kernels, masks(variables["sparsity"]["layer"]["pattern"], 3)):
        expected = definition(layer, expected, kernel * mask)
    for tree in (variables, jlinen.pack(variables)):
        oracle.equal_exactly(jax.jit(Scanned().apply)(tree, x), expected, "y")


# Networks -----------------------------------------------------------------------------------------


class Network(nnx.Module):
    """Down and up again, with layers of Flax's names from `layers`."""

    def __init__(self, layers, rngs, **options):
        self.down = layers.Conv(3, 8, (3, 3), 2, rngs=rngs, **options)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.up = layers.ConvTranspose(8, 3, (4, 4), 2, rngs=rngs, **options)

    def __call__(self, x):
        return self.up(nnx.relu(self.norm(self.down(x))))


def test_layers_after_a_sparse_one_start_as_in_flax():
    """The same random streams: one draw more or less would show in `up`."""
    ours, flax = (
        nnx.to_pure_dict(nnx.state(Network(*of, **options), nnx.Param))
        for of, options in (((jnnx, nnx.Rngs(3)), FORMATS["blocks"]), ((nnx, nnx.Rngs(3)), {}))
    )
    assert jax.tree.structure(ours) == jax.tree.structure(flax)
    for name in ("down", "up"):
        kernel, whole = np.asarray(ours[name]["kernel"]), np.asarray(flax[name]["kernel"])
        stored = kernel != 0
        assert 0.3 < stored.mean() < 0.7
        np.testing.assert_array_equal(kernel[stored], whole[stored])


@every_format
def test_a_network_trains_in_a_jitted_loop_and_keeps_its_zeros(options):
    model = Network(jnnx, nnx.Rngs(0), **options)
    optimizer = nnx.Optimizer(model, optax.sgd(1e-1, momentum=0.9), wrt=nnx.Param)
    x = jax.random.normal(jax.random.key(1), (4, 8, 8, 3))
    loss = lambda model: ((model(x) - x) ** 2).mean()

    @nnx.jit
    def step(model, optimizer):
        value, grads = nnx.value_and_grad(loss)(model)
        optimizer.update(model, grads)
        jnnx.apply_patterns(model)
        return value

    first = step(model, optimizer)
    for _ in range(10):
        last = step(model, optimizer)
    assert last < 0.95 * first
    for layer in (model.down, model.up):
        kernel = np.asarray(layer.kernel[...])
        assert not kernel[~np.asarray(layer.pattern.mask())].any()


# Checkpoints --------------------------------------------------------------------------------------


@every_format
def test_variables_of_linen_survive_checkpoints(options, tmp_path):
    module = jlinen.Conv(4, (3, 3), **options)
    x = jax.random.normal(jax.random.key(1), (2, 5, 5, 3))
    whole = module.init(jax.random.key(0), x)
    for name, variables in (("whole", whole), ("packed", jlinen.pack(whole))):
        zeros = jax.tree.map(jnp.zeros_like, variables)
        from_bytes = serialization.from_bytes(zeros, serialization.to_bytes(variables))
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(tmp_path / name, variables)
            checkpointer.wait_until_finished()
            from_orbax = checkpointer.restore(tmp_path / name, zeros)
        for again in (from_bytes, from_orbax):
            assert jax.tree.structure(again) == jax.tree.structure(variables)
            jax.tree.map(np.testing.assert_array_equal, again, variables)
            np.testing.assert_array_equal(module.apply(again, x), module.apply(variables, x))


# Meshes -------------------------------------------------------------------------------------------

MESHES = {
    mode: jax.make_mesh((2, 2), ("data", "model"), axis_types=(kind, kind))
    for mode, kind in (("auto", AxisType.Auto), ("explicit", AxisType.Explicit))
}


@pytest.mark.parametrize("mode", MESHES)
@pytest.mark.parametrize("spec", [P(None, None, None, "model"), P(None, None, "model")], ids=str)
@layers
def test_a_layer_with_a_split_kernel_equals_one_on_a_single_device(layer, spec, mode, rng):
    model = getattr(jnnx, layer)(4, 8, (3, 3), 2, rngs=nnx.Rngs(0), **FORMATS["unstructured"])
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    params = jax.tree.map(lambda p: integers(rng, p.shape), params)
    x = integers(rng, (4, 6, 4, 4))

    def run(params, x):
        loss = lambda params, x: (nnx.merge(graph, params, rest)(x) ** 2).sum() / 2
        return nnx.merge(graph, params, rest)(x), *jax.grad(loss, (0, 1))(params, x)

    alone = jax.jit(run)(params, x)
    mesh = MESHES[mode]
    put = lambda array, spec: jax.device_put(array, NamedSharding(mesh, spec))
    with jax.set_mesh(mesh):
        there = jax.tree.map(lambda p: put(p, spec if p.ndim == 4 else P()), params)
        y, dparams, dx = split = jax.jit(run)(there, put(x, P("data")))
    jax.tree.map(lambda a, b: oracle.equal_exactly(a, b, "result"), split, alone)
    if mode == "explicit":
        assert jax.typeof(y).sharding.spec[0] == "data"
        assert jax.typeof(dx).sharding.spec[0] == "data"
        got = NamedSharding(mesh, jax.typeof(dparams["kernel"][...]).sharding.spec)
        assert got.is_equivalent_to(NamedSharding(mesh, spec), 4)


def test_out_sharding_places_the_result():
    mesh = MESHES["explicit"]
    layer = jnnx.Conv(4, 8, (3, 3), rngs=nnx.Rngs(0), **FORMATS["unstructured"])
    with jax.set_mesh(mesh):
        x = jax.device_put(jnp.ones((4, 6, 4, 4)), NamedSharding(mesh, P("data")))
        y = layer(x, out_sharding=P("data", None, None, "model"))
    assert y.sharding.spec == P("data", None, None, "model")
