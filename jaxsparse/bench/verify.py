"""Every op against XLA's dense op on this machine, forward and backward.

python -m jaxsparse check
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

import jaxsparse as js

DTYPES = ("float32", "bfloat16", "float16", "float64")
FORMATS = ("16x16", "32x32", "unstructured", "grouped:8")
# Sizes that neither blocks nor vectors divide.
_MATRIX = ((41, 72), (72, 56))
_IMAGES = ((2, 9, 11, 24), (3, 3, 24, 40))


@dataclasses.dataclass(frozen=True)
class Line:
    """What was found for one op.

    Attributes:
        name: the op, the format and the dtype.
        found: what `jaxsparse.check` found for each of its members; empty without kernels.
        why: why nothing was compared; or empty.
    """

    name: str
    found: tuple[js.Compared, ...]
    why: str = ""

    @property
    def agrees(self) -> bool:
        """Whether nothing differs; also where there is nothing to compare."""
        return not any(row.num_bad for row in self.found)

    def __str__(self) -> str:
        if not self.found:
            return f"{self.name:<36} not compared: {self.why}"
        bad = [row for row in self.found if row.num_bad]
        if bad:
            return f"{self.name:<36} DIFFERS: {'; '.join(map(str, bad))}"
        worst = ", ".join(f"{row.member.split('_', 1)[1]} {row.worst:.2g}" for row in self.found)
        return f"{self.name:<36} agrees ({worst} of what is allowed)"


def lines(dtypes=DTYPES[:2], only: str = "") -> Iterator[Line]:
    """A line for every op, format and dtype.

    Args:
        dtypes: those of DTYPES to try.
        only: what a line's name must contain.
    """
    for dtype in dtypes:
        for format in FORMATS:
            for op, run in _OPS.items():
                name = f"{op} {format} {dtype}"
                if only in name:
                    with jax.enable_x64(dtype == "float64"):
                        yield _line(name, functools.partial(run, format, dtype))


def _line(name: str, make: Callable) -> Line:
    function, arguments = make()
    with js.check(raises=False) as checked:
        jax.block_until_ready(jax.jit(function)(*arguments))
    found = tuple(row for row in checked.rows if row.way == "ffi")
    if any(not row.runs for row in found):
        raise RuntimeError(f"check: every comparison of {name} must run, got {checked}.")
    why = next((row.why for row in checked.rows if row.way == "none"), "")
    return Line(name, found, why)


def _draw(seed: int, shape, dtype):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32), dtype)


def _product(op: Callable, shapes, format, dtype):
    """An op and its two gradients."""
    x, dense = _draw(0, shapes[0], dtype), _draw(1, shapes[1], dtype)
    w = js.fromdense(dense, format, sparsity=0.6)

    def function(x, values):
        y, pull = jax.vjp(lambda x, values: op(x, w.with_values(values)), x, values)
        return y, pull(_draw(2, y.shape, dtype))

    return function, (x, w.values)


def _copies(format, dtype):
    dense = _draw(1, _MATRIX[1], dtype)
    w = js.fromdense(dense, format, sparsity=0.6)
    both = lambda dense, values: (w.pattern.gather(dense), w.pattern.scatter(values))
    return both, (dense, w.values)


_OPS = {
    "matmul": functools.partial(_product, js.matmul, _MATRIX),
    "conv": functools.partial(_product, functools.partial(js.conv, strides=2), _IMAGES),
    "conv_transpose": functools.partial(
        _product, functools.partial(js.conv_transpose, strides=2), _IMAGES
    ),
    "copies": _copies,
}
