"""What this machine has, what a test needs of it, and fresh Python processes."""

import concurrent.futures
import os
import pathlib
import re
import shutil
import subprocess
import sys
import textwrap

import jax
import pytest
import sass
import xla_for_gpus

import jaxsparse
from jaxsparse.core import native


def why_absent(what: str) -> str | None:
    """Why something that a test may need is not here; None where it is."""
    if what == "cpu_kernels":
        return native.why_absent("cpu")
    if what == "cuda_kernels":
        return native.why_absent("cuda")
    if what == "gpu":
        # In a dry run the same tests run on the CPU and its kernels: none may fail for a mistake
        # of its own on the day that there is a GPU.
        is_here = native.devices("cuda") or os.environ.get("JAXSPARSE_DRY_RUN")
        return None if is_here else "JAX has no CUDA device here"
    if what in ("avx2", "avx512", "avx512bf16", "neon"):
        return None if what in native.runnable_isas() else f"kernels run {native.runnable_isas()}"
    if what == "cuobjdump":
        return None if sass.find_cuobjdump() else "neither in PATH nor among the Python packages"
    if what == "gpu_hardware":
        return None if native.devices("cuda") else "JAX has no CUDA device here"
    if what == "hopper_hardware":
        capabilities = [device.compute_capability for device in native.devices("cuda")]
        return None if "9.0" in capabilities else f"of compute capability 9.0, got {capabilities}"
    if what == "xla_for_gpus":
        return xla_for_gpus.why_absent()
    if what in ("c++", "cmake", "nvcc"):
        return None if shutil.which(what) else "not in PATH"
    if what in ("scipy", "flatbuffers", "torch"):
        try:
            __import__(what)
        except ImportError as error:
            return str(error)
        return None
    raise ValueError(f"need: nothing is called {what!r}")


def need(what: str) -> None:
    """Skips unless it is here; where JAXSPARSE_REQUIRE names it, fails instead."""
    reason = why_absent(what)
    if reason is not None:
        is_required = what in os.environ.get("JAXSPARSE_REQUIRE", "").split(",")
        (pytest.fail if is_required else pytest.skip)(f"{what}: {reason}")


def run_python(code: str, *, timeout: float = 300, devices: int = 1, **environ: str) -> str:
    """What `code` prints in a fresh process that imports this very jaxsparse.

    The process has the dtype rules of the tests; its last words are in the failure if it fails.
    """
    return run_together([code], timeout=timeout, devices=devices, **environ)[0]


def run_together(
    programs: list[str], *, timeout: float = 300, devices: int = 1, **environ: str
) -> list[str]:
    """What each of several programs prints, that run at once in processes as of `run_python`."""
    package = pathlib.Path(jaxsparse.__file__).parents[1]
    paths = [str(package), str(pathlib.Path(__file__).parent)]
    paths += filter(None, [environ.pop("PYTHONPATH", "")])
    kept = {
        "PYTHONPATH": os.pathsep.join(paths),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_NUMPY_DTYPE_PROMOTION": "strict",
        "JAX_NUMPY_RANK_PROMOTION": "raise",
    }
    # -P: what is installed, not what lies in the working directory.
    python = [sys.executable, "-W", "ignore:jaxsparse has no:RuntimeWarning", "-P", "-c"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environment = {**os.environ, **kept, **environ}
    running = []
    try:
        for code in programs:
            code = textwrap.dedent(code)
            running.append(subprocess.Popen([*python, code], env=environment, **pipes))
        # Each pipe has its reader, or a process would wait for it.
        with concurrent.futures.ThreadPoolExecutor(len(running)) as readers:
            said = list(readers.map(lambda process: process.communicate(timeout=timeout), running))
    finally:
        for process in running:
            process.kill()
    wrong = [
        f"exit status {process.returncode}\n{out}{err}"
        for process, (out, err) in zip(running, said, strict=True)
        if process.returncode
    ]
    assert not wrong, "\n".join(wrong)
    return [out for out, _ in said]


# What a function does, read from its jaxpr or its compiled program --------------------------------


def members(function, *args) -> list[str]:
    """The sparse calls that a function makes, such as "forward" and "weight_grad", sorted."""
    calls = jaxsparse.explain(function, *args)
    return sorted(call.member.removeprefix("block_").removeprefix("matmul_") for call in calls)


def handler_calls(compiled) -> list[str]:
    """The handlers in a compiled program, as `members` has them, one entry per call."""
    found = re.findall(r'custom_call_target="jaxsparse\.(\w+)\.v1"', compiled.as_text())
    return sorted(name.removeprefix("block_").removeprefix("matmul_") for name in found)


def loops(compiled) -> int:
    return len(re.findall(r" while\(", compiled.as_text()))


def collectives(compiled) -> list[str]:
    """The kinds of collective in a compiled program, sorted."""
    kinds = r"(all-gather|all-reduce|reduce-scatter|collective-permute|all-to-all)"
    return sorted(set(re.findall(rf"= \S+ {kinds}(?:-start)?\(", compiled.as_text())))


def compiled(function, *args):
    return jax.jit(function).lower(*args).compile()
