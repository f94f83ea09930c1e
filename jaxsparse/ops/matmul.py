"""Matrix products with sparse weights, and the sampled product that is their weight gradient."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxsparse.core import contract, partition
from jaxsparse.formats.pattern import (
    Pattern,
    WeightSpec,
    check_pattern,
    check_same_shape,
    check_single,
)
from jaxsparse.formats.split import SplitWeight
from jaxsparse.formats.weight import SparseWeight, WeightSum, check_sum, check_values
from jaxsparse.ops import families
from jaxsparse.ops.options import check_options


@dataclasses.dataclass(frozen=True)
class MatmulSpec:
    """What is fixed about a product before any array is seen."""

    weight: WeightSpec
    precision: Any = None  # for the reference on platforms where it matters

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

    def unmeasured_break_even(self) -> float:
        return self.weight.unmeasured_break_even()

    def shape_class(self, batch: int) -> str:
        return self.weight.shape_class(batch)


def _sum_dtype(dtype):
    """What sums are taken in: float32 for the short floats, else the dtype itself."""
    return jnp.float32 if dtype in (jnp.bfloat16, jnp.float16) else dtype


def _dot(spec, x, w):
    y = jnp.matmul(x, w, precision=spec.precision, preferred_element_type=_sum_dtype(x.dtype))
    return y.astype(x.dtype)


MATMUL = families.make(
    "matmul", _dot, {"cpu": frozenset({"float32", "float64", "bfloat16", "float16"})}
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

    Weights that are not stored multiply nothing in a kernel; in plain JAX they are zeros, so that
    an Inf or NaN of `x` makes NaN of every result of its row.

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
            in: a float32 result of bfloat16 costs as much as float32.
        implementation: None chooses and never fails. "ffi" is the compiled kernel, or an error
            that says why there is none; "xla" is plain JAX on any platform, which for this op is
            XLA's dense product with the whole weight, so "dense" says the same.
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
    x = _as_array("matmul", "x", x)
    if isinstance(w, WeightSum):
        check_sum("matmul", w)
        return sum_of_parts(
            w,
            lambda part: matmul(
                x,
                part,
                pattern=pattern,
                precision=precision,
                preferred_element_type=preferred_element_type,
                implementation=implementation,
                grad=grad,
            ),
        )
    if isinstance(w, (SparseWeight, SplitWeight)):
        if pattern is not None:
            raise ValueError("matmul: a sparse weight has its pattern, got another. Drop it.")
        if grad == "dense":
            raise ValueError(
                'matmul: grad="dense" is the gradient of weights that are not stored, got a '
                f"{type(w).__name__}, which has none. Pass an array w with pattern=w.pattern."
            )
        check_values("matmul", w.values, w.pattern)
        shape, weights, pattern = w.shape, w.values, w.pattern
        storage = w.features if isinstance(w, SplitWeight) else "packed"
    else:
        weights = _as_array("matmul", "w", w)
        shape, storage = weights.shape, "dense"
        if pattern is None:
            if implementation == "ffi":
                raise ValueError(
                    'matmul: implementation="ffi" needs a sparse weight, got an array. Use '
                    "jaxsparse.fromdense, or pass a pattern."
                )
        else:
            check_pattern("matmul", pattern)
            check_same_shape("matmul", weights, pattern.shape)
    if pattern is not None and storage in ("packed", "dense"):
        check_single("matmul", pattern)
    _check_operands(x, weights, shape)
    result = x.dtype if preferred_element_type is None else jnp.dtype(preferred_element_type)
    wide = _wider(x.dtype, result)
    x, weights = _cast(x, wide), _cast(weights, wide)
    if pattern is None:
        dimensions = (((x.ndim - 1,), (0,)), ((), ()))
        y = lax.dot_general(x, weights, dimensions, precision, _sum_dtype(wide))
    else:
        precision = tuple(precision) if isinstance(precision, list) else precision
        spec = MatmulSpec(pattern.spec(), precision)
        product = _product(storage, spec, implementation, grad)
        y = product(x, weights, *pattern.indices)
    return _cast(y, result)


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
    a, b = _as_array("sddmm", "a", a), _as_array("sddmm", "b", b)
    check_pattern("sddmm", pattern)
    check_single("sddmm", pattern)
    spec = MatmulSpec(pattern.spec(), precision)
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
    _check_same_dtype("sddmm", "a", a, "b", b)
    op = MATMUL.packed[spec.weight.name]
    return op.weight_grad(spec, a, b, *pattern.indices, implementation=implementation)


@functools.lru_cache(maxsize=1024)
def _product(storage, spec, implementation, grad):
    """The product of x and weights in some storage, with a gradient contract or none.

    Kept, because making a contract costs more than a small product.
    """
    _check_precision(spec.precision)
    op = (MATMUL.whole if storage == "dense" else MATMUL.packed)[spec.weight.name]
    forward = functools.partial(op.forward, spec, implementation=implementation)
    product = {"out": _split_out, "in": _split_in}.get(storage, lambda forward: forward)(forward)
    if grad == "exact":
        return product
    whole = functools.partial(_whole_weight_grad, spec.precision) if grad == "dense" else None
    return contract.with_contract("matmul", product, whole)


def sum_of_parts(w: WeightSum, product):
    """The sum of the products of each part, which were rounded."""
    first, *others = (product(part) for part in w.parts)
    if not others:
        return first
    total = first.astype(_sum_dtype(first.dtype))
    for y in others:
        total += y.astype(total.dtype)
    return total.astype(first.dtype)


def _split_out(forward):
    """Each part makes its own features of the result."""

    def product(x, values, *indices):
        mapped = (None, 0, *[0] * len(indices))
        y = jax.vmap(forward, mapped, x.ndim - 1)(x, values, *indices)
        return _merge_last_axes(y)

    return product


def _split_in(forward):
    """Each part makes a summand of the result from its own features of `x`."""

    def product(x, values, *indices):
        parts = _split_last_axis(x, values.shape[0])
        y = jax.vmap(forward, (x.ndim - 1, 0, *[0] * len(indices)))(parts, values, *indices)
        return y.astype(_sum_dtype(x.dtype)).sum(0).astype(x.dtype)

    return product


def _merge_last_axes(y):
    """The last two axes as one, which stays split over devices as the first of them was."""
    shape = (*y.shape[:-2], y.shape[-2] * y.shape[-1])
    return lax.reshape(y, shape, out_sharding=_explicit_sharding(y, lambda spec: spec[:-1]))


def _split_last_axis(x, parts):
    """The last axis as two, the first of which stays split over devices as it was."""
    shape = (*x.shape[:-1], parts, x.shape[-1] // parts)
    return lax.reshape(x, shape, out_sharding=_explicit_sharding(x, lambda spec: (*spec, None)))


def _explicit_sharding(x, change):
    """The sharding that explicit mode needs to be told of; None where there is none to tell."""
    sharding = jax.typeof(x).sharding
    if sharding.mesh.empty or AxisType.Explicit not in sharding.mesh.axis_types:
        return None
    return NamedSharding(sharding.mesh, PartitionSpec(*change(partition.spec_of(sharding, x.ndim))))


def _whole_weight_grad(precision, x, g):
    batch = tuple(range(x.ndim - 1))
    dimensions = ((batch, batch), ((), ()))
    return lax.dot_general(x, g, dimensions, precision, _sum_dtype(x.dtype)).astype(x.dtype)


def _wider(dtype, preferred):
    """The dtype to compute in: the preferred one where it holds every value of the other."""
    if dtype == preferred:
        return dtype
    with jax.numpy_dtype_promotion(
        "standard"
    ):  # strict mode is for operands, not for this question
        return preferred if jnp.promote_types(dtype, preferred) == preferred else dtype


def _cast(x, dtype):
    # Not even a cast that does nothing is free in an eager call.
    return x if x.dtype == dtype else x.astype(dtype)


def _as_array(function: str, name: str, x) -> jax.Array:
    is_array = hasattr(x, "shape") and hasattr(x, "dtype")
    if not is_array and not isinstance(x, (int, float, list, tuple)):
        raise TypeError(f"{function}: {name} must be an array, got {type(x).__name__}.")
    array = x if isinstance(x, jax.Array) else jnp.asarray(x)
    if not jnp.issubdtype(array.dtype, jnp.number):
        raise TypeError(f"{function}: {name} must hold numbers, got dtype {array.dtype}.")
    return array


def _check_precision(precision):
    """Raises lax's own error for a precision that there is not."""
    one = jax.ShapeDtypeStruct((1, 1), jnp.float32)
    jax.eval_shape(functools.partial(lax.dot, precision=precision), one, one)


def _check_operands(x, weights, shape):
    if len(shape) != 2:
        raise ValueError(
            f"matmul: the weight must have two axes, [in, out], got shape {tuple(shape)}."
        )
    if x.ndim < 1 or x.shape[-1] != shape[0]:
        got = f"whose last axis has {x.shape[-1]}" if x.ndim else "which has no axes"
        raise ValueError(
            f"matmul: the weight takes {shape[0]} input features, got x.shape={x.shape}, {got}."
        )
    _check_same_dtype("matmul", "x", x, "w", weights)


def _check_same_dtype(function, name_a, a, name_b, b):
    if a.dtype != b.dtype:
        raise TypeError(
            f"{function}: {name_a} and {name_b} must have one dtype, got {a.dtype} and {b.dtype}. "
            "Cast one of them."
        )
