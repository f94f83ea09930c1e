"""Weights in parts over a mesh axis (tensor parallelism): numbers and communication."""

import functools

import cases
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
from jaxsparse.problems import Problem

PARTS = 2
LAYER = cases.make(Problem("split", (8,), (32, 48), (8, 8), 0.5, ""), unused=1)
X, G, W = LAYER.array("x"), LAYER.array("g"), LAYER.weight(garbage=False)

both = pytest.mark.parametrize("features", ["out", "in"])
modes = pytest.mark.parametrize(
    "kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"]
)


def mesh_of(kind):
    return jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind,) * 2)


def with_values(w, values):
    return js.SplitWeight(values, w.pattern, w.features)


def pulled_back(product, w):
    """The gradients of <G, product(X, w)>, the weight's as a dense array."""
    dx, dv = jax.vjp(lambda x, v: product(x, with_values(w, v)), X, w.values)[1](G)
    return dx, with_values(w, dv).todense()


@both
@pytest.mark.parametrize("parts", [1, 2])
def test_split_weight_is_the_same_weight(features, parts):
    w = js.split_features(W, parts, features)
    assert w.shape == W.shape
    assert w.dtype == W.dtype
    assert w.num_parts == parts
    oracle.equal_exactly(w.todense(), LAYER.dense())


@both
def test_split_weight_of_uneven_parts_is_the_same_weight(features, path, rng):
    grid = np.zeros((4, 6), bool)
    grid[:2, :3] = True  # all in the first part, whichever way
    pattern = js.patterns.from_grid(grid, (8, 8), (32, 48))
    values = oracle.small_integers(rng, pattern.values_shape)
    whole = js.SparseWeight(jnp.float32(values), pattern)
    w = js.split_features(whole, PARTS, features)
    np.testing.assert_array_equal(w.todense(), whole.todense())
    y = js.matmul(X, w, implementation=path)
    np.testing.assert_array_equal(y, js.matmul(X, whole, implementation=path))


@both
@pytest.mark.parametrize("batch", [(), (8,), (2, 4)], ids=["vector", "matrix", "cube"])
def test_product_with_split_weight_equals_definition(features, batch, path):
    w = js.split_features(W, PARTS, features)
    x = LAYER.x[0] if batch == () else LAYER.x.reshape(*batch, -1)
    y = js.matmul(jnp.float32(x), w, implementation=path)
    oracle.equal_exactly(y, oracle.forward(x, LAYER.clean, *LAYER.places))


@both
@pytest.mark.parametrize("grad", ["exact", "sparse"])
def test_gradients_by_split_weight_equal_definition(features, grad, path):
    w = js.split_features(W, PARTS, features)
    product = functools.partial(js.matmul, implementation=path, grad=grad)
    dx, dw = jax.jit(lambda: pulled_back(product, w))()
    oracle.equal_exactly(dx, LAYER.dx())
    oracle.equal_exactly(dw, oracle.todense(LAYER.dvalues(), *LAYER.places))


@both
def test_dense_implementation_takes_a_split_weight(features):
    w = js.split_features(W, PARTS, features)
    oracle.equal_exactly(js.matmul(X, w, implementation="dense"), LAYER.y())


@both
def test_vmap_over_the_batch_of_a_product_with_split_weight(features, path):
    w = js.split_features(W, PARTS, features)
    y = jax.vmap(functools.partial(js.matmul, implementation=path), (0, None))(X, w)
    oracle.equal_exactly(y, LAYER.y())


@both
def test_product_with_split_weight_makes_one_handler_call(features):
    need("cpu_kernels")
    w = js.split_features(W, PARTS, features)
    product = functools.partial(js.matmul, implementation="ffi")
    assert handler_calls(compiled(product, X, w)) == ["forward"]


@both
def test_split_weight_is_a_pytree_like_any_weight(features):
    w = js.split_features(W, PARTS, features)
    leaves, tree = jax.tree.flatten(w)
    assert len(leaves) == 3
    assert {leaf.shape[0] for leaf in leaves} == {PARTS}
    again = jax.tree.unflatten(tree, leaves)
    assert (again.features, again.shape) == (features, W.shape)
    trainable, rest = js.split(w)
    assert len(jax.tree.leaves(trainable)) == 1
    oracle.equal_exactly(js.merge(trainable, rest).todense(), LAYER.dense())
    assert "2 parts" in repr(w)
    assert "SplitWeight" in repr(jax.tree.map(lambda _: None, w))


# On devices ---------------------------------------------------------------------------------------


def placed(kind, features):
    mesh = mesh_of(kind)
    w = js.split_features(W, PARTS, features)
    place = lambda tree, spec: jax.device_put(tree, NamedSharding(mesh, spec))
    spec_x = P("data", "model") if features == "in" else P("data")
    return mesh, place(X, spec_x), place(w, P("model"))


@modes
@both
def test_product_on_a_mesh_equals_definition(features, kind, path):
    mesh, x, w = placed(kind, features)
    with jax.set_mesh(mesh):
        y = jax.jit(functools.partial(js.matmul, implementation=path))(x, w)
    oracle.equal_exactly(y, LAYER.y())


@modes
@both
def test_gradients_on_a_mesh_equal_definition(features, kind, path):
    mesh, x, w = placed(kind, features)

    def loss(x, v):
        return jnp.sum(js.matmul(x, with_values(w, v), implementation=path) ** 2)

    with jax.set_mesh(mesh):
        dx, dv = jax.jit(jax.grad(loss, (0, 1)))(x, w.values)
    y = 2 * LAYER.y()
    oracle.equal_exactly(dx, oracle.input_grad(y, LAYER.clean, *LAYER.places))
    dw = with_values(w, jnp.asarray(np.asarray(dv)))
    dw = js.SplitWeight(dw.values, jax.tree.map(np.asarray, w.pattern), features).todense()
    exact = oracle.weight_grad(LAYER.x, y, *LAYER.places, LAYER.block)
    oracle.equal_exactly(dw, oracle.todense(exact, *LAYER.places))


@modes
@pytest.mark.parametrize(
    ("features", "needed"), [("out", []), ("in", ["all-reduce"])], ids=["out", "in"]
)
def test_product_on_a_mesh_communicates_only_what_it_must(features, needed, kind):
    need("cpu_kernels")
    mesh, x, w = placed(kind, features)
    with jax.set_mesh(mesh):
        program = compiled(functools.partial(js.matmul, implementation="ffi"), x, w)
    assert collectives(program) == needed


@modes
@both
def test_gradients_on_a_mesh_gather_nothing(features, kind):
    need("cpu_kernels")
    mesh, x, w = placed(kind, features)
    loss = lambda x, v: jnp.sum(js.matmul(x, with_values(w, v), implementation="ffi") ** 2)
    with jax.set_mesh(mesh):
        program = compiled(jax.grad(loss, (0, 1)), x, w.values)
    assert collectives(program) == ["all-reduce"]


# Single weights and groups of outputs -------------------------------------------------------------

FORMATS = {"unstructured": "unstructured", "groups": "grouped:4"}


def split_layer(format):
    """Its groups are of neighbours, so that they lie whole in the parts."""
    layer = conv_cases.make(conv_cases.product_problem("split", (8,), (32, 48)), format, unused=1)
    if format == "unstructured":
        return layer, layer.weight(garbage=False)
    w = js.fromdense(jnp.float32(layer.dense()), format)
    return layer, w


@both
@pytest.mark.parametrize("format", FORMATS.values(), ids=FORMATS)
def test_split_weights_of_every_format_give_the_same_product_and_gradients(format, features, path):
    layer, whole = split_layer(format)
    w = js.split_features(whole, PARTS, features)
    oracle.equal_exactly(w.todense(), layer.dense())
    product = functools.partial(js.matmul, implementation=path)
    x, g = layer.array("x"), layer.array("g")
    y, pull_back = jax.vjp(lambda x, v: product(x, with_values(w, v)), x, w.values)
    dx, dv = pull_back(g)
    oracle.equal_exactly(y, layer.y())
    oracle.equal_exactly(dx, layer.dx())
    expected = (layer.x.T @ layer.g) * np.asarray(whole.pattern.mask())
    oracle.equal_exactly(with_values(w, dv).todense(), expected)


@pytest.mark.parametrize(
    ("features", "needed"), [("out", []), ("in", ["all-reduce"])], ids=["out", "in"]
)
@pytest.mark.parametrize("format", FORMATS.values(), ids=FORMATS)
def test_split_weights_of_every_format_communicate_only_what_they_must(format, features, needed):
    need("cpu_kernels")
    layer, whole = split_layer(format)
    mesh = mesh_of(AxisType.Auto)
    w = js.split_features(whole, PARTS, features)
    spec = P("data", "model") if features == "in" else P("data")
    x = jax.device_put(layer.array("x"), NamedSharding(mesh, spec))
    w = jax.device_put(w, NamedSharding(mesh, P("model")))
    program = compiled(functools.partial(js.matmul, implementation="ffi"), x, w)
    assert collectives(program) == needed
    oracle.equal_exactly(program(x, w), layer.y())


def test_groups_that_lie_in_several_parts_are_not_split():
    order = np.roll(np.arange(48), 2)
    w = js.fromdense(jnp.ones((32, 48)), "grouped:4", order=order)
    with pytest.raises(ValueError, match="groups outputs of several parts"):
        js.split_features(w, PARTS, "out")
    oracle.equal_exactly(js.split_features(w, PARTS, "in").todense(), np.ones((32, 48)))
