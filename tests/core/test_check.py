"""Checks: what they find, what they rightly do not mind, and that they never compare nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from machine import handler_calls, need

import jaxsparse as js
from jaxsparse.core import kernel

X = jax.random.normal(jax.random.key(0), (6, 32))
DENSE = jax.random.normal(jax.random.key(1), (32, 32))
W = js.fromdense(DENSE, "8x8", sparsity=0.75)
IMAGES = jax.random.normal(jax.random.key(2), (2, 6, 5, 4))
KERNEL = js.fromdense(jax.random.normal(jax.random.key(3), (3, 3, 4, 8)), "4x8", sparsity=0.5)
ffi = functools.partial(js.matmul, implementation="ffi")


@pytest.fixture(autouse=True)
def _kernels():
    need("cpu_kernels")


@pytest.fixture
def fault(monkeypatch):
    """Makes the handler of one member return `change(result)`."""

    def plant(member, change):
        original = kernel.call

        def call(target, *args):
            result = original(target, *args)
            return change(result) if target == kernel.target_name(member) else result

        monkeypatch.setattr(kernel, "call", call)

    return plant


def off_at(*index, by=1e-3):
    return lambda result: result.at[index].add(jnp.asarray(by, result.dtype))


def gradients(op, x, w):
    loss = lambda x, values: (op(x, w.with_values(values)) ** 2).sum()
    return jax.grad(loss, (0, 1))(x, w.values)


# What agrees --------------------------------------------------------------------------------------

OPS = {
    "matmul": (js.matmul, X, W),
    "conv": (functools.partial(js.conv, strides=2, padding="VALID"), IMAGES, KERNEL),
    "bfloat16": (js.matmul, X.astype(jnp.bfloat16), W.astype(jnp.bfloat16)),
}


@pytest.mark.parametrize("name", OPS)
def test_forward_and_both_gradients_are_compared_and_agree(name):
    op, x, w = OPS[name]
    with js.check() as checked:
        jax.jit(functools.partial(gradients, op))(x, w)
    family = "block_matmul" if op is js.matmul else "block_conv"
    compared = {row.member for row in checked.rows if row.way == "ffi" and row.runs == 1}
    assert compared >= {f"{family}_{role}" for role in ("forward", "input_grad", "weight_grad")}
    assert all(row.worst <= 1 for row in checked.rows)
    assert not checked.bad
    assert str(checked).count("agrees") == len(checked.rows)


def test_sums_of_one_sign_are_not_taken_for_errors():
    """Products of one sign round by the root of their number, which is more than eight units."""
    positive = lambda seed, *shape: jax.random.uniform(
        jax.random.key(seed), shape, minval=1, maxval=2
    )
    x, w = positive(1, 40, 4608), js.fromdense(positive(2, 4608, 16), "unstructured")
    with js.check() as checked:
        ffi(x, w)
    (row,) = checked.rows
    assert 16 < row.worst * 2 * np.sqrt(4608) <= 2 * np.sqrt(4608)  # in units


def test_what_a_call_returns_does_not_change():
    y = js.matmul(X, W)
    with js.check():
        np.testing.assert_array_equal(js.matmul(X, W), y)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda f: jax.jit(jax.vmap(f, (0, None))),
        lambda f: jax.jit(lambda x, w: jax.lax.map(lambda x: f(x, w), x)),
        lambda f: jax.jit(jax.grad(lambda x, w: jax.checkpoint(f)(x, w).sum())),
        lambda f: jax.jit(f, in_shardings=(split("a"), split())),
        lambda f: jax.jit(
            jax.shard_map(
                f,
                mesh=mesh(),
                in_specs=(PartitionSpec("a"), PartitionSpec()),
                out_specs=PartitionSpec("a"),
            ),
            in_shardings=(split("a"), split()),
        ),
    ],
    ids=["vmap", "scan", "remat", "mesh", "shard_map"],
)
def test_checks_see_through_transformations(wrap, fault):
    x = jnp.concatenate([X, X[:2]])
    with js.check() as checked:
        wrap(js.matmul)(x, W)
    assert checked.rows
    assert all(row.runs >= 1 for row in checked.rows)
    for member in ("forward", "input_grad"):
        fault(f"block_matmul_{member}", lambda y: y + 1)
    with pytest.raises(js.CheckError, match="block_matmul_"), js.check():
        wrap(js.matmul)(x, W)


def mesh():
    return jax.sharding.Mesh(np.array(jax.devices()[:2]), ("a",))


def split(*names):
    return NamedSharding(mesh(), PartitionSpec(*names))


# What differs -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("member", "index"), [("forward", (3, 7)), ("input_grad", (5, 30)), ("weight_grad", (2, 1, 4))]
)
def test_one_wrong_element_in_any_direction_is_named(fault, member, index):
    fault(f"block_matmul_{member}", off_at(*index, by=0.5))
    words = rf"block_matmul_{member} \(ffi\): 1 elements differ in 1 runs.* at \({index[0]}, "
    words += ", ".join(map(str, index[1:]))
    run = js.matmul if member == "forward" else jax.jit(functools.partial(gradients, js.matmul))
    with pytest.raises(js.CheckError, match=words), js.check():
        run(X, W)


def test_a_missing_product_is_found(fault):
    """One of eight: the least that can be wrong."""
    row, col = (int(W.pattern.indices[i][0]) * 8 for i in range(2))
    lost = X[2, row] * W.values[0, 0, 0]
    fault("block_matmul_forward", off_at(2, col, by=-lost))
    with pytest.raises(js.CheckError, match=rf"at \(2, {col}\)"), js.check():
        js.matmul(X, W)


def test_a_layer_that_falls_back_to_dense_is_compared_all_the_same(fault):
    full = js.fromdense(DENSE, "4x4", sparsity=0.1)
    assert [call.path for call in js.explain(js.matmul, X, full)] == ["dense"]
    with js.check() as checked:
        js.matmul(X, full)
    ways = {row.way: row for row in checked.rows if row.member == "block_matmul_forward"}
    assert set(ways) == {"dense", "ffi"}
    assert "break-even" in ways["ffi"].why
    fault("block_matmul_forward", off_at(0, 0))
    with pytest.raises(js.CheckError, match="ffi, not chosen: density"), js.check():
        js.matmul(X, full)


@pytest.mark.parametrize("implementation", ["xla", "dense"])
def test_a_strict_implementation_is_compared_all_the_same(fault, implementation):
    fault("block_matmul_forward", off_at(0, 0))
    words = f'not chosen: implementation="{implementation}"'
    with pytest.raises(js.CheckError, match=words), js.check():
        js.matmul(X, W, implementation=implementation)


def test_copies_may_not_differ_in_one_bit(fault):
    fault("block_gather", lambda values: jnp.nextafter(values, jnp.inf))
    with pytest.raises(js.CheckError, match="block_gather"), js.check():
        W.pattern.gather(DENSE)


def test_where_there_is_no_kernel_the_check_says_so():
    x = jnp.ones((2, 32), jnp.int32)
    with js.check() as checked:
        js.matmul(x, js.fromdense(DENSE.astype(jnp.int32), "8x8"))
    (row,) = (row for row in checked.rows if row.member == "block_matmul_forward")
    assert row.way == "none"
    assert "not compared, " in str(row)
    assert "not int32" in row.why


def test_rtol_says_how_much_is_allowed(fault):
    fault("block_matmul_forward", lambda y: y * 1.001)
    with js.check(rtol=0.01):
        js.matmul(X, W)
    with pytest.raises(js.CheckError), js.check(rtol=1e-5):
        js.matmul(X, W)
    with pytest.raises(ValueError, match="rtol must be positive, got 0"):
        js.check(rtol=0)


def test_a_check_may_report_and_not_raise(fault):
    fault("block_matmul_forward", off_at(1, 2, by=0.25))
    with js.check(raises=False) as checked:
        y = js.matmul(X, W)
    (row,) = checked.bad
    assert (row.index, row.num_bad, row.runs) == ((1, 2), 1, 1)
    assert row.got == pytest.approx(float(y[1, 2]))
    assert row.got - row.expected == pytest.approx(0.25, rel=1e-3)


def test_an_error_in_the_block_is_not_hidden(fault):
    fault("block_matmul_forward", off_at(1, 2))
    with pytest.raises(ZeroDivisionError), js.check():
        js.matmul(X, W) / (1 // 0)


# NaN and Inf --------------------------------------------------------------------------------------

STORED = np.asarray(W.pattern.grid_mask())  # [4, 4] blocks
IN = 8 * int(np.argmax(STORED.any(1) & ~STORED.all(1)))  # an input with blocks, but not in all
TO = 8 * int(np.argmax(STORED[IN // 8]))  # an output that it reaches


@pytest.mark.parametrize("special", [np.nan, -np.inf])
def test_special_values_agree_where_weights_are_missing_and_where_they_are_not(special):
    x = X.at[1, IN].set(special)
    with js.check():
        y = ffi(x, W)
    assert np.isfinite(y).any(1).all()  # the kernel skipped what is not stored
    assert not np.isfinite(y[1, TO])
    both = W.with_values(W.values.at[0, 0, 0].set(special))
    with js.check():
        ffi(X, both)


@pytest.mark.parametrize(
    ("change", "index"),
    [
        (lambda y: y.at[1, TO].set(0.0), (1, TO)),  # a NaN lost
        (lambda y: y.at[4, 3].set(np.nan), (4, 3)),  # a NaN made
        (lambda y: y.at[1, TO].set(1.0).at[1, TO].set(y[0, 0]), (1, TO)),
    ],
    ids=["lost", "made", "finite"],
)
def test_a_special_value_that_is_lost_or_made_is_found(fault, change, index):
    fault("block_matmul_forward", change)
    x = X.at[1, IN].set(np.nan)
    with pytest.raises(js.CheckError, match=rf"at \({index[0]}, {index[1]}\)"), js.check():
        ffi(x, W)


def test_finite_results_beside_a_special_value_are_still_compared(fault):
    fault("block_matmul_forward", off_at(3, 2))
    x = X.at[1, IN].set(np.nan)
    with pytest.raises(js.CheckError, match=r"1 elements differ.* at \(3, 2\)"), js.check():
        ffi(x, W)


# Layers, and what is compiled when ----------------------------------------------------------------


def model_nnx():
    model = nnx.Sequential(
        nnx.Linear(32, 32, rngs=nnx.Rngs(0)), nnx.Linear(32, 32, rngs=nnx.Rngs(1))
    )
    sparse, _ = js.sparsify(model, js.Rule("layers/1", "8x8", sparsity=0.75))
    return lambda: nnx.jit(nnx.value_and_grad(lambda model, x: model(x).sum()))(
        sparse, X
    ), "layers/1"


def model_linen():
    model = nn.Sequential([nn.Dense(32), nn.Dense(32)])
    variables = model.init(jax.random.key(0), X)
    rule = js.Rule("layers_1", "8x8", sparsity=0.75)
    sparse, variables, _ = js.sparsify(model, rule, variables, X)

    def loss(params, others):
        return sparse.apply({**others, "params": params}, X).sum()

    return lambda: jax.jit(jax.value_and_grad(loss))(variables["params"], variables), "layers_1"


@pytest.mark.parametrize("make", [model_nnx, model_linen])
@pytest.mark.parametrize("member", ["forward", "weight_grad"])
def test_the_layer_is_named_forward_and_backward(fault, make, member):
    run, name = make()
    fault(f"block_matmul_{member}", lambda y: y + 1)
    words = f"{name}: stored_dense_block_matmul_{member} "
    with pytest.raises(js.CheckError, match=words), js.check():
        run()


def test_a_named_scope_names_a_call():
    with js.check() as checked, jax.named_scope("mine"):
        jax.jit(js.matmul)(X, W)
        js.matmul(X, W)
    assert checked.rows[-1].name == "mine"


def test_functions_compiled_before_are_checked_and_found_again_after():
    f = jax.jit(js.matmul)
    f(X, W)
    with js.check() as checked:
        f(X, W)
        f(X, W)
    assert [row.runs for row in checked.rows] == [2]
    f(X, W)
    assert [row.runs for row in checked.rows] == [2]
    assert handler_calls(f.lower(X, W).compile()) == ["forward"]
