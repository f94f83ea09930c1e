"""What every layer of a model costs, how it runs, and why."""

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

import jax

from jaxsparse.core import dispatch
from jaxsparse.cost import count
from jaxsparse.models.program import Layer, path_in, program
from jaxsparse.tune.table import as_table


@dataclasses.dataclass(frozen=True)
class LayerReport:
    """A layer in one call of its model, or a sparse call of a function.

    Attributes:
        path: of the layer; "" for the model itself. The name stack, for a function.
        kind: the name of the layer's type; the op's, for a function.
        shape: of the whole kernel, stacked axes first; of the operands and the result, for a
            function.
        format: of the pattern, or its kind for a function; None for a dense layer.
        density: the share of the kernel that is stored.
        calls: how often it runs, as loops tell.
        macs: multiply-adds with every weight, in all calls.
        executed: of those, what stored weights take part in. A call on the path "dense" multiplies
            by the others, too.
        nbytes: of the kernel as it is stored and of the pattern; 0 for a function.
        path_taken: "ffi", "xla" or "dense" for a sparse call, several with commas; "none" for a
            layer without.
        reason: why that path; why the layer is dense.
    """

    path: str
    kind: str
    shape: tuple[Any, ...]
    format: str | None
    density: float
    calls: int
    macs: int
    executed: int
    nbytes: int
    path_taken: str
    reason: str

    def cells(self) -> tuple[str, ...]:
        """As a row of the table."""
        return (
            self.path or "(root)",
            self.kind,
            str(self.shape),
            self.format or "dense",
            f"{self.density:.3g}",
            f"{self.macs:,}",
            f"{self.executed:,}",
            f"{self.nbytes:,}",
            self.path_taken,
            self.reason,
        )


@dataclasses.dataclass(frozen=True)
class Report:
    """Every layer with a weight, in one call of a model. Prints as a table."""

    layers: tuple[LayerReport, ...]

    def __getitem__(self, path: str) -> LayerReport:
        for layer in self.layers:
            if layer.path == path:
                return layer
        raise KeyError(path)

    def __iter__(self) -> Iterator[LayerReport]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def to_json(self) -> str:
        """The rows as a JSON list of objects, which have the names of attributes."""
        return json.dumps([dataclasses.asdict(layer) for layer in self.layers], indent=1)

    def __str__(self) -> str:
        header = ("layer", "type", "kernel", "format", "density", "MACs", "stored", "bytes")
        header = (*header, "path", "why")
        total = [sum(getattr(x, name) for x in self) for name in ("macs", "executed", "nbytes")]
        last = ("all", "", "", "", "", *(f"{n:,}" for n in total), "", "")
        return as_table(header, [*(layer.cells() for layer in self.layers), last])


def report(model, *sample, **call) -> Report:
    """What every layer of a model costs, which way it runs, and why. Nothing is computed.

        print(report(model, x))                 # nnx, or a function
        print(report(model, variables, x))      # linen

    The modes and plans that are set hold here too: `with plan: print(report(model, x))`.

    Args:
        model: a `flax.nnx.Module`, an unbound `flax.linen.Module`, or a function. For a model there
            is a row for every layer with a weight, dense ones included; for a function one for
            every sparse call.
        *sample: arrays or `jax.ShapeDtypeStruct`s that it is called with; the variables of a linen
            model come first. For gradients, give a function that computes them.
        **call: keyword arguments of the call, or of `apply` of a linen model.

    Returns:
        A Report, which prints as a table and is a sequence of LayerReports; MACs are multiply-adds.

    Raises:
        TypeError, ValueError: what is no model, or variables that are missing.
    """
    one = program("report", model, sample, call)
    jaxpr = jax.make_jaxpr(one.function)(*one.arguments).jaxpr
    products = list(count.products(jaxpr, dispatch.platform_name()))
    if not one.is_model:
        return Report(tuple(_of_call(product) for product in products if product.call is not None))
    by_path = {path_in(equation.name): [] for equation in dispatch.equations(jaxpr)}
    for product in products:
        by_path[path_in(product.name)].append(product)
    return Report(tuple(_of_layer(layer, by_path.get(layer.path)) for layer in one.layers))


def _of_layer(layer: Layer, products: list[count.Counted] | None) -> LayerReport:
    """The row of a layer with these products; None if it did not run."""
    sparse = [(product, product.call) for product in products or () if product.call is not None]
    own = [product for product, _ in sparse] or products or []
    if products is None:
        reason = "the sample does not reach it"
    elif sparse:
        reason = "; ".join(dict.fromkeys(call.reason for _, call in sparse))
    else:
        reason = layer.why_dense or "a product of the user's takes the whole kernel"
    return LayerReport(
        path=layer.path,
        kind=layer.kind,
        shape=layer.shape,
        format=layer.format,
        density=layer.density,
        calls=sum(product.times for product in own),
        macs=sum(product.macs for product in own),
        executed=sum(product.executed for product in own),
        nbytes=layer.nbytes,
        path_taken=",".join(dict.fromkeys(call.path for _, call in sparse)) or "none",
        reason=reason,
    )


def _of_call(product: count.Counted) -> LayerReport:
    call = product.call
    assert call is not None
    return LayerReport(
        path=product.name,
        kind=call.member,
        shape=call.shapes,
        format=call.member.removeprefix("stored_dense_").partition("_")[0],
        density=call.density,
        calls=product.times,
        macs=product.macs,
        executed=product.executed,
        nbytes=0,
        path_taken=call.path,
        reason=call.reason,
    )
