"""Every JAX name that is not public API, in one place. Checked on JAX 0.10.2, 0.11.2 and 0.12.0."""

import functools
from typing import Any

import jax
from jax import lax
from jax._src import dispatch, source_info_util
from jax.core import ShapedArray, Tracer
from jax.extend.core import Primitive
from jax.interpreters import mlir
from jax.sharding import AbstractMesh, AxisType


def run_eagerly(primitive: Primitive) -> None:
    """Makes a call outside `jit` compile the primitive once and run it."""
    primitive.def_impl(functools.partial(dispatch.apply_primitive, primitive))


def lowers_to_custom_partitioning(primitive: Primitive) -> None:
    """Tells JAX that lowering this primitive needs to know the devices."""
    dispatch.prim_requires_devices_during_lowering.add(primitive)


def current_name_stack() -> str:
    """The names of `jax.named_scope` around here, as far as the innermost trace knows them."""
    return str(source_info_util.current_name_stack())


def is_on_one_device(context: mlir.LoweringRuleContext) -> bool:
    """Whether the program being lowered certainly runs on a single device."""
    return getattr(context.module_context.axis_context, "num_devices", None) == 1


def holds_all_data(context: mlir.LoweringRuleContext, aval) -> bool:
    """Whether what is lowered sees its operands whole: on one device, or as data of one device.

    Under any manual axis data is local; `custom_partitioning` fails in a partly manual `shard_map`.
    """
    mesh = aval.sharding.mesh
    is_manual = not mesh.empty and AxisType.Manual in mesh.axis_types
    return is_manual or is_on_one_device(context)


def lowering_platforms(context: mlir.LoweringRuleContext) -> tuple[str, ...]:
    """The platforms that the program being lowered is for."""
    return tuple(context.platforms or context.module_context.platforms)


def vary_alike(*arrays):
    """Inside `shard_map`, marks each array as varying over the axes that any of them varies over.

    The transpose of that mark is the sum over devices that a replicated operand's gradient needs.
    Public API throughout; `jax._src.core.auto_insert_reshard` does the same.
    """
    if not any(isinstance(a, Tracer) for a in arrays):
        return list(arrays)  # outside every transformation; this is on the path of eager calls
    axes = [jax.typeof(a).manual_axis_type.varying for a in arrays]
    every = frozenset().union(*axes)
    if not every:
        return list(arrays)
    return [
        lax.pcast(a, tuple(every - frozenset(own)), to="varying") if every - frozenset(own) else a
        for a, own in zip(arrays, axes, strict=True)
    ]


def lower_without_mesh(function, context: Any, *operands):
    """Lowers a function of arrays as if no mesh were set and no axis had an explicit sharding.

    Plain JAX code then needs no care for explicit sharding types; the compiler shards it.
    """
    mesh = context.avals_in[0].sharding.mesh
    auto = (
        AbstractMesh((), ())
        if mesh.empty
        else mesh.update_axis_types(dict.fromkeys(mesh.axis_names, AxisType.Auto))
    )
    avals_in, avals_out = (
        [ShapedArray(aval.shape, aval.dtype) for aval in avals]
        for avals in (context.avals_in, context.avals_out)
    )
    with jax.sharding.use_abstract_mesh(auto):
        lower = mlir.lower_fun(function, multiple_results=False)
        return lower(context.replace(avals_in=avals_in, avals_out=avals_out), *operands)


# `lax.psum` inside a `partition` body fails on JAX 0.11.2 and 0.12.0 while an explicit mesh is set
# ("Unsupported reduction computation"): a sharding annotation lands in the reducer. This primitive
# lowers the same psum with types that know no mesh. tests/core/test_compat.py tells when it can go.
_psum = Primitive("jaxsparse_psum")
_psum.def_abstract_eval(lambda value, *, axes: value)
mlir.register_lowering(
    _psum,
    lambda context, value, *, axes: lower_without_mesh(lambda v: lax.psum(v, axes), context, value),
)


def psum_in_partition(value, axes):
    """`lax.psum` for use in the body of a `custom_partitioning` rule."""
    return _psum.bind(value, axes=tuple(sorted(axes))) if axes else value


def scan_inputs(params) -> tuple[int, int]:
    """How many operands of a scan are the same in every round, and how many are carried.

    The parameters of its equation are numbers in JAX 0.10.2, trees of the operands in 0.12.0.1.
    """
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    same, carried, _ = params["ft_in"].unpack()
    return len(same), len(carried)
