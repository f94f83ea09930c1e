"""The CUDA kernels of block-sparse products: what their handlers take, and when to expect to gain.

They take blocks of any size. Fast are those whose sides are multiples of 16, the tile of a tensor
core; for others nothing is gained, and `implementation=None` leaves them to XLA.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxsparse.core import native
from jaxsparse.formats.pattern import batch_class

# Densities up to which a kernel is expected to be faster than cuBLAS, by the smaller side of its
# blocks. Not measured: two thirds, or less, of the density at which `bench.gpu_model` has them draw
# level on an H200.
PRODUCTS = {128: 0.35, 64: 0.2, 32: 0.1, 16: 0.05}
WEIGHT_GRADS = {128: 0.25, 64: 0.12, 32: 0.06, 16: 0.03}

# A kernel waits for another that checks the pattern, some 6 us: where the dense product is done in
# little more, nothing is gained. Its time is that of an H200, 800 TFLOP/s and 4 TB/s, not measured.
_SHORTEST = 15e-6


def wants_exact_float32(precision: Any) -> bool:
    """Whether products of float32 numbers must not be taken of numbers rounded to TF32.

    Where no precision is asked for, JAX's own products on GPUs are.
    """
    if precision is None:
        precision = getattr(jax.config, "jax_default_matmul_precision", None)
    names = precision if isinstance(precision, tuple) else (precision,)
    tf32 = (None, "default", "fastest", "bfloat16", "tensorfloat32", lax.Precision.DEFAULT)
    tf32 += (lax.DotAlgorithmPreset.TF32_TF32_F32,)
    return not all(name in tf32 for name in names)


class BlockMatmulDevice:
    """What `core.kinds.Device` asks about block-sparse products on CUDA."""

    def attributes(self, spec) -> dict[str, Any]:
        return {"exact": wants_exact_float32(spec.precision)}

    def scratch_bytes(self, role: str, spec, shapes: dict[str, tuple[int, ...]], dtype: str) -> int:
        arrays = [shapes[name] for name in ("x", "w", "y", "indices")]
        of_result = "float32" if role == "forward" and spec.cast_from else dtype
        exact = wants_exact_float32(spec.precision)
        return native.module("cuda").scratch_bytes(role, *arrays, dtype, of_result, exact)

    def unmeasured_break_even(self, role: str, spec, dtype: str, batch: int) -> float:
        reading = jnp.dtype(dtype).itemsize * spec.macs(1) / 4e12
        if max(2 * spec.macs(batch) / 800e12, reading) < _SHORTEST:
            return 0.0
        smallest = min(spec.weight.block_shape)
        if any(side % 16 for side in spec.weight.block_shape) or dtype == "float64":
            return 0.0
        table = WEIGHT_GRADS if role == "weight_grad" else PRODUCTS
        limit = next(limit for side, limit in table.items() if smallest >= side)
        # Without tensor cores, cuBLAS is closer to its limit than a first kernel.
        return limit / 2 if dtype == "float32" and wants_exact_float32(spec.precision) else limit

    def shape_class(self, spec, batch: int) -> str:
        smallest = min(spec.weight.block_shape)
        block = next((f"block>={side}" for side in PRODUCTS if smallest >= side), "block<16")
        exact = ",exact" if wants_exact_float32(spec.precision) else ""
        return f"{batch_class(batch)},{block}{exact}"
