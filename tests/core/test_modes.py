"""Modes: what decides in place of the break-even points, inside a context."""

import jax
import jax.numpy as jnp
import pytest
from machine import compiled, handler_calls, need

import jaxsparse as js
from jaxsparse.core import modes

X = jnp.ones((4, 32))
HALF = js.fromdense(jnp.ones((32, 32)), "8x8", sparsity=0.5)


@pytest.fixture(autouse=True)
def _kernels():
    need("cpu_kernels")


def paths(function, *args):
    return [call.path for call in js.explain(function, *args)]


def test_a_mode_decides_for_every_density():
    full = js.fromdense(jnp.ones((32, 32)), "8x8")
    with js.mode("sparse"):
        assert paths(js.matmul, X, full) == ["ffi"]
    with js.mode("dense"):
        assert paths(js.matmul, X, js.fromdense(jnp.eye(32), "8x8", sparsity=0.9)) == ["dense"]


def test_a_mode_holds_for_gradients_too():
    loss = lambda x, v: (js.matmul(x, HALF.with_values(v)) ** 2).sum()
    with js.mode("sparse"):
        assert paths(jax.grad(loss, (0, 1)), X, HALF.values) == ["ffi"] * 3


def test_an_implementation_of_its_own_is_kept():
    with js.mode("dense"):
        assert paths(lambda x: js.matmul(x, HALF, implementation="ffi"), X) == ["ffi"]
    with js.mode("sparse"):
        assert paths(lambda x: js.matmul(x, HALF, implementation="xla"), X) == ["xla"]


def test_a_mode_is_part_of_the_key_of_compiled_functions():
    traces = []

    @jax.jit
    def f(x):
        traces.append(len(traces))
        return js.matmul(x, HALF)

    f(X)
    with js.mode("dense"):
        f(X)
        assert handler_calls(f.lower(X).compile()) == ["scatter"]
    with js.mode("sparse"):
        f(X)
        assert handler_calls(f.lower(X).compile()) == ["forward"]
    assert len(traces) == 3
    f(X)
    with js.mode("dense"):
        f(X)
    assert len(traces) == 3


def test_the_innermost_mode_decides_and_leaving_restores():
    before = modes.current()
    with js.mode("dense"):
        with js.mode("sparse"):
            assert paths(js.matmul, X, HALF) == ["ffi"]
        assert paths(js.matmul, X, HALF) == ["dense"]
    assert modes.current() == before


def test_copies_stay_kernels_in_every_mode():
    with js.mode("dense"):
        assert "jaxsparse.block_scatter" in compiled(js.matmul, X, HALF).as_text()


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match='"dense" or "sparse", got \'fast\''):
        js.mode("fast")
