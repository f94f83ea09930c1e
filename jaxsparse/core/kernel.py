"""The compiled handlers: their names, how they are called, and why one is not there."""

import jax
import jax.numpy as jnp
from jax import export
from jax.sharding import NamedSharding, PartitionSpec

from jaxsparse.core import native


def target_name(member: str) -> str:
    """The FFI target of a member. The version changes when the meaning of its operands does."""
    return f"jaxsparse.{member}.v1"


def missing(platform: str, targets: tuple[str, ...]) -> list[str]:
    """Those of the targets that no handler for `platform` is registered for."""
    return [target for target in targets if target not in native.targets(platform)]


def call(target: str, shape: tuple[int, ...], dtype, arrays, attributes, scratch_bytes=None):
    """Calls a handler on arrays that are wholly on this device.

    Its scratch memory, if it takes any, is a second result: memory that a handler allocates is
    freed when it returns, and a CUDA graph of its launches would go on to use it.
    """
    kind = jax.typeof(arrays[0])
    mesh = kind.sharding.mesh

    def result(shape, dtype):
        if mesh.empty:
            return jax.ShapeDtypeStruct(shape, dtype)
        # Inside shard_map the result must vary over the same manual axes.
        whole = NamedSharding(mesh, PartitionSpec(*[None] * len(shape)))
        return kind.update(shape=shape, dtype=dtype, weak_type=False, sharding=whole)

    if scratch_bytes is None:
        return jax.ffi.ffi_call(target, result(shape, dtype))(*arrays, **attributes)
    results = (result(shape, dtype), result((scratch_bytes,), jnp.uint8))
    return jax.ffi.ffi_call(target, results)(*arrays, **attributes)[0]


def disabled_export_checks() -> list[export.DisabledSafetyCheck]:
    """What `jax.export.export(f, disabled_checks=...)` needs for programs with our handlers.

    The process that loads the exported program must import jaxsparse first.
    """
    return [export.DisabledSafetyCheck.custom_call(name) for name in native.all_targets()]
