"""Eight CPU devices and strict promotion, for every test.

`JAXSPARSE_TEST_PLATFORMS=cuda,cpu` is for tests/gpu, on a machine with a GPU.
"""

import os

# Before JAX starts.
os.environ["JAX_PLATFORMS"] = os.environ.get("JAXSPARSE_TEST_PLATFORMS") or "cpu"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

import jax
import machine
import numpy as np
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(params=["ffi", "xla"])
def path(request):
    """An `implementation` that is strict: the compiled kernel, or the same op in plain JAX."""
    if request.param == "ffi":
        machine.need("cpu_kernels")
    return request.param
