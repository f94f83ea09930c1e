"""The arrays of a named convolution with a weight in any format, and what it returns.

Garbage lies wherever an op must not look. Which weights a format stores, and in which order, is
spelled out here once more; `oracle_conv` has the definition of the convolution itself.
"""

import dataclasses
import functools
import zlib

import jax.numpy as jnp
import numpy as np
import oracle
import oracle_conv

import jaxsparse as js
from jaxsparse import problems

FORMATS = ("unstructured", "grouped:4", "3x2")


@dataclasses.dataclass(frozen=True, eq=False)
class ConvLayer:
    """A convolution's input, weight and a gradient arriving at its output, as float64 NumPy.

    `values` are NaN where they stand for no weight; `clean` are zero there. `rows` and `cols`, of
    the shape of `values`, are where each one is in the matrix `[taps * in, out]`, or -1.
    """

    problem: problems.ConvProblem
    x: np.ndarray
    g: np.ndarray
    values: np.ndarray
    clean: np.ndarray
    rows: np.ndarray
    cols: np.ndarray
    pattern: js.BlockPattern | js.ColumnPattern

    # What the library gets

    @property
    def options(self) -> dict:
        """The arguments of `jaxsparse.conv` or `conv_transpose` that are not arrays."""
        names = ("strides", "padding", "kernel_dilation", "feature_group_count")
        return {name: getattr(self.problem, name) for name in names}

    def convolve(self, x, w, **options):
        """The public function on the problem's geometry; `matmul` where there is no space."""
        if not self.problem.kernel:
            return js.matmul(x, w, **options)
        function = js.conv_transpose if self.problem.transposed else js.conv
        return function(x, w, **self.options, **options)

    def weight(self, dtype="float32", garbage=True) -> js.SparseWeight:
        values = self.values if garbage else self.clean
        return js.SparseWeight(jnp.asarray(values, dtype), self.pattern)

    def array(self, name, dtype="float32"):
        return jnp.asarray(getattr(self, name), dtype)

    @property
    def clean_dense(self):
        """The whole weight, zero where nothing is stored."""
        return self.dense()

    def with_x(self, x) -> "ConvLayer":
        return dataclasses.replace(self, x=x)

    def rounded(self, dtype) -> "ConvLayer":
        """The same numbers as the dtype holds them, still in float64."""
        fields = ("x", "g", "values", "clean")
        new = {f: getattr(self, f).astype(jnp.dtype(dtype)).astype(np.float64) for f in fields}
        return dataclasses.replace(self, **new)

    # The definition, for these arrays

    def dense(self):
        matrix = np.zeros(_matrix(self.problem))
        is_weight = self.rows >= 0
        matrix[self.rows[is_weight], self.cols[is_weight]] = self.values[is_weight]
        return matrix.reshape(self.problem.weight_shape)

    def stored(self, dense):
        """The entries of a whole weight at the places of `values`; zero where these are none."""
        taken = np.asarray(dense).reshape(_matrix(self.problem))[self.rows, self.cols]
        return np.where(self.rows >= 0, taken, 0)

    def y(self):
        return oracle_conv.forward(_spread(self.problem, self.x), self.dense(), _seen(self.problem))

    def dx(self):
        wide = oracle_conv.input_grad(self.g, self.dense(), _seen(self.problem))
        return _unspread(self.problem, wide)

    def dw(self):
        """The gradient of all entries of the weight."""
        x = _spread(self.problem, self.x)
        return oracle_conv.weight_grad(x, self.g, _seen(self.problem))

    def dvalues(self):
        return self.stored(self.dw())

    def magnitudes(self) -> "ConvLayer":
        """The layer of absolute values, whose results bound rounding errors."""
        return dataclasses.replace(
            self, x=abs(self.x), g=abs(self.g), values=abs(self.values), clean=abs(self.clean)
        )


def product_problem(name, batch, features, sparsity=0.5) -> problems.ConvProblem:
    """A product of matrices: a convolution without space."""
    return problems.ConvProblem(name, (), (), features, batch=batch, sparsity=sparsity)


def _matrix(problem):
    *kernel, size_in, size_out = problem.weight_shape
    return int(np.prod(kernel)) * size_in, size_out


# A transposed convolution is a convolution of its input with zeros spread between


def _seen(problem) -> oracle_conv.Geometry:
    space, strides = problem.space, problem.strides
    pads = problem.padding
    if problem.transposed:
        if isinstance(pads, str):
            pads = oracle_conv.transposed_pads(
                problem.kernel, strides, problem.kernel_dilation, is_same=pads == "SAME"
            )
        space = [max(0, (n - 1) * s + 1) for n, s in zip(space, strides)]
        strides = (1,) * len(space)
    elif pads == "VALID":
        pads = [(0, 0)] * len(space)
    elif isinstance(pads, str):
        pads = oracle_conv.same_pads(
            space, problem.kernel, strides, problem.kernel_dilation, lower=pads == "SAME_LOWER"
        )
    return oracle_conv.geometry(
        space, problem.kernel, strides, pads, problem.kernel_dilation, problem.feature_group_count
    )


def _spread(problem, x):
    return oracle_conv.spread(x, problem.strides) if problem.transposed else x


def _unspread(problem, wide):
    if not problem.transposed:
        return wide
    return wide[(..., *(slice(None, None, s) for s in problem.strides), slice(None))]


# Formats ------------------------------------------------------------------------------------------


def _unstructured(rng, problem, unused):
    """Column by column, in each channel by channel, in each tap by tap."""
    *kernel, size_in, size_out = problem.weight_shape
    rows, taps = _matrix(problem)[0], int(np.prod(kernel))
    chosen = _draw(rng, rows * size_out, problem.sparsity)
    column, channel, tap = np.unravel_index(chosen, (size_out, size_in, taps))
    places = _with_unused(chosen, unused, rows * size_out)
    row, col = tap * size_in + channel, column
    pattern = js.ColumnPattern(
        jnp.asarray(places, jnp.int32), None, problem.weight_shape, js.Unstructured()
    )
    return *(_with_unused(a, unused, -1) for a in (row, col)), pattern


def _grouped(rng, problem, unused, width):
    """Outputs in any order, in groups; the last group may have slots that are no output."""
    *kernel, size_in, size_out = problem.weight_shape
    rows, taps = _matrix(problem)[0], int(np.prod(kernel))
    columns = -(-size_out // width)
    order = np.full(columns * width, size_out)
    order[:size_out] = np.arange(size_out)
    order = rng.permutation(order)
    chosen = _draw(rng, rows * columns, problem.sparsity)
    column, channel, tap = np.unravel_index(chosen, (columns, size_in, taps))
    places = _with_unused(chosen, unused, rows * columns)
    col = order.reshape(columns, width)[column]
    row = np.broadcast_to((tap * size_in + channel)[:, None], col.shape)
    row, col = (np.where(col < size_out, a, -1) for a in (row, col))
    pattern = js.ColumnPattern(
        jnp.asarray(places, jnp.int32),
        jnp.asarray(order, jnp.int32),
        problem.weight_shape,
        js.Grouped(width),
    )
    return *(_with_unused(a, unused, -1) for a in (row, col)), pattern


def _blocks(rng, problem, unused, block):
    """Blocks of the matrix, column by column; those at the edges reach over it."""
    size_in, size_out = _matrix(problem)
    grid = oracle.grid_of((size_in, size_out), block)
    rows, cols = oracle.draw_blocks(rng, grid, problem.sparsity)
    rows, cols = (_with_unused(a, unused, n) for a, n in zip((rows, cols), grid))
    row = rows[:, None, None] * block[0] + np.arange(block[0])[:, None]
    col = cols[:, None, None] * block[1] + np.arange(block[1])
    row, col = np.broadcast_arrays(row, col)
    is_inside = (row < size_in) & (col < size_out)
    pattern = js.BlockPattern(
        jnp.asarray(rows, jnp.int32),
        jnp.asarray(cols, jnp.int32),
        problem.weight_shape,
        js.Block(block),
    )
    return np.where(is_inside, row, -1), np.where(is_inside, col, -1), pattern


def _with_unused(places, unused, mark):
    return np.concatenate([places, np.full((unused, *places.shape[1:]), mark)])


def _draw(rng, total, sparsity):
    return np.sort(rng.permutation(total)[: round((1 - sparsity) * total)])


def _stored(rng, problem, format, unused):
    if format == "unstructured":
        return _unstructured(rng, problem, unused)
    if format.startswith("grouped:"):
        return _grouped(rng, problem, unused, int(format.removeprefix("grouped:")))
    return _blocks(rng, problem, unused, tuple(map(int, format.split("x"))))


@functools.lru_cache(maxsize=512)
def make(problem, format, draw=oracle.small_integers, *, unused=0, seed=0) -> ConvLayer:
    """The arrays of a problem or of its name; `unused` places of the pattern store nothing."""
    problem = problems.conv_by_name(problem) if isinstance(problem, str) else problem
    rng = np.random.default_rng([seed, zlib.crc32(f"{problem.name} {format}".encode())])
    rows, cols, pattern = _stored(rng, problem, format, unused)
    values = np.where(rows >= 0, draw(rng, rows.shape), np.nan)
    x = draw(rng, problem.x_shape)
    g = draw(rng, (*problem.batch, *_seen(problem).y_space, problem.features[1]))
    return ConvLayer(problem, x, g, values, np.nan_to_num(values), rows, cols, pattern)
