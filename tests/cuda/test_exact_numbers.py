"""What tests on a GPU compare exactly is exact there, too: products are of numbers that TF32 has.

A GPU rounds the factors of products of float32 to eleven bits. The tests of transformations must
not take that for a mistake of a kernel, on a day when there is a GPU at last.
"""

import bilinear
import jax
import numpy as np
import pytest
from transforms import TRANSFORMS

OPS = bilinear.make_ops()


def with_rounded_factors(f):
    """`f` and, as rounding is transposed to rounding, its gradients, of numbers in TF32."""
    rounded = lambda x: jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=10)
    return lambda a, b: rounded(f(rounded(a), rounded(b)))


@pytest.mark.parametrize("op", OPS.values(), ids=OPS)
def test_transformations_have_only_numbers_that_tf32_has(op):
    every = lambda f: lambda a, b: {name: t(f)(a, b) for name, t in TRANSFORMS.items()}
    rounded, exact = (
        jax.jit(every(f))(op.a, op.b) for f in (with_rounded_factors(op.theirs), op.theirs)
    )
    for name in TRANSFORMS:
        for one, other in zip(*map(jax.tree.leaves, (rounded[name], exact[name])), strict=True):
            np.testing.assert_array_equal(one, other, err_msg=name)
