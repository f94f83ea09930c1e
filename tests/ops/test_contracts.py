"""Gradient contracts: what gradients hold under `grad="sparse"` and `"dense"`, what is refused."""

import cases
import jax
import jax.numpy as jnp
import oracle
import pytest
from machine import members

import jaxsparse as js

LAYER = cases.make("tiles_ragged", unused=2)
X, G = LAYER.array("x"), LAYER.array("g")


def packed(grad, path=None):
    w = LAYER.weight()
    return lambda x, v: js.matmul(x, w.with_values(v), grad=grad, implementation=path), w.values


def stored_dense(grad, path=None):
    """The weights off the pattern are NaN: they take no part."""
    w = jnp.where(LAYER.pattern().mask(), jnp.float32(LAYER.dense()), jnp.nan)
    product = lambda x, w: js.matmul(x, w, pattern=LAYER.pattern(), grad=grad, implementation=path)
    return product, w


def exact_gradients(form, grad):
    """By definition, of <G, matmul(X, w)>."""
    if form is packed:
        return LAYER.dx(), LAYER.dvalues()
    if grad == "dense":
        return LAYER.dx(), LAYER.x.T @ LAYER.g
    return LAYER.dx(), oracle.todense(LAYER.dvalues(), *LAYER.places)


CONTRACTS = [(packed, "sparse"), (stored_dense, "sparse"), (stored_dense, "dense")]
every_contract = pytest.mark.parametrize(
    ("form", "grad"), CONTRACTS, ids=[f"{form.__name__}-{grad}" for form, grad in CONTRACTS]
)


@every_contract
def test_result_under_a_contract_is_the_product(form, grad, path):
    product, w = form(grad, path)
    oracle.equal_exactly(product(X, w), LAYER.y())


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
@every_contract
def test_gradients_hold_what_the_contract_says(form, grad, jit, path):
    product, w = form(grad, path)
    pull_back = lambda x, w: jax.vjp(product, x, w)[1](G)
    dx, dw = (jax.jit(pull_back) if jit else pull_back)(X, w)
    exact_dx, exact_dw = exact_gradients(form, grad)
    oracle.equal_exactly(dx, exact_dx)
    oracle.equal_exactly(dw, exact_dw)


@every_contract
def test_contract_gradients_hold_under_dense_implementation(form, grad):
    product, w = form(grad, "dense")
    dx, dw = jax.vjp(product, X, w)[1](G)
    exact_dx, exact_dw = exact_gradients(form, grad)
    oracle.equal_exactly(dx, exact_dx)
    oracle.equal_exactly(dw, exact_dw)


@every_contract
def test_contract_gradients_hold_per_example_under_vmap(form, grad, path):
    product, w = form(grad, path)
    xs, gs = jnp.stack([X, 2 * X]), jnp.stack([G, -G])
    dx, dw = jax.jit(jax.vmap(lambda x, g: jax.vjp(product, x, w)[1](g)))(xs, gs)
    exact_dx, exact_dw = exact_gradients(form, grad)
    oracle.equal_exactly(dx[1], -exact_dx)
    oracle.equal_exactly(dw[1], -2 * exact_dw)


@every_contract
def test_contract_gradients_hold_under_remat_and_scan(form, grad):
    product, w = form(grad)

    def loss(w):
        step = lambda total, x: (total + jnp.vdot(jax.checkpoint(product)(x, w), G), None)
        return jax.lax.scan(step, jnp.float32(0), jnp.stack([X, 2 * X]))[0]

    oracle.equal_exactly(jax.jit(jax.grad(loss))(w), 3 * exact_gradients(form, grad)[1])


@every_contract
def test_jacrev_under_a_contract_equals_the_rows_of_its_gradient(form, grad):
    product, w = form(grad)
    jacobian = jax.jacrev(lambda x: product(x, w)[0, :3])(X)
    assert jacobian.shape == (3, *X.shape)
    oracle.equal_exactly(jacobian[:, 0], LAYER.dense()[:, :3].T)


FORWARD_MODE = {
    "jvp": lambda f, x, w: jax.jvp(f, (x, w), (x, w)),
    "jvp_of_x": lambda f, x, w: jax.jvp(lambda x: f(x, w), (x,), (x,)),
    "jvp_of_w": lambda f, x, w: jax.jvp(lambda w: f(x, w), (w,), (w,)),
    "jit_of_jvp": lambda f, x, w: jax.jit(lambda x: jax.jvp(f, (x, w), (x, w)))(x),
    "jvp_of_jit": lambda f, x, w: jax.jvp(jax.jit(f), (x, w), (x, w)),
    "linearize": lambda f, x, w: jax.linearize(f, x, w)[1](x, w),
    "jacfwd": lambda f, x, w: jax.jacfwd(f)(x, w),
    "hessian": lambda f, x, w: jax.hessian(lambda x: jnp.sum(f(x, w) ** 2))(x),
    "jvp_of_grad": lambda f, x, w: jax.jvp(jax.grad(lambda x: jnp.sum(f(x, w) ** 2)), (x,), (x,)),
    "vmap_of_jvp": lambda f, x, w: jax.vmap(lambda x: jax.jvp(lambda x: f(x, w), (x,), (x,)))(
        x[None]
    ),
    "jvp_of_scan": lambda f, x, w: jax.jvp(
        lambda x: jax.lax.scan(lambda c, _: (c, f(c, w)), x, None, length=2)[1], (x,), (x,)
    ),
}


@pytest.mark.parametrize("how", FORWARD_MODE)
@every_contract
def test_forward_mode_under_a_contract_is_refused_and_names_exact(form, grad, how):
    product, w = form(grad)
    with pytest.raises(TypeError, match=r'matmul: forward-mode .* need grad="exact"'):
        jax.block_until_ready(FORWARD_MODE[how](product, X, w))


def test_no_contract_adds_nothing_to_the_program():
    product, w = packed("exact")
    jaxpr = str(jax.make_jaxpr(product)(X, w))
    assert "custom_vjp" not in jaxpr
    assert "reverse_only" not in jaxpr


def test_sparse_contract_makes_one_call_of_each_member():
    product, w = packed("sparse")
    pull_back = lambda x, w, g: jax.vjp(product, x, w)[1](g)
    program_calls = members(jax.jit(pull_back), X, w, G)
    assert [name for name in program_calls if name != "forward"] == ["input_grad", "weight_grad"]


def test_dense_contract_writes_no_sampled_gradient():
    product, w = stored_dense("dense")
    pull_back = lambda x, w, g: jax.vjp(product, x, w)[1](g)
    assert "weight_grad" not in members(pull_back, X, w, G)


def test_dense_contract_is_refused_for_a_sparse_weight():
    with pytest.raises(ValueError, match=r"Pass an array w with pattern=w\.pattern"):
        js.matmul(X, LAYER.weight(), grad="dense")


def test_dense_contract_of_a_dense_product_is_its_gradient():
    w = jnp.float32(LAYER.dense())
    dw = jax.vjp(lambda w: js.matmul(X, w, grad="dense"), w)[1](G)[0]
    oracle.equal_exactly(dw, LAYER.x.T @ LAYER.g)
