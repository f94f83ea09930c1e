"""The layers of both Flax frameworks under one interface, and what they compute by definition."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx

import jaxsparse as js
import jaxsparse.linen as jlinen
import jaxsparse.nnx as jnnx


@dataclasses.dataclass(frozen=True)
class Kind:
    """One way to use a layer: sizes of its axes, and where they are in the inputs."""

    sizes_in: tuple[int, ...]
    sizes_out: tuple[int, ...]
    axis: tuple[int, ...]
    batch: tuple[int, ...]
    inputs: tuple[int, ...]  # shape
    einsum: str  # inputs, kernel -> result

    @property
    def matrix(self):
        return int(np.prod(self.sizes_in)), int(np.prod(self.sizes_out))

    @property
    def kernel_shape(self):
        return (*self.batch, *self.sizes_in, *self.sizes_out)


KINDS = {
    "linear": Kind((24,), (40,), (-1,), (), (5, 24), "xi,io->xo"),
    "general": Kind((4, 6), (5, 8), (1, 3), (), (3, 4, 2, 6), "xiyj,ijop->xyop"),
    "batched": Kind((4, 6), (40,), (1, -1), (2,), (2, 4, 3, 6), "bixj,bijo->bxo"),
}


class Layer:
    """A layer with its variables apart: parameters, which are differentiated, and the rest.

    Made and run inside `jit` where `jit` is true, which compiles once and not once per operation.
    """

    def __init__(self, framework: str, kind: str, *, ours=True, jit=True, inputs=None, **options):
        self.kind = KINDS[kind]
        self.inputs = jnp.ones(self.kind.inputs) if inputs is None else inputs
        make = {"nnx": self._nnx, "linen": self._linen}[framework]
        make("Linear" if kind == "linear" else "General", ours, jit, options)
        if jit:
            self.apply = jax.jit(self.apply)

    def _nnx(self, name, ours, jit, options):
        module = jnnx if ours else nnx
        kind = self.kind

        def make():
            rngs = nnx.Rngs(0)
            if name == "Linear":
                sizes = kind.sizes_in[0], kind.sizes_out[0]
                return module.Linear(*sizes, rngs=rngs, **options)
            axes = {"axis": kind.axis, "batch_axis": dict(enumerate(kind.batch))}
            sizes = kind.sizes_in, kind.sizes_out
            return module.LinearGeneral(*sizes, rngs=rngs, **axes, **options)

        self.model = (nnx.jit(make) if jit else make)()
        graph, params, rest = nnx.split(self.model, nnx.Param, ...)
        self.params = nnx.to_pure_dict(params)
        self.pattern = self.model.pattern if ours else None

        def apply(params, x):
            model = nnx.merge(graph, nnx.State(_as_params(params)), rest)
            return model(x)

        self.apply = apply

    def _linen(self, name, ours, jit, options):
        module = jlinen if ours else nn
        kind = self.kind
        if name == "Linear":
            self.module = module.Dense(kind.sizes_out[0], **options)
        else:
            options |= {"axis": kind.axis, "batch_dims": tuple(range(len(kind.batch)))}
            self.module = module.DenseGeneral(kind.sizes_out, **options)
        init = jax.jit(self.module.init) if jit else self.module.init
        self.variables = dict(init(jax.random.key(0), self.inputs))
        self.params = self.variables["params"]
        self.pattern = self.variables.get("sparsity", {}).get("pattern")
        rest = {k: v for k, v in self.variables.items() if k != "params"}
        self.apply = lambda params, x: self.module.apply({"params": params, **rest}, x)

    def mask(self) -> np.ndarray:
        """Bool, of the kernel's shape, from the pattern's indices alone."""
        if self.pattern is None:
            return np.ones(self.kind.kernel_shape, bool)
        return mask_of(self.pattern, self.kind.kernel_shape)

    def definition(self, kernel, bias, inputs):
        """In float64 NumPy."""
        y = np.einsum(self.kind.einsum, np.float64(inputs), np.float64(kernel) * self.mask())
        extra = y.ndim - len(self.kind.batch) - len(self.kind.sizes_out)
        bias = np.float64(bias)
        return y + bias.reshape(*self.kind.batch, *[1] * extra, *self.kind.sizes_out)


def mask_of(pattern, kernel_shape) -> np.ndarray:
    """Bool, of the kernel's shape, by filling in one stored part after the other."""
    places = np.asarray(pattern.indices[0])
    mask = np.zeros((*places.shape[:-1], *pattern.shape), bool)
    parts_of = _blocks if isinstance(pattern, js.BlockPattern) else _strips
    for group in np.ndindex(*places.shape[:-1]):
        indices = [np.asarray(index)[group] for index in pattern.indices]
        for part in parts_of(pattern, *indices):
            mask[group][part] = True
    return mask.reshape(kernel_shape)


def _blocks(pattern, rows, cols):
    block_in, block_out = pattern.format.shape
    for r, c in zip(rows * block_in, cols * block_out):
        yield slice(r, r + block_in), slice(c, c + block_out)


def _strips(pattern, places, order=None):
    """One output, or those of a group; the weight has no taps."""
    size_in, size_out = pattern.shape
    order = np.arange(size_out) if order is None else order
    width = getattr(pattern.format, "width", 1)
    for column, row in zip(*np.divmod(places, size_in)):
        outputs = order[column * width : (column + 1) * width]
        yield row, outputs[outputs < size_out]


def _as_params(tree) -> Any:
    return {name: nnx.Param(value) for name, value in tree.items()}
