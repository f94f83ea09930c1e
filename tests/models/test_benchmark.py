"""Benchmarks: what is compared with what, and that nothing wrong is timed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from machine import need

import jaxsparse as js
from jaxsparse.core import kernel
from jaxsparse.tune import timing

X = jax.random.normal(jax.random.key(0), (8, 32))
W = js.fromdense(jax.random.normal(jax.random.key(1), (32, 32)), "8x8", sparsity=0.5)
quick = {"seconds": 0.01}


@pytest.fixture
def fixed_times(monkeypatch):
    """Each function takes as many milliseconds as there are letters in its name."""

    def interleaved(functions, **_):
        for function in functions.values():
            function()
        return {name: [1e-3 * len(name)] * 5 for name in functions}

    monkeypatch.setattr(timing, "interleaved", interleaved)


def test_a_model_is_timed_dense_sparse_and_as_chosen():
    model, _ = js.sparsify(nnx.Linear(32, 32, rngs=nnx.Rngs(0)), js.Rule("", "8x8", sparsity=0.5))
    dense = nn.Dense(32)
    variables = dense.init(jax.random.key(0), X)
    linen, new, _ = js.sparsify(dense, js.Rule("", "8x8", sparsity=0.5), variables, X)
    for result in (
        js.benchmark(model, X, **quick),
        js.benchmark(linen, new, X, **quick),
        js.benchmark(lambda x: js.matmul(x, W), X, **quick),
    ):
        assert [row.name for row in result] == ["dense", "sparse", "chosen"]
        assert all(row.ms > 0 for row in result)
        assert result["dense"].ratio == 1
        assert "chosen" in str(result)


def test_each_of_the_modes_is_what_runs(monkeypatch):
    need("cpu_kernels")
    programs = {}

    def interleaved(functions, **_):
        programs.update(functions)
        return {name: [1.0] * 5 for name in functions}

    monkeypatch.setattr(timing, "interleaved", interleaved)
    calls = []
    original = kernel.call
    monkeypatch.setattr(kernel, "call", lambda *a: (calls.append(a[0]), original(*a))[1])
    js.benchmark(lambda x: js.matmul(x, W), X)
    # Two programs that differ: one unpacks the weight for XLA's op, one multiplies by the blocks.
    assert "jaxsparse.block_scatter.v1" in calls
    assert "jaxsparse.block_matmul_forward.v1" in calls
    assert list(programs) == ["dense", "sparse", "chosen"]


@pytest.mark.usefixtures("fixed_times")
def test_ratios_are_to_the_first_and_times_are_medians():
    functions = {"four": jnp.sin, "eight___": jnp.sin, "an": jnp.sin}
    result = js.benchmark(functions, X)
    assert [(row.ms, row.ratio) for row in result] == [(4, 1), (8, 0.5), (2, 2)]
    assert result["an"].spread == (2, 2)


@pytest.mark.usefixtures("fixed_times")
@pytest.mark.parametrize(
    ("other", "words"),
    [
        (lambda x: x.at[3, 4].add(0.01), "'b' off by 0.01 from 'a'"),
        (lambda x: x.at[3, 4].set(np.nan), "'b' off by inf"),
        (lambda x: x[:4], r"one shape, got \(8, 32\) of 'a' and \(4, 32\)"),
        (lambda x: (x, x), "must return the same"),
    ],
)
def test_what_is_wrong_is_not_timed(other, words):
    with pytest.raises(ArithmeticError, match=words):
        js.benchmark({"a": lambda x: x, "b": other}, X)


@pytest.mark.usefixtures("fixed_times")
def test_rtol_says_how_much_results_may_differ():
    functions = {"a": lambda x: x, "b": lambda x: x.at[3, 4].add(0.01)}
    js.benchmark(functions, X, rtol=0.01)
    with pytest.raises(ArithmeticError):
        js.benchmark(functions, X, rtol=0.001)


def test_two_models_are_the_sparse_and_the_dense_one(fixed_times):
    sparse, dense = lambda x: js.matmul(x, W), lambda x: x @ W.todense()
    rows = js.benchmark(sparse, dense, X)
    assert [row.name for row in rows] == ["dense", "sparse"]
    assert rows["sparse"].ratio == pytest.approx(5 / 6)
    with pytest.raises(ArithmeticError, match="'sparse' off by"):
        js.benchmark(lambda x: 2 * sparse(x), dense, X)
    which = r"PyTreeDef\(\*\) of 'dense' and PyTreeDef\(\(\*,\)\) of 'sparse'"
    with pytest.raises(ArithmeticError, match=which):
        js.benchmark(lambda x: (sparse(x),), dense, X)


def test_one_function_by_name_is_refused():
    with pytest.raises(ValueError, match=r"two functions or more, got \['a'\]"):
        js.benchmark({"a": jnp.sin}, X)
