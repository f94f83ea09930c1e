"""Ops on sparse inputs in whole programs: several devices, loops, export, donation, threads."""

import functools

import bilinear
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import PartitionSpec
from machine import compiled, need, run_python

import jaxsparse as js

# Contracts of derivatives and `vmap`: test_transforms.py.
OPS = {name: op for name, op in bilinear.make_ops().items() if name.startswith("masked")}
PLAIN = {
    "masked_conv": js.masked_conv,
    "masked_conv_transpose": functools.partial(js.masked_conv_transpose, strides=2),
    "masked_matmul": js.masked_matmul,
}
every_op = pytest.mark.parametrize("name", OPS)


def squares(f):
    return lambda *arrays: jnp.sum(f(*arrays) ** 2)


def with_zeros(name):
    """The arrays of an op, where half of the places of its input are zero."""
    op = OPS[name]
    return op.a.at[:, ::2].set(0), op.b


def equal(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@every_op
def test_a_decision_in_loops_and_branches_changes_no_number(name):
    """Decided by counting: in a scan, in both sides of a cond, and twice in a while loop."""
    need("cpu_kernels")
    x, w = with_zeros(name)

    def program(op, x, w):
        loss = squares(op)
        step = lambda w, x: (w - jax.grad(loss, 1)(x, w), op(x, w))
        w, ys = jax.lax.scan(jax.checkpoint(step), w, jnp.stack([x, 0 * x, -x]))
        either = jax.lax.cond(w.sum() > 0, op, lambda x, w: 2 * op(x, w), x, w)
        count = lambda state: (state[0] + 1, state[1] + op(x * state[0], w))
        return w, ys, either, jax.lax.while_loop(lambda s: s[0] < 3, count, (1, 0 * either))

    ours, theirs = (
        jax.jit(functools.partial(program, functools.partial(PLAIN[name], **options)))(x, w)
        for options in ({"threshold": 0.4}, {"implementation": "xla"})
    )
    equal(ours, theirs)


@every_op
@pytest.mark.parametrize("axes", [(0, 0), (None, 0), (0, None)], ids=["x_mask", "mask", "x"])
def test_vmap_over_masks_is_a_call_for_each(name, axes, path):
    op, (x, w) = PLAIN[name], with_zeros(name)
    masks = jnp.stack([jnp.ones(x.shape[:-1], bool), x[..., 0] == 0, x[..., 0] > 9])
    xs = jnp.stack([x + 1, x - 1, x])
    given = [
        many if axis == 0 else one for axis, many, one in zip(axes, (xs, masks), (x, masks[1]))
    ]

    def gradients(x, mask, w):
        return jax.grad(squares(functools.partial(op, mask=mask, implementation=path)), (0, 1))(
            x, w
        )

    mapped = jax.jit(jax.vmap(gradients, (*axes, None)))(*given, w)
    at = lambda i: [array[i] if axis == 0 else array for axis, array in zip(axes, given)]
    each = [jax.jit(gradients)(*at(i), w) for i in range(3)]
    equal(mapped, jax.tree.map(lambda *leaves: jnp.stack(leaves), *each))


def auto_mesh():
    return jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))


@every_op
def test_shard_map_over_the_batch_with_its_mask_equals_one_device(name, path):
    op, (x, w) = PLAIN[name], with_zeros(name)
    mask, mesh = x[..., 0] != 1, auto_mesh()
    data, whole = PartitionSpec("data"), PartitionSpec()

    def loss(x, mask, w):
        y = op(x, w, mask=mask, implementation=path)
        return jax.lax.psum(jnp.sum(y**2), "data")

    split = jax.shard_map(loss, mesh=mesh, in_specs=(data, data, whole), out_specs=whole)
    ours = jax.jit(jax.grad(split, (0, 2)))(x, mask, w)
    theirs = jax.grad(squares(functools.partial(op, mask=mask)), (0, 1))(x, w)
    equal(ours, theirs)


@every_op
def test_an_exported_program_decides_for_any_batch(name):
    need("cpu_kernels")
    need("flatbuffers")
    op, (x, w) = functools.partial(PLAIN[name], threshold=0.5), with_zeros(name)
    gradients = jax.jit(jax.grad(squares(op), (0, 1)))
    (batch,) = export.symbolic_shape("batch")
    kinds = jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype), w
    exported = export.export(gradients, disabled_checks=js.disabled_export_checks())(*kinds)
    loaded = export.deserialize(exported.serialize())
    for given in (x, x + 1, jnp.concatenate([x, 0 * x, x])):
        equal(loaded.call(given, w), gradients(given, w))


@every_op
def test_donation_and_compiling_beforehand_change_no_number(name, path):
    op, (x, w) = functools.partial(PLAIN[name], implementation=path), with_zeros(name)
    step = lambda w, x: w - jax.grad(squares(op), 1)(x, w)
    expected = step(w, x)
    ahead = jax.jit(step).lower(jax.ShapeDtypeStruct(w.shape, w.dtype), x).compile()
    equal(ahead(w, x), expected)
    given = jnp.array(w)
    equal(jax.jit(step, donate_argnums=0)(given, x), expected)
    assert given.is_deleted()


@every_op
def test_the_strict_kernel_of_every_derivative_leaves_no_dense_op(name):
    """With a mask there is something to skip in each of them."""
    need("cpu_kernels")
    op, (x, w) = PLAIN[name], with_zeros(name)
    ours = functools.partial(op, mask=x[..., 0] != 0, implementation="ffi")
    text = compiled(jax.grad(squares(ours), (0, 1)), x, w).as_text()
    for member in ("forward", "input_grad", "weight_grad"):
        assert f"places_conv_{member}" in text
    assert not any(word in text for word in (" convolution(", " dot(", "__ynn_fusion"))


BITS = """
    import functools, hashlib, jax, jax.numpy as jnp, numpy as np
    import jaxsparse as js

    draw, bits = np.random.default_rng(0), hashlib.sha256()
    for shape, kernel, options in (
        ((2, 40, 37, 64), (3, 3, 64, 96), {}),
        ((2, 40, 37, 64), (3, 3, 32, 40), {"feature_group_count": 2, "strides": 2}),
        ((3, 900, 48), (5, 48, 70), {}),
        ((2, 16, 15, 96), (4, 4, 96, 64), {"transposed": True, "strides": 2}),
    ):
        is_transposed = options.pop("transposed", False)
        function = js.masked_conv_transpose if is_transposed else js.masked_conv
        for dtype in ("float32", "bfloat16"):
            for width in (1, shape[-1]):  # whole places, single zeros
                active = draw.random((*shape[:-1], width)) < 0.2
                x = jnp.asarray(draw.standard_normal(shape) * active, dtype)
                w = jnp.asarray(draw.standard_normal(kernel), dtype)
                op = functools.partial(function, implementation="ffi", grad="masked", **options)

                @jax.jit
                def all_three(x, w):
                    y, pull_back = jax.vjp(op, x, w)
                    return y, *pull_back(jnp.cos(y))

                for result in all_three(x, w):
                    bits.update(np.asarray(result).tobytes())
    print(bits.hexdigest())
"""


def test_results_are_bitwise_equal_for_any_number_of_threads():
    need("cpu_kernels")
    assert len({run_python(BITS, NPROC=nproc) for nproc in ("1", "2")}) == 1
