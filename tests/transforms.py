"""Transformations of a bilinear function of two arrays, by name."""

import jax
import jax.numpy as jnp


def cubes(f):
    return lambda a, b: jnp.sum(f(a, b) ** 3)


def over(devices):
    """`shard_map` over a mesh of what `devices()` returns, everything everywhere."""
    whole = jax.sharding.PartitionSpec()
    mesh = lambda: jax.make_mesh((1,), ("all",), devices=devices())
    return lambda f: (
        lambda a, b: jax.shard_map(
            f, mesh=mesh(), in_specs=whole, out_specs=whole, check_vma=False
        )(a, b)
    )


TRANSFORMS = {
    "jit": jax.jit,
    "grad": lambda f: jax.grad(cubes(f), (0, 1)),
    "grad_of_grad": lambda f: (
        lambda a, b: jax.grad(
            lambda *ab: sum(
                jnp.vdot(g, jnp.flip(s))
                for g, s in zip(jax.grad(cubes(f), (0, 1))(*ab), (a, b), strict=True)
            ),
            (0, 1),
        )(a, b)
    ),
    "jvp": lambda f: lambda a, b: jax.jvp(f, (a, b), (jnp.flip(a), jnp.flip(b))),
    "linearize": lambda f: lambda a, b: jax.linearize(f, a, b)[1](a, b),
    "forward_over_reverse": lambda f: (
        lambda a, b: jax.jvp(jax.grad(cubes(f), (0, 1)), (a, b), (jnp.flip(a), jnp.flip(b)))
    ),
    "remat": lambda f: jax.grad(jax.checkpoint(cubes(f)), (0, 1)),
    "vmap_a": lambda f: lambda a, b: jax.vmap(f, (0, None))(jnp.stack([a, -a, 2 * a]), b),
    "vmap_b": lambda f: lambda a, b: jax.vmap(f, (None, 0))(a, jnp.stack([b, -b, 2 * b])),
    "vmap_of_grad": lambda f: (
        lambda a, b: jax.vmap(jax.grad(cubes(f), (0, 1)), (0, None))(jnp.stack([a, -a]), b)
    ),
    "grad_of_vmap": lambda f: (
        lambda a, b: jax.grad(
            lambda b: jnp.sum(jax.vmap(f, (0, None))(jnp.stack([a, -a]), b) ** 3)
        )(b)
    ),
    "scan": lambda f: (
        lambda a, b: jax.lax.scan(lambda a, _: (a + 1, jnp.sum(f(a, b))), a, None, length=3)
    ),
    "shard_map": over(lambda: jax.devices()[:1]),
}
