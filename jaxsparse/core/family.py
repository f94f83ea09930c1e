"""Multilinear ops as families of primitives: every rule written once, for all ops and formats.

Behind a bilinear op `y = f(x, w)` stands one number, T = <y, f(x, w)>, linear in each of three
kinds of array. Each member of the family takes the other kinds and returns the derivative of T
with respect to its own:

    forward      (x, w) -> y
    input_grad   (w, y) -> x
    weight_grad  (x, y) -> w

So a member's transposes are the other members, its jvp is itself, and differentiation of any order,
forward or reverse, never leaves the family. A linear map and its transpose are the same thing with
two kinds. What differs between ops is a specification, a reference in plain JAX and a name.

Axes, the same for every op, by the role that an array's kind plays:

    BATCHED   [*group, *batch, *inner]     activations and their gradients
    STORED    [*group, stored, *inner]     the stored part of a weight
    WHOLE     [*group, *inner]             a weight with all its entries
    indices                                int32, with one axis after the group axes:
              [*group, stored]             STORED, where each stored part sits
              [*group, any]                WHOLE, what else there is to know of a pattern
              [*group, *batch, *inner]     BATCHED, what there is to know of each activation

Group axes are where weights or patterns differ: 1 in an array that does not have them. `vmap` adds
a batch axis where only activations are mapped, else a group axis. Nothing here ever reshapes: the
handlers flatten for free, and a reshape of sharded axes would cost an all-gather.

Operands come in the order of the kinds, without the member's own, then the indices.
"""

import dataclasses
import functools
import operator
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxsparse.core import compat, dispatch, kernel, modes, names, native, ordered, partition
from jaxsparse.core.kinds import Device, Kind, Role, role_of


class Family:
    """A multilinear op and its adjoints, from a name, its kinds and one reference.

    Attributes:
        name: compiled handlers are called `jaxsparse.<name>_<member>.v1`.
        kinds: in the order in which members take their operands.
        reference: `reference(spec, *operands, *indices)`, the member of the last kind, without
            group axes, in plain JAX. It runs where no handler exists and states the meaning; the
            references of the other members follow from it.
        dtypes: for each platform with handlers, the dtypes that they take.
        devices: for each platform whose handlers are not like the CPU's, what they are.
        compute: `compute(kind, spec, *operands, *indices, n_group)`, the member that returns `kind`
            by members of other families, for an op that has no handlers of its own.
        parts: `parts(kind)`, the members of other families that `compute` calls for `kind`.
        indices: the roles of the index arrays that follow the operands: a kind where these are
            BATCHED, else STORED or WHOLE. The first is STORED where any is.
        dense: as `reference`, and may call members of other families: what runs where handlers
            exist and do not pay. The reference if None.
        choose: `choose(member, spec, dtype)`, the Choice of an op that decides when it runs, in
            `compute`; None where the density decides, before that. Its specs say in `source` which
            kind has the zeros that it skips.
    """

    def __init__(
        self,
        name: str,
        kinds: tuple[Kind, ...],
        reference: Callable,
        dtypes: dict[str, frozenset[str]],
        compute: Callable | None = None,
        parts: Callable | None = None,
        indices: tuple[Role | Kind, ...] = (Role.STORED, Role.STORED),
        dense: Callable | None = None,
        devices: dict[str, Device] | None = None,
        choose: Callable | None = None,
    ):
        self.name, self.kinds, self.reference, self.dense = name, kinds, reference, dense
        self.devices, self.choose = devices or {}, choose
        self.dtypes, self.compute, self.parts, self.indices = dtypes, compute, parts, indices
        self.members = {kind.name: Member(self, kind) for kind in kinds}
        for member in self.members.values():
            _install(member)


@dataclasses.dataclass(frozen=True, eq=False)
class Member:
    """One primitive of a family: the one that returns arrays of kind `result`."""

    family: Family
    result: Kind

    @functools.cached_property
    def name(self) -> str:
        return f"{self.family.name}_{self.result.member}"

    @functools.cached_property
    def target(self) -> str:
        return kernel.target_name(self.name)

    @functools.cached_property
    def operands(self) -> tuple[Kind, ...]:
        return tuple(kind for kind in self.family.kinds if kind != self.result)

    def handlers(self, platform: str) -> tuple[str, ...]:
        """The FFI targets that the member needs on a platform."""
        if self.family.parts is None:
            return (self.target,)
        parts = self.family.parts(self.result.name)
        return tuple(part.target for part in parts if platform in part.family.dtypes)

    @functools.cached_property
    def primitive(self) -> Primitive:
        return Primitive(f"jaxsparse_{self.name}")

    def __call__(self, spec, *arrays, n_group=0, implementation=None):
        """The result for these operands and indices, which have `n_group` group axes."""
        # Else the compiler would take calls of layers that are alike for one.
        label = names.current() if modes.current().check else None
        return self.primitive.bind(
            *compat.vary_alike(*arrays),
            spec=spec,
            n_group=n_group,
            implementation=implementation,
            label=label,
        )

    # Shapes and types --------------------------------------------------------------------------

    def num_stored(self, shapes) -> int:
        """How many parts of the weight are stored, for the shapes of operands and indices."""
        return shapes[len(self.operands)][-1] if Role.STORED in self.family.indices else 0

    def result_shape(self, shapes, spec, n_group):
        """The shape of the result, for the shapes of operands and indices."""
        group = tuple(
            next((size for size in sizes if size != 1), 1)
            for sizes in zip(*(shape[:n_group] for shape in shapes), strict=True)
        )
        middle = ()
        if self.result.role is Role.STORED:
            middle = (self.num_stored(shapes),)
        elif self.result.role is Role.BATCHED:
            middle = next(
                shape[n_group : len(shape) - len(spec.inner(kind.name))]
                for kind, shape in zip(self.operands, shapes)
                if kind.role is Role.BATCHED
            )
        return (*group, *middle, *spec.inner(self.result.name))

    def abstract_eval(self, *arrays, spec, n_group, implementation, label):
        """Checks everything that can be known before the arrays are; gives the type of the result.

        This runs under every transformation, so what is raised here is raised at trace time. In
        explicit-sharding mode the type includes the sharding: group and batch axes keep theirs.
        """
        operands = arrays[: len(self.operands)]
        self._check(operands, arrays[len(self.operands) :], spec, n_group)
        group_specs, batch_spec = [], ()
        for kind, operand in zip(self.operands, operands, strict=True):
            parts = partition.spec_of(operand.sharding, operand.ndim)
            whole = parts[n_group:]
            if kind.role is Role.BATCHED:
                batch = operand.ndim - len(spec.inner(kind.name))
                whole, batch_parts = parts[batch:], parts[n_group:batch]
                batch_spec = batch_spec if any(batch_spec) else batch_parts
            if any(part is not None for part in whole):
                raise ValueError(
                    f"{self.name}: in explicit mode only group and batch axes may be sharded, not "
                    f"space, features or stored blocks, got {kind.name} with "
                    f"{PartitionSpec(*parts)}. Reshard it; jaxsparse.split_features splits a "
                    "SparseWeight."
                )
            group_specs.append(parts[:n_group])
        group_spec = [
            next((part for part in parts if part is not None), None)
            for parts in zip(*group_specs, strict=True)
        ]
        shape = self.result_shape([a.shape for a in arrays], spec, n_group)
        kept = [*group_spec, *(batch_spec if self.result.role is Role.BATCHED else ())]
        sharding = NamedSharding(
            arrays[0].sharding.mesh, PartitionSpec(*kept, *[None] * (len(shape) - len(kept)))
        )
        # `update` keeps what else the type says, such as the manual axes of shard_map.
        return operands[0].update(shape=shape, weak_type=False, sharding=sharding)

    def _check(self, operands, indices, spec, n_group):
        dtypes = {operand.dtype for operand in operands}
        if len(dtypes) > 1:
            names = " and ".join(sorted(dtype.name for dtype in dtypes))
            raise TypeError(f"{self.name}: operands must have one dtype, got {names}. Cast one.")
        stored = indices[0].shape[n_group:] if Role.STORED in self.family.indices else ()
        batches = []
        for role, index in zip(self.family.indices, indices, strict=True):
            if isinstance(role, Kind):
                batches.append(self._check_batched(role, index, spec, n_group))
                continue
            if index.dtype != jnp.int32 or index.ndim != n_group + 1:
                raise TypeError(
                    f"{self.name}: indices must be int32 with one axis after {n_group} group axes, "
                    f"got {index.str_short()}. Make patterns with jaxsparse.patterns."
                )
            if role is Role.STORED and index.shape[n_group:] != stored:
                raise ValueError(
                    f"{self.name}: all indices must be of one length, got shapes "
                    f"{[i.shape for i in indices]}. Make patterns with jaxsparse.patterns."
                )
        for kind, operand in zip(self.operands, operands, strict=True):
            inner = spec.inner(kind.name)
            end = operand.ndim - len(inner)
            if end < n_group or operand.shape[end:] != inner:
                raise ValueError(
                    f"{self.name}: {kind.name} must end in axes {inner}, got shape {operand.shape}."
                )
            middle = operand.shape[n_group:end]
            if kind.role is Role.BATCHED:
                batches.append(middle)
            elif kind.role is Role.STORED and middle != stored:
                raise ValueError(
                    f"{self.name}: values and pattern must store the same number of blocks, got "
                    f"values of shape {operand.shape} and indices of shape {indices[0].shape}."
                )
        if len(set(batches)) > 1:
            raise ValueError(
                f"{self.name}: both operands must have the same batch axes, got "
                f"{' and '.join(map(str, batches))}."
            )
        for axis in range(n_group):
            sizes = {array.shape[axis] for array in (*operands, *indices)} - {1}
            if len(sizes) > 1:
                raise ValueError(
                    f"{self.name}: group axis {axis} must have one size, or 1, got {sorted(sizes)}."
                )

    def _check_batched(self, kind, index, spec, n_group):
        """The batch axes of an index array that has a number for each activation."""
        inner = spec.inner(kind.name)
        end = index.ndim - len(inner)
        if index.dtype != jnp.int32 or end < n_group or index.shape[end:] != inner:
            raise TypeError(
                f"{self.name}: {kind.name} must be int32 and end in axes {inner}, got "
                f"{index.str_short()}."
            )
        return index.shape[n_group:end]

    # Derivatives -------------------------------------------------------------------------------

    def jvp(self, primals, tangents, **params):
        count = len(self.operands)
        result = self.primitive.bind(*primals, **params)
        terms = []
        for i, tangent in enumerate(tangents[:count]):
            if type(tangent) is not ad.Zero:
                arrays = [*primals[:i], tangent, *primals[i + 1 :]]
                terms.append(self.primitive.bind(*compat.vary_alike(*arrays), **params))
        if not terms:
            return result, ad.Zero(jax.typeof(result).to_tangent_aval())
        return result, functools.reduce(operator.add, terms)

    def transpose(self, cotangent, *arrays, spec, n_group, implementation, label):
        """The member that returns the wanted kind, of the cotangent and the other operands."""
        count = len(self.operands)
        gradients = [None] * len(arrays)
        if type(cotangent) is ad.Zero:
            return gradients
        (wanted,) = (i for i in range(count) if ad.is_undefined_primal(arrays[i]))
        by_kind = {kind.name: array for kind, array in zip(self.operands, arrays[:count])}
        by_kind[self.result.name] = cotangent
        member = self.family.members[self.operands[wanted].name]
        operands = [by_kind[kind.name] for kind in member.operands]
        gradient = member(
            spec, *operands, *arrays[count:], n_group=n_group, implementation=implementation
        )
        # A group axis that the operand lacks was broadcast; the transpose of that is a sum.
        shape = arrays[wanted].aval.shape
        lacking = [i for i in range(n_group) if shape[i] == 1 and gradient.shape[i] != 1]
        gradients[wanted] = gradient.sum(lacking, keepdims=True) if lacking else gradient
        return gradients

    # vmap --------------------------------------------------------------------------------------

    def batch(self, arrays, axes, *, spec, n_group, implementation, label):
        """Adds a batch axis where only activations are mapped, else a group axis."""
        roles = [*(kind.role for kind in self.operands), *map(role_of, self.family.indices)]
        mapped = {role for role, axis in zip(roles, axes, strict=True) if axis is not None}
        call = functools.partial(self, spec, implementation=implementation)
        if mapped == {Role.BATCHED} == {self.result.role}:
            sizes = (a.shape[axis] for a, axis in zip(arrays, axes) if axis is not None)
            size = next(sizes)

            def move(array, axis, role):
                if axis is not None:
                    return jnp.moveaxis(array, axis, n_group)
                if role is not Role.BATCHED:
                    return array
                shape = (*array.shape[:n_group], size, *array.shape[n_group:])
                return jnp.broadcast_to(jnp.expand_dims(array, n_group), shape)

            return call(*map(move, arrays, axes, roles), n_group=n_group), n_group
        moved = [
            jnp.expand_dims(array, 0) if axis is None else jnp.moveaxis(array, axis, 0)
            for array, axis in zip(arrays, axes, strict=True)
        ]
        return call(*moved, n_group=n_group + 1), 0

    # The two ways to compute it ----------------------------------------------------------------

    def run_reference(self, *arrays, spec, n_group, reference=None):
        """The result in plain JAX, on any platform; by another reference than the family's own."""
        reference = reference or self.family.reference
        count = len(self.operands)
        shape = self.result_shape([a.shape for a in arrays], spec, n_group)

        def one_group(*arrays):
            by_kind = {kind.name: array for kind, array in zip(self.operands, arrays[:count])}
            indices = arrays[count:]
            last = self.family.kinds[-1]
            if self.result == last:
                return reference(spec, *arrays)

            def forward(unknown):
                known = {**by_kind, self.result.name: unknown}
                operands = [known[kind.name] for kind in self.family.kinds[:-1]]
                return reference(spec, *operands, *indices)

            zeros = jnp.zeros(shape[n_group:], arrays[0].dtype)
            return _transposed(forward, *compat.vary_alike(zeros, by_kind[last.name]))

        # Group axes of size 1 are kept apart from mapping, so that nothing is copied for them.
        for axis in reversed(range(n_group)):
            in_axes = [0 if array.shape[axis] == shape[axis] else None for array in arrays]
            arrays = [
                array if in_axis == 0 else jnp.squeeze(array, axis)
                for array, in_axis in zip(arrays, in_axes)
            ]
            one_group = jax.vmap(one_group, in_axes)
        return one_group(*compat.vary_alike(*arrays))

    def cast_from(self, spec) -> str | None:
        """The short dtype in which the handler takes the operands, if they were cast from it."""
        return spec.cast_from if self.result == self.family.kinds[-1] else None

    def run_handler(self, *arrays, spec, n_group, platform):
        """The result by the compiled handler, for data that is all on this device."""
        arrays = compat.vary_alike(*arrays)
        shapes = [a.shape for a in arrays]
        shape = self.result_shape(shapes, spec, n_group)
        dtype, count = arrays[0].dtype, len(self.operands)
        if short := self.cast_from(spec):  # XLA drops this cast and the one that it undoes
            arrays = [*(a.astype(short) for a in arrays[:count]), *arrays[count:]]
        device = self.family.devices.get(platform)
        if device is None:
            return kernel.call(self.target, shape, dtype, arrays, spec.attributes())
        every = {kind.name: its for kind, its in zip(self.operands, shapes)}
        every |= {self.result.name: shape, "indices": shapes[-1]}
        scratch = device.scratch_bytes(self.result.member, spec, every, arrays[0].dtype.name)
        return kernel.call(self.target, shape, dtype, arrays, device.attributes(spec), scratch)

    def lower_to_handler(self, context, *arrays, spec, n_group, platform):
        """The handler, behind `custom_partitioning` where the compiler may split the call."""
        if self.family.compute:
            return self.family.compute(self.result.name, spec, *arrays, n_group=n_group)
        if compat.holds_all_data(context, jax.typeof(arrays[0])):
            return self.run_handler(*arrays, spec=spec, n_group=n_group, platform=platform)
        return partition.partitioned(self, platform)(*arrays, spec, n_group)


def _transposed(function, origin, cotangent):
    """What the transpose of a linear function, whose argument is like `origin`, returns."""
    if jnp.issubdtype(origin.dtype, jnp.inexact):
        # It does not matter where the derivative is taken, and XLA drops the forward pass.
        return jax.vjp(function, origin)[1](cotangent)[0]
    if origin.dtype == bool:
        bits = (array.astype(jnp.uint8) for array in (origin, cotangent))
        return _transposed(function, *bits).astype(bool)
    return jax.linear_transpose(function, origin)(cotangent)[0]  # integers have no derivative


def _lower_by(member: Member, path: str, context, operands, platforms, **params):
    """The result of a member in one of its ways."""
    if path == "ffi":
        params["platform"] = platforms[0]  # there is one where a handler was chosen
        handler = functools.partial(member.lower_to_handler, context, **params)
        # What decides when it runs has plain JAX in it too.
        mesh = context.avals_in[0].sharding.mesh
        if member.family.choose and not mesh.empty and AxisType.Explicit in mesh.axis_types:
            return compat.lower_without_mesh(handler, context, *operands)
        return mlir.lower_fun(handler, multiple_results=False)(context, *operands)
    # Where the compiler may split the call, it has more freedom with plain JAX.
    if path == "dense" and compat.is_on_one_device(context):
        params["reference"] = member.family.dense
    reference = functools.partial(member.run_reference, **params)
    if platforms == ("cpu",):
        reference = ordered.in_order(reference)
    return compat.lower_without_mesh(reference, context, *operands)


def _install(member: Member) -> None:
    """Registers all rules of one member."""
    primitive = member.primitive
    primitive.def_abstract_eval(member.abstract_eval)
    ad.primitive_jvps[primitive] = member.jvp
    ad.primitive_transposes[primitive] = member.transpose
    batching.primitive_batchers[primitive] = member.batch
    compat.run_eagerly(primitive)
    compat.lowers_to_custom_partitioning(primitive)
    dispatch.register_member(member)

    def lower(context, *operands, spec, n_group, implementation, label, platform=None):
        platforms = (platform,) if platform else compat.lowering_platforms(context)
        shapes = [aval.shape for aval in context.avals_in]
        dtype = context.avals_in[0].dtype
        if implementation is None:
            for each in platforms:
                native.note_fallback(each)
        choose = functools.partial(dispatch.choose, member, spec, n_group, shapes, dtype, platforms)

        def by(path):
            own = context.replace(tokens_out=None)  # a context takes the tokens of one lowering
            return _lower_by(member, path, own, operands, platforms, spec=spec, n_group=n_group)

        choice = choose(implementation)
        check = modes.current().check
        if check is None:
            return by(choice.path)
        with modes.set_to(check=None):  # what a way consists of is not compared again
            return check.lower(member, context, operands, spec, n_group, label, choice, choose, by)

    mlir.register_lowering(primitive, lower)
    for platform in member.family.dtypes:
        if native.why_absent(platform) is None:
            rule = functools.partial(lower, platform=platform)
            mlir.register_lowering(primitive, rule, platform=platform)
