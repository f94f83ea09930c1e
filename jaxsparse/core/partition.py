"""How a call is split over the devices of a mesh: the Shardy rule and the body of each part.

Group and batch axes are split freely. The stored axis is split too: each device then holds some
blocks with their indices, and what is not in the result is summed over devices. Inner axes stay
whole.
"""

import functools
import math

from jax.experimental.custom_partitioning import (
    ArrayMapping,
    SdyShardingRule,
    custom_partitioning,
)
from jax.sharding import NamedSharding, PartitionSpec

from jaxsparse.core import compat
from jaxsparse.core.kinds import Kind, Role

STORED = "stored"


def spec_of(sharding, ndim: int) -> tuple:
    """For each axis, the mesh axes that split it, or None."""
    # A sharding without names (an eager call on host arrays while a mesh is set) is whole.
    parts = tuple(getattr(sharding, "spec", ()))
    return parts + (None,) * (ndim - len(parts))


def _mesh_axes(part) -> frozenset[str]:
    return frozenset(part if isinstance(part, tuple) else () if part is None else (part,))


def _factors(member, shapes, result_shape, spec, n_group):
    """A name for every axis of the operands, indices and result; equal names are split alike."""

    def name_axes(array, shape):
        label, role, num_inner = array
        inner = [f"{label}_inner{i}" for i in range(num_inner)]
        group = [
            f"group{i}" if shape[i] == result_shape[i] else f"one_{label}{i}"
            for i in range(n_group)
        ]
        num_middle = len(shape) - n_group - len(inner)
        middle = [f"batch{i}" if role is Role.BATCHED else STORED for i in range(num_middle)]
        return group + middle + inner

    def of_kind(kind):
        return kind.name, kind.role, len(spec.inner(kind.name))

    def of_index(number, index):
        if isinstance(index, Kind):
            return of_kind(index)
        return f"index{number}", index, 0 if index is Role.STORED else 1

    indices = [of_index(number, role) for number, role in enumerate(member.family.indices)]
    arrays = [*map(of_kind, member.operands), *indices]
    named = [name_axes(array, shape) for array, shape in zip(arrays, shapes, strict=True)]
    return named, name_axes(of_kind(member.result), result_shape)


def _can_split(name: str) -> bool:
    return name == STORED or name.startswith(("group", "batch"))


@functools.cache
def partitioned(member, platform):
    """The member's handler as one call that the compiler may split over devices."""
    num_arrays = len(member.operands) + len(member.family.indices)

    @functools.partial(custom_partitioning, static_argnums=(num_arrays, num_arrays + 1))
    def call(*arguments):
        *arrays, spec, n_group = arguments
        return member.run_handler(*arrays, spec=spec, n_group=n_group, platform=platform)

    def sharding_rule(spec, n_group, mesh, operands, results):
        shapes = [operand.shape for operand in operands]
        named, result = _factors(member, shapes, results[0].shape, spec, n_group)
        in_order = list(dict.fromkeys(name for axes in (*named, result) for name in axes))
        return SdyShardingRule(
            tuple(ArrayMapping(*axes) for axes in named),
            (ArrayMapping(*result),),
            # Both lists must be in order of first appearance, or Shardy refuses them.
            reduction_factors=tuple(n for n in in_order if _can_split(n) and n not in result),
            need_replication_factors=tuple(n for n in in_order if not _can_split(n)),
        )

    def partition(spec, n_group, mesh, operands, result):
        """States the shardings one device's call wants, and sums over devices what it must."""
        shapes = [operand.shape for operand in operands]
        named, named_result = _factors(member, shapes, result.shape, spec, n_group)
        proposals = []
        for array, axes in ((result, named_result), *zip(operands, named, strict=True)):
            parts = spec_of(array.sharding, len(axes))
            proposals += zip(axes, array.shape, parts, strict=True)
        split, used = {}, set()  # axis name -> mesh axes; a mesh axis is given out once
        for wanted in ("group", "batch", STORED):
            for name, size, mesh_axes in proposals:
                new = _mesh_axes(mesh_axes)
                is_open = name.startswith(wanted) and name not in split
                # An axis that does not divide evenly would come padded with numbers that are not
                # ours, to be summed, or with indices that are none: it stays whole.
                is_even = size % math.prod(mesh.shape[axis] for axis in new) == 0
                if is_open and is_even and new and not new & used:
                    split[name] = mesh_axes
                    used |= new
        summed = {a for name in split if name not in named_result for a in _mesh_axes(split[name])}

        def sharding(axes):
            return NamedSharding(mesh, PartitionSpec(*[split.get(name) for name in axes]))

        def on_one_device(*arrays):
            part = member.run_handler(*arrays, spec=spec, n_group=n_group, platform=platform)
            return compat.psum_in_partition(part, summed)

        return mesh, on_one_device, sharding(named_result), tuple(sharding(a) for a in named)

    call.def_partition(partition, sharding_rule=sharding_rule)
    return call
