"""`dot_general` against the definition, for dimension numbers and operands of every kind."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from flax import linen as nn
from flax import nnx
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxsparse as js

# lhs shape, rhs shape, dimension numbers, and where the axes of rhs end up in (batch, in, out).
CASES = {
    "matrix": ((5, 12), (12, 20), (((1,), (0,)), ((), ()))),
    "vector": ((12,), (12, 20), (((0,), (0,)), ((), ()))),
    "first_axis": ((12, 5), (12, 20), (((0,), (0,)), ((), ()))),
    "many_batch": ((2, 3, 5, 12), (12, 20), (((3,), (0,)), ((), ()))),
    "two_axes": ((4, 5, 3), (3, 4, 20), (((2, 0), (0, 1)), ((), ()))),
    "two_axes_in_other_order": ((4, 5, 3), (3, 4, 20), (((0, 2), (1, 0)), ((), ()))),
    "many_free": ((5, 12), (12, 2, 5, 2), (((1,), (0,)), ((), ()))),
    "batch": ((2, 5, 12), (2, 12, 20), (((2,), (1,)), ((0,), (0,)))),
    "batch_apart": ((5, 3, 4, 2, 3), (2, 3, 4, 3, 20), (((2, 4), (2, 3)), ((3, 1), (0, 1)))),
    "batch_last_in_rhs": ((2, 5, 12), (12, 20, 2), (((2,), (0,)), ((0,), (2,)))),
}
BLOCK = "4x8"
every_case = pytest.mark.parametrize("case", CASES)


def axes_of(dimension_numbers, ndim):
    (_, contract), (_, batch) = dimension_numbers
    free = [axis for axis in range(ndim) if axis not in (*batch, *contract)]
    return tuple(batch), tuple(sorted(contract)), tuple(free)


def definition(lhs, rhs, dimension_numbers):
    """In float64 NumPy, one einsum."""
    (lhs_contract, rhs_contract), (lhs_batch, rhs_batch) = dimension_numbers
    letters = iter("abcdefghijklmnopqrstuvwxyz")
    left, right = [next(letters) for _ in lhs.shape], [next(letters) for _ in rhs.shape]
    for pair in (*zip(lhs_contract, rhs_contract), *zip(lhs_batch, rhs_batch)):
        right[pair[1]] = left[pair[0]]
    batch = [left[axis] for axis in lhs_batch]
    free = [a for a in left if a not in right] + [b for b in right if b not in left]
    subscripts = f"{''.join(left)},{''.join(right)}->{''.join(batch + free)}"
    return np.einsum(subscripts, np.float64(lhs), np.float64(rhs))


class Problem:
    """Operands of a case, with one pattern for all batch elements or one for each."""

    def __init__(self, case, stacked, rng):
        lhs_shape, self.shape, self.dims = CASES[case]
        self.lhs = oracle.small_integers(rng, lhs_shape)
        self.rhs = oracle.small_integers(rng, self.shape)
        batch, contract, free = axes_of(self.dims, len(self.shape))
        self.order = (*batch, *contract, *free)
        self.batch = tuple(self.shape[a] for a in batch)
        self.matrix = tuple(
            int(np.prod([self.shape[a] for a in group], dtype=int)) for group in (contract, free)
        )
        lead = self.batch if stacked else ()
        grid = oracle.grid_of(self.matrix, (4, 8))
        drawn = [oracle.draw_blocks(rng, grid, 0.5) for _ in range(int(np.prod(lead, dtype=int)))]
        rows, cols = (np.stack(index).reshape(*lead, -1) for index in zip(*drawn))
        self.pattern = js.BlockPattern(
            jnp.asarray(rows), jnp.asarray(cols), self.matrix, js.Block((4, 8))
        )
        ones = np.ones((rows.shape[-1], 4, 8))
        masks = [oracle.todense(ones, r, c, self.matrix) for r, c in drawn]
        mask = np.stack(masks).reshape(*lead, *self.matrix)
        mask = np.broadcast_to(mask, (*self.batch, *self.matrix))
        inverse = np.argsort(self.order)
        self.mask = mask.reshape([self.shape[a] for a in self.order]).transpose(inverse)

    def expected(self):
        return definition(self.lhs, self.rhs * self.mask, self.dims)

    def arrays(self):
        return jnp.asarray(self.lhs, jnp.float32), jnp.asarray(self.rhs, jnp.float32)


@pytest.mark.parametrize("stacked", [False, True], ids=["one_pattern", "pattern_per_element"])
@every_case
def test_dot_general_of_array_and_pattern_equals_definition(case, stacked, rng, path):
    problem = Problem(case, stacked, rng)
    y = js.dot_general(
        *problem.arrays(), problem.dims, pattern=problem.pattern, implementation=path
    )
    oracle.equal_exactly(y, problem.expected(), "y")


@pytest.mark.parametrize("grad", ["exact", "sparse", "dense"])
@pytest.mark.parametrize("case", ["matrix", "two_axes", "many_free", "batch_apart"])
def test_dot_general_gradients_equal_definition(case, grad, rng):
    problem = Problem(case, True, rng)
    lhs, rhs = problem.arrays()
    g = oracle.small_integers(rng, problem.expected().shape)
    options = {"pattern": problem.pattern, "grad": grad}
    product = lambda lhs, rhs: js.dot_general(lhs, rhs, problem.dims, **options)
    _, pull_back = jax.vjp(product, lhs, rhs)
    dlhs, drhs = pull_back(jnp.asarray(g, jnp.float32))
    # By bilinearity: the gradient is what each basis vector contributes.
    masked = problem.rhs * problem.mask
    basis = np.eye(lhs.size).reshape(-1, *lhs.shape)
    expected = np.array([np.sum(g * definition(e, masked, problem.dims)) for e in basis])
    oracle.equal_exactly(dlhs, expected.reshape(lhs.shape), "dlhs")
    basis = np.eye(rhs.size).reshape(-1, *rhs.shape)
    dense = np.array([np.sum(g * definition(problem.lhs, e, problem.dims)) for e in basis])
    dense = dense.reshape(rhs.shape)
    oracle.equal_exactly(drhs, dense if grad == "dense" else dense * problem.mask, "drhs")


def test_dot_general_of_a_sparse_weight_equals_definition(rng, path):
    problem = Problem("matrix", False, rng)
    lhs, rhs = problem.arrays()
    w = js.SparseWeight(problem.pattern.gather(rhs), problem.pattern)
    y = js.dot_general(lhs, w, problem.dims, implementation=path)
    oracle.equal_exactly(y, problem.expected(), "y")


def test_dot_general_of_stacked_sparse_weights_equals_definition(rng, path):
    problem = Problem("batch", True, rng)
    lhs, rhs = problem.arrays()
    values = jax.vmap(lambda p, w: p.gather(w))(problem.pattern, rhs)
    w = js.SparseWeight(values, problem.pattern)
    y = js.dot_general(lhs, w, problem.dims, implementation=path)
    oracle.equal_exactly(y, problem.expected(), "y")


def test_dot_general_of_a_convolution_shaped_weight_contracts_all_but_the_last_axis(rng):
    w = jnp.asarray(oracle.small_integers(rng, (3, 4, 16)), jnp.float32)
    lhs = jnp.asarray(oracle.small_integers(rng, (5, 3, 4)), jnp.float32)
    dims = (((1, 2), (0, 1)), ((), ()))
    y = js.dot_general(lhs, js.fromdense(w, BLOCK), dims)
    oracle.equal_exactly(y, definition(np.asarray(lhs), np.asarray(w), dims), "y")


def test_dot_general_of_arrays_is_that_of_lax(rng):
    lhs, rhs = Problem("batch", False, rng).arrays()
    dims = CASES["batch"][2]
    ours = jax.make_jaxpr(functools.partial(js.dot_general, dimension_numbers=dims))(lhs, rhs)
    theirs = jax.make_jaxpr(functools.partial(lax.dot_general, dimension_numbers=dims))(lhs, rhs)
    assert str(ours) == str(theirs)


@pytest.mark.parametrize(
    ("lhs", "rhs", "preferred"),
    [
        ("float32", "float32", None),
        ("bfloat16", "bfloat16", None),
        ("bfloat16", "bfloat16", "float32"),
        ("float16", "float16", "float32"),
        ("float32", "float32", "bfloat16"),
        ("float32", "bfloat16", None),
        ("bfloat16", "float32", None),
        ("int32", "int32", None),
    ],
)
def test_dot_general_has_the_dtype_of_lax(lhs, rhs, preferred, rng):
    problem = Problem("matrix", False, rng)
    operands = jnp.asarray(problem.lhs, lhs), jnp.asarray(problem.rhs, rhs)
    y = js.dot_general(*operands, problem.dims, None, preferred, pattern=problem.pattern)
    theirs = lax.dot_general(*operands, problem.dims, None, preferred)
    assert y.dtype == theirs.dtype
    oracle.equal_exactly(np.float64(y), problem.expected(), "y")


def test_dot_general_is_differentiable_forward(rng):
    problem = Problem("batch_apart", True, rng)
    lhs, rhs = problem.arrays()
    product = lambda rhs: js.dot_general(lhs, rhs, problem.dims, pattern=problem.pattern)
    y, dy = jax.jvp(product, (rhs,), (rhs,))
    oracle.equal_exactly(y, problem.expected(), "y")
    oracle.equal_exactly(dy, problem.expected(), "dy")


def test_dot_general_maps_over_patterns_in_one_call(rng):
    problem = Problem("batch", True, rng)
    lhs, rhs = problem.arrays()
    one = lambda x, w, p: js.dot_general(x, w, (((1,), (0,)), ((), ())), pattern=p)
    mapped = jax.vmap(one)
    oracle.equal_exactly(mapped(lhs, rhs, problem.pattern), problem.expected(), "y")
    calls = js.explain(mapped, lhs, rhs, problem.pattern)
    assert [call.member for call in calls].count("stored_dense_block_matmul_forward") == 1


def test_dot_general_with_a_pattern_is_a_product_for_flax_layers(rng):
    problem = Problem("matrix", False, rng)
    lhs, rhs = problem.arrays()
    hook = functools.partial(js.dot_general, pattern=problem.pattern)
    layer = nnx.Linear(12, 20, dot_general=hook, use_bias=False, rngs=nnx.Rngs(0))
    layer.kernel[...] = rhs
    oracle.equal_exactly(layer(lhs), problem.expected(), "nnx")
    layer = nn.Dense(20, dot_general=hook, use_bias=False)
    oracle.equal_exactly(layer.apply({"params": {"kernel": rhs}}, lhs), problem.expected(), "linen")


def test_dot_general_places_its_result_as_asked(rng):
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(AxisType.Explicit,))
    lhs = jnp.asarray(oracle.small_integers(rng, (16, 12)), jnp.float32)
    rhs = jnp.asarray(oracle.small_integers(rng, (12, 20)), jnp.float32)
    pattern = js.patterns.full(BLOCK, (12, 20))
    dims = CASES["matrix"][2]
    with jax.set_mesh(mesh):
        y = js.dot_general(lhs, rhs, dims, pattern=pattern, out_sharding=P("batch", None))
    assert y.sharding == NamedSharding(mesh, P("batch", None))
    oracle.equal_exactly(y, definition(np.asarray(lhs), np.asarray(rhs), dims), "y")


# Errors -------------------------------------------------------------------------------------------

LHS, RHS = jnp.ones((5, 12)), jnp.ones((12, 20))
PATTERN = js.patterns.full(BLOCK, (12, 20))
WEIGHT = js.fromdense(RHS, BLOCK)
PLAIN = (((1,), (0,)), ((), ()))


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (
            lambda: js.dot_general(LHS, RHS.T, (((1,), (1,)), ((), ())), pattern=PATTERN),
            NotImplementedError,
            "contracted axes of a sparse rhs must come before its free axes",
        ),
        (
            lambda: js.dot_general(
                LHS, jnp.ones((12, 5, 4)), PLAIN, pattern=js.patterns.full(BLOCK, (60, 4))
            ),
            NotImplementedError,
            "the rows are contracted",
        ),
        (
            lambda: js.dot_general(WEIGHT, LHS, (((0,), (1,)), ((), ()))),
            NotImplementedError,
            "the sparse operand is rhs",
        ),
        (
            lambda: js.dot_general(LHS, RHS, PLAIN, pattern=js.patterns.full(BLOCK, (12, 24))),
            ValueError,
            r"the pattern is for a matrix of shape \(12, 24\), got a rhs of shape \(12, 20\)",
        ),
        (
            lambda: js.dot_general(
                LHS, RHS, PLAIN, pattern=jax.tree.map(lambda a: jnp.stack([a] * 2), PATTERN)
            ),
            ValueError,
            "the pattern must have indices",
        ),
        (
            lambda: js.dot_general(LHS, WEIGHT, PLAIN, pattern=PATTERN),
            ValueError,
            "a SparseWeight has its pattern, got another",
        ),
        (
            lambda: js.dot_general(LHS, RHS, PLAIN, implementation="ffi"),
            ValueError,
            'implementation="ffi" needs a sparse weight',
        ),
        (lambda: js.dot_general(LHS, WEIGHT, PLAIN, grad="none"), ValueError, "dot_general: grad"),
        (
            lambda: js.dot_general(jnp.ones((5, 11)), WEIGHT, PLAIN),
            TypeError,
            "contracting dimensions to have the same shape",
        ),
    ],
)
def test_dot_general_refuses(call, error, says):
    with pytest.raises(error, match=says):
        call()
