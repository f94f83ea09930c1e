"""Every public op as a bilinear function of two arrays, beside its definition in plain JAX.

What a transformation makes of the one must equal what it makes of the other. The definition works
on single weights, by their coordinates, and shares nothing with the library. Arrays hold small
integers and losses are polynomials, so that equal means equal.
"""

import dataclasses
import functools
from collections.abc import Callable

import cases
import conv_cases
import jax
import jax.numpy as jnp
import numpy as np
import oracle

import jaxsparse as js
from jaxsparse.problems import ConvProblem, Problem

# Ragged in both directions; few enough products that cubes of results are exact in float32.
PROBLEM = Problem("transforms", (3,), (11, 9), (4, 2), 0.4, "")
_conv = functools.partial(ConvProblem, "transforms", batch=(2,), sparsity=0.4, strides=(2,))
CONVS = {
    "conv": ("unstructured", _conv((5,), (3,), (3, 4))),
    "conv_transpose": ("grouped:3", _conv((3,), (3,), (3, 4), transposed=True)),
}

# Of the ops below, those that have kernels for GPUs.
WITH_CUDA_KERNELS = ("matmul", "stored_dense", "sddmm")


@dataclasses.dataclass(frozen=True)
class Op:
    """`ours(a, b)` and `theirs(a, b)`, bilinear, and what to call them with."""

    name: str
    ours: Callable
    theirs: Callable
    a: jax.Array
    b: jax.Array

    def of(self, implementation):
        return functools.partial(self.ours, implementation=implementation)


def coordinates(layer):
    """Input and output of every stored weight; beyond the weight for what is not inside."""
    (block_in, block_out), (rows, cols) = layer.block, (layer.rows, layer.cols)
    inputs = rows[:, None, None] * block_in + np.arange(block_in)[None, :, None]
    outputs = cols[:, None, None] * block_out + np.arange(block_out)[None, None, :]
    return np.broadcast_arrays(inputs, outputs)


def plain_todense(layer, values):
    places = coordinates(layer)
    return jnp.zeros(layer.shape, values.dtype).at[places].add(values, mode="drop")


def plain_matmul(layer, x, values):
    return jnp.matmul(x, plain_todense(layer, values), precision="highest")


def plain_matmul_stored_dense(layer, x, w):
    mask = oracle.todense(np.ones((len(layer.rows), *layer.block)), *layer.places)
    return jnp.matmul(x, w * jnp.asarray(mask, w.dtype), precision="highest")


def plain_sddmm(layer, a, b):
    whole = jnp.einsum("...i,...o->io", a, b, precision="highest")
    return whole.at[coordinates(layer)].get(mode="fill", fill_value=0)


def plain_conv(layer, x, values):
    problem = layer.problem
    rows = jnp.where(layer.rows < 0, 10**6, layer.rows)
    shape = (int(np.prod(problem.weight_shape[:-1])), problem.weight_shape[-1])
    matrix = jnp.zeros(shape, values.dtype).at[rows, layer.cols].add(values, mode="drop")
    function = jax.lax.conv_transpose if problem.transposed else jax.lax.conv_general_dilated
    return function(
        x,
        matrix.reshape(problem.weight_shape),
        problem.strides,
        problem.padding,
        dimension_numbers=("NWC", "WIO", "NWC"),
        precision="highest",
    )


def make_convs(dtype) -> list[Op]:
    ops = []
    for name, (format, problem) in CONVS.items():
        layer = conv_cases.make(
            problem, format, functools.partial(oracle.small_integers, largest=1)
        )
        w = layer.weight(dtype, garbage=False)
        ours = lambda x, v, *, of=layer, w=w, **options: of.convolve(x, w.with_values(v), **options)
        theirs = functools.partial(plain_conv, layer)
        ops.append(Op(name, ours, theirs, layer.array("x", dtype), w.values))
    return ops


def make_masked(dtype) -> list[Op]:
    """Ops on sparse inputs, of active places alone, and one whose results are, too."""
    rng = np.random.default_rng(2)
    mask = jnp.asarray([[True, False, True, True, False], [False, True, True, False, False]])
    draw = lambda *shape: jnp.asarray(oracle.small_integers(rng, shape, 1), dtype)
    x, w, matrix = draw(2, 5, 3), draw(3, 3, 3), draw(3, 4)
    at_active = lambda a: jnp.where(mask[..., None], a, jnp.zeros((), a.dtype))

    def theirs_conv(x, w):
        layout, options = ("NWC", "WIO", "NWC"), {"precision": "highest"}
        conv = functools.partial(jax.lax.conv_general_dilated, dimension_numbers=layout, **options)
        return at_active(conv(at_active(x), w, (1,), "SAME"))

    def theirs_transposed(x, w):
        layout = ("NWC", "WIO", "NWC")
        return jax.lax.conv_transpose(
            at_active(x), w, (2,), "SAME", dimension_numbers=layout, precision="highest"
        )

    def theirs_matmul(x, w):
        return jnp.matmul(at_active(x), w, precision="highest")

    submanifold = functools.partial(js.masked_conv, mask=mask, submanifold=True)
    transposed = functools.partial(js.masked_conv_transpose, mask=mask, strides=2)
    return [
        Op("masked_conv", submanifold, theirs_conv, x, w),
        Op("masked_conv_transpose", transposed, theirs_transposed, x, w),
        Op(
            "masked_matmul",
            functools.partial(js.masked_matmul, mask=mask),
            theirs_matmul,
            x,
            matrix,
        ),
    ]


def make_ops(dtype="float32") -> dict[str, Op]:
    layer = cases.make(PROBLEM, functools.partial(oracle.small_integers, largest=1))
    pattern, w = layer.pattern(), layer.weight(dtype, garbage=False)
    x, g = layer.array("x", dtype), layer.array("g", dtype)
    rng = np.random.default_rng(1)
    everywhere = jnp.asarray(oracle.small_integers(rng, layer.shape, 1), dtype)
    of_layer = lambda plain: functools.partial(plain, layer)
    matmul = lambda x, values, **options: js.matmul(x, w.with_values(values), **options)
    stored_dense = functools.partial(js.matmul, pattern=pattern)
    sddmm = lambda a, b, **options: js.sddmm(a, b, pattern, **options)
    ops = (
        Op("matmul", matmul, of_layer(plain_matmul), x, w.values),
        Op("stored_dense", stored_dense, of_layer(plain_matmul_stored_dense), x, everywhere),
        Op("sddmm", sddmm, of_layer(plain_sddmm), x, g),
        *make_convs(dtype),
        *make_masked(dtype),
    )
    return {op.name: op for op in ops}


def make_all(dtype="float32") -> dict[str, Op]:
    """The same, and what is made of them."""
    ops = make_ops(dtype)
    x, w = ops["masked_conv"].a, ops["masked_conv"].b
    stored = ops["stored_dense"]
    dot = functools.partial(js.dot_general, dimension_numbers=(((1,), (0,)), ((), ())))
    weight = cases.make(PROBLEM).weight(dtype, garbage=False)
    more = (
        Op("dot_general", lambda x, v, **options: dot(x, weight.with_values(v), **options),
           ops["matmul"].theirs, ops["matmul"].a, ops["matmul"].b),
        Op("masked_conv_transpose", js.masked_conv_transpose, jax.lax.conv_transpose, x, w),
        Op("masked_matmul", js.masked_matmul, jnp.matmul, stored.a, stored.b),
    )  # fmt: skip
    return ops | {op.name: op for op in more}


def equal(ours, theirs):
    """Fails unless both trees hold the same numbers."""
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert one.dtype == other.dtype
        oracle.equal_exactly(one, other)
