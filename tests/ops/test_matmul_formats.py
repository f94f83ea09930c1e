"""Products with single weights and with groups of outputs, and their gradients, by definition.

`test_matmul` has those with blocks.
"""

import contextlib
import dataclasses
import functools

import conv_cases
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from machine import compiled, handler_calls, loops, need

import jaxsparse as js
from jaxsparse import problems

FORMATS = ("unstructured", "grouped:3", "grouped:8")
# Batches around the lanes of a vector, outputs that groups do and do not divide, nothing at all.
PRODUCTS = (
    *(
        conv_cases.product_problem(name, problem.batch, problem.shape, problem.sparsity)
        for name in (
            *("odd_blocks", "tiles_ragged", "wide_batch", "ragged", "large_blocks", "column"),
            *("row", "full", "empty", "no_batch", "empty_batch", "three_batch_axes"),
        )
        for problem in [problems.by_name(name)]
    ),
    *(conv_cases.product_problem(f"rows_{n}", (n,), (9, 10), 0.4) for n in (7, 16, 17, 31, 513)),
    conv_cases.product_problem("no_inputs", (3,), (0, 5)),
    conv_cases.product_problem("no_outputs", (3,), (5, 0)),
    conv_cases.product_problem("one_weight", (3,), (1, 1), 0.0),
)
HARD = ("odd_blocks", "tiles_ragged")  # for what does not depend on the sizes
# Plain JAX and the dense op compute with the whole weight: one format, and where sizes are special.
WHOLE = ("grouped:3", (*HARD, "empty", "no_batch", "no_inputs"))
DTYPES = ("float32", "bfloat16", "float16", "float64")
CASES = [
    pytest.param(problem, format, dtype, path, id=f"{problem}-{format}-{dtype}-{path}")
    for problem in PRODUCTS
    for format in FORMATS
    for dtype in DTYPES
    for path in ("ffi", "xla", "dense")
    if problem.name in HARD or dtype == "float32"
    if path == "ffi" or (format == WHOLE[0] and problem.name in WHOLE[1])
]
every_case = pytest.mark.parametrize(
    ("problem", "format", "dtype", "path"), CASES, indirect=["path"]
)
every_format = pytest.mark.parametrize("format", FORMATS)
by_name = {problem.name: problem for problem in PRODUCTS}


def x64_for(dtype):
    return jax.enable_x64(True) if dtype == "float64" else contextlib.nullcontext()


@functools.partial(jax.jit, static_argnames=("implementation", "grad"))
def value_and_gradients(x, w, g, **options):
    """y, dx and dvalues."""
    product = lambda x, values: js.matmul(x, w.with_values(values), **options)
    y, pull_back = jax.vjp(product, x, w.values)
    return y, *pull_back(g)


@functools.lru_cache(maxsize=8)
def results(problem, format, dtype, path, draw=oracle.small_integers, unused=0):
    """The layer, and what the library returns for it."""
    layer = conv_cases.make(problem, format, draw, unused=unused).rounded(dtype)
    with x64_for(dtype):
        x, g = layer.array("x", dtype), layer.array("g", dtype)
        got = value_and_gradients(x, layer.weight(dtype), g, implementation=path)
        return layer, jax.tree.map(np.asarray, got)


def assert_equals_definition(layer, got):
    for name, one in zip(("y", "dx", "dvalues"), got, strict=True):
        oracle.equal_exactly(one, getattr(layer, name)(), name)


# Numbers ------------------------------------------------------------------------------------------


@every_case
def test_matmul_and_gradients_equal_definition_on_integers(problem, format, dtype, path):
    layer, got = results(problem, format, dtype, path)
    assert {one.dtype.name for one in got} == {dtype}
    assert_equals_definition(layer, got)


@every_case
def test_matmul_and_gradients_round_like_a_dot_product(problem, format, dtype, path):
    layer, got = results(problem, format, dtype, path, oracle.normals)
    bounds = layer.magnitudes()
    for name, one in zip(("y", "dx", "dvalues"), got, strict=True):
        exact, bound = getattr(layer, name)(), getattr(bounds, name)()
        oracle.rounds_like_a_dot_product(one, exact, bound, name)


@every_format
@pytest.mark.parametrize("problem", HARD)
def test_unused_places_of_a_pattern_add_nothing(problem, format, path):
    layer, got = results(by_name[problem], format, "float32", path, unused=3)
    assert np.isnan(layer.values[-1]).all()
    assert_equals_definition(layer, got)


@every_format
@pytest.mark.parametrize("grad", ["exact", "sparse"])
def test_gradient_contract_has_the_gradients_of_stored_weights(format, grad, path):
    layer = conv_cases.make(by_name["odd_blocks"], format)
    x, w, g = layer.array("x"), layer.weight(), layer.array("g")
    got = value_and_gradients(x, w, g, implementation=path, grad=grad)
    assert_equals_definition(layer, got)


@every_format
@pytest.mark.parametrize("grad", ["exact", "sparse", "dense"])
def test_a_weight_that_is_stored_dense_takes_part_on_the_pattern_only(format, grad, path):
    layer = conv_cases.make(by_name["odd_blocks"], format)
    stored = np.asarray(layer.pattern.mask())
    everywhere = jnp.float32(np.where(stored, layer.dense(), np.nan))  # what is dropped is not read
    product = lambda x, w: js.matmul(x, w, pattern=layer.pattern, implementation=path, grad=grad)
    y, pull_back = jax.vjp(product, layer.array("x"), everywhere)
    dx, dw = pull_back(layer.array("g"))
    oracle.equal_exactly(y, layer.y())
    oracle.equal_exactly(dx, layer.dx())
    oracle.equal_exactly(dw, layer.dw() * (stored | (grad == "dense")))


@every_format
@pytest.mark.parametrize("where", ["x", "values"])
def test_kernels_carry_nan_through_stored_weights_only(format, where):
    need("cpu_kernels")
    layer = conv_cases.make(by_name["odd_blocks"], format)
    w, x = layer.weight(garbage=False), layer.array("x")
    if where == "x":
        x = x.at[0, 2].set(jnp.nan)
        meets = np.zeros(layer.y().shape, bool)
        meets[0] = np.asarray(layer.pattern.mask())[2]
    else:
        first = np.argwhere(layer.rows >= 0)[0]
        w = w.with_values(w.values.at[tuple(first)].set(jnp.nan))
        meets = np.zeros(layer.y().shape, bool)
        meets[:, layer.cols[tuple(first)]] = True
    assert meets.any()
    assert not meets.all()
    y = np.asarray(js.matmul(x, w, implementation="ffi"))
    np.testing.assert_array_equal(np.isnan(y), meets)
    np.testing.assert_array_equal(y[~meets], layer.y()[~meets])


@every_format
@pytest.mark.parametrize("dtype", ["int32", "complex64"])
def test_other_numbers_run_in_plain_jax(format, dtype):
    layer = conv_cases.make(by_name["odd_blocks"], format)
    y = js.matmul(layer.array("x", dtype), layer.weight(dtype, garbage=False))
    assert y.dtype == dtype
    np.testing.assert_array_equal(np.asarray(y), layer.y().astype(dtype))


@every_format
def test_a_wider_preferred_element_type_keeps_what_the_operands_could_not_hold(format, path):
    """257 is no bfloat16: rounding before widening would lose the last one."""
    w = js.fromdense(jnp.ones((257, 2), "bfloat16"), format)
    x = jnp.ones((1, 257), "bfloat16")
    y = js.matmul(x, w, preferred_element_type=jnp.float32, implementation=path)
    np.testing.assert_array_equal(y, [[257, 257]])


# sddmm --------------------------------------------------------------------------------------------


@every_format
@pytest.mark.parametrize("dtype", DTYPES)
def test_sddmm_is_the_weight_gradient(format, dtype, path):
    layer = conv_cases.make(by_name["tiles_ragged"], format, unused=2)
    with x64_for(dtype):
        a, b = layer.array("x", dtype), layer.array("g", dtype)
        values = js.sddmm(a, b, layer.pattern, implementation=path)
        oracle.equal_exactly(values, layer.dvalues())


@every_format
def test_sddmm_gradients_are_the_other_members_of_the_family(format, path):
    layer = conv_cases.make(by_name["tiles_ragged"], format, unused=2)
    sampled = lambda a, b: js.sddmm(a, b, layer.pattern, implementation=path)
    _, pull_back = jax.vjp(sampled, layer.array("x"), layer.array("g"))
    da, db = pull_back(layer.array("values"))  # garbage arrives too, and must not pass
    oracle.equal_exactly(da, layer.dx())
    oracle.equal_exactly(db, layer.y())


# Sums of weights ----------------------------------------------------------------------------------


def several_parts():
    """A sum of parts in three formats, which store some of the same weights, and its layers."""
    layers = [
        conv_cases.make(by_name["tiles_ragged"], format, seed=seed)
        for seed, format in enumerate(("unstructured", "grouped:3", "4x5"))
    ]
    return js.WeightSum(tuple(layer.weight(garbage=False) for layer in layers)), layers


def test_matmul_of_a_sum_of_weights_is_the_sum_over_its_parts(path):
    w, layers = several_parts()
    x, g = layers[0].array("x"), layers[0].array("g")
    product = lambda x, values: js.matmul(
        x,
        js.WeightSum(tuple(p.with_values(v) for p, v in zip(w.parts, values, strict=True))),
        implementation=path,
    )
    y, pull_back = jax.vjp(product, x, [part.values for part in w.parts])
    dx, dvalues = pull_back(g)
    own = [layer.with_x(layers[0].x) for layer in layers]
    oracle.equal_exactly(y, sum(layer.y() for layer in own))
    whole = sum(layer.dense() for layer in layers)
    oracle.equal_exactly(dx, layers[0].g @ whole.T)
    for one, layer in zip(dvalues, layers, strict=True):
        oracle.equal_exactly(one, layer.stored(layers[0].x.T @ layers[0].g))


# Transformations that depend on the index arrays --------------------------------------------------


@every_format
def test_vmap_over_whole_weights_takes_each_pattern_with_its_values(format, path):
    layers = [conv_cases.make(by_name["odd_blocks"], format, seed=i, unused=i) for i in range(2)]
    layers[0] = conv_cases.make(by_name["odd_blocks"], format, seed=7, unused=1)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[la.weight() for la in layers])
    x, g = layers[0].array("x"), layers[0].array("g")
    mapped = jax.jit(
        jax.vmap(functools.partial(value_and_gradients, implementation=path), (None, 0, None))
    )
    for i, layer in enumerate(layers):
        own = dataclasses.replace(layer, x=layers[0].x, g=layers[0].g)
        assert_equals_definition(own, [one[i] for one in mapped(x, stacked, g)])


@every_format
def test_vmap_over_values_shares_the_pattern(format, path):
    layer = conv_cases.make(by_name["odd_blocks"], format)
    w = layer.weight(garbage=False)
    product = lambda v: js.matmul(layer.array("x"), w.with_values(v), implementation=path)
    y = jax.vmap(product)(jnp.stack([w.values, -2 * w.values]))
    oracle.equal_exactly(y, np.stack([layer.y(), -2 * layer.y()]))


@every_format
def test_a_pattern_that_is_made_in_jit_serves_the_product_there(format, path):
    layer = conv_cases.make(by_name["odd_blocks"], format)

    capacity = js.patterns.full(format, layer.pattern.shape).capacity

    @jax.jit
    def product(x, dense):
        w = js.fromdense(dense, format, capacity=capacity)
        return js.matmul(x, w, implementation=path)

    oracle.equal_exactly(product(layer.array("x"), jnp.float32(layer.dense())), layer.y())


@every_format
@pytest.mark.parametrize(
    ("lhs", "rhs", "dimensions"),
    [
        ("jki,iab->jkab", (2, 3, 8), (((2,), (0,)), ((), ()))),
        ("jikl,klo->jio", (2, 3, 4, 2), (((2, 3), (0, 1)), ((), ()))),
    ],
    ids=["free_axes", "contracted_axes"],
)
def test_dot_general_takes_weights_of_every_format(format, lhs, rhs, dimensions, path, rng):
    einsum, x_shape = lhs, rhs
    shape = (8, 3, 4) if "ab" in einsum else (4, 2, 6)
    view = (8, 12) if "ab" in einsum else (8, 6)
    x = oracle.small_integers(rng, x_shape)
    dense = oracle.small_integers(rng, view) * (rng.random(view) < 0.5)
    pattern = js.patterns.from_mask(dense != 0, format)
    y = js.dot_general(
        jnp.float32(x),
        jnp.float32(dense.reshape(shape)),
        dimensions,
        pattern=pattern,
        implementation=path,
    )
    oracle.equal_exactly(y, np.einsum(einsum, x, dense.reshape(shape)))


@every_format
def test_vmap_over_whole_weights_makes_one_handler_call_with_all_their_indices(format):
    need("cpu_kernels")
    layers = [conv_cases.make(by_name["odd_blocks"], format, seed=i) for i in range(2)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[la.weight() for la in layers])
    x = layers[0].array("x")
    product = functools.partial(js.matmul, implementation="ffi")
    mapped = jax.vmap(product, (None, 0))
    program = compiled(mapped, x, stacked)
    member = f"{format.partition(':')[0]}_matmul_forward"
    assert handler_calls(program) == [member]
    assert loops(program) == 0
    (call,) = js.explain(mapped, x, stacked)
    assert call.member == member
    assert call.shapes[1] == stacked.values.shape
    assert call.density == layers[0].pattern.density
