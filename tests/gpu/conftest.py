"""What every test on a GPU needs: the GPU, its kernels, memory that holds no earlier results."""

import jax
import jax.numpy as jnp
import pytest
from machine import need


@pytest.fixture(autouse=True)
def _gpu():
    need("gpu")
    need("cuda_kernels" if jax.default_backend() == "gpu" else "cpu_kernels")


@pytest.fixture(autouse=True)
def _poisoned(_gpu):
    """Fills and frees memory of several sizes with NaN, from which results are then allocated.

    What a kernel forgets to write is NaN, not the right answer of the test before.
    """
    sizes = (1 << 8, 1 << 12, 1 << 16, 1 << 20)
    arrays = [jnp.full(size, jnp.nan, jnp.float32) for size in sizes for _ in range(8)]
    for array in jax.block_until_ready(arrays):
        array.delete()
