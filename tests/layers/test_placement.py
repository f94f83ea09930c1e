"""Layers on meshes: kernels split over devices give Flax's results, split as Flax splits them."""

import functools

import flax_layers
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from flax import nnx
from flax_layers import Layer
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxsparse as js
import jaxsparse.nnx as jnnx

MESHES = {
    mode: jax.make_mesh((2, 2), ("data", "model"), axis_types=(kind, kind))
    for mode, kind in (("auto", AxisType.Auto), ("explicit", AxisType.Explicit))
}
SPARSE = {"format": "4x8", "sparsity": 0.6}
modes = pytest.mark.parametrize("mode", MESHES)

# name: (kind of layer, inputs and how they are split, how the kernel is split)
CASES = {
    "outputs": ("linear", (8, 24), P("data"), P(None, "model")),
    "inputs": ("linear", (8, 24), P("data"), P("model", None)),
    "both": ("linear", (8, 24), P("data"), P("data", "model")),
    "general_outputs": ("general", (4, 4, 2, 6), P("data"), P(None, None, None, "model")),
    "general_inputs": ("general", (4, 4, 2, 6), P("data"), P("model")),
    "batched_outputs": (
        "batched",
        (2, 4, 4, 6),
        P(None, None, "data"),
        P(None, None, None, "model"),
    ),
    "batched_batch": ("batched", (2, 4, 4, 6), P("model", None, "data"), P("model")),
}


def put(array, mesh, spec):
    return jax.device_put(array, NamedSharding(mesh, spec))


def integers(rng, shape):
    return jnp.asarray(oracle.small_integers(rng, shape), jnp.float32)


def spec_of(array):
    return jax.typeof(array).sharding.spec


@pytest.mark.parametrize(
    ("framework", "case", "mode"),
    [("nnx", case, "explicit") for case in CASES]
    + [("linen", case, "explicit") for case in ("both", "general_outputs", "batched_batch")]
    + [("nnx", "both", "auto"), ("linen", "batched_outputs", "auto")],
)
def test_a_layer_with_a_split_kernel_equals_definition_and_is_split_like_flax(
    framework, case, mode, rng
):
    kind, inputs, spec_x, spec = CASES[case]
    ours, flax = (
        Layer(framework, kind, inputs=jnp.ones(inputs), ours=is_ours, **options)
        for is_ours, options in ((True, SPARSE), (False, {}))
    )
    x, params = integers(rng, inputs), {k: integers(rng, p.shape) for k, p in ours.params.items()}
    g = integers(rng, jax.eval_shape(ours.apply, params, x).shape)

    def results(layer, params, x):
        y, pull_back = jax.vjp(layer.apply, params, x)
        dparams, dx = pull_back(g if mode == "auto" else jax.sharding.reshard(g, spec_of(y)))
        return y, dparams["kernel"], dx

    mesh = MESHES[mode]
    with jax.set_mesh(mesh):
        params_there = {**params, "kernel": put(params["kernel"], mesh, spec)}
        arguments = params_there, put(x, mesh, spec_x)
        of_ours, of_flax = (
            jax.jit(functools.partial(results, layer)).trace(*arguments) for layer in (ours, flax)
        )
        y, dkernel, dx = of_ours.lower().compile()(*arguments)
    if mode == "explicit":
        types = [[kind.sharding for kind in trace.out_info] for trace in (of_ours, of_flax)]
        assert types[0] == types[1]
        assert None not in types[0]
    oracle.equal_exactly(y, ours.definition(**params, inputs=x), "y")
    left, rest = ours.kind.einsum.split(",")
    right, result = rest.split("->")
    product = lambda axes, a, b: np.einsum(axes, np.float64(a), np.float64(b))
    exact = product(f"{left},{result}->{right}", x, g) * ours.mask()
    oracle.equal_exactly(dkernel, exact, "dkernel")
    exact = product(f"{result},{right}->{left}", g, np.asarray(params["kernel"]) * ours.mask())
    oracle.equal_exactly(dx, exact, "dx")


def split_layer(mesh, names=(None, "model")):
    """An NNX layer whose kernel Flax splits over the mesh when it is made."""
    metadata = {"kernel_metadata": {"out_sharding": names}}
    return jnnx.Linear(16, 32, rngs=nnx.Rngs(0), **metadata, **SPARSE)


@modes
@pytest.mark.parametrize("names", [(None, "model"), ("data", "model")], ids=str)
def test_a_new_layer_is_split_as_its_metadata_say(mode, names):
    with jax.set_mesh(MESHES[mode]):
        layer, whole = split_layer(MESHES[mode], names), split_layer(None, (None, None))
    assert layer.kernel[...].sharding.spec == P(*names)
    np.testing.assert_array_equal(layer.kernel[...], whole.kernel[...])
    np.testing.assert_array_equal(layer.pattern.rows, whole.pattern.rows)


@modes
def test_a_split_kernel_stays_split_when_its_pattern_changes_or_is_applied(mode):
    new = js.patterns.random(jax.random.key(1), "4x8", (16, 32), sparsity=0.6)

    @nnx.jit
    def change(layer, pattern):
        layer.set_pattern(pattern)
        layer.kernel[...] += 1
        jnnx.apply_patterns(layer)

    with jax.set_mesh(MESHES[mode]):
        layer = split_layer(MESHES[mode])
        before, old = np.asarray(layer.kernel[...]), flax_layers.mask_of(layer.pattern, (16, 32))
        change(layer, new)
    mask = flax_layers.mask_of(new, (16, 32))
    expected = np.where(mask, np.where(old, before, 0) + np.float32(1), 0)
    np.testing.assert_array_equal(layer.kernel[...], expected)
    sharding = NamedSharding(MESHES[mode], P(None, "model"))
    if mode == "explicit":
        assert layer.kernel[...].sharding.is_equivalent_to(sharding, 2)


@modes
def test_a_split_kernel_is_packed_and_unpacked_to_the_same_bits(mode):
    with jax.set_mesh(MESHES[mode]):
        layer = split_layer(MESHES[mode])
        packed = jnnx.pack(layer)
        again = jnnx.unpack(packed)
        x = put(jnp.ones((4, 16)), MESHES[mode], P("data"))
        y, y_packed = jax.jit(layer)(x), jax.jit(packed)(x)
    np.testing.assert_array_equal(again.kernel[...], layer.kernel[...])
    np.testing.assert_allclose(y_packed, y, rtol=1e-5, atol=1e-6)


@modes
def test_two_layers_split_as_for_tensor_parallelism_equal_whole_ones(mode):
    """The first along its outputs, the second along its inputs; the caller says where y is."""

    def network(first, second, x):
        return second(first(x), out_sharding=P("data", None) if mode == "explicit" else None)

    x = jax.random.normal(jax.random.key(3), (4, 16))
    with jax.set_mesh(MESHES[mode]):
        layers = (
            split_layer(MESHES[mode]),
            jnnx.Linear(
                32,
                16,
                rngs=nnx.Rngs(1),
                kernel_metadata={"out_sharding": ("model", None)},
                **SPARSE,
            ),
        )
        y = nnx.jit(network)(*layers, put(x, MESHES[mode], P("data")))
        gradient = nnx.jit(nnx.grad(lambda *a: (network(*a) ** 2).sum(), argnums=(0, 1)))(
            *layers, put(x, MESHES[mode], P("data"))
        )
    kernels = [np.float64(layer.kernel[...]) for layer in layers]
    np.testing.assert_allclose(y, np.float64(x) @ kernels[0] @ kernels[1], rtol=1e-5, atol=1e-5)
    dy = 2 * np.float64(y)
    exact = (np.float64(x) @ kernels[0]).T @ dy
    exact *= flax_layers.mask_of(layers[1].pattern, (32, 16))
    np.testing.assert_allclose(gradient[1]["kernel"][...], exact, rtol=1e-4, atol=1e-4)
    exact = np.float64(x).T @ (dy @ kernels[1].T)
    exact *= flax_layers.mask_of(layers[0].pattern, (16, 32))
    np.testing.assert_allclose(gradient[0]["kernel"][...], exact, rtol=1e-4, atol=1e-4)
