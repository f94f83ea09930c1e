"""Checkpoints of Flax's convolutions, and of ours, are those of masked layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx, serialization
from orbax import checkpoint as ocp

import jaxsparse.io as jio
import jaxsparse.linen as jslinen
import jaxsparse.nnx as jsnnx

X = jnp.asarray(np.random.default_rng(0).integers(-2, 3, (2, 6, 5, 4)), jnp.float32)
X = X.at[:, 1:5].set(0)


class Net(nnx.Module):
    """A convolution and a transposed one, of given types."""

    def __init__(self, conv, transposed, seed):
        rngs = nnx.Rngs(seed)
        draw = {"kernel_init": _small, "bias_init": _small, "rngs": rngs}
        self.down = conv(4, 6, (3, 3), strides=2, feature_group_count=2, **draw)
        self.up = transposed(6, 3, (2, 2), strides=(2, 2), **draw)

    def __call__(self, x):
        return self.up(self.down(x))


class LinenNet(nn.Module):
    conv: type
    transposed: type

    @nn.compact
    def __call__(self, x):
        draw = {"kernel_init": _small, "bias_init": _small}
        x = self.conv(6, (3, 3), strides=2, feature_group_count=2, name="down", **draw)(x)
        return self.transposed(3, (2, 2), strides=(2, 2), name="up", **draw)(x)


def _small(key, shape, dtype=jnp.float32, out_sharding=None):
    return jax.random.randint(key, shape, -2, 3).astype(dtype)


NNX = {
    "flax": (nnx.Conv, nnx.ConvTranspose),
    "ours": (jsnnx.Conv, jsnnx.ConvTranspose),
    "masked": (jsnnx.MaskedConv, jsnnx.MaskedConvTranspose),
}
LINEN = {
    "flax": (nn.Conv, nn.ConvTranspose),
    "ours": (jslinen.Conv, jslinen.ConvTranspose),
    "masked": (jslinen.MaskedConv, jslinen.MaskedConvTranspose),
}
# From a layer of Flax and of ours into a masked one, and back.
WAYS = [("flax", "masked"), ("ours", "masked"), ("masked", "flax")]
every_way = pytest.mark.parametrize(
    ("source", "target"), WAYS, ids=[f"{a}_to_{b}" for a, b in WAYS]
)


def _through_io(saved, like, path):
    jio.save(path, saved)
    return jio.load(path, like)


def _through_safetensors(saved, like, path):
    jio.to_safetensors(path, saved)
    return jio.from_safetensors(path, like)


def _through_load_dense(saved, like, path):
    jio.save(path, saved)
    return jio.load_dense(path, like)


def _through_orbax(saved, like, path):
    """As Flax's own guide does it, without a word of jaxsparse."""
    is_model = isinstance(saved, nnx.Module)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, nnx.state(saved) if is_model else saved)
    with ocp.StandardCheckpointer() as checkpointer:
        restored = checkpointer.restore(path, nnx.state(like) if is_model else like)
    if not is_model:
        return restored
    graph, _ = nnx.split(like)
    return nnx.merge(graph, restored)


def _through_bytes(saved, like, path):
    path.write_bytes(serialization.to_bytes(saved))
    return serialization.from_bytes(like, path.read_bytes())


ROADS = {
    "io": _through_io,
    "safetensors": _through_safetensors,
    "load_dense": _through_load_dense,
    "orbax": _through_orbax,
}


@every_way
@pytest.mark.parametrize("road", ROADS)
def test_a_checkpoint_of_an_nnx_model_is_that_of_one_with_other_layers(
    road, source, target, tmp_path
):
    saved, like = Net(*NNX[source], seed=0), Net(*NNX[target], seed=1)
    assert np.any(np.asarray(saved(X)) != np.asarray(like(X)))
    loaded = ROADS[road](saved, like, tmp_path / "saved")
    assert type(loaded.down) is NNX[target][0]
    np.testing.assert_array_equal(loaded(X), saved(X))


@every_way
@pytest.mark.parametrize("road", [*ROADS, "bytes"])
def test_a_checkpoint_of_linen_variables_is_that_of_other_layers(road, source, target, tmp_path):
    saving, loading = LinenNet(*LINEN[source]), LinenNet(*LINEN[target])
    saved, like = saving.init(jax.random.key(0), X), loading.init(jax.random.key(1), X)
    expected = saving.apply(saved, X)
    assert np.any(np.asarray(expected) != np.asarray(loading.apply(like, X)))
    loaded = {**ROADS, "bytes": _through_bytes}[road](saved, like, tmp_path / "saved")
    np.testing.assert_array_equal(loading.apply(loaded, X), expected)
