"""Masking, packing and unpacking one kernel; importing without Flax."""

import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax_layers import mask_of

import jaxsparse as js
from jaxsparse.layers import kernel as kernels


def patterns(stacked, shape, sparsity=0.5):
    keys = jax.random.split(jax.random.key(0), stacked)
    make = lambda key: js.patterns.random(key, "4x8", shape, sparsity=sparsity)
    for _ in stacked:
        make = jax.vmap(make)
    return jax.jit(make)(keys if stacked else jax.random.key(0))


CASES = {
    "matrix": ((), (12, 20), (12, 20)),
    "tensor": ((), (12, 20), (3, 4, 2, 10)),
    "stacked": ((2,), (12, 20), (2, 12, 20)),
    "stacked_twice": ((2, 3), (12, 20), (2, 3, 4, 3, 20)),
}
every_case = pytest.mark.parametrize("case", CASES)


@every_case
def test_mask_writes_exact_zeros_over_anything(case):
    stacked, matrix, shape = CASES[case]
    pattern = patterns(stacked, matrix)
    mask = mask_of(pattern, shape)
    kernel = np.where(mask, np.arange(mask.size, dtype=np.float32).reshape(shape) - 7, np.nan)
    masked = np.asarray(kernels.mask(jnp.asarray(kernel), pattern))
    assert masked.tobytes() == np.where(mask, kernel, np.float32(0)).tobytes()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@every_case
def test_unpack_after_pack_gives_the_same_bits(case, dtype):
    stacked, matrix, shape = CASES[case]
    pattern = patterns(stacked, matrix)
    bits = np.random.default_rng(0).integers(0, 256, (*shape, jnp.dtype(dtype).itemsize), np.uint8)
    kernel = bits.view(jnp.dtype(dtype))[..., 0]  # NaN, infinities and -0 among them
    kernel = np.where(mask_of(pattern, shape), kernel, np.zeros((), kernel.dtype))
    values, packed = kernels.pack(jnp.asarray(kernel), pattern)
    assert values.shape == pattern.values_shape
    again, its_pattern = kernels.unpack(values, packed)
    assert again.shape == shape
    assert np.asarray(again).tobytes() == kernel.tobytes()
    assert its_pattern is pattern


def test_kernels_that_are_stacked_along_another_axis_are_refused():
    with pytest.raises(ValueError, match=r"Stack layers along axis 0"):
        kernels.mask(jnp.ones((12, 2, 20)), patterns((2,), (12, 20)))


@pytest.mark.parametrize("framework", ["nnx", "linen"])
def test_without_flax_the_error_says_what_to_install(framework, tmp_path):
    code = f"import sys; sys.modules['flax'] = None; import jaxsparse.{framework}"
    package = pathlib.Path(js.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(package)},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert done.stderr.rstrip().endswith(
        f"jaxsparse.{framework}: it needs Flax, which is not installed. pip install jaxsparse[flax]"
    )
