"""The two families that ops are made of. See `family` for the rules they share."""

from collections.abc import Callable

from jaxsparse.core.family import Family
from jaxsparse.core.kinds import Device, Kind, Role

PAIR = (Role.STORED, Role.STORED)  # the index arrays of a pattern that needs two per stored part


class BilinearOp:
    """`y = f(x, w)` and its adjoints, from a name and one reference.

    Each member returns the derivative of <y, f(x, w)> by one kind of array from the other two, so
    the derivatives of members are members again.

    Attributes:
        name: compiled handlers are `jaxsparse.<name>_{forward,input_grad,weight_grad}.v1`.
        reference: `reference(spec, x, w, *indices)` in plain JAX, without group axes.
        dtypes: for each platform with handlers, the dtypes that they take.
        indices: the roles of the index arrays, as for `Family`.
        weight: the name of the weight's kind, and its role: STORED parts, or WHOLE.
        compute, parts, dense, devices: as for `Family`.
    """

    def __init__(
        self,
        name: str,
        reference: Callable,
        dtypes: dict[str, frozenset[str]],
        indices: tuple[Role, ...] = PAIR,
        weight: tuple[str, Role] = ("w", Role.STORED),
        compute: Callable | None = None,
        parts: Callable | None = None,
        dense: Callable | None = None,
        devices: dict[str, Device] | None = None,
    ):
        self.name, self.dtypes, self.indices = name, dtypes, indices
        self.devices = devices or {}
        kinds = (
            Kind("x", Role.BATCHED, "input_grad"),
            Kind(*weight, "weight_grad"),
            Kind("y", Role.BATCHED, "forward"),
        )
        members = Family(
            name, kinds, reference, dtypes, compute, parts, indices, dense, devices
        ).members
        self.forward, self.input_grad = members["y"], members["x"]
        self.weight_grad = members[weight[0]]


class LinearMap:
    """A linear map between whole arrays and stored parts, and its transpose.

    Attributes:
        name: compiled handlers are `jaxsparse.<name>_{gather,scatter}.v1`.
        reference: `reference(spec, whole, *indices)`, the gather, in plain JAX.
        dtypes: for each platform with handlers, the dtypes that they take.
        indices: the roles of the index arrays, as for `Family`.
    """

    def __init__(
        self,
        name: str,
        reference: Callable,
        dtypes: dict[str, frozenset[str]],
        indices: tuple[Role, ...] = PAIR,
    ):
        self.indices = indices
        kinds = (
            Kind("dense", Role.WHOLE, "scatter"),
            Kind("w", Role.STORED, "gather"),
        )
        members = Family(name, kinds, reference, dtypes, indices=indices).members
        self.gather, self.scatter = members["w"], members["dense"]


def stored_dense(name: str, op: BilinearOp, copy: LinearMap, reference: Callable) -> BilinearOp:
    """`op` with a weight that is stored whole, as it is while it trains.

    Kernels see the stored parts, which `copy` takes out and puts back; the reference, which runs
    where kernels do not pay, has nothing to unpack.

    Args:
        name: of the new op, which has no handlers of its own.
        op, copy: of one format. What `op` calls its spec has the spec of `copy` as `spec.weight`.
        reference: `reference(spec, x, dense, *indices)` in plain JAX, without group axes.
    """
    parts = {
        "y": (copy.gather, op.forward),
        "x": (copy.gather, op.input_grad),
        "dense": (op.weight_grad, copy.scatter),
    }

    def compute(kind, spec, a, b, *indices, n_group):
        def call(member, *operands):
            # A copy without handlers, on GPUs, is XLA's.
            is_copy = member in (copy.gather, copy.scatter)
            its_spec, implementation = (spec.weight, None) if is_copy else (spec, "ffi")
            return member(
                its_spec, *operands, *indices, n_group=n_group, implementation=implementation
            )

        first, second = parts[kind]
        if kind == "y":  # (x, dense)
            return call(second, a, call(first, b))
        if kind == "x":  # (dense, y)
            return call(second, call(first, a), b)
        return call(second, call(first, a, b))  # (x, y)

    weight = ("dense", Role.WHOLE)
    return BilinearOp(
        name,
        reference,
        op.dtypes,
        op.indices,
        weight,
        compute=compute,
        parts=parts.__getitem__,
        devices=op.devices,
    )
