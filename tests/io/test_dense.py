"""Dense weights, of JAX or of PyTorch, in sparse models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from machine import need
from orbax import checkpoint as ocp

import jaxsparse as js
import jaxsparse.io as jio
import jaxsparse.linen as jlinen
import jaxsparse.nnx as jnnx


class Net(nnx.Module):
    def __init__(self, rngs):
        self.up = nnx.ConvTranspose(4, 8, (3,), strides=2, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.conv = nnx.Conv(8, 8, (3,), rngs=rngs)
        self.heads = nnx.List([nnx.Linear(8, 16, rngs=rngs)])

    def __call__(self, x):
        return self.heads[0](self.conv(self.norm(self.up(x))))


def net(seed):
    return Net(nnx.Rngs(seed))


def sparse_net(seed, *, packed=False):
    rules = [js.Rule("heads/0", "4x4", sparsity=0.5), js.Rule(".*", "unstructured", sparsity=0.75)]
    model, _ = js.sparsify(net(seed), rules)
    return jnnx.pack(model) if packed else model


def kernels(model):
    """Whole kernels by path, and the masks of their patterns."""
    model = jnnx.unpack(model)
    return {
        "/".join(map(str, path)): (
            np.asarray(layer.kernel[...]),
            None if layer.pattern is None else np.asarray(layer.pattern.mask()),
        )
        for path, layer in nnx.iter_modules(model)
        if isinstance(layer, (jnnx.Linear, jnnx.Conv, jnnx.ConvTranspose))
    }


@pytest.mark.parametrize("packed", [False, True], ids=["stored dense", "packed"])
@pytest.mark.parametrize("source", ["model", "folder", "orbax", "safetensors"])
def test_a_sparse_model_takes_the_weights_of_a_dense_one_on_its_patterns(source, packed, tmp_path):
    dense, like = net(0), sparse_net(1, packed=packed)
    given = tmp_path / "dense"
    if source == "model":
        given = dense
    elif source == "folder":
        jio.save(given, dense)
    elif source == "safetensors":
        jio.to_safetensors(given, dense)
    else:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(given, nnx.to_pure_dict(nnx.state(dense, (nnx.Param, nnx.BatchStat))))
    loaded = jio.load_dense(given, like)
    wanted = {"up": dense.up, "conv": dense.conv, "heads/0": dense.heads[0]}
    before = kernels(like)
    for path, (kernel, mask) in kernels(loaded).items():
        np.testing.assert_array_equal(mask, before[path][1])
        np.testing.assert_array_equal(kernel, np.where(mask, wanted[path].kernel[...], 0))
    np.testing.assert_array_equal(loaded.conv.bias[...], dense.conv.bias[...])


@pytest.mark.parametrize("packed", [False, True], ids=["stored dense", "packed"])
def test_patterns_of_the_largest_weights_are_those_of_sparsify(packed):
    loaded = jio.load_dense(net(0), sparse_net(1, packed=packed), patterns="largest")
    for path, (kernel, mask) in kernels(sparse_net(0)).items():
        np.testing.assert_array_equal(kernels(loaded)[path][0], kernel)
        np.testing.assert_array_equal(kernels(loaded)[path][1], mask)


def test_patterns_of_what_is_not_zero_store_all_of_it_and_no_more():
    pruned = net(0)
    for layer, share in ((pruned.up, 0.1), (pruned.conv, 0.3), (pruned.heads[0], 0.6)):
        kernel = layer.kernel[...]
        layer.kernel[...] = jnp.where(jnp.abs(kernel) > share, kernel, 0)
    loaded = jio.load_dense(pruned, sparse_net(1, packed=True), patterns="nonzero")
    for path, layer in {"up": pruned.up, "conv": pruned.conv, "heads/0": pruned.heads[0]}.items():
        kernel, mask = kernels(loaded)[path]
        np.testing.assert_array_equal(kernel, layer.kernel[...])
        if path != "heads/0":
            np.testing.assert_array_equal(mask, kernel != 0)


def test_a_tree_of_sparse_weights_takes_dense_arrays():
    dense = {"w": jnp.arange(24.0).reshape(4, 6), "b": jnp.ones(6)}
    like = {"w": js.fromdense(jnp.eye(4, 6), "2x2"), "b": jnp.zeros(6)}
    loaded = jio.load_dense(dense, like)
    np.testing.assert_array_equal(loaded["w"].todense(), like["w"].pattern.restrict(dense["w"]))
    np.testing.assert_array_equal(loaded["b"], 1)


@pytest.mark.parametrize("packed", [False, True], ids=["stored dense", "packed"])
@pytest.mark.parametrize("whole", [False, True], ids=["params", "variables"])
def test_linen_variables_take_dense_ones(packed, whole):
    model, x = nn.Sequential([nn.Dense(8), nn.BatchNorm(True), nn.Dense(4)]), jnp.ones((2, 8))
    dense = {"params": model.init(jax.random.key(0), x)["params"]}
    variables = {"params": model.init(jax.random.key(1), x)["params"]}
    variables["batch_stats"] = model.init(jax.random.key(1), x)["batch_stats"]
    rule = js.Rule("layers_0", "4x4", sparsity=0.5)
    _, variables, _ = js.sparsify(model, rule, variables, x)
    del variables["batch_stats"]
    like = jlinen.pack(variables) if packed else variables
    loaded = jio.load_dense(dense if whole else dense["params"], like)
    loaded = jlinen.unpack(loaded) if packed else loaded
    pattern = variables["sparsity"]["layers_0"]["pattern"]
    kernel = dense["params"]["layers_0"]["kernel"]
    np.testing.assert_array_equal(loaded["params"]["layers_0"]["kernel"], pattern.restrict(kernel))
    np.testing.assert_array_equal(
        loaded["params"]["layers_2"]["kernel"], dense["params"]["layers_2"]["kernel"]
    )


class TestRefused:
    def test_what_is_missing(self):
        with pytest.raises(ValueError, match="got 'a', that the source lacks"):
            jio.load_dense({"w": jnp.ones(2)}, {"w": jnp.ones(2), "a": jnp.ones(3)})

    def test_what_is_left_over(self):
        with pytest.raises(ValueError, match="got 'a', that the target lacks"):
            jio.load_dense({"w": jnp.ones(2), "a": jnp.ones(3)}, {"w": jnp.ones(2)})

    def test_another_shape(self):
        with pytest.raises(ValueError, match=r"'w' must have shape \(2,\) .* got \(3,\)"):
            jio.load_dense({"w": jnp.ones(3)}, {"w": jnp.ones(2)})

    def test_another_dtype(self):
        with pytest.raises(TypeError, match="'w' must have the target's dtype, float32, got bfl"):
            jio.load_dense({"w": jnp.ones(3, jnp.bfloat16)}, {"w": jnp.ones(3)})

    def test_a_sparse_source(self):
        with pytest.raises(ValueError, match="source must be dense, got the pattern 'conv/sparsi"):
            jio.load_dense(sparse_net(0), sparse_net(1))

    def test_a_pattern_without_a_kernel(self):
        pattern = js.fromdense(np.eye(4), "2x2").pattern
        with pytest.raises(ValueError, match="every pattern must be that of a kernel, got 'p'"):
            jio.load_dense({}, {"p": pattern})

    def test_unknown_patterns(self):
        with pytest.raises(ValueError, match='"kept", "largest" or "nonzero", got \'best\''):
            jio.load_dense({}, {}, patterns="best")


# PyTorch ------------------------------------------------------------------------------------------


def state_dict(rng):
    """As `torch.nn` names and lays out the parameters of `Net`, with "fc" for its head."""
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)
    return {
        "up.weight": draw(4, 8, 3),  # [in, out, *kernel]
        "up.bias": draw(8),
        "norm.weight": draw(8),
        "norm.bias": draw(8),
        "norm.running_mean": draw(8),
        "norm.running_var": abs(draw(8)),
        "norm.num_batches_tracked": np.array(3),
        "conv.weight": draw(8, 8, 3),  # [out, in, *kernel]
        "conv.bias": draw(8),
        "fc.weight": draw(16, 8),  # [out, in]
        "fc.bias": draw(16),
    }


@pytest.mark.parametrize("names", [{"heads/0": "fc"}, lambda path: path.replace("heads/0", "fc")])
def test_a_state_dict_of_torch_fills_a_model(names, rng):
    state = state_dict(rng)
    model = jio.from_torch(state, net(0), names=names)
    conv = js.weight_from_torch(state["conv.weight"])
    up = js.weight_from_torch(state["up.weight"], transposed=True)
    for found, wanted in (
        (model.up.kernel, up),
        (model.conv.kernel, conv),
        (model.heads[0].kernel, state["fc.weight"].T),
        (model.norm.scale, state["norm.weight"]),
        (model.norm.mean, state["norm.running_mean"]),
        (model.norm.var, state["norm.running_var"]),
        (model.heads[0].bias, state["fc.bias"]),
    ):
        np.testing.assert_array_equal(found[...], wanted)


def test_a_state_dict_of_torch_fills_a_sparse_model_with_its_zeros(rng):
    state = state_dict(rng)
    state["conv.weight"] *= rng.random((8, 8, 3)) < 0.2
    model = jio.from_torch(
        state, sparse_net(0, packed=True), names={"heads/0": "fc"}, patterns="nonzero"
    )
    kernel, mask = kernels(model)["conv"]
    np.testing.assert_array_equal(kernel, state["conv.weight"].transpose(2, 1, 0))
    np.testing.assert_array_equal(mask, kernel != 0)


def test_a_state_dict_of_torch_fills_linen_variables(rng):
    model, x = (
        nn.Sequential([nn.ConvTranspose(8, (3,)), nn.DenseGeneral((2, 4))]),
        jnp.ones((1, 5, 4)),
    )
    variables = model.init(jax.random.key(0), x)
    state = {
        "layers_0.weight": rng.standard_normal((4, 8, 3)).astype(np.float32),
        "layers_0.bias": np.ones(8, np.float32),
        "layers_1.weight": rng.standard_normal((8, 8)).astype(np.float32),
        "layers_1.bias": np.ones((2, 4), np.float32),
    }
    loaded = jio.from_torch(state, variables, transposed="layers_0")["params"]
    up = js.weight_from_torch(state["layers_0.weight"], transposed=True)
    np.testing.assert_array_equal(loaded["layers_0"]["kernel"], up)
    np.testing.assert_array_equal(
        loaded["layers_1"]["kernel"].reshape(8, 8), state["layers_1.weight"].T
    )


def test_a_state_dict_that_does_not_fit_is_refused(rng):
    state = state_dict(rng)
    with pytest.raises(ValueError, match="got 'heads/0/bias', 'heads/0/kernel', that the source"):
        jio.from_torch(state, net(0))
    with pytest.raises(ValueError, match="got 'more.weight', that the target lacks"):
        jio.from_torch({**state, "more.weight": 1}, net(0), names={"heads/0": "fc"})


# And back to PyTorch ------------------------------------------------------------------------------

NAMES = {"heads/0": "fc"}


@pytest.mark.parametrize("form", ["dense", "sparse", "packed"])
def test_a_state_dict_of_torch_comes_back_from_a_model(form, rng):
    state = state_dict(rng)
    state["conv.weight"] *= rng.random((8, 8, 3)) < 0.2
    like = net(0) if form == "dense" else sparse_net(0, packed=form == "packed")
    patterns = "kept" if form == "dense" else "nonzero"
    model = jio.from_torch(state, like, names=NAMES, patterns=patterns)
    back = jio.to_torch(model, state, names=NAMES)
    assert back.keys() == state.keys() - {"norm.num_batches_tracked"}
    for name, array in back.items():
        np.testing.assert_array_equal(array, state[name])


def test_what_a_pattern_does_not_store_is_zero_for_torch(rng):
    """Between a step of an optimizer and `apply_patterns` a kernel may hold something else."""
    model = sparse_net(0)
    mask = np.asarray(model.conv.pattern.mask()).transpose(2, 1, 0)
    model.conv.kernel[...] = jnp.ones_like(model.conv.kernel[...])
    back = jio.to_torch(model, state_dict(rng), names=NAMES)
    np.testing.assert_array_equal(back["conv.weight"], mask)


@pytest.mark.parametrize("form", ["dense", "sparse", "packed"])
def test_a_state_dict_of_torch_comes_back_from_linen_variables(form, rng):
    """With outputs on several axes, which PyTorch has on one, in the bias too."""
    model = nn.Sequential([nn.ConvTranspose(8, (3,)), nn.DenseGeneral((2, 4))])
    x = jnp.ones((1, 5, 4))
    variables = model.init(jax.random.key(0), x)
    if form != "dense":
        model, variables, _ = js.sparsify(
            model, js.Rule(".*", "unstructured", sparsity=0.5), variables, x
        )
    if form == "packed":
        variables = jlinen.pack(variables)
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)
    state = {
        "layers_0.weight": draw(4, 8, 3),
        "layers_0.bias": draw(8),
        "layers_1.weight": draw(8, 8),
        "layers_1.bias": draw(8),
    }
    loaded = jio.from_torch(state, variables, transposed="layers_0", patterns="nonzero")
    back = jio.to_torch(loaded, state, transposed="layers_0")
    assert back.keys() == state.keys()
    for name, array in back.items():
        np.testing.assert_array_equal(array, state[name])


def test_a_model_that_the_one_of_torch_does_not_fit_is_refused(rng):
    state, model = state_dict(rng), net(0)
    with pytest.raises(ValueError, match="got 'heads/0/bias', 'heads/0/kernel', that PyTorch's la"):
        jio.to_torch(model, state)
    with pytest.raises(ValueError, match="got 'more', that this one lacks"):
        jio.to_torch(model, {**state, "more": np.ones(1)}, names=NAMES)
    wrong = {**state, "conv.weight": np.ones((8, 8, 5))}
    with pytest.raises(ValueError, match=r"'conv/kernel' must have .* \(8, 8, 5\).* \(8, 8, 3\)"):
        jio.to_torch(model, wrong, names=NAMES)


def test_a_network_of_torch_computes_what_the_packed_model_does(rng):
    need("torch")
    import torch

    model = net(0)
    model.up = nnx.ConvTranspose(4, 8, (3,), strides=2, padding=[(1, 2)], rngs=nnx.Rngs(1))
    model.norm.mean[...], model.norm.var[...] = jnp.arange(8.0), jnp.arange(8.0) + 1
    model.eval()
    model, _ = js.sparsify(model, js.Rule(".*", "unstructured", sparsity=0.75))
    packed = jnnx.pack(model)
    network = torch.nn.ModuleDict(
        {
            "up": torch.nn.ConvTranspose1d(4, 8, 3, stride=2, padding=1, output_padding=1),
            "norm": torch.nn.BatchNorm1d(8),
            "conv": torch.nn.Conv1d(8, 8, 3, padding=1),
            "fc": torch.nn.Linear(8, 16),
        }
    )
    state = jio.to_torch(packed, network.state_dict(), names=NAMES)
    network.load_state_dict({name: torch.from_numpy(a) for name, a in state.items()})
    network.eval()
    x = rng.standard_normal((2, 7, 4)).astype(np.float32)
    with torch.no_grad():
        y = torch.from_numpy(x.swapaxes(1, 2))
        for name in ("up", "norm", "conv"):
            y = network[name](y)
        y = network["fc"](y.swapaxes(1, 2))
    np.testing.assert_allclose(packed(x), y, rtol=0, atol=1e-5)
