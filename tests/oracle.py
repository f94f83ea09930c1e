"""What ops return, by definition, in float64 NumPy; arrays to try them on; ways to compare.

Nothing here imports jaxsparse or JAX, so no mistake can be in both.

  `equal_exactly`: inputs are small nonzero integers, so every product and partial sum is exact in
      float32, and every result in its own dtype. Any order of summation gives the same bits, and a
      missing, doubled or misplaced term shows. For structure.
  `rounds_like_a_dot_product`: inputs are real, with products of both signs. Every element must be
      within the forward error of a dot product, |y - exact| <= slack * unit * sum |x w|. For
      rounding.

A weight is given as `values [capacity, block_in, block_out]`, `rows` and `cols [capacity]`, and its
shape. A place with `row` or `col` at or beyond the grid stores nothing.
"""

import numpy as np

# Half the gap above 1.0, and up to where every integer is exact.
UNIT = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
EXACT = {"float64": 2**53, "float32": 2**24, "float16": 2**11, "bfloat16": 2**8}
# Right answers reach 3.3 for normal inputs (64 to 4608 products, any order of summation).
SLACK = 8.0


# Arrays -------------------------------------------------------------------------------------------


def small_integers(rng, shape, largest=2):
    """From -largest to largest without 0: a missing product would not show if it were zero."""
    return (rng.integers(1, largest + 1, shape) * rng.choice([-1, 1], shape)).astype(np.float64)


def normals(rng, shape):
    return rng.standard_normal(shape)


def draw_blocks(rng, grid, sparsity):
    """Rows and cols of some blocks of the grid, by column and then row, as int32."""
    total = grid[0] * grid[1]
    places = np.sort(rng.permutation(total)[: round((1 - sparsity) * total)])
    cols, rows = np.divmod(places, max(1, grid[0]))
    return rows.astype(np.int32), cols.astype(np.int32)


def grid_of(shape, block):
    return -(-shape[0] // block[0]), -(-shape[1] // block[1])


# Definitions --------------------------------------------------------------------------------------


def stored_blocks(values, rows, cols, shape):
    """For each used place: its number, where it is in the weight, and the part that is inside."""
    block_in, block_out = np.shape(values)[-2:]
    grid = grid_of(shape, (block_in, block_out))
    for k, (r, c) in enumerate(zip(np.asarray(rows).tolist(), np.asarray(cols).tolist())):
        if r >= grid[0] or c >= grid[1]:
            continue
        inputs = slice(r * block_in, min((r + 1) * block_in, shape[0]))
        outputs = slice(c * block_out, min((c + 1) * block_out, shape[1]))
        inside = slice(inputs.stop - inputs.start), slice(outputs.stop - outputs.start)
        yield k, inputs, outputs, inside


def flat(a, size):
    """As float64, with all batch axes as one."""
    a = np.asarray(a, np.float64)
    return a.reshape(int(np.prod(a.shape[:-1])), size), a.shape[:-1]


def forward(x, values, rows, cols, shape):
    """y[..., o] = sum over i of x[..., i] * w[i, o]; only stored weights multiply anything."""
    x, batch = flat(x, shape[0])
    values = np.asarray(values, np.float64)
    y = np.zeros((len(x), shape[1]))
    for k, inputs, outputs, inside in stored_blocks(values, rows, cols, shape):
        y[:, outputs] += x[:, inputs] @ values[k][inside]
    return y.reshape(*batch, shape[1])


def input_grad(g, values, rows, cols, shape):
    """dx[..., i] = sum over o of g[..., o] * w[i, o]."""
    g, batch = flat(g, shape[1])
    values = np.asarray(values, np.float64)
    dx = np.zeros((len(g), shape[0]))
    for k, inputs, outputs, inside in stored_blocks(values, rows, cols, shape):
        dx[:, inputs] += g[:, outputs] @ values[k][inside].T
    return dx.reshape(*batch, shape[0])


def weight_grad(x, g, rows, cols, shape, block):
    """dvalues[k, i, o] = sum over the batch of x[..., input i of k] * g[..., output o of k]."""
    (x, _), (g, _) = flat(x, shape[0]), flat(g, shape[1])
    values = np.zeros((len(np.asarray(rows)), *block))
    for k, inputs, outputs, inside in stored_blocks(values, rows, cols, shape):
        values[k][inside] = x[:, inputs].T @ g[:, outputs]
    return values


def todense(values, rows, cols, shape):
    """The weight as a whole."""
    values = np.asarray(values, np.float64)
    w = np.zeros(shape)
    for k, inputs, outputs, inside in stored_blocks(values, rows, cols, shape):
        w[inputs, outputs] = values[k][inside]
    return w


# Comparisons --------------------------------------------------------------------------------------


def equal_exactly(got, exact, what="the result"):
    """Fails unless every element is the integer it should be."""
    got, exact = np.asarray(got), np.asarray(exact, np.float64)
    assert got.shape == exact.shape, f"{what} has shape {got.shape}, not {exact.shape}"
    largest = np.max(np.abs(exact), initial=0)
    assert largest <= EXACT[got.dtype.name], f"bad test: {largest} has no exact {got.dtype}"
    wrong = np.argwhere(got.astype(np.float64) != exact)
    assert not len(wrong), (
        f"{what} differs in {len(wrong)} of {exact.size} elements, first at {tuple(wrong[0])}: "
        f"{got[tuple(wrong[0])]} instead of {exact[tuple(wrong[0])]}"
    )


def rounds_like_a_dot_product(got, exact, magnitude, what="the result", slack=SLACK):
    """Fails unless every element is within the forward error of a dot product.

    Args:
        got: the result under test; its dtype sets the unit.
        exact: the definition.
        magnitude: the definition, for the absolute values of the operands.
    """
    got = np.asarray(got)
    assert got.shape == exact.shape, f"{what} has shape {got.shape}, not {exact.shape}"
    bound = slack * UNIT[got.dtype.name] * magnitude
    error = np.abs(got.astype(np.float64) - exact)
    wrong = np.argwhere(~(error <= bound))  # NaN is wrong
    assert not len(wrong), (
        f"{what} misses its error bound in {len(wrong)} of {exact.size} elements, first at "
        f"{tuple(wrong[0])}: {got[tuple(wrong[0])]}, {exact[tuple(wrong[0])]} by definition, may "
        f"differ by {bound[tuple(wrong[0])]:.3g}"
    )
