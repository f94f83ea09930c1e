"""`vmap` makes one call of the kernel with more axes, never a loop of calls, never copies."""

import functools

import cases
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from machine import compiled, handler_calls, loops, members, need

import jaxsparse as js
from jaxsparse.core import dispatch
from jaxsparse.problems import Problem

SIZE = 3
PROBLEM = Problem("vmap", (5,), (20, 24), (8, 8), 0.4, "")
LAYER = cases.make(PROBLEM)
X, G, W = LAYER.array("x"), LAYER.array("g"), LAYER.weight(garbage=False)
XS = jnp.stack([X, 2 * X, -X])
WS = jnp.stack([W.values, -W.values, 2 * W.values])


def matmul(x, values, implementation=None):
    return js.matmul(x, W.with_values(values), implementation=implementation)


def squares(x, values):
    return jnp.sum(matmul(x, values) ** 2)


FOLDED = {
    # name: (function, arguments, the sparse calls it may make)
    "x": (jax.vmap(matmul, (0, None)), (XS, W.values), ["forward"]),
    "x_along_axis_1": (jax.vmap(matmul, (1, None), 1), (XS.swapaxes(0, 1), W.values), ["forward"]),
    "x_along_its_last_axis": (
        jax.vmap(matmul, (-1, None)),
        (jnp.moveaxis(XS, 0, -1), W.values),
        ["forward"],
    ),
    "w": (jax.vmap(matmul, (None, 0)), (X, WS), ["forward"]),
    "x_and_w": (jax.vmap(matmul), (XS, WS), ["forward"]),
    "x_in_w": (jax.vmap(jax.vmap(matmul, (0, None)), (None, 0)), (XS, WS), ["forward"]),
    "w_in_x": (jax.vmap(jax.vmap(matmul, (None, 0)), (0, None)), (XS, WS), ["forward"]),
    "x_in_x": (
        jax.vmap(jax.vmap(matmul, (0, None)), (0, None)),
        (XS[None], W.values),
        ["forward"],
    ),
    "w_in_w": (
        jax.vmap(jax.vmap(matmul, (None, 0)), (None, 0)),
        (X, jnp.stack([WS, -WS])),
        ["forward"],
    ),
    "grad_by_x": (
        jax.vmap(jax.grad(squares), (0, None)),
        (XS, W.values),
        ["forward", "input_grad"],
    ),
    "grad_by_w_per_example": (
        jax.vmap(jax.grad(squares, 1), (0, None)),
        (XS, W.values),
        ["forward", "weight_grad"],
    ),
    "grad_by_mapped_w": (
        jax.vmap(jax.grad(squares, 1), (None, 0)),
        (X, WS),
        ["forward", "weight_grad"],
    ),
    "grad_of_grad": (
        jax.vmap(jax.grad(lambda x, v: jnp.sum(jax.grad(squares)(x, v) ** 2)), (0, None)),
        (XS, W.values),
        ["forward", "forward", "input_grad", "input_grad"],
    ),
    "grad_of_vmap_by_shared_w": (
        jax.grad(lambda v: jnp.sum(jax.vmap(squares, (0, None))(XS, v))),
        (W.values,),
        ["forward", "weight_grad"],
    ),
    "grad_of_vmap_by_shared_x": (
        jax.grad(lambda x: jnp.sum(jax.vmap(squares, (None, 0))(x, WS))),
        (X,),
        ["forward", "input_grad"],
    ),
    "jacrev_by_x": (
        jax.jacrev(lambda x: matmul(x, W.values)[0]),
        (X,),
        ["input_grad"],
    ),
}


@pytest.mark.parametrize("name", FOLDED)
def test_vmap_makes_one_sparse_call_where_the_function_makes_one(name):
    function, arguments, expected = FOLDED[name]
    found = members(function, *arguments)
    found = found if name != "jacrev_by_x" else [m for m in found if m != "forward"]
    assert found == expected


@pytest.fixture
def no_break_even(monkeypatch):
    """Kernels of 8 x 8 blocks run whatever their density, as where nothing was measured."""
    monkeypatch.setattr(dispatch, "_table", lambda device: {})


@pytest.mark.usefixtures("no_break_even")
@pytest.mark.parametrize("name", FOLDED)
def test_vmap_compiles_to_one_handler_call_and_no_loop(name):
    need("cpu_kernels")
    function, arguments, expected = FOLDED[name]
    program = compiled(function, *arguments)
    assert handler_calls(program) == expected
    assert loops(program) == 0


@pytest.mark.parametrize(
    ("name", "copies"),
    [("x", 1), ("x_in_x", 1), ("w", SIZE), ("x_in_w", SIZE), ("grad_of_vmap_by_shared_w", 1)],
)
def test_vmap_hands_the_kernel_its_weights_without_copies(name, copies):
    function, arguments, _ = FOLDED[name]
    calls = js.explain(function, *arguments)
    (forward,) = (call for call in calls if call.member == "block_matmul_forward")
    assert int(np.prod(forward.shapes[1])) == copies * W.values.size


def test_vmap_of_scan_makes_one_call_in_the_loop():
    step = lambda c, v: (jnp.resize(matmul(c, v), c.shape), None)
    scan = lambda x: jax.lax.scan(step, x, WS)[0]
    assert members(jax.vmap(scan), XS) == ["forward"]


def test_grad_of_vmap_with_a_gradient_contract_is_right_too():
    contract = lambda x, v: jnp.sum(js.matmul(x, W.with_values(v), grad="sparse") ** 2)
    of_vmap = lambda f: jax.jit(jax.grad(lambda v: jnp.sum(jax.vmap(f, (0, None))(XS, v))))
    oracle.equal_exactly(of_vmap(contract)(W.values), np.asarray(of_vmap(squares)(W.values)))


# Patterns -----------------------------------------------------------------------------------------


def several_weights(unused=0):
    """Weights with different patterns of one capacity, as a list and as one stacked weight."""
    several = [cases.make(PROBLEM, seed=seed, unused=unused) for seed in range(SIZE)]
    weights = [layer.weight() for layer in several]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *weights)
    return several, stacked


@pytest.mark.parametrize("unused", [0, 2])
@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_vmap_over_whole_weights_takes_each_pattern_with_its_values(jit, unused, path):
    several, stacked = several_weights(unused)
    function = jax.vmap(functools.partial(js.matmul, implementation=path), (None, 0))
    ys = (jax.jit(function) if jit else function)(X, stacked)
    for y, layer in zip(ys, several, strict=True):
        exact = oracle.forward(LAYER.x, layer.values, *layer.places)
        oracle.equal_exactly(y, exact)


def test_vmap_over_whole_weights_and_inputs(path):
    several, stacked = several_weights()
    ys = jax.vmap(functools.partial(js.matmul, implementation=path))(XS, stacked)
    for y, x, layer in zip(ys, np.asarray(XS), several, strict=True):
        oracle.equal_exactly(y, oracle.forward(x, layer.values, *layer.places))


def test_vmap_over_patterns_alone_shares_the_values(path):
    several, stacked = several_weights()
    product = lambda pattern: js.matmul(X, js.SparseWeight(W.values, pattern), implementation=path)
    for y, layer in zip(jax.vmap(product)(stacked.pattern), several, strict=True):
        oracle.equal_exactly(y, oracle.forward(LAYER.x, LAYER.clean, *layer.places))


def test_gradients_of_vmap_over_patterns_are_those_of_each(path):
    several, stacked = several_weights()

    def one(x, w):
        product = lambda x, v: js.matmul(x, w.with_values(v), implementation=path)
        return jax.vjp(product, x, w.values)[1](G)

    dxs, dvalues = jax.jit(jax.vmap(one, (None, 0)))(X, stacked)
    for dx, dv, layer in zip(dxs, dvalues, several, strict=True):
        oracle.equal_exactly(dx, oracle.input_grad(LAYER.g, layer.values, *layer.places))
        oracle.equal_exactly(dv, oracle.weight_grad(LAYER.x, LAYER.g, *layer.places, layer.block))


def test_gradient_of_values_shared_by_mapped_patterns_is_summed(path):
    several, stacked = several_weights()

    def total(values):
        product = lambda p: js.matmul(X, js.SparseWeight(values, p), implementation=path)
        return jnp.vdot(jax.vmap(product)(stacked.pattern), jnp.stack([G, G, G]))

    exact = sum(
        oracle.weight_grad(LAYER.x, LAYER.g, *layer.places, layer.block) for layer in several
    )
    oracle.equal_exactly(jax.grad(total)(W.values), exact)


def test_vmap_over_weights_makes_one_handler_call():
    need("cpu_kernels")
    _, stacked = several_weights()
    program = compiled(jax.vmap(js.matmul, (None, 0)), X, stacked)
    assert handler_calls(program) == ["forward"]
    assert loops(program) == 0


@pytest.mark.parametrize("method", ["todense", "gather"])
def test_vmap_of_gather_and_scatter_take_each_pattern(method):
    several, stacked = several_weights(unused=2)
    if method == "todense":
        for one, layer in zip(jax.vmap(lambda w: w.todense())(stacked), several, strict=True):
            oracle.equal_exactly(one, layer.dense())
        return
    dense = jnp.stack([jnp.float32(layer.dense()) for layer in several])
    values = jax.vmap(lambda d, w: w.pattern.gather(d))(dense, stacked)
    for one, layer in zip(values, several, strict=True):
        oracle.equal_exactly(one, layer.clean)


def test_vmap_of_an_empty_axis_gives_an_empty_result(path):
    y = jax.vmap(functools.partial(matmul, implementation=path), (0, None))(XS[:0], W.values)
    assert y.shape == (0, 5, 24)
    y = jax.vmap(functools.partial(matmul, implementation=path), (None, 0))(X, WS[:0])
    assert y.shape == (0, 5, 24)
