"""Weights with so few inputs or outputs that nothing is to be won run dense, and say so."""

import jax
import jax.numpy as jnp
import machine
import pytest

import jaxsparse as js

FORMATS = ("unstructured", "grouped:4", "16x16")


def _way(function, x, shape, format, **options):
    machine.need("cpu_kernels")
    w = js.fromdense(jnp.ones(shape), format, sparsity=0.9)
    (call,) = js.explain(lambda x, w: function(x, w, **options), x, w)
    return call.path, call.reason


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("shape", [(8, 256), (256, 8)])
def test_thin_products_of_many_rows_run_dense(shape, format):
    path, reason = _way(js.matmul, jnp.ones((512, shape[0])), shape, format)
    assert path == "dense"
    assert "thin" in reason
    assert "thin" not in _way(js.matmul, jnp.ones((64, shape[0])), shape, format)[1]


def test_gradients_and_short_floats_are_thin_where_xla_is_fast():
    machine.need("cpu_kernels")
    ways = {}
    for shape in ((8, 256), (256, 8)):
        w = js.fromdense(jnp.ones(shape), "unstructured", sparsity=0.9)
        loss = lambda x, w: js.matmul(x, w).sum()
        calls = js.explain(jax.grad(loss, (0, 1), allow_int=True), jnp.ones((512, shape[0])), w)
        ways[shape] = {call.member.rsplit("_matmul_")[-1]: "thin" in call.reason for call in calls}
    assert ways[8, 256] == {"forward": True, "input_grad": True, "weight_grad": True}
    assert ways[256, 8] == {"forward": True, "input_grad": False, "weight_grad": False}
    short = js.fromdense(jnp.ones((8, 256), jnp.bfloat16), "unstructured", sparsity=0.9)
    calls = js.explain(
        jax.grad(loss, (0, 1), allow_int=True), jnp.ones((512, 8), "bfloat16"), short
    )
    assert ["thin" in call.reason for call in calls] == ["forward" in c.member for c in calls]
    assert len(calls) == 3


def test_how_thin_depends_on_the_format():
    x = jnp.ones((512, 24))
    assert "thin" in _way(js.matmul, x, (24, 256), "unstructured")[1]
    assert "thin" not in _way(js.matmul, x, (24, 256), "16x16")[1]
    assert "thin" not in _way(js.matmul, jnp.ones((512, 32)), (32, 256), "unstructured")[1]


@pytest.mark.parametrize(
    ("shape", "options", "is_thin"),
    [
        ((1, 1, 16, 64), {}, True),
        ((1, 1, 64, 16), {}, True),
        ((3, 3, 3, 64), {}, True),  # 27 numbers make a result
        ((3, 3, 4, 64), {}, False),
        ((3, 3, 64, 8), {}, False),
        ((3, 3, 1, 32), {"feature_group_count": 32}, False),  # XLA is slow there
        ((1, 1, 1, 32), {"feature_group_count": 32}, True),
        ((3, 3, 3, 1, 64), {}, False),
    ],
)
def test_thin_convolutions_run_dense(shape, options, is_thin):
    rank = len(shape) - 2
    channels = shape[-2] * options.get("feature_group_count", 1)
    x = jnp.ones((8,) + (8,) * rank + (channels,))
    path, reason = _way(js.conv, x, shape, "unstructured", **options)
    assert ("thin" in reason) == is_thin
    assert path == "dense" or not is_thin
    few = jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype)  # 64 places
    if rank == 2:
        assert "thin" not in _way(js.conv, few, shape, "unstructured", **options)[1]
