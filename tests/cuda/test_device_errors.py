"""What users read where a driver is too old or a device refuses: no GPU is needed for that."""

import os
import pathlib
import subprocess

import pytest
from machine import need, run_python

ROOT = pathlib.Path(__file__).parents[2]

# As much of a driver for CUDA 12.4 as is asked for before it is found to be too old.
DRIVER = """
int cuDriverGetVersion(int* version) { *version = 12040; return 0; }
int cuInit(unsigned flags) { return 100; }
"""


@pytest.fixture(scope="module")
def old_driver(tmp_path_factory):
    """A folder with it."""
    need("c++")
    folder = tmp_path_factory.mktemp("driver")
    (folder / "driver.c").write_text(DRIVER)
    command = ["cc", "-shared", "-fPIC", folder / "driver.c", "-o", folder / "libcuda.so.1"]
    subprocess.run(command, check=True)
    return str(folder)


def test_a_driver_that_is_too_old_leaves_plain_jax_and_says_what_is_needed(old_driver):
    need("cuda_kernels")
    code = """
        import jax.numpy as jnp
        import jaxsparse as js
        from jaxsparse.core import native
        print(native.why_absent("cuda"))
        w = js.fromdense(jnp.ones((16, 16)), "8x8", sparsity=0.5)
        print(js.matmul(jnp.ones((2, 16)), w).shape)
    """
    why, shape = run_python(code, LD_LIBRARY_PATH=old_driver).splitlines()
    assert "built with CUDA 13" in why
    assert "the driver is for CUDA 12.4. Update the driver" in why
    assert shape == "(2, 16)"


def test_required_kernels_that_the_driver_would_refuse_are_an_error(old_driver):
    need("cuda_kernels")
    code = """
        try:
            import jaxsparse
        except ImportError as error:
            print(error)
    """
    said = run_python(code, LD_LIBRARY_PATH=old_driver, JAXSPARSE_KERNELS="required")
    assert "the driver is for CUDA 12.4" in said
    assert "(JAXSPARSE_KERNELS=required)" in said


def test_errors_of_a_device_name_what_is_there_and_what_is_needed(old_driver, tmp_path):
    need("nvcc")
    program = tmp_path / "device_errors"
    sources = [ROOT / "tests/cuda/device_errors.cu", ROOT / "xla_ffi/cuda/common/device.cu"]
    options = ["-std=c++17", "-arch=sm_80", "-I", ROOT / "xla_ffi", *sources, "-o", program]
    subprocess.run(["nvcc", *options], check=True)
    environment = {**os.environ, "LD_LIBRARY_PATH": old_driver}
    done = subprocess.run([program], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    memory, image, ptx, other, stream = done.stdout.splitlines()
    assert memory == "launch of a kernel failed: out of memory (cudaErrorMemoryAllocation)"
    assert "(cudaErrorNoKernelImageForDevice). The kernels need sm_80 or later" in image
    assert "`python -m jaxsparse info` names" in image
    assert "need a driver for CUDA 13." in ptx
    assert ", and this one is for CUDA 12.4" in ptx
    assert other.endswith("(cudaErrorInvalidConfiguration)")
    assert stream.startswith("finding the device of a stream failed: CUDA driver version is")
    assert stream.endswith(", and this one is for CUDA 12.4")
