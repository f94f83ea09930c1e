"""Matrix products with sparse weights, and the sampled product that is their weight gradient."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxsparse.core import contract
from jaxsparse.formats.pattern import Pattern, WeightSpec, check_pattern, check_single
from jaxsparse.ops import arguments, cuda, families, parts
from jaxsparse.ops.options import check_options


@dataclasses.dataclass(frozen=True)
class MatmulSpec:
    """What is fixed about a product before any array is seen."""

    weight: WeightSpec
    precision: Any = None  # for the reference on platforms where it matters
    cast_from: str | None = None  # the short dtype that holds x and w; the result is float32

    def inner(self, kind: str) -> tuple[int, ...]:
        if kind == "x":
            return self.weight.weight_shape[:1]
        if kind == "y":
            return self.weight.weight_shape[1:]
        return self.weight.inner(kind)

    def attributes(self) -> dict[str, Any]:
        return {}

    def density(self, stored: int) -> float:
        return self.weight.density(stored)

    def macs(self, batch: int) -> int:
        return batch * math.prod(self.weight.weight_shape)

    def unmeasured_break_even(self) -> float:
        return self.weight.unmeasured_break_even()

    def shape_class(self, batch: int) -> str:
        return self.weight.shape_class(batch)

    def is_thin(self, batch: int, role: str) -> bool:
        return self.weight.is_thin(batch, role)


def _dot(spec, x, w):
    result = x.dtype
    if spec.cast_from:
        x, w = x.astype(spec.cast_from), w.astype(spec.cast_from)
    y = jnp.matmul(
        x, w, precision=spec.precision, preferred_element_type=arguments.sum_dtype(x.dtype)
    )
    return y.astype(result)


_DTYPES = frozenset({"float32", "float64", "bfloat16", "float16"})
MATMUL = families.make(
    "matmul",
    _dot,
    {"cpu": _DTYPES, "cuda": _DTYPES},
    {"block": {"cuda": cuda.BlockMatmulDevice()}},
)


def matmul(
    x,
    w,
    *,
    pattern: Pattern | None = None,
    precision=None,
    preferred_element_type=None,
    implementation: str | None = None,
    grad: str = "exact",
) -> jax.Array:
    """Multiplies the last axis of `x` by a sparse weight.

    y[..., o] = sum over inputs i of x[..., i] * w[i, o]

    Weights that are not stored multiply nothing in a kernel; in plain JAX, and in kernels where
    most of a pattern of small blocks is stored, they are zeros, so that an Inf or NaN of `x` makes
    NaN of every result of its row.

    Args:
        x: `[*batch, in]`; float32, bfloat16, float16 or float64 have kernels, other numbers run in
            plain JAX.
        w: what `x` is multiplied by, of the dtype of `x`:
            a SparseWeight of shape `[in, out]`, a WeightSum or a SplitWeight;
            or an array `[in, out]` with `pattern`: its entries on the pattern (a weight that is
            stored dense while it trains);
            or an array `[in, out]` alone: the product is dense.
        pattern: for an array `w`, which of its entries take part.
        precision: as for `jax.lax.dot_general`. CPU kernels are exact in any case.
        preferred_element_type: the dtype of the result. A wider one than that of `x` is computed
            in; the kernels of blocks take bfloat16 for a float32 result as they are.
        implementation: None chooses and never fails. "ffi" is the compiled kernel, or an error
            that says why there is none; "xla" is plain JAX on any platform, which for this op is
            XLA's dense product with the whole weight; "dense" is the same product, but compiled
            copies unpack the weight where there are any.
        grad: "exact" is the derivative, in every mode and order. "sparse" and "dense" are gradient
            contracts for reverse mode: "sparse" has the gradient of the stored weights only;
            "dense", for `w` with `pattern`, has that of all weights as if every one were stored,
            which is what growing a pattern needs to know.

    Returns:
        `[*batch, out]` in `preferred_element_type`, or the dtype of `x`. Sums are taken in float32
        (float64 for float64) and rounded once; sums over devices or over parts of the inputs add
        parts that were rounded, as XLA's own do.

    Raises:
        ValueError: shapes that do not fit, values that do not fit the pattern, unknown options.
        TypeError: dtypes that differ or are not numbers.
        NotImplementedError: `implementation="ffi"` where there is no kernel.
    """
    check_options("matmul", implementation, grad)
    x = arguments.as_array("matmul", "x", x)
    weights = arguments.read_weights("matmul", w, pattern, implementation, grad)
    _check_shapes(x, weights[0].shape)
    arguments.check_preferred("matmul", x.dtype, preferred_element_type)
    result, wide = arguments.result_dtypes(x.dtype, preferred_element_type)

    def by(weight):
        arguments.check_same_dtype("matmul", "x", x, "w", weight.numbers)
        operand, numbers = arguments.cast(x, wide), arguments.cast(weight.numbers, wide)
        if weight.pattern is None:
            dimensions = (((x.ndim - 1,), (0,)), ((), ()))
            y = lax.dot_general(operand, numbers, dimensions, precision, arguments.sum_dtype(wide))
        else:
            its = weight.pattern.spec()
            is_short = x.dtype == jnp.bfloat16 and wide == jnp.float32 and its.name == "block"
            cast_from = "bfloat16" if is_short else None
            spec = MatmulSpec(its, arguments.hashable(precision), cast_from)
            product = _product(weight.storage, spec, implementation, grad)
            y = product(operand, numbers, *weight.pattern.indices)
        return arguments.cast(y, result)

    return arguments.sum_over(weights, by)


def sddmm(a, b, pattern: Pattern, *, precision=None, implementation=None) -> jax.Array:
    """The sampled product: `a^T b` at the stored weights of a pattern.

    result[i, o] = sum over batch of a[..., i] * b[..., o], for each stored (i, o)

    It is the weight gradient of `matmul`, for `a = x` and `b` the gradient arriving at its result.

    Args:
        a: `[*batch, in]`.
        b: `[*batch, out]`, of the dtype of `a`.
        pattern: for a weight of shape `[in, out]`.
        precision, implementation: as in `matmul`.

    Returns:
        `pattern.values_shape` in the dtype of `a`; zero where a block or a group reaches over the
        edge of the weight. `SparseWeight(result, pattern)` is the sparse matrix.

    Raises:
        ValueError, TypeError: shapes or dtypes that do not fit.
    """
    check_options("sddmm", implementation)
    a, b = arguments.as_array("sddmm", "a", a), arguments.as_array("sddmm", "b", b)
    check_pattern("sddmm", pattern)
    check_single("sddmm", pattern)
    spec = MatmulSpec(pattern.spec(), arguments.hashable(precision))
    size_in, size_out = spec.weight.weight_shape
    for name, array, size in (("a", a, size_in), ("b", b, size_out)):
        if array.ndim < 1 or array.shape[-1] != size:
            raise ValueError(
                f"sddmm: the pattern is for a weight of shape {pattern.shape}, so the last axis of "
                f"{name} must have {size}, got {name}.shape={array.shape}."
            )
    if a.shape[:-1] != b.shape[:-1]:
        raise ValueError(
            f"sddmm: a and b must have the same batch axes, got a.shape={a.shape} and "
            f"b.shape={b.shape}."
        )
    arguments.check_same_dtype("sddmm", "a", a, "b", b)
    op = MATMUL.packed[spec.weight.name]
    return op.weight_grad(spec, a, b, *pattern.indices, implementation=implementation)


@functools.lru_cache(maxsize=1024)
def _product(storage, spec, implementation, grad):
    """The product of x and weights in some storage, with a gradient contract or none.

    Kept, because making a contract costs more than a small product.
    """
    arguments.check_precision(spec.precision)
    op = (MATMUL.whole if storage == "dense" else MATMUL.packed)[spec.weight.name]
    product = functools.partial(op.forward, spec, implementation=implementation)
    if storage in ("out", "in"):
        in_parts = parts.over_results if storage == "out" else parts.over_operands
        product = in_parts(product)
    if grad == "exact":
        return product
    whole = functools.partial(_whole_weight_grad, spec.precision) if grad == "dense" else None
    return contract.with_contract("matmul", product, whole)


def _whole_weight_grad(precision, x, g):
    batch = tuple(range(x.ndim - 1))
    dimensions = ((batch, batch), ((), ()))
    return lax.dot_general(x, g, dimensions, precision, arguments.sum_dtype(x.dtype)).astype(
        x.dtype
    )


def _check_shapes(x, shape):
    if len(shape) != 2:
        raise ValueError(
            f"matmul: the weight must have two axes, [in, out], got shape {tuple(shape)}."
        )
    if x.ndim < 1 or x.shape[-1] != shape[0]:
        got = f"whose last axis has {x.shape[-1]}" if x.ndim else "which has no axes"
        raise ValueError(
            f"matmul: the weight takes {shape[0]} input features, got x.shape={x.shape}, {got}."
        )
