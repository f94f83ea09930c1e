"""The families of an op: one for each format, and one for each where the weight is stored whole."""

import dataclasses
import functools
from collections.abc import Callable

from jaxsparse.core.bilinear import BilinearOp, LinearMap, stored_dense
from jaxsparse.core.kinds import Device
from jaxsparse.formats.block import block_copy
from jaxsparse.formats.columns import grouped_copy, unstructured_copy

# Every format by the name that its patterns' specs have.
_COPIES = {"block": block_copy, "unstructured": unstructured_copy, "grouped": grouped_copy}


@dataclasses.dataclass(frozen=True)
class Families:
    """The families of one op, by the names of formats (`pattern.spec().name`).

    Attributes:
        packed: take the values of a weight.
        whole: take the weight with all its entries, of which those on the pattern take part.
    """

    packed: dict[str, BilinearOp]
    whole: dict[str, BilinearOp]


def make(
    op: str,
    product: Callable,
    dtypes: dict[str, frozenset[str]],
    devices: dict[str, dict[str, Device]] | None = None,
) -> Families:
    """The families of an op.

    Args:
        op: its name: handlers are `jaxsparse.<format>_<op>_{forward,input_grad,weight_grad}.v1`.
        product: `product(spec, x, matrix)` in plain JAX, with the matrix view of the whole weight.
            `spec.weight` is the weight's own specification, `pattern.spec()`.
        dtypes: for each platform with handlers, the dtypes that they take.
        devices: for some formats, by name, what `core.family.Family` takes as `devices`.
    """

    def packed_reference(spec, x, values, *indices):
        return product(spec, x, spec.weight.dense_matrix(values, *indices))

    def packed_dense(copies, spec, x, values, *indices):
        return product(spec, x, copies.scatter(spec.weight, values, *indices))

    def whole_reference(spec, x, matrix, *indices):
        return product(spec, x, spec.weight.restricted_matrix(matrix, *indices))

    def whole(name: str, copies: LinearMap) -> BilinearOp:
        return stored_dense(f"stored_dense_{name}_{op}", packed[name], copies, whole_reference)

    packed = {
        name: BilinearOp(
            f"{name}_{op}",
            packed_reference,
            dtypes,
            copies.indices,
            dense=functools.partial(packed_dense, copies),
            devices=(devices or {}).get(name),
        )
        for name, copies in _COPIES.items()
    }
    return Families(packed, {name: whole(name, copies) for name, copies in _COPIES.items()})
