"""What every transformation makes of every op equals what it makes of the definition."""

import functools

import bilinear
import jax
import jax.numpy as jnp
import pytest
from jax.ad_checkpoint import checkpoint_name

OPS = bilinear.make_ops()
# Kernels: every op. Plain JAX: one op that has all three members.
CASES = [(name, "ffi") for name in OPS] + [("matmul", "xla")]
every_op = pytest.mark.parametrize(
    ("op", "path"), CASES, ids=[f"{name}-{path}" for name, path in CASES], indirect=["path"]
)


def cubes(f):
    """A loss whose derivatives up to the third are neither zero nor rounded."""
    return lambda a, b: jnp.sum(f(a, b) ** 3)


def squares(f):
    return lambda a, b: jnp.sum(f(a, b) ** 2)


def squared_gradients(loss):
    return lambda *arrays: sum(jnp.sum(g**2) for g in jax.grad(loss, (0, 1))(*arrays))


def fed_back(f, a, b):
    """A result as an input again, so that calls can be chained."""
    return jnp.resize(f(a, b), a.shape)


def twice(f):
    return lambda a, b: fed_back(f, fed_back(f, a, b), b)


def scanned(f):
    def loop(a, b):
        return jax.lax.scan(lambda a, _: (fed_back(f, a, b), jnp.sum(a)), a, None, length=2)

    return loop


def looped(f):
    def loop(a, b):
        step = lambda state: (state[0] + 1, fed_back(f, state[1], b))
        return jax.lax.while_loop(lambda state: state[0] < 2, step, (0, a))[1]

    return loop


def branched(f):
    both = lambda a, b: jax.lax.cond(jnp.sum(a) < 1e6, f, lambda a, b: 2 * f(a, b), a, b)
    return squares(both)


def with_own_rule(f):
    """A user's custom_vjp around an op: its gradient doubled."""
    g = jax.custom_vjp(f)
    g.defvjp(
        lambda a, b: jax.vjp(f, a, b),
        lambda pull, t: jax.tree.map(lambda d: 2 * d, pull(t)),
    )
    return squares(g)


save_ours = jax.checkpoint_policies.save_only_these_names("result")
save_anything = jax.checkpoint_policies.everything_saveable
save_by_name = lambda primitive, *_, **__: primitive.name.startswith("jaxsparse_")
directions = lambda a, b: (jnp.flip(a), jnp.flip(b))


def jvp(f):
    return lambda a, b: jax.jvp(f, (a, b), directions(a, b))


def remat(f, policy=None):
    named = lambda a, b: checkpoint_name(f(a, b), "result")
    return jax.grad(jax.checkpoint(cubes(named), policy=policy), (0, 1))


# name: what is made of a function of (a, b). Each is called under jit, on both.
TRANSFORMS = {
    "call": lambda f: f,
    "grad": lambda f: jax.grad(cubes(f), (0, 1)),
    "value_and_grad": lambda f: jax.value_and_grad(squares(f), 1),
    "grad_of_grad": lambda f: jax.grad(squared_gradients(squares(f)), (0, 1)),
    "grad_of_grad_of_grad": lambda f: jax.grad(
        lambda a, b: sum(
            jnp.sum(t)
            for t in jax.grad(
                lambda a, b: sum(jnp.sum(g) for g in jax.grad(cubes(f), (0, 1))(a, b)), (0, 1)
            )(a, b)
        ),
        (0, 1),
    ),
    "vjp": lambda f: lambda a, b: jax.vjp(f, a, b)[1](f(a, b)),
    "jvp": jvp,
    "jvp_of_a_alone": lambda f: lambda a, b: jax.jvp(lambda a: f(a, b), (a,), (jnp.flip(a),)),
    "jvp_of_b_alone": lambda f: lambda a, b: jax.jvp(lambda b: f(a, b), (b,), (jnp.flip(b),)),
    "jvp_of_jvp": lambda f: jvp(lambda a, b: jvp(cubes(f))(a, b)[1]),
    "jvp_of_grad": lambda f: (
        lambda a, b: jax.jvp(jax.grad(cubes(f), (0, 1)), (a, b), directions(a, b))
    ),
    "grad_of_jvp": lambda f: jax.grad(lambda a, b: jvp(cubes(f))(a, b)[1], (0, 1)),
    "linearize": lambda f: lambda a, b: jax.linearize(cubes(f), a, b)[1](*directions(a, b)),
    "jacfwd": lambda f: jax.jacfwd(f, (0, 1)),
    "jacrev": lambda f: jax.jacrev(f, (0, 1)),
    "jacfwd_of_jacrev": lambda f: jax.jacfwd(jax.jacrev(squares(f), 1), 0),
    "linear_transpose_in_a": lambda f: (
        lambda a, b: jax.linear_transpose(lambda a: f(a, b), a)(f(a, b))
    ),
    "linear_transpose_in_b": lambda f: (
        lambda a, b: jax.linear_transpose(lambda b: f(a, b), b)(f(a, b))
    ),
    "twice_grad": lambda f: jax.grad(lambda a, b: jnp.sum(twice(f)(a, b)), (0, 1)),
    "scan": scanned,
    "grad_of_scan": lambda f: jax.grad(lambda a, b: jnp.sum(scanned(f)(a, b)[0]), (0, 1)),
    "while": looped,
    "grad_of_cond": lambda f: jax.grad(branched(f), (0, 1)),
    "grad_of_remat": remat,
    "grad_of_remat_named": lambda f: remat(f, save_ours),
    "grad_of_remat_saving_all": lambda f: remat(f, save_anything),
    "grad_of_remat_by_primitive": lambda f: remat(f, save_by_name),
    "grad_of_nested_remat": lambda f: jax.grad(jax.checkpoint(squares(jax.checkpoint(f))), (0, 1)),
    "custom_vjp_of_the_user": lambda f: jax.grad(with_own_rule(f), (0, 1)),
    "stop_gradient": lambda f: jax.grad(
        lambda a, b: jnp.sum(f(jax.lax.stop_gradient(a), b) * f(a, b)), (0, 1)
    ),
    "jit_of_jit": lambda f: jax.jit(jax.jit(f)),
    "vmap_a": lambda f: lambda a, b: jax.vmap(f, (0, None))(stack(a), b),
    "vmap_b": lambda f: lambda a, b: jax.vmap(f, (None, 0))(a, stack(b)),
    "vmap_both": lambda f: lambda a, b: jax.vmap(f)(stack(a), stack(b)),
    "vmap_last_axis": lambda f: (
        lambda a, b: jax.vmap(f, (-1, -1), 1)(
            jnp.moveaxis(stack(a), 0, -1), jnp.moveaxis(stack(b), 0, -1)
        )
    ),
    "vmap_of_one": lambda f: lambda a, b: jax.vmap(f)(a[None], b[None]),
    "vmap_a_in_b": lambda f: (
        lambda a, b: jax.vmap(jax.vmap(f, (0, None)), (None, 0))(stack(a), stack(b))
    ),
    "vmap_b_in_a": lambda f: (
        lambda a, b: jax.vmap(jax.vmap(f, (None, 0)), (0, None))(stack(a), stack(b))
    ),
    "vmap_thrice": lambda f: (
        lambda a, b: jax.vmap(jax.vmap(jax.vmap(f, (0, None)), (None, 0)), (0, 0))(
            jnp.stack([stack(a), -stack(a)]), jnp.stack([stack(b), stack(b)])
        )
    ),
    "vmap_of_grad": lambda f: (
        lambda a, b: jax.vmap(jax.grad(cubes(f), (0, 1)), (0, None))(stack(a), b)
    ),
    "vmap_of_grad_by_b": lambda f: (
        lambda a, b: jax.vmap(jax.grad(cubes(f), (0, 1)), (None, 0))(a, stack(b))
    ),
    "grad_of_vmap_a": lambda f: (
        lambda a, b: jax.grad(lambda a, b: jnp.sum(jax.vmap(cubes(f), (0, None))(a, b)), (0, 1))(
            stack(a), b
        )
    ),
    "grad_of_vmap_b": lambda f: (
        lambda a, b: jax.grad(lambda a, b: jnp.sum(jax.vmap(cubes(f), (None, 0))(a, b)), (0, 1))(
            a, stack(b)
        )
    ),
    "grad_of_vmap_both": lambda f: (
        lambda a, b: jax.grad(lambda a, b: jnp.sum(jax.vmap(cubes(f))(a, b)), (0, 1))(
            stack(a), stack(b)
        )
    ),
    "grad_of_nested_vmap": lambda f: (
        lambda a, b: jax.grad(
            lambda a, b: jnp.sum(jax.vmap(jax.vmap(cubes(f), (0, None)), (None, 0))(a, b)), (0, 1)
        )(stack(a), stack(b))
    ),
    "vmap_of_jvp": lambda f: lambda a, b: jax.vmap(jvp(f), (0, None))(stack(a), b),
    "jvp_of_vmap": lambda f: lambda a, b: jvp(jax.vmap(f, (None, 0)))(a, stack(b)),
    "vmap_of_scan": lambda f: lambda a, b: jax.vmap(scanned(f), (0, None))(stack(a), b),
    "vmap_of_remat": lambda f: lambda a, b: jax.vmap(remat(f), (0, None))(stack(a), b),
    "vmap_of_grad_of_grad": lambda f: (
        lambda a, b: jax.vmap(jax.grad(squared_gradients(squares(f)), (0, 1)), (0, None))(
            stack(a), b
        )
    ),
    "vmap_with_axis_name": lambda f: (
        lambda a, b: jax.vmap(lambda a: jax.lax.psum(f(a, b), "i"), axis_name="i")(stack(a))
    ),
    "map": lambda f: lambda a, b: jax.lax.map(lambda a: f(a, b), stack(a)),
}


def stack(a):
    """Two examples that differ in every entry."""
    return jnp.stack([a, -2 * a])


def hessian_by_a(f, a, b):
    return jax.hessian(lambda a: squares(f)(a, b))(a)


TRANSFORMS["hessian"] = lambda f: lambda a, b: hessian_by_a(f, a, b)


@functools.cache
def expected(transform, name):
    op = OPS[name]
    return jax.jit(TRANSFORMS[transform](op.theirs))(op.a, op.b)


@pytest.mark.parametrize("transform", TRANSFORMS)
@every_op
def test_transform_of_op_equals_transform_of_definition(transform, op, path):
    ours = jax.jit(TRANSFORMS[transform](OPS[op].of(path)))(OPS[op].a, OPS[op].b)
    bilinear.equal(ours, expected(transform, op))


@pytest.mark.parametrize("transform", ["call", "grad", "jvp", "vmap_a", "vmap_b", "grad_of_vmap_b"])
@every_op
def test_eager_transform_equals_jitted(transform, op, path):
    ours = TRANSFORMS[transform](OPS[op].of(path))(OPS[op].a, OPS[op].b)
    bilinear.equal(ours, expected(transform, op))


@pytest.mark.parametrize("transform", ["call", "grad", "jvp", "vmap_a"])
@every_op
def test_transform_under_disable_jit_equals_definition(transform, op, path):
    with jax.disable_jit():
        ours = TRANSFORMS[transform](OPS[op].of(path))(OPS[op].a, OPS[op].b)
    bilinear.equal(ours, expected(transform, op))
