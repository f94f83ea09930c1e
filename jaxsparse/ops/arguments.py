"""What all ops make of their arguments: arrays, weights in every form, dtypes."""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxsparse.formats.pattern import Pattern, check_pattern, check_same_shape, check_single
from jaxsparse.formats.split import SplitWeight
from jaxsparse.formats.weight import SparseWeight, WeightSum, check_sum, check_values


def as_array(function: str, name: str, x) -> jax.Array:
    """`x` as an array of numbers, or a TypeError."""
    is_array = hasattr(x, "shape") and hasattr(x, "dtype")
    if not is_array and not isinstance(x, (int, float, list, tuple)):
        raise TypeError(f"{function}: {name} must be an array, got {type(x).__name__}.")
    if hasattr(x, "todense"):  # ours, SciPy's, JAX's
        raise TypeError(
            f"{function}: {name} must be an array, got {type(x).__name__}. Use its todense(); "
            "jaxsparse.fromsparse makes weights of sparse matrices."
        )
    array: Any = x if is_array else _from_numbers(function, name, x)
    # Before JAX sees it: of other dtypes it says no more than that it cannot read them.
    if not jnp.issubdtype(array.dtype, jnp.number):
        raise TypeError(f"{function}: {name} must hold numbers, got dtype {array.dtype}.")
    return array if isinstance(array, jax.Array) else jnp.asarray(array)


def _from_numbers(function: str, name: str, x) -> jax.Array:
    """An array of a number or of nested lists of numbers."""
    try:
        return jnp.asarray(x)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{function}: {name} must be an array, got a {type(x).__name__} of what does not make "
            "one. Give one array; sums of sparse weights are of type jaxsparse.WeightSum."
        ) from error


# Weights ------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Weight:
    """A weight in one of the forms that ops take.

    Attributes:
        numbers: its values, or all its entries.
        pattern: where the values are, or which entries take part; None for all.
        shape: of the weight as a whole.
        storage: "packed", "dense", or the features that a SplitWeight is split along.
    """

    numbers: jax.Array
    pattern: Pattern | None
    shape: tuple[int, ...]
    storage: str


def read_weights(function: str, w, pattern, implementation, grad) -> tuple[Weight, ...]:
    """The weights whose sum `w` is, which is one unless `w` is a WeightSum.

    Raises:
        ValueError: values that do not fit their pattern, an array that does not fit `pattern`, a
            pattern too many; `grad="dense"` of weights that are not stored; `implementation="ffi"`
            of a dense weight.
        TypeError: what is no weight, or no pattern.
    """
    if isinstance(w, WeightSum):
        check_sum(function, w)
    elif not isinstance(w, (SparseWeight, SplitWeight)):
        return (_read_array(function, w, pattern, implementation),)
    if pattern is not None:
        raise ValueError(f"{function}: a sparse weight has its pattern, got another. Drop it.")
    if grad == "dense":
        raise ValueError(
            f'{function}: grad="dense" is the gradient of weights that are not stored, got a '
            f"{type(w).__name__}, which has none. Pass an array w with pattern=w.pattern."
        )
    return tuple(_read_sparse(function, part) for part in getattr(w, "parts", (w,)))


def _read_sparse(function: str, w) -> Weight:
    check_pattern(function, w.pattern)
    if not hasattr(w.values, "shape"):
        raise TypeError(
            f"{function}: the values of a {type(w).__name__} must be an array, got "
            f"{type(w.values).__name__}. Use with_values."
        )
    check_values(function, w.values, w.pattern)
    if isinstance(w, SplitWeight):
        return Weight(w.values, w.pattern, w.shape, w.features)
    check_single(function, w.pattern)
    return Weight(w.values, w.pattern, w.shape, "packed")


def _read_array(function: str, w, pattern, implementation) -> Weight:
    array = as_array(function, "w", w)
    if pattern is not None:
        check_pattern(function, pattern)
        check_same_shape(function, array, pattern.shape)
        check_single(function, pattern)
    elif implementation == "ffi":
        raise ValueError(
            f'{function}: implementation="ffi" needs a sparse weight, got an array. Use '
            "jaxsparse.fromdense, or pass a pattern."
        )
    return Weight(array, pattern, tuple(array.shape), "dense")


def sum_over(weights: Iterable, function: Callable) -> jax.Array:
    """The sum of what `function` returns for each weight, which was rounded."""
    first, *others = map(function, weights)
    if not others:
        return first
    total = first.astype(sum_dtype(first.dtype))
    for y in others:
        total += y.astype(total.dtype)
    return total.astype(first.dtype)


# Dtypes and precision -----------------------------------------------------------------------------


def check_same_dtype(function: str, name_a: str, a, name_b: str, b) -> None:
    """Raises unless both arrays have one dtype."""
    if a.dtype != b.dtype:
        raise TypeError(
            f"{function}: {name_a} and {name_b} must have one dtype, got {a.dtype} and {b.dtype}. "
            "Cast one of them."
        )


def sum_dtype(dtype):
    """What sums are taken in: float32 for the short floats, else the dtype itself."""
    return jnp.float32 if dtype in (jnp.bfloat16, jnp.float16) else dtype


def check_preferred(function: str, dtype, preferred) -> None:
    """Raises TypeError for a preferred dtype that no result of operands of `dtype` has, as lax."""
    if preferred is None:
        return
    result = jnp.dtype(preferred)
    kinds = (jnp.integer, jnp.floating, jnp.complexfloating)
    given, wanted = (
        next((i for i, kind in enumerate(kinds) if jnp.issubdtype(d, kind)), None)
        for d in (dtype, result)
    )
    if (given, wanted) not in ((0, 0), (0, 1), (1, 1), (2, 2)):
        raise TypeError(
            f"{function}: preferred_element_type is of the kind of x (integers, floats or complex "
            f"numbers), or a float for integers, as in lax, got {result} for {dtype}. Cast the "
            "result."
        )
    try:
        with jax.numpy_dtype_promotion("standard"):
            jnp.promote_types(dtype, result)
    except ValueError as error:
        raise TypeError(
            f"{function}: JAX does not promote numbers of eight bits or less to others, got "
            f"preferred_element_type={result} for {dtype}. Cast x and w, or the result."
        ) from error


def result_dtypes(dtype, preferred) -> tuple[jnp.dtype, jnp.dtype]:
    """The dtype of the result, and the one to compute in.

    The latter is the preferred dtype where that holds every value of the operands'.
    """
    result = dtype if preferred is None else jnp.dtype(preferred)
    if result == dtype:
        return result, dtype
    with jax.numpy_dtype_promotion("standard"):  # strict mode is for operands, not this question
        return result, result if jnp.promote_types(dtype, result) == result else dtype


def cast(x, dtype):
    """`x` in another dtype. Not even a cast that does nothing is free in an eager call."""
    return x if x.dtype == dtype else x.astype(dtype)


def hashable(precision) -> Any:
    """A precision that may have been given as a list."""
    return tuple(precision) if isinstance(precision, list) else precision


def check_precision(precision) -> None:
    """Raises lax's own error for a precision that there is not."""
    one = jax.ShapeDtypeStruct((1, 1), jnp.float32)
    jax.eval_shape(functools.partial(lax.dot, precision=precision), one, one)
