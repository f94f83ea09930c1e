"""What each of two processes runs that make up one JAX program, with two devices each.

Arrays are spread over both; every result is compared with the definition in both.
"""

import dataclasses
import functools

import cases
import jax
import jax.numpy as jnp
import numpy as np
import oracle
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxsparse as js
import jaxsparse.nnx as jnnx
from jaxsparse.problems import Problem

LAYER = cases.make(Problem("processes", (8,), (32, 48), (8, 8), 0.5, ""))
WHOLE = P()


def place(mesh, spec, tree):
    """Global arrays: each process makes the parts that its devices hold."""

    def one(array):
        array = np.asarray(array)
        sharding = NamedSharding(mesh, spec)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(one, tree)


def whole(array):
    return multihost_utils.process_allgather(array, tiled=True)


def gradients(product, x, w):
    """The gradients of <g, product(x, w)> by x and by the values; g is a constant."""
    total = lambda x, v: jnp.sum(product(x, dataclasses.replace(w, values=v)) * LAYER.array("g"))
    return jax.grad(total, (0, 1))(x, w.values)


def dense_gradient():
    return oracle.todense(LAYER.dvalues(), *LAYER.places)


def check_op(mesh, path, spec_x, spec_w, weight=None):
    """A product and its gradients, with `x` and the leaves of the weight spread as said."""
    weight = weight or LAYER.weight(garbage=False)
    x, w = place(mesh, spec_x, LAYER.array("x")), place(mesh, spec_w, weight)
    product = functools.partial(js.matmul, implementation=path)
    oracle.equal_exactly(whole(jax.jit(product)(x, w)), LAYER.y())
    dx, dvalues = jax.jit(functools.partial(gradients, product))(x, w)
    oracle.equal_exactly(whole(dx), LAYER.dx())
    back = dataclasses.replace(weight, values=jnp.asarray(whole(dvalues)))
    oracle.equal_exactly(back.todense(), dense_gradient())


def check_shard_map(mesh, path, spec):
    """Each device multiplies its own rows; gradients are summed over processes."""
    specs = {"in_specs": (spec, WHOLE), "out_specs": spec}
    product = jax.shard_map(functools.partial(js.matmul, implementation=path), mesh=mesh, **specs)
    x = place(mesh, spec, LAYER.array("x"))
    w = place(mesh, WHOLE, LAYER.weight(garbage=False))
    dx, dvalues = jax.jit(functools.partial(gradients, product))(x, w)
    oracle.equal_exactly(whole(dx), LAYER.dx())
    oracle.equal_exactly(whole(dvalues), LAYER.dvalues())


def check_layer(mesh, path, axis):
    """One step of data-parallel training: the kernel of a layer moves by its gradient."""
    layer = jnnx.Linear(
        *LAYER.shape,
        use_bias=False,
        pattern=LAYER.pattern(),
        implementation=path,
        rngs=nnx.Rngs(0),
    )
    layer.kernel[...] = jnp.asarray(LAYER.dense(), jnp.float32)
    graph, state = nnx.split(layer)
    state = place(mesh, WHOLE, state)
    x = place(mesh, P(axis), LAYER.array("x"))

    @jax.jit
    def step(state, x):
        layer = nnx.merge(graph, state)
        loss = lambda layer: jnp.sum(layer(x) * LAYER.array("g"))
        gradient = nnx.grad(loss)(layer)
        return layer.kernel[...] - gradient["kernel"][...]

    oracle.equal_exactly(whole(step(state, x)), LAYER.dense() - dense_gradient())


def main(port: int, process: int, path: str | None) -> None:
    jax.distributed.initialize(f"localhost:{port}", 2, process)
    assert (jax.device_count(), jax.local_device_count()) == (4, 2)
    devices = np.array(jax.devices()).reshape(2, 2)
    each = P(("process", "device"))
    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh = Mesh(devices, ("process", "device"), axis_types=(kind, kind))
        with jax.set_mesh(mesh):
            check_op(mesh, path, each, WHOLE)
            for features, spec_x in (("out", WHOLE), ("in", P(None, "process"))):
                weight = js.split_features(LAYER.weight(garbage=False), 2, features)
                check_op(mesh, path, spec_x, P("process"), weight)
            check_layer(mesh, path, "process")
            if kind is AxisType.Auto:
                check_op(mesh, path, P("device"), P("process"))  # each has some blocks
                check_shard_map(mesh, path, each)
    print("done")
