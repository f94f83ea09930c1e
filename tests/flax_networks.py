"""A residual network and a transformer, small, in both frameworks."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx

IMAGES = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
TOKENS = jax.random.randint(jax.random.key(2), (2, 6), 0, 24)


def filled(shapes):
    """Arrays for shapes, without the programs that initializers would compile."""
    rng = np.random.default_rng(0)

    def fill(leaf):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.key(0)
        if len(leaf.shape) < 2 or leaf.dtype != jnp.float32:
            return jnp.ones(leaf.shape, leaf.dtype)
        scale = np.float32(leaf.shape[-1] ** -0.5)
        return jnp.asarray(rng.standard_normal(leaf.shape, np.float32) * scale)

    return jax.tree.map(fill, shapes)


def make_nnx(make):
    graph, shapes = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))
    return nnx.merge(graph, filled(shapes))


def make_linen(model, x):
    return filled(jax.eval_shape(model.init, jax.random.key(0), x))


def assert_close(y, expected):
    """To the rounding of a few layers; a weight too many or too few is off by far more."""
    y, expected = np.asarray(y), np.asarray(expected)
    assert np.abs(expected).max() > 0
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


class Residual(nnx.Module):
    def __init__(self, features, stride, rngs):
        self.conv1 = nnx.Conv(features // stride, features, (3, 3), stride, rngs=rngs)
        self.norm = nnx.BatchNorm(features, use_running_average=True, rngs=rngs)
        self.conv2 = nnx.Conv(features, features, (3, 3), use_bias=False, rngs=rngs)
        self.skip = nnx.data(None)
        if stride > 1:
            self.skip = nnx.Conv(features // stride, features, (1, 1), stride, rngs=rngs)

    def __call__(self, x):
        y = self.conv2(nnx.relu(self.norm(self.conv1(x))))
        return nnx.relu(y + (x if self.skip is None else self.skip(x)))


class ResNet(nnx.Module):
    """Convolutions, a transposed one, and a linear head; blocks in a list."""

    def __init__(self, rngs):
        self.stem = nnx.Conv(3, 8, (3, 3), rngs=rngs)
        self.blocks = nnx.List([Residual(16, 2, rngs)])
        self.up = nnx.ConvTranspose(16, 8, (2, 2), (2, 2), rngs=rngs)
        self.head = nnx.Linear(8, 10, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return self.head(self.up(x).mean((1, 2)))


class Block(nnx.Module):
    def __init__(self, width, rngs):
        self.norm1 = nnx.LayerNorm(width, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, width, decode=False, rngs=rngs)
        self.norm2 = nnx.LayerNorm(width, rngs=rngs)
        self.mlp = nnx.Sequential(
            nnx.Linear(width, 2 * width, rngs=rngs),
            nnx.gelu,
            nnx.Linear(2 * width, width, rngs=rngs),
        )

    def __call__(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Transformer(nnx.Module):
    """Linear layers over several axes, an embedding, and blocks in a dict."""

    def __init__(self, rngs):
        self.embedding = nnx.Embed(24, 16, rngs=rngs)
        self.blocks = nnx.Dict(first=Block(16, rngs))
        self.head = nnx.Linear(16, 24, rngs=rngs)

    def __call__(self, tokens):
        x = self.embedding(tokens)
        for block in self.blocks.values():
            x = block(x)
        return self.head(x)


class LinenResidual(nn.Module):
    """Its layers are made where they are called."""

    features: int
    stride: int

    @nn.compact
    def __call__(self, x, train=False):
        y = nn.Conv(self.features, (3, 3), self.stride)(x)
        y = nn.relu(nn.BatchNorm(use_running_average=not train)(y))
        y = nn.remat(nn.Conv)(self.features, (3, 3), use_bias=False)(y)
        if self.stride > 1:
            x = nn.Conv(self.features, (1, 1), self.stride, name="skip")(x)
        return nn.relu(y + x)


class LinenResNet(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.relu(nn.Conv(8, (3, 3), name="stem")(x))
        x = LinenResidual(16, 2)(x, train)
        x = nn.ConvTranspose(8, (2, 2), (2, 2), name="up")(x)
        return nn.Dense(10, name="head")(x.mean((1, 2)))


class LinenBlock(nn.Module):
    """As `nn.scan` takes it."""

    @nn.compact
    def __call__(self, x, _):
        x = x + nn.MultiHeadDotProductAttention(num_heads=2, name="attention")(nn.LayerNorm()(x))
        y = nn.gelu(nn.Dense(2 * x.shape[-1], name="up")(nn.LayerNorm()(x)))
        return x + nn.Dense(x.shape[-1], name="down")(y), None


class LinenTransformer(nn.Module):
    """Blocks that `nn.scan` has stacked; layers made in `setup`."""

    collections: tuple[str, ...] = ("params", "sparsity")

    def setup(self):
        self.embedding = nn.Embed(24, 16)
        self.blocks = nn.scan(
            LinenBlock,
            variable_axes=dict.fromkeys(self.collections, 0),
            split_rngs={"params": True},
            length=2,
        )()
        self.head = nn.Dense(24)

    def __call__(self, tokens):
        x, _ = self.blocks(self.embedding(tokens), None)
        return self.head(x)

    def embed(self, tokens):
        return self.embedding(tokens)
