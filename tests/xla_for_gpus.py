"""XLA's compiler for GPUs, which needs no GPU: what it makes of programs for an H200.

It is part of JAX's plugin for CUDA, of the very version of JAX: installed as ever, or in a folder
of its own that JAXSPARSE_XLA_FOR_GPUS names, where JAX does not look for GPUs at every start:

    pip install --no-deps --target FOLDER jax-cuda13-plugin==VERSION jax-cuda13-pjrt==VERSION

Everything else here runs in a process of its own (`machine.run_python`, with `environment`): XLA
reads its flags once.
"""

import functools
import importlib.util
import os
import pathlib
import re

import jax
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

# What the compiler asks about the device. Recorded into CUDA graphs is only what the versions of
# driver and toolkit allow.
H200 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 4800000000000
  l2_cache_size: 62914560
  clock_rate_ghz: 1.98
  device_memory_size: 150000000000
  cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  driver_version: "13.0.0"
  runtime_version: "13.0.0"
  compile_time_toolkit_version: "13.0.0"
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 }
device_description_str: "NVIDIA H200"
"""


def _folder() -> str:
    return os.environ.get("JAXSPARSE_XLA_FOR_GPUS", "")


def why_absent() -> str | None:
    """Why there is no such compiler here; None where there is one."""
    if _folder():
        path = pathlib.Path(_folder(), "jax_plugins", "xla_cuda13")
        return None if path.is_dir() else f"JAXSPARSE_XLA_FOR_GPUS: no {path}"
    try:
        found = importlib.util.find_spec("jax_plugins.xla_cuda13")
    except ModuleNotFoundError:
        found = None
    return None if found else "no jax-cuda13-plugin, and JAXSPARSE_XLA_FOR_GPUS is not set"


def environment(**flags) -> dict[str, str]:
    """For `machine.run_python`. Without a GPU no algorithm is tried: XLA takes cuBLAS and cuDNN."""
    flags = {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": "false", **flags}
    return {
        "PYTHONPATH": _folder(),
        "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",
        "XLA_FLAGS": " ".join(f"--{name}={value}" for name, value in flags.items()),
    }


@functools.cache
def devices(count: int = 1):
    """H200s that are not there."""
    return topologies.get_topology_desc(
        "", platform="cuda", topology=f"1x1x{count}", target_config=H200
    ).devices


def placed(array, sharding) -> jax.ShapeDtypeStruct:
    """An array's shape and dtype, on such devices."""
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)


def compiled(function, *args) -> str:
    """The program that XLA makes of `function(*args)` for a GPU.

    Raises:
        jax.errors.JaxRuntimeError: XLA cannot compile it, or knows no handler of a custom call.
    """
    shapes = [placed(a, SingleDeviceSharding(devices()[0])) for a in args]
    return jax.jit(function).lower(*shapes).compile().as_text()


def handlers(program: str) -> list[str]:
    """The custom calls of a compiled program, each once, sorted."""
    return sorted(set(re.findall(r'custom_call_target="([^"]+)"', program)))
