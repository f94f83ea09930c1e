"""How many numbers of each activation are not zero: what ops on sparse inputs decide by."""

import functools

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import NamedSharding, PartitionSpec

from jaxsparse.core import compat, kernel, native, partition

_TARGET = kernel.target_name("nonzeros")
_DTYPES = frozenset({"float32", "float64", "bfloat16", "float16"})
_primitive = Primitive("jaxsparse_nonzeros")


def nonzeros(x) -> jax.Array:
    """How many channels of each place of `x [*places, channels]` are not zero: int32 `[*places]`.

    -0.0 is zero, NaN is not. The result has no derivative.
    """
    return _primitive.bind(x)


def _reference(x):
    return jnp.sum(x != 0, -1, dtype=jnp.int32)


def _abstract_eval(x):
    parts = partition.spec_of(x.sharding, x.ndim)
    sharding = NamedSharding(x.sharding.mesh, PartitionSpec(*parts[:-1]))
    dtype = jnp.dtype("int32")
    return x.update(shape=x.shape[:-1], dtype=dtype, weak_type=False, sharding=sharding)


def _jvp(primals, tangents):
    counts = _primitive.bind(*primals)
    return counts, ad.Zero(jax.typeof(counts).to_tangent_aval())


def _batch(arrays, axes):
    return _primitive.bind(jnp.moveaxis(arrays[0], axes[0], 0)), 0


def _by_handler(x):
    return kernel.call(_TARGET, x.shape[:-1], jnp.dtype("int32"), [x], {})


def _lower(context, x):
    (aval,) = context.avals_in
    is_local = compat.holds_all_data(context, aval)  # else the compiler splits the sum
    if is_local and aval.dtype.name in _DTYPES and not kernel.missing("cpu", (_TARGET,)):
        return mlir.lower_fun(_by_handler, multiple_results=False)(context, x)
    return compat.lower_without_mesh(_reference, context, x)


_primitive.def_abstract_eval(_abstract_eval)
ad.primitive_jvps[_primitive] = _jvp
batching.primitive_batchers[_primitive] = _batch
compat.run_eagerly(_primitive)
mlir.register_lowering(_primitive, functools.partial(compat.lower_without_mesh, _reference))
if native.why_absent("cpu") is None:
    mlir.register_lowering(_primitive, _lower, platform="cpu")
