"""The report: every layer of a model, what it costs, how it runs and why."""

import json

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from flax import nnx
from flax_networks import (
    IMAGES,
    TOKENS,
    LinenResNet,
    LinenTransformer,
    ResNet,
    Transformer,
    make_linen,
    make_nnx,
)

import jaxsparse as js
import jaxsparse.linen as jlinen
import jaxsparse.nnx as jnnx

CONVS = [js.Rule(r"(stem|.*skip|up)", "unstructured", sparsity=0.75)]


def nnx_resnet():
    return js.sparsify(make_nnx(ResNet), CONVS)[0], IMAGES


def nnx_transformer():
    rule = js.Rule("blocks/.*/layers/0", "8x8", sparsity=0.5)
    return js.sparsify(make_nnx(Transformer), rule)[0], TOKENS


def linen_resnet():
    model = LinenResNet()
    return *js.sparsify(model, CONVS, make_linen(model, IMAGES), IMAGES)[:2], IMAGES


def linen_transformer():
    model, rule = LinenTransformer(), js.Rule("blocks/up", "8x8", sparsity=0.5)
    return *js.sparsify(model, rule, make_linen(model, TOKENS), TOKENS)[:2], TOKENS


# 8 x 8 images, a batch of 2: stem 3x3x3x8; skip 1x1x8x16, stride 2; up 2x2x16x8 of 4 x 4.
RESNET_MACS = {
    "stem": 2 * 64 * 9 * 3 * 8,
    "skip": 2 * 16 * 8 * 16,
    "conv1": 2 * 16 * 9 * 8 * 16,
    "up": 2 * 16 * 4 * 16 * 8,
    "head": 2 * 8 * 10,
}


@pytest.mark.parametrize("make", [nnx_resnet, linen_resnet])
def test_layers_of_a_convolutional_network_are_counted_by_hand(make):
    rows = {row.path.split("/")[-1]: row for row in js.report(*make())}
    rows["conv1"] = rows.get("conv1") or rows["Conv_0"]
    for name, macs in RESNET_MACS.items():
        assert rows[name].macs == macs, name
    assert rows["stem"].density == rows["up"].density == 0.25
    assert [rows[name].executed for name in ("stem", "up", "head")] == [
        RESNET_MACS["stem"] // 4,
        RESNET_MACS["up"] // 4,
        RESNET_MACS["head"],
    ]


@pytest.mark.parametrize("make", [nnx_transformer, linen_transformer])
def test_layers_of_a_transformer_are_counted_as_often_as_a_loop_runs_them(make):
    model, *sample = make()
    rows = js.report(model, *sample)
    path, layers = ("blocks/up", 2) if len(sample) == 2 else ("blocks/first/mlp/layers/0", 1)
    assert rows[path].calls == layers
    assert rows[path].macs == layers * 2 * 6 * 16 * 32
    assert rows[path].executed == rows[path].macs // 2
    assert (rows[path].format, rows[path].density) == ("8x8", 0.5)
    assert rows["head"].macs == 2 * 6 * 16 * 24


@pytest.mark.parametrize(
    "make", [nnx_resnet, nnx_transformer, linen_resnet, linen_transformer], ids=lambda f: f.__name__
)
def test_no_layer_is_dense_without_a_reason(make):
    model, *sample = make()
    report = js.report(model, *sample)
    summary = js.sparsify(model, [], *sample)[-1] if sample[1:] else js.sparsify(model, [])[1]
    assert sorted(row.path for row in report) == sorted(row.path for row in summary)
    for row in report:
        assert row.reason
        assert (row.format is None) == (row.path_taken == "none")
        assert f"{row.path} " in str(report)


def test_bytes_are_those_of_the_kernel_as_it_is_stored_and_of_its_pattern():
    model, x = nnx_transformer()
    path = "blocks/first/mlp/layers/0"
    dense, packed = js.report(model, x)[path], js.report(jnnx.pack(model), x)[path]
    indices = 2 * 4 * 4  # of four blocks
    assert (dense.nbytes, packed.nbytes) == (4 * 16 * 32 + indices, 4 * 16 * 32 // 2 + indices)
    assert packed.shape == dense.shape == (16, 32)
    model, variables, x = linen_transformer()
    dense, packed = (
        js.report(model, v, x)["blocks/up"] for v in (variables, jlinen.pack(variables))
    )
    assert dense.nbytes - packed.nbytes == 4 * 2 * 16 * 32 // 2
    assert packed.shape == dense.shape == (2, 16, 32)


def test_the_path_is_the_one_that_the_call_takes():
    model, x = nnx_transformer()
    path = "blocks/first/mlp/layers/0"
    for mode in ("dense", "sparse"):
        with js.mode(mode):
            (call,) = js.explain(lambda x: model(x), x)
            row = js.report(model, x)[path]
        assert (row.path_taken, row.reason) == (call.path, call.reason)


class Unused(nnx.Module):
    def __init__(self):
        self.used = jnnx.Linear(8, 8, rngs=nnx.Rngs(0), format="4x4", sparsity=0.5)
        self.unused = nnx.Linear(8, 8, rngs=nnx.Rngs(0))
        self.hooked = jnnx.Linear(
            8, 8, rngs=nnx.Rngs(0), format="4x4", sparsity=0.5, dot_general=hook
        )

    def __call__(self, x):
        return self.hooked(self.used(self.used(x)))


def hook(x, k, dimension_numbers, precision=None, out_sharding=None):
    return jax.lax.dot_general(x, k, dimension_numbers, precision)


def test_layers_that_do_not_run_sparse_say_why():
    report = js.report(Unused(), jnp.ones((2, 8)))
    assert report["unused"].reason == "the sample does not reach it"
    assert report["hooked"].reason == "a product of the user's takes the whole kernel"
    assert report["used"].calls == 2


def test_a_function_has_a_row_for_every_sparse_call():
    w = js.fromdense(jnp.ones((16, 8)), "4x4", sparsity=0.5)
    loss = lambda values, x: (js.matmul(x, w.with_values(values)) ** 2).sum()
    report = js.report(jax.jit(jax.grad(loss)), w.values, jnp.ones((3, 16)))
    assert [row.kind for row in report] == ["block_matmul_forward", "block_matmul_weight_grad"]
    assert [(row.macs, row.executed) for row in report] == [(3 * 16 * 8, 3 * 16 * 4)] * 2


def test_rows_are_data():
    model, x = nnx_transformer()
    shapes = jax.ShapeDtypeStruct(x.shape, x.dtype)
    rows = json.loads(js.report(model, shapes).to_json())
    assert len(rows) == len(js.report(model, x))
    assert {row["path"] for row in rows} >= {"head", "embedding"}
    assert all(row["macs"] >= row["executed"] for row in rows)


def test_what_is_no_model_is_refused():
    with pytest.raises(TypeError, match="report: a model is .* got int"):
        js.report(3)
    with pytest.raises(ValueError, match="report: a linen model comes with its variables"):
        js.report(nn.Dense(4), jnp.ones((2, 4)))
