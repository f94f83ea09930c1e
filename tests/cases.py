"""The arrays of a named problem, with garbage wherever an op must not look."""

import dataclasses
import functools
import zlib

import jax.numpy as jnp
import numpy as np
import oracle
import pytest

import jaxsparse as js
from jaxsparse import patterns, problems

DTYPES = ("float32", "bfloat16", "float16", "float64")

# A problem, a dtype and a path through the library. Kernels: all of them. Plain JAX: every problem
# in float32, and every dtype on the problems that have all there is to go wrong. Dense products of
# copies: those problems.
COVERING = [
    pytest.param(problem, dtype, path, id=f"{problem}-{dtype}-{path}")
    for problem in problems.SMALL
    for dtype in DTYPES
    for path in ("ffi", "xla", "dense")
    if path == "ffi"
    or (path == "xla" and dtype == "float32")
    or problem.name in ("odd_blocks", "tiles_ragged")
]


@dataclasses.dataclass(frozen=True, eq=False)
class Layer:
    """A weight, an input and a gradient arriving at the output, as float64 NumPy.

    `values` are NaN beyond the edge of the weight and in unused places; `clean` are zero there.
    """

    x: np.ndarray
    g: np.ndarray
    values: np.ndarray
    clean: np.ndarray
    rows: np.ndarray
    cols: np.ndarray
    shape: tuple[int, int]
    block: tuple[int, int]

    @property
    def places(self):
        return self.rows, self.cols, self.shape

    def pattern(self) -> js.BlockPattern:
        used = self.cols < oracle.grid_of(self.shape, self.block)[1]
        rows, cols = self.rows[used], self.cols[used]
        return patterns.from_blocks(rows, cols, self.block, self.shape, capacity=len(self.rows))

    def weight(self, dtype="float32", garbage=True) -> js.SparseWeight:
        values = self.values if garbage else self.clean
        return js.SparseWeight(jnp.asarray(values, dtype), self.pattern())

    def array(self, name, dtype="float32"):
        return jnp.asarray(getattr(self, name), dtype)

    def rounded(self, dtype) -> "Layer":
        """The same numbers as the dtype holds them, still in float64."""
        fields = ("x", "g", "values", "clean")
        new = {f: getattr(self, f).astype(jnp.dtype(dtype)).astype(np.float64) for f in fields}
        return dataclasses.replace(self, **new)

    # The definition, for these arrays

    def y(self):
        return oracle.forward(self.x, self.values, *self.places)

    def dx(self):
        return oracle.input_grad(self.g, self.values, *self.places)

    def dvalues(self):
        return oracle.weight_grad(self.x, self.g, *self.places, self.block)

    def dense(self):
        return oracle.todense(self.values, *self.places)

    def magnitudes(self) -> "Layer":
        """The layer of absolute values, whose results bound rounding errors."""
        return dataclasses.replace(
            self, x=abs(self.x), g=abs(self.g), values=abs(self.values), clean=abs(self.clean)
        )


@functools.cache
def make(problem, draw=oracle.small_integers, *, unused=0, seed=0) -> Layer:
    """The arrays of a problem or of its name; `unused` places of the pattern store nothing."""
    problem = problems.by_name(problem) if isinstance(problem, str) else problem
    rng = np.random.default_rng([seed, zlib.crc32(problem.name.encode())])
    shape, block = problem.shape, problem.block
    grid = oracle.grid_of(shape, block)
    rows, cols = oracle.draw_blocks(rng, grid, problem.sparsity)
    unused = min(unused, grid[0] * grid[1] - len(rows))
    rows = np.append(rows, np.full(unused, grid[0], np.int32))
    cols = np.append(cols, np.full(unused, grid[1], np.int32))
    drawn = draw(rng, (len(rows), *block))
    values = np.full_like(drawn, np.nan)
    for k, _, _, inside in oracle.stored_blocks(drawn, rows, cols, shape):
        values[k][inside] = drawn[k][inside]
    x = draw(rng, (*problem.batch, shape[0]))
    g = draw(rng, (*problem.batch, shape[1]))
    return Layer(x, g, values, np.nan_to_num(values), rows, cols, shape, block)
