"""What became of each layer of a model: a table that prints itself."""

import dataclasses
from collections.abc import Iterator

from jaxsparse.tune.table import as_table


@dataclasses.dataclass(frozen=True)
class Replaced:
    """What `sparsify` or `pack` made of one layer.

    Attributes:
        path: of the layer.
        kind: the name of its type in the model that was given.
        shape: of its kernel, stacked axes first.
        format: its format now, or None where it is dense.
        density: the share of the kernel that is stored; 1 where it is dense.
        reason: which rule made it so, or why it is dense; what `pack` did.
    """

    path: str
    kind: str
    shape: tuple[int, ...]
    format: str | None
    density: float
    reason: str

    def cells(self) -> tuple[str, ...]:
        """As a row of the table."""
        density = "" if self.format is None else f"{self.density:.3g}"
        format = self.format or "dense"
        return self.path or "(root)", self.kind, str(self.shape), format, density, self.reason


@dataclasses.dataclass(frozen=True)
class Summary:
    """Every layer of a model with a kernel, and what became of it. Prints as a table."""

    layers: tuple[Replaced, ...]

    @property
    def sparse(self) -> tuple[Replaced, ...]:
        """The layers that are sparse."""
        return tuple(layer for layer in self.layers if layer.format is not None)

    @property
    def dense(self) -> tuple[Replaced, ...]:
        """The layers that were left dense."""
        return tuple(layer for layer in self.layers if layer.format is None)

    def __getitem__(self, path: str) -> Replaced:
        for layer in self.layers:
            if layer.path == path:
                return layer
        raise KeyError(path)

    def __iter__(self) -> Iterator[Replaced]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __str__(self) -> str:
        header = ("layer", "type", "kernel", "format", "density", "why")
        return as_table(header, [layer.cells() for layer in self.layers])


def packed_row(path: str, kind: str, shape, pattern, why: str, note: str | None) -> Replaced:
    """The row of a layer that `pack` has seen; the pattern of a dense one is None."""
    format, density = (None, 1.0) if pattern is None else (str(pattern.format), pattern.density)
    return Replaced(path, kind, shape, format, density, "; ".join(filter(None, (why, note))))
