"""XLA compiles every op, under every transformation, for a GPU that is not here.

Lowering shows which handlers a program calls. XLA's own compiler shows more: that the GPU's plugin
knows these handlers, that XLA has an algorithm for everything else, and what it records into CUDA
graphs.
"""

import json
import pathlib

import bilinear
import pytest
import xla_for_gpus
from machine import need, run_python
from transforms import TRANSFORMS

# All transformations of kernels; of ops in plain JAX, those whose programs differ most.
BY_KERNELS = [(op, name) for op in bilinear.WITH_CUDA_KERNELS for name in TRANSFORMS]
IN_PLAIN_JAX = [
    (op, name)
    for op in (*bilinear.make_ops(), "dot_general", "masked_conv_transpose", "masked_matmul")
    for name in ("grad_of_grad", "vmap_b", "scan", "shard_map")
]
SHORT = [(op, dtype) for op in bilinear.make_ops() for dtype in ("bfloat16", "float16")]

# What XLA's own ops become there. Another name is another library: think before it is added.
OF_XLA = ("__cublas$", "__cudnn$")

# Programs of one array w [32, 64] that make patterns, masks and weights.
OF_A_WEIGHT = {
    "blocks": "lambda w: js.fromdense(w, '8x8', sparsity=0.5).todense()",
    "single_weights": "lambda w: js.fromdense(w, 'unstructured', sparsity=0.5).todense()",
    "groups": "lambda w: js.fromdense(w, 'grouped:8', sparsity=0.5).todense()",
    "random": "lambda w: js.patterns.random(jax.random.key(0), '8x8', (32, 64), sparsity=0.5).rows",
    "norms": "lambda w: js.block_norms(w, '8x8')",
    "places": "lambda w: js.active_places(w.reshape(2, 4, 4, 64))",
    "tiles": "lambda w: js.activation_tiles(w.reshape(2, 4, 4, 64), block=2, capacity=8).values",
    "mask": "lambda w: js.output_mask(w.reshape(2, 32, 32) > 0, (3, 3))",
    "pruning": (
        "lambda w: rigl.update({'w': w}, None, rigl.init({'w': jnp.ones((32, 64))}, "
        "key=jax.random.key(0)), lambda p: p)[0]"
    ),
}

PROGRAM = """
    import json, os, sys
    import bilinear, jax, transforms, xla_for_gpus
    transforms_of = dict(transforms.TRANSFORMS)
    transforms_of["shard_map"] = transforms.over(xla_for_gpus.devices)
    ops = {{dtype: bilinear.make_all(dtype) for dtype in ("float32", "bfloat16", "float16")}}
    for name, transform, dtype, implementation in json.loads({cases!r}):
        op = ops[dtype][name]
        function = transforms_of[transform](op.of(implementation))
        try:
            found = xla_for_gpus.handlers(xla_for_gpus.compiled(function, op.a, op.b))
        except Exception as error:
            found = f"{{type(error).__name__}}: {{error}}"
        print(json.dumps([[name, transform, dtype, implementation], found]))
"""


@pytest.fixture(scope="module")
def handlers():
    """For every case, the handlers that its program calls, or what XLA complains of."""
    need("xla_for_gpus")
    need("cuda_kernels")
    cases = [(*case, "float32", "ffi") for case in BY_KERNELS]
    cases += [(*case, "float32", None) for case in IN_PLAIN_JAX]
    cases += [(op, "grad", dtype, None) for op, dtype in SHORT]
    code = PROGRAM.format(cases=json.dumps(cases))
    printed = run_python(code, **xla_for_gpus.environment()).splitlines()
    return {tuple(case): found for case, found in map(json.loads, printed)}


@pytest.mark.parametrize(("op", "transform"), BY_KERNELS)
def test_xla_compiles_transformations_of_kernels_for_gpus(handlers, op, transform):
    found = handlers[op, transform, "float32", "ffi"]
    assert isinstance(found, list), found
    roles = {name.split(".")[1] for name in found if name.startswith("jaxsparse.")}
    assert roles
    assert len(roles) == len(found)  # and nothing else
    if "grad" in transform and "vmap" not in transform:
        assert len(roles) == 3


@pytest.mark.parametrize(("op", "transform"), IN_PLAIN_JAX)
def test_xla_compiles_every_op_in_plain_jax_for_gpus(handlers, op, transform):
    found = handlers[op, transform, "float32", None]
    assert isinstance(found, list), found
    assert all(name.startswith(OF_XLA) for name in found), found


@pytest.mark.parametrize(("op", "dtype"), SHORT)
def test_xla_compiles_gradients_of_short_floats_for_gpus(handlers, op, dtype):
    found = handlers[op, "grad", dtype, None]
    assert isinstance(found, list), found
    assert all(name.startswith(OF_XLA) for name in found), found


def test_xla_compiles_what_makes_patterns_and_masks_for_gpus():
    need("xla_for_gpus")
    programs = ", ".join(f"{name!r}: {program}" for name, program in OF_A_WEIGHT.items())
    code = f"""
        import json, jax, jax.numpy as jnp, xla_for_gpus
        import jaxsparse as js
        rigl = js.pruning.rigl(0.5, end=10, format="8x8", every=1)
        programs = {{{programs}}}
        compiled = lambda f: xla_for_gpus.compiled(f, jnp.ones((32, 64)))
        print(json.dumps({{n: xla_for_gpus.handlers(compiled(f)) for n, f in programs.items()}}))
    """
    found = json.loads(run_python(code, **xla_for_gpus.environment()))
    assert set(found) == set(OF_A_WEIGHT)
    names = {name for its in found.values() for name in its}
    assert all(name.startswith(OF_XLA) for name in names), found


def test_xla_refuses_a_handler_that_is_not_there():
    """What the tests above rely on."""
    need("xla_for_gpus")
    code = """
        import jax, jax.numpy as jnp, xla_for_gpus
        x = jnp.ones(4)
        call = jax.ffi.ffi_call("jaxsparse.no_such_handler.v1", jax.ShapeDtypeStruct((4,), x.dtype))
        try:
            xla_for_gpus.compiled(call, x)
        except jax.errors.JaxRuntimeError as error:
            print("no_such_handler" in str(error))
    """
    assert run_python(code, **xla_for_gpus.environment()) == "True\n"


def test_xla_splits_a_product_and_its_gradients_over_gpus():
    """Rows of x over four of them: each calls the kernels on its own."""
    need("xla_for_gpus")
    need("cuda_kernels")
    code = """
        import jax, jax.numpy as jnp, re, xla_for_gpus
        import jaxsparse as js
        from jax.sharding import AxisType, NamedSharding, PartitionSpec
        gpus = xla_for_gpus.devices(4)
        mesh = jax.make_mesh((4,), ("data",), (AxisType.Auto,), devices=gpus)
        w = js.fromdense(jnp.ones((256, 512), "bfloat16"), "64x64", sparsity=0.9)
        on = lambda a, *axes: xla_for_gpus.placed(a, NamedSharding(mesh, PartitionSpec(*axes)))
        def gradients(x, g, v):
            product = lambda x, v: js.matmul(x, w.with_values(v), implementation="ffi")
            y, pull = jax.vjp(product, x, v)
            return y, pull(g)
        x, g = jnp.ones((1024, 256), "bfloat16"), jnp.ones((1024, 512), "bfloat16")
        lowered = jax.jit(gradients).lower(on(x, "data"), on(g, "data"), on(w.values))
        text = lowered.compile().as_text()
        calls = r'= \\((\\S+)\\{.*custom_call_target="jaxsparse.block_matmul_(\\w+).v1"'
        print(sorted(re.findall(calls, text)), "all-reduce" in text)
    """
    expected = [
        ("bf16[256,256]", "input_grad"),
        ("bf16[256,512]", "forward"),
        ("bf16[3,64,64]", "weight_grad"),
    ]
    printed = run_python(code, **xla_for_gpus.environment())
    assert printed == f"{sorted(expected)} True\n"


def test_xla_records_a_product_and_both_its_gradients_into_one_cuda_graph(tmp_path: pathlib.Path):
    """So the trait by which handlers allow it reaches XLA."""
    need("xla_for_gpus")
    need("cuda_kernels")
    code = """
        import bilinear, jax, transforms, xla_for_gpus
        op = bilinear.make_ops()["matmul"]
        function = transforms.TRANSFORMS["grad"](op.of("ffi"))
        print(xla_for_gpus.handlers(xla_for_gpus.compiled(function, op.a, op.b)))
    """
    flags = {
        "xla_gpu_enable_command_buffer": "FUSION,CUSTOM_CALL",
        "xla_gpu_graph_min_graph_size": 1,
        "xla_dump_to": tmp_path,
    }
    run_python(code, **xla_for_gpus.environment(**flags))
    (path,) = tmp_path.glob("*jit__lambda*thunk_sequence_after_thunk_passes.txt")
    first, *rest = path.read_text().splitlines()
    assert "kCommandBuffer" in first
    assert all(line.startswith(" ") for line in rest)  # everything is in it
    assert sum("kCustomCall" in line for line in rest) == 3
