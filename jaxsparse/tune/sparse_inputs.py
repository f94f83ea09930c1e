"""Break-even points of convolutions of sparse inputs, as `break_even` has those of products.

Three for each class of layers: the share of active places up to which kernels pay, and those of
numbers that are not zero, of the weight gradient and of the others. A class is represented by some
numbers of channels, the worst of which decide, and the points of places by forward and weight
gradient, as both go by them. The rival is XLA's convolution, as the op runs it: the safe choice, so
a kernel has to be faster by SAFE_MARGIN.
"""

import functools
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.ops import window
from jaxsparse.ops.masked import MaskedSpec, masked_conv
from jaxsparse.tune.break_even import SAFE_MARGIN, highest

DTYPES = ("float32", "bfloat16")
KERNELS = ((1, 1), (3, 3))
STRIDES = (1, 2)
CHANNELS = (  # of each class, in and out
    ((3, 64), (64, 8)),
    ((16, 32), (32, 16), (20, 20)),
    ((32, 32), (32, 64)),
    ((64, 64), (128, 128)),
)
BATCH, WIDTH = 4, 28
ROLES = {  # by which a point is measured
    "places": ("forward", "weight_grad"),
    "nonzeros": ("forward",),
    "weight_grad_nonzeros": ("weight_grad",),
}


def measure(table: dict, compare: Callable, report: Callable[[str], None], only: str = "") -> None:
    """Adds the points of this device to the table; arguments as for `convolutions.measure`."""
    for dtype, taps, stride, sizes, kind in itertools.product(
        DTYPES, KERNELS, STRIDES, CHANNELS, ROLES
    ):
        name = f"masked_conv_{kind}"
        shape_class = _spec(taps, stride, sizes[0]).shape_class()
        if only not in (label := f"{name} {dtype} {shape_class}"):
            continue
        problems = [
            functools.partial(_functions, dtype, taps, stride, kind, role, size)
            for role, size in itertools.product(ROLES[kind], sizes)
        ]

        def pays(share, problems=problems):
            return all(compare(*functions(share)) >= SAFE_MARGIN for functions in problems)

        table.setdefault(name, {}).setdefault(dtype, {})[shape_class] = highest(pays)
        report(f"{label}: {table[name][dtype][shape_class]}")


def _spec(taps, stride, channels) -> MaskedSpec:
    ones = (1, 1)
    strides, space = (stride, stride), (WIDTH, WIDTH)
    padding = window.conv_padding("tune", "SAME", space, taps, strides, ones, ones)
    seen = window.conv_window("tune", space, taps, strides, padding.pairs, ones)
    return MaskedSpec(seen, channels, "x")


def _functions(dtype, taps, stride, kind, role, channels, share) -> tuple[Callable, Callable]:
    """The kernel and its rival on arrays of their own."""
    rng = np.random.default_rng(0)
    shape = (BATCH, WIDTH, WIDTH, channels[0])
    active = rng.random((*shape[:-1], 1) if kind == "places" else shape) < share
    x = jnp.asarray(rng.standard_normal(shape) * active, dtype)
    w = jnp.asarray(rng.standard_normal((*taps, *channels)), dtype)

    def compiled(implementation):
        op = functools.partial(masked_conv, strides=stride, implementation=implementation)
        function, operands = op, (x, w)
        if role == "weight_grad":
            function = lambda x, g: jax.linear_transpose(lambda w: op(x, w), w)(g)[0]
            operands = (x, jnp.ones(jax.eval_shape(op, x, w).shape, dtype))
        run = jax.jit(function).lower(*operands).compile()
        return lambda: jax.block_until_ready(run(*operands))

    return compiled("ffi"), compiled("dense")
