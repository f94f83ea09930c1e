"""Which programs for NVIDIA GPUs call a CUDA kernel: lowered here, where no GPU is needed."""

import functools
import json
import re
import types

import jax
import jax.numpy as jnp
import pytest
from jax import export, lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from machine import need

import jaxsparse as js
from jaxsparse import patterns
from jaxsparse.core import dispatch, native
from jaxsparse.ops.cuda import wants_exact_float32

CALL = r"custom_call @jaxsparse\.block_matmul_(\w+)\.v1\(.*?\) \{(.*?)\} : \((.*?)\) -> (.*)"
ALL = ["forward", "input_grad", "weight_grad"]
ROWS = 1 << 20  # so many that kernels are expected to pay


@pytest.fixture(autouse=True)
def _kernels(request):
    if "absent" not in request.node.name:
        need("cuda_kernels")


def lowered(function, *args) -> str:
    return jax.jit(function).trace(*args).lower(lowering_platforms=("cuda",)).as_text()


def calls(function, *args) -> list[str]:
    """The roles of the kernels that a function calls on a GPU."""
    return sorted(match[0] for match in re.findall(CALL, lowered(function, *args)))


def problem(block="64x64", dtype="bfloat16", sparsity=0.95, shape=(256, 512), batch=(ROWS,)):
    """x, which is a shape only, and a weight."""
    w = jax.random.normal(jax.random.key(0), shape)
    weight = js.fromdense(w, block, sparsity=sparsity).astype(dtype)
    return jax.ShapeDtypeStruct((*batch, shape[0]), dtype), weight


def loss(weight, x, values, **options):
    y = js.matmul(x, weight.with_values(values), **options)
    return jnp.sum(jnp.sin(y.astype(jnp.float32)))


def gradients(weight, **options):
    return jax.grad(functools.partial(loss, weight, **options), (0, 1))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("block", ["16x16", "32x32", "64x64", "128x128", "32x64"])
def test_a_product_and_both_its_gradients_are_kernels(block, dtype):
    shape = (4096, 4096) if block == "128x128" else (1024, 1024)
    x, weight = problem(block, dtype, 0.99, shape)
    assert calls(gradients(weight), x, weight.values) == ALL


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_ffi_asks_for_blocks_and_dtypes_that_do_not_pay(dtype):
    with jax.enable_x64(True):
        x, weight = problem("5x7", dtype)
        assert calls(gradients(weight), x, weight.values) == []
        assert calls(gradients(weight, implementation="ffi"), x, weight.values) == ALL


def test_a_call_has_scratch_memory_as_its_second_result():
    x, weight = problem("64x64")
    ((role, attributes, operands, results),) = re.findall(CALL, lowered(js.matmul, x, weight))
    stored = weight.values.shape[0]
    scratch = native.module("cuda").scratch_bytes(
        "forward",
        x.shape,
        weight.values.shape,
        (ROWS, 512),
        (stored,),
        "bfloat16",
        "bfloat16",
        False,
    )
    assert role == "forward"
    assert "exact = false" in attributes
    assert operands == (
        f"tensor<{ROWS}x256xbf16>, tensor<{stored}x64x64xbf16>, tensor<{stored}xi32>, "
        f"tensor<{stored}xi32>"
    )
    assert results == f"(tensor<{ROWS}x512xbf16>, tensor<{scratch}xui8>)"


@pytest.mark.parametrize(
    ("precision", "exact"),
    [
        (None, False),
        ("default", False),
        ("tensorfloat32", False),
        ("highest", True),
        ("float32", True),
        (lax.Precision.DEFAULT, False),
        (lax.Precision.HIGHEST, True),
        ((lax.Precision.DEFAULT, lax.Precision.HIGHEST), True),
        (lax.DotAlgorithmPreset.F32_F32_F32, True),
        (lax.DotAlgorithmPreset.TF32_TF32_F32, False),
    ],
    ids=str,
)
def test_precision_decides_whether_float32_is_rounded_to_tf32(precision, exact):
    x, weight = problem("64x64", "float32", 0.95)
    text = lowered(functools.partial(js.matmul, precision=precision), x, weight)
    assert f"exact = {str(exact).lower()}" in text
    assert wants_exact_float32(precision) is exact


def test_the_default_precision_of_jax_counts_where_none_is_given():
    x, weight = problem("64x64", "float32", 0.95)
    with jax.default_matmul_precision("highest"):
        assert "exact = true" in lowered(js.matmul, x, weight)
    assert "exact = false" in lowered(js.matmul, x, weight)


def test_a_float32_result_of_bfloat16_is_made_by_the_kernel():
    x, weight = problem("64x64", "bfloat16")
    product = functools.partial(js.matmul, preferred_element_type=jnp.float32)
    ((_, _, operands, results),) = re.findall(CALL, lowered(product, x, weight))
    assert operands.startswith(f"tensor<{ROWS}x256xbf16>")
    assert results.startswith(f"(tensor<{ROWS}x512xf32>")


# Transformations ----------------------------------------------------------------------------------


def test_vmap_over_activations_is_one_call_without_copies():
    x, weight = problem(batch=(3, ROWS))
    mapped = jax.vmap(gradients(weight), (0, None))
    roles = calls(mapped, x, weight.values)
    assert roles == ALL
    whole = lowered(lambda x, v: jax.grad(lambda v: jnp.sum(jax.vmap(
        functools.partial(loss, weight), (0, None))(x, v)))(v), x, weight.values)  # fmt: skip
    assert [match[0] for match in re.findall(CALL, whole)] == ["forward", "weight_grad"]
    assert f"tensor<3x{ROWS}x256xbf16>" in whole
    assert "while" not in whole


def test_vmap_over_weights_is_one_call_with_a_group_axis():
    x, weight = problem()
    values = jnp.stack([weight.values] * 3)
    text = lowered(jax.vmap(functools.partial(loss, weight), (None, 0)), x, values)
    ((role, _, operands, results),) = re.findall(CALL, text)
    stored = weight.values.shape[0]
    assert role == "forward"
    assert operands.startswith(f"tensor<1x{ROWS}x256xbf16>, tensor<3x{stored}x64x64xbf16>")
    assert results.startswith(f"(tensor<3x{ROWS}x512xbf16>")


@pytest.mark.parametrize(
    "transform", [jax.checkpoint, jax.jit, jax.linearize], ids=lambda f: f.__name__
)
def test_other_transformations_call_kernels(transform):
    x, weight = problem()
    function = functools.partial(loss, weight)
    if transform is jax.linearize:
        assert (
            calls(lambda *a: jax.linearize(function, *a)[1](*a), x, weight.values)
            == ["forward"] * 3
        )
    else:
        assert set(calls(jax.grad(transform(function), (0, 1)), x, weight.values)) == set(ALL)


def test_a_weight_that_is_stored_dense_is_gathered_by_xla_and_multiplied_by_kernels():
    x, weight = problem()
    dense = weight.todense()
    stored = lambda x, w: jnp.sum(
        js.matmul(x, w, pattern=weight.pattern, grad="sparse").astype(jnp.float32) ** 2
    )
    text = lowered(jax.grad(stored, (0, 1)), x, dense)
    assert sorted(match[0] for match in re.findall(CALL, text)) == ALL
    assert set(re.findall(r"jaxsparse\.(\w+)\.v1", text)) == {f"block_matmul_{r}" for r in ALL}


def test_a_layer_of_flax_calls_kernels():
    from flax import nnx

    import jaxsparse.nnx as jsnnx

    layer = jsnnx.Linear(256, 512, rngs=nnx.Rngs(0), format="64x64", sparsity=0.95)
    graph, state = nnx.split(layer)
    loss = lambda state, x: jnp.sum(jnp.sin(nnx.merge(graph, state)(x)))
    x = jax.ShapeDtypeStruct((ROWS, 256), jnp.float32)
    assert set(calls(jax.grad(loss, allow_int=True), state, x)) == {"forward", "weight_grad"}


# Devices ------------------------------------------------------------------------------------------


def test_shard_map_calls_the_kernel_on_local_rows():
    x, weight = problem()
    mesh = jax.make_mesh((8,), ("data",), (AxisType.Auto,))
    whole, rows = PartitionSpec(), PartitionSpec("data")
    local = jax.shard_map(
        lambda x, v: gradients(weight)(x, v),
        mesh=mesh,
        in_specs=(rows, whole),
        out_specs=(rows, whole),
    )
    found = re.findall(CALL, lowered(local, x, weight.values))
    assert sorted(match[0] for match in found) == ALL
    assert all(f"tensor<{ROWS // 8}x" in match[2] + match[3] for match in found)


def test_on_several_devices_the_compiler_may_split_the_call():
    _, weight = problem()
    mesh = jax.make_mesh((8,), ("data",), (AxisType.Auto,))
    x = jnp.ones((64, 256), jnp.bfloat16)
    placed = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
    text = lowered(gradients(weight, implementation="ffi"), placed, weight.values)
    assert text.count("CustomSPMDPartitioning") == 3


# Programs that are exported -----------------------------------------------------------------------


def test_a_program_for_gpus_is_exported_from_a_machine_without_one():
    x, weight = problem()
    program = export.export(
        jax.jit(js.matmul), platforms=["cuda"], disabled_checks=js.disabled_export_checks()
    )(x, weight)
    assert len(re.findall(CALL, program.mlir_module())) == 1
    again = export.deserialize(program.serialize())
    assert again.platforms == ("cuda",)


def test_a_program_for_both_platforms_holds_both_calls():
    x, weight = problem()
    text = jax.jit(js.matmul).trace(x, weight).lower(lowering_platforms=("cpu", "cuda")).as_text()
    assert text.count("@jaxsparse.block_matmul_forward.v1") == 2
    assert text.count("exact = false") == 1


def test_a_symbolic_batch_is_plain_jax():
    _, weight = problem()
    (rows,) = export.symbolic_shape("rows")
    x = jax.ShapeDtypeStruct((rows, 256), jnp.bfloat16)
    program = export.export(jax.jit(js.matmul), platforms=["cuda"])(x, weight)
    assert "jaxsparse." not in program.mlir_module()


# The choice ---------------------------------------------------------------------------------------


def choice(weight, x, member="block_matmul_forward"):
    found = js.explain(gradients(weight), x, weight.values, platform="cuda")
    return next(call for call in found if call.member == member)


@pytest.mark.parametrize(
    ("block", "below", "above"),
    [("128x128", 0.3, 0.4), ("64x64", 0.15, 0.3), ("32x32", 0.08, 0.15), ("16x16", 0.04, 0.08)],
)
def test_the_unmeasured_rule_takes_kernels_at_low_density_only_and_says_so(block, below, above):
    for density, path in ((below, "ffi"), (above, "dense")):
        x, weight = problem(block, sparsity=1 - density, shape=(2048, 2048))
        call = choice(weight, x)
        assert call.path == path
        assert "a guess: not measured" in call.reason
        assert "on cuda" in call.reason
    assert choice(*problem(block, sparsity=0.99, shape=(2048, 2048))[::-1]).path == "ffi"


def test_the_unmeasured_rule_leaves_what_is_done_in_microseconds_to_dense():
    for rows, shape, path in (
        (64, (256, 512), "dense"),
        (4096, (1024, 1024), "dense"),
        (4096, (4096, 2048), "ffi"),
        (16, (8192, 8192), "ffi"),  # it takes as long to read such a weight
    ):
        x, weight = problem(shape=shape, batch=(rows,))
        assert choice(weight, x).path == path, (rows, shape)


def test_a_measured_table_of_the_device_decides(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    h200 = types.SimpleNamespace(device_kind="NVIDIA H200", compute_capability="9.0")
    monkeypatch.setattr(native, "devices", lambda platform: [h200] if platform == "cuda" else [])
    (tmp_path / "jaxsparse").mkdir()
    table = {"block_matmul_forward": {"bfloat16": {"batch<512,block>=64": 0.01}}}
    path = tmp_path / "jaxsparse" / "cuda-nvidia-h200.json"
    path.write_text(json.dumps({"environment": {}, "break_even": table}))
    dispatch._table.cache_clear()
    x, weight = problem(batch=(64,))
    call = choice(weight, x)
    assert call.path == "dense"
    assert "the break-even point 0.01 for batch<512,block>=64 on cuda-nvidia-h200" in call.reason
    dispatch._table.cache_clear()


def test_explain_names_a_symbol_of_a_gpu_program():
    _, weight = problem()
    (rows,) = export.symbolic_shape("rows")
    x = jax.ShapeDtypeStruct((rows, 256), jnp.bfloat16)
    (call,) = js.explain(js.matmul, x, weight, platform="cuda")
    assert call.path == "xla"
    assert "not the symbol" in call.reason


@pytest.mark.parametrize("format", ["unstructured", "grouped:8"])
def test_formats_without_cuda_kernels_run_in_plain_jax_and_say_so(format):
    x, weight = problem(format, "float32", 0.95)
    assert "jaxsparse." not in lowered(js.matmul, x, weight)
    (call,) = js.explain(js.matmul, x, weight, platform="cuda")
    assert "there is no cuda kernel" in call.reason
    with pytest.raises(NotImplementedError, match="no cuda kernel"):
        lowered(functools.partial(js.matmul, implementation="ffi"), x, weight)


def test_convolutions_run_in_plain_jax_and_say_so():
    kernel = js.fromdense(jnp.ones((3, 3, 64, 64)), "64x64", sparsity=0.5)
    x = jnp.ones((1, 8, 8, 64))
    assert "jaxsparse." not in lowered(js.conv, x, kernel)
    (call,) = js.explain(js.conv, x, kernel, platform="cuda")
    assert call.reason == "block_conv has no kernels for cuda"


def test_integers_are_left_to_plain_jax():
    pattern = patterns.random(jax.random.key(0), js.Block((64, 64)), (256, 512), sparsity=0.9)
    x, values = jnp.ones((8, 256), jnp.int32), jnp.ones(pattern.values_shape, jnp.int32)
    assert "jaxsparse." not in lowered(js.matmul, x, js.SparseWeight(values, pattern))


def test_absent_kernels_leave_programs_for_gpus_in_plain_jax(monkeypatch):
    why = "jaxsparse has no CUDA kernels here: a test."
    monkeypatch.setitem(native._extensions, "cuda", native.Extension(why_absent=why))
    x, weight = problem(dtype="float32")
    assert "jaxsparse." not in lowered(lambda *a: gradients(weight)(*a), x, weight.values)
    (call,) = js.explain(js.matmul, x, weight, platform="cuda")
    assert (call.path, call.reason) == ("xla", why)
    with pytest.raises(NotImplementedError, match=f"{why.rstrip('.')}.*implementation=None"):
        lowered(functools.partial(js.matmul, implementation="ffi"), x, weight)
