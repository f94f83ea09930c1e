"""NNX layers while a model trains, changes its patterns, and is packed."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx, serialization
from flax_layers import mask_of

import jaxsparse as js
import jaxsparse.nnx as jnnx

X = jax.random.normal(jax.random.key(1), (4, 16))
SPARSE = {"format": "8x8", "sparsity": 0.5}


class Model(nnx.Module):
    """Layers as an attribute, in a list and in a dict, one of them dense, one tied."""

    def __init__(self, cls=jnnx.Linear, rngs=None, tied=False, **options):
        rngs = nnx.Rngs(0) if rngs is None else rngs
        self.first = cls(16, 32, rngs=rngs, **options)
        self.others = nnx.List([cls(32, 32, rngs=rngs, **options), nnx.Linear(32, 32, rngs=rngs)])
        self.named = nnx.Dict(last=cls(32, 16, rngs=rngs, **options))
        self.again = self.others[0] if tied else None

    def __call__(self, x):
        x = nnx.relu(self.first(x))
        for layer in self.others:
            x = nnx.relu(layer(x))
        if self.again is not None:
            x = nnx.relu(self.again(x))
        return self.named["last"](x)


def off_pattern(layer):
    kernel = np.asarray(layer.kernel[...])
    return kernel[~mask_of(layer.pattern, kernel.shape)]


def random_pattern(seed, shape=(16, 32)):
    return js.patterns.random(jax.random.key(seed), "8x8", shape, sparsity=0.5)


@pytest.mark.parametrize("graph", [True, False], ids=["graph_mode", "tree_mode"])
@pytest.mark.parametrize("grad", ["sparse", "dense"])
def test_a_jitted_loop_changes_patterns_without_compiling_again(grad, graph):
    model = Model(grad=grad, **SPARSE)
    optimizer = nnx.Optimizer(model, optax.sgd(1e-1, momentum=0.9), wrt=nnx.Param)
    traces = []

    def step(model, optimizer, x, pattern):
        traces.append(None)
        model.first.set_pattern(pattern)
        graphdef, params, rest = nnx.split(model, nnx.Param, ...)
        loss = lambda params: (nnx.merge(graphdef, params, rest)(x) ** 2).mean()
        optimizer.update(model, jax.grad(loss)(params))
        jnnx.apply_patterns(model)

    step = nnx.jit(step, graph=graph)
    for seed in range(3):
        pattern = random_pattern(seed)
        before = np.asarray(model.first.kernel[...])
        step(model, optimizer, X, pattern)
        np.testing.assert_array_equal(model.first.pattern.rows, pattern.rows)
        assert not off_pattern(model.first).any()
        assert not off_pattern(model.others[0]).any()
        assert (np.asarray(model.first.kernel[...]) != before).any()
    assert len(traces) == 1


def test_dense_gradients_leave_the_pattern_until_it_is_applied():
    model = Model(grad="dense", **SPARSE)
    optimizer = nnx.Optimizer(model, optax.sgd(1e-1), wrt=nnx.Param)
    optimizer.update(model, nnx.grad(lambda model: (model(X) ** 2).sum())(model))
    assert off_pattern(model.first).any()
    y = model(X)
    jnnx.apply_patterns(model)
    assert not off_pattern(model.first).any()
    np.testing.assert_array_equal(model(X), y)


def test_set_pattern_keeps_shared_blocks_and_starts_new_ones_at_zero():
    layer = jnnx.Linear(16, 32, rngs=nnx.Rngs(0), **SPARSE)
    before, old = np.asarray(layer.kernel[...]), mask_of(layer.pattern, (16, 32))
    packed = jnnx.pack(layer)
    new = random_pattern(5)
    for changed in (layer, packed):
        changed.set_pattern(new)
    kept = old & mask_of(new, (16, 32))
    assert 0 < kept.sum() < old.sum()
    np.testing.assert_array_equal(layer.kernel[...], np.where(kept, before, 0))
    np.testing.assert_array_equal(jnnx.unpack(packed).kernel[...], layer.kernel[...])


def test_set_pattern_refuses_other_sizes_and_dense_layers():
    layer = jnnx.Linear(16, 32, rngs=nnx.Rngs(0), **SPARSE)
    with pytest.raises(ValueError, match="set_pattern: the new pattern must have the shapes"):
        layer.set_pattern(js.patterns.full("8x8", (16, 32)))
    with pytest.raises(ValueError, match=r"pattern must have the format of the old one, 8x8"):
        layer.set_pattern(js.patterns.full("4x8", (16, 32)))
    with pytest.raises(TypeError, match="a pattern is one of jaxsparse.patterns, got list"):
        layer.set_pattern([[0, 1]])
    with pytest.raises(ValueError, match="the layer must be sparse, got format=None"):
        jnnx.Linear(16, 32, rngs=nnx.Rngs(0)).set_pattern(random_pattern(0))


def test_parameters_of_a_sparse_model_have_the_tree_of_flax():
    sparse, flax = Model(**SPARSE), Model(nnx.Linear)
    state = nnx.state(sparse, nnx.Param)
    assert jax.tree.structure(state) == jax.tree.structure(nnx.state(flax, nnx.Param))
    assert len(jax.tree.leaves(nnx.state(sparse, jnnx.Sparsity))) == 6


# Packing ------------------------------------------------------------------------------------------


def test_packed_models_store_values_and_compute_the_same():
    model = Model(**SPARSE)
    packed = jnnx.pack(model)
    assert packed.first.is_packed
    assert packed.first.kernel.shape == model.first.pattern.values_shape
    # To rounding: the two storages have break-even points of their own.
    np.testing.assert_allclose(packed(X), model(X), rtol=1e-5, atol=1e-6)
    y = nnx.jit(lambda m, x: m(x))(packed, X)
    np.testing.assert_allclose(y, jax.jit(model)(X), rtol=1e-5, atol=1e-6)


def test_unpack_gives_the_same_bits_and_the_same_graph():
    model = Model(**SPARSE)
    kernel = model.first.kernel[...]
    place = tuple(np.argwhere(mask_of(model.first.pattern, kernel.shape))[0])
    model.first.kernel[...] = kernel.at[place].set(-0.0)
    again = jnnx.unpack(jnnx.pack(model))
    assert nnx.graphdef(again) == nnx.graphdef(model)
    for ours, theirs in zip(*(jax.tree.leaves(nnx.state(m)) for m in (again, model))):
        assert np.asarray(ours).tobytes() == np.asarray(theirs).tobytes()


def test_pack_leaves_the_model_as_it_was():
    model = Model(**SPARSE)
    before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    packed = jnnx.pack(model)
    packed.first.kernel[...] = jnp.zeros_like(packed.first.kernel[...])
    packed.first.bias[...] = jnp.ones_like(packed.first.bias[...])
    after = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    jax.tree.map(np.testing.assert_array_equal, before, after)
    assert not model.first.is_packed


def test_tied_layers_are_tied_when_packed():
    packed = jnnx.pack(Model(tied=True, **SPARSE))
    assert packed.again is packed.others[0]
    assert jnnx.unpack(packed).again.kernel.shape == (32, 32)


def test_a_kernel_tied_to_a_dense_layer_cannot_be_packed():
    model = Model(**SPARSE)
    model.others[1].kernel = model.others[0].kernel
    with pytest.raises(ValueError, match="pack: a kernel may be shared by layers with one pattern"):
        jnnx.pack(model)


def test_layers_with_one_kernel_and_one_pattern_share_the_packed_ones():
    model = Model(**SPARSE)
    other = jnnx.Linear(32, 32, rngs=nnx.Rngs(7), **SPARSE)
    other.kernel, other.sparsity = model.others[0].kernel, model.others[0].sparsity
    model.other = other
    packed = jnnx.pack(model)
    assert packed.other.kernel is packed.others[0].kernel
    assert packed.other.sparsity is packed.others[0].sparsity


def test_subclasses_of_sparse_layers_stay_dense():
    class Mine(jnnx.Linear):
        pass

    model = Model(Mine, **SPARSE)
    packed = jnnx.pack(model)
    assert packed.first.kernel.shape == (16, 32)
    np.testing.assert_array_equal(packed(X), model(X))


def test_packed_kernels_drop_axis_names_and_unpacked_ones_have_them_again():
    mesh = jax.make_mesh((2,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.set_mesh(mesh):
        metadata = {"out_sharding": (None, "model")}
        layer = jnnx.Linear(16, 32, rngs=nnx.Rngs(0), kernel_metadata=metadata, **SPARSE)
        packed = jnnx.pack(layer)
        assert "out_sharding" not in packed.kernel.get_metadata()
        assert jnnx.unpack(packed).kernel.get_metadata("out_sharding") == (None, "model")
        y, y_packed = jax.jit(layer)(X), jax.jit(packed)(X)
    np.testing.assert_allclose(y_packed, y, rtol=1e-5, atol=1e-6)


def test_packed_models_train():
    packed = jnnx.pack(Model(grad="dense", **SPARSE))
    optimizer = nnx.Optimizer(packed, optax.sgd(1e-1, momentum=0.9), wrt=nnx.Param)
    loss = lambda model: (model(X) ** 2).mean()
    first = loss(packed)

    @nnx.jit
    def step(model, optimizer):
        optimizer.update(model, nnx.grad(loss)(model))

    for _ in range(5):
        step(packed, optimizer)
    assert loss(packed) < 0.9 * first


# Transformations ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stacked():
    make = lambda key: jnnx.Linear(16, 16, rngs=nnx.Rngs(key), **SPARSE)
    return nnx.jit(nnx.vmap(make))(jax.random.split(jax.random.key(0), 3))


def unstacked(layer):
    return [jax.tree.map(lambda a, i=i: a[i], (layer.kernel[...], layer.pattern)) for i in range(3)]


@pytest.mark.parametrize("packed", [False, True], ids=["dense_storage", "packed"])
@pytest.mark.parametrize("remat", [False, True], ids=["", "remat"])
def test_scan_over_stacked_layers_equals_a_loop(stacked, packed, remat):
    assert stacked.pattern.rows.shape == (3, 2)
    apply = lambda x, layer: layer(x)
    apply = nnx.remat(apply) if remat else apply
    run = nnx.jit(nnx.scan(apply, in_axes=(nnx.Carry, 0), out_axes=nnx.Carry))
    y = run(X, jnnx.pack(stacked) if packed else stacked)
    expected = np.float64(X)
    for kernel, pattern in unstacked(stacked):
        expected = expected @ (np.float64(kernel) * mask_of(pattern, (16, 16)))
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


def test_vmap_over_stacked_layers_equals_a_loop(stacked):
    y = nnx.vmap(lambda layer, x: layer(x), in_axes=(0, None))(stacked, X)
    for got, (kernel, pattern) in zip(y, unstacked(stacked)):
        expected = np.float64(X) @ (np.float64(kernel) * mask_of(pattern, (16, 16)))
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_patterns_of_stacked_layers_are_applied(stacked):
    layer = nnx.clone(stacked)
    layer.kernel[...] = jnp.ones_like(layer.kernel[...])
    jnnx.apply_patterns(layer)
    np.testing.assert_array_equal(layer.kernel[...], mask_of(layer.pattern, (3, 16, 16)))


def test_a_model_of_shapes_only_has_the_shapes_of_a_real_one():
    shapes = nnx.eval_shape(lambda: Model(**SPARSE))
    real = nnx.state(Model(**SPARSE))
    assert jax.tree.structure(nnx.state(shapes)) == jax.tree.structure(real)
    for got, expected in zip(jax.tree.leaves(nnx.state(shapes)), jax.tree.leaves(real)):
        assert (got.shape, got.dtype) == (expected.shape, expected.dtype)


def test_state_survives_flax_serialization():
    layer = jnnx.Linear(16, 32, rngs=nnx.Rngs(0), **SPARSE)
    pattern = random_pattern(9)
    again = serialization.from_bytes(layer.pattern, serialization.to_bytes(pattern))
    np.testing.assert_array_equal(again.rows, pattern.rows)
    np.testing.assert_array_equal(again.cols, pattern.cols)
    assert (again.shape, again.format) == (pattern.shape, pattern.format)
