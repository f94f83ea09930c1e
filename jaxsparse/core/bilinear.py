"""The two families that ops are made of. See `family` for the rules they share."""

from collections.abc import Callable

from jaxsparse.core.family import Family
from jaxsparse.core.kinds import Kind, Role


class BilinearOp:
    """`y = f(x, w)` and its adjoints, from a name and one reference.

    Each member returns the derivative of <y, f(x, w)> by one kind of array from the other two, so
    the derivatives of members are members again.

    Attributes:
        name: compiled handlers are `jaxsparse.<name>_{forward,input_grad,weight_grad}.v1`.
        reference: `reference(spec, x, w, *indices)` in plain JAX, without group axes.
        dtypes: for each platform with handlers, the dtypes that they take.
        weight: the name of the weight's kind, and its role: STORED parts, or WHOLE.
        compute: as for `Family`.
    """

    def __init__(
        self,
        name: str,
        reference: Callable,
        dtypes: dict[str, frozenset[str]],
        weight: tuple[str, Role] = ("w", Role.STORED),
        compute: Callable | None = None,
    ):
        self.name = name
        kinds = (
            Kind("x", Role.BATCHED, "input_grad"),
            Kind(*weight, "weight_grad"),
            Kind("y", Role.BATCHED, "forward"),
        )
        members = Family(name, kinds, reference, dtypes, compute).members
        self.forward, self.input_grad = members["y"], members["x"]
        self.weight_grad = members[weight[0]]


class LinearMap:
    """A linear map between whole arrays and stored parts, and its transpose.

    Attributes:
        name: compiled handlers are `jaxsparse.<name>_{gather,scatter}.v1`.
        reference: `reference(spec, whole, *indices)`, the gather, in plain JAX.
        dtypes: for each platform with handlers, the dtypes that they take.
    """

    def __init__(self, name: str, reference: Callable, dtypes: dict[str, frozenset[str]]):
        kinds = (
            Kind("dense", Role.WHOLE, "scatter"),
            Kind("w", Role.STORED, "gather"),
        )
        members = Family(name, kinds, reference, dtypes).members
        self.gather, self.scatter = members["w"], members["dense"]
