"""Break-even points of convolutions, as `break_even` has those of products.

A class is represented by the channels in CHANNELS, the worst of which decide. The rival is XLA's
convolution with a weight that is whole already. Points are measured for weights that are packed,
and hold for those stored dense: both ways need the same copies there.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.formats.block import Block
from jaxsparse.formats.columns import Grouped, Unstructured
from jaxsparse.ops import window
from jaxsparse.ops.conv import CONV, ConvSpec, dense_conv, dense_conv_transpose
from jaxsparse.patterns import make
from jaxsparse.tune.break_even import highest

DTYPES = ("float32", "bfloat16")
FORMATS = (Unstructured(), Grouped(4), Grouped(8), Block((8, 8)), Block((16, 16)), Block((32, 32)))
KERNELS = ((1, 1), (3, 3))
STRIDES = (1, 2)
CHANNELS = ((16, 48), (64,), (128,))  # of each class, in and out
# (batch, width of the result): those of the layers of a network with inputs of 224 x 224, which
# have 49, 196, 784 and 3136 outputs.
RESULTS = ((1, 7), (1, 14), (1, 28), (1, 56))
ROLES = ("forward", "input_grad", "weight_grad")


def measure(table: dict, compare: Callable, report: Callable[[str], None], only: str = "") -> None:
    """Adds the points of this device to the table.

    Args:
        table: by member, dtype and class.
        compare, report, only: as for `break_even.measure`.
    """
    for dtype, role, result, kernel, stride, channels in itertools.product(
        DTYPES, ROLES, RESULTS, KERNELS, STRIDES, CHANNELS
    ):
        layers = [_layer(dtype, role, result, kernel, stride, size) for size in channels]
        for format in FORMATS:

            def pays(density, format=format, layers=layers):
                return all(
                    compare(layer.ours(format, density), layer.theirs) >= 1 for layer in layers
                )

            pattern = make.full(format, layers[0].shape)
            name = layers[0].member(pattern).name
            shape_class = layers[0].spec(pattern).shape_class(result[0])
            if only in (label := f"{name} {dtype} {shape_class}"):
                point = highest(pays)
                table.setdefault(name, {}).setdefault(dtype, {})[shape_class] = point
                report(f"{label}: {point}")


@dataclasses.dataclass(frozen=True)
class _Layer:
    """A convolution in one role.

    Attributes:
        arrays: "x", "y" and the whole weight, "dense".
        theirs: what XLA makes of them.
    """

    role: str
    seen: window.Window
    arrays: dict[str, jax.Array]
    theirs: Callable

    @property
    def shape(self) -> tuple[int, ...]:
        return self.arrays["dense"].shape

    def spec(self, pattern) -> ConvSpec:
        return ConvSpec(pattern.spec(), self.seen)

    def member(self, pattern):
        return getattr(CONV.packed[pattern.spec().name], self.role)

    def ours(self, format, density) -> Callable:
        """What the kernel makes of them, with a weight of this density."""
        pattern = make.random(jax.random.key(0), format, self.shape, sparsity=1 - density)
        known = {**self.arrays, "w": pattern.gather(self.arrays["dense"])}
        member = self.member(pattern)
        operands = [known[kind.name] for kind in member.operands]
        function = functools.partial(member, self.spec(pattern), implementation="ffi")
        return _compiled(function, *operands, *pattern.indices)


def _layer(dtype, role, result, kernel, stride, channels) -> _Layer:
    (batch, width), strides = result, (stride, stride)
    space, ones = (width * stride,) * 2, (1, 1)
    padding = window.conv_padding("tune", "SAME", space, kernel, strides, ones, ones)
    seen = window.conv_window("tune", space, kernel, strides, padding.pairs, ones)
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), dtype)
    x, y = draw(batch, *seen.x_space, channels), draw(batch, *seen.y_space, channels)
    dense = draw(*kernel, channels, channels)

    def weight_grad(x, y):
        return jax.linear_transpose(lambda w: dense_conv(seen, x, w), dense)(y)[0]

    theirs = {
        "forward": lambda: _compiled(functools.partial(dense_conv, seen), x, dense),
        "input_grad": lambda: _compiled(functools.partial(dense_conv_transpose, seen), y, dense),
        "weight_grad": lambda: _compiled(weight_grad, x, y),
    }[role]()
    return _Layer(role, seen, {"x": x, "y": y, "dense": dense}, theirs)


def _compiled(function, *operands) -> Callable:
    compiled = jax.jit(function).lower(*operands).compile()
    return lambda: jax.block_until_ready(compiled(*operands))
