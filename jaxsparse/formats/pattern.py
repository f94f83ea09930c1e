"""What all patterns share, whatever the parts of a weight are that they store.

A format cuts the matrix view of a weight into equal parts, which form a grid: blocks, single
weights, or stretches of one row. A pattern lists the parts that are stored.
"""

import abc
import math
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxsparse.core.bilinear import LinearMap

INT32_MAX = np.iinfo(np.int32).max

# In place of the indices of a pattern made in `jit` whose capacity was too small. Kernels refuse
# it, with a message of its own (xla_ffi/cpu/block_pattern.cc), and references answer with NaN, so
# what it lost cannot pass unseen.
OVERFLOW = np.iinfo(np.int32).min

# What copies are made of in handlers: everything that XLA stores in whole bytes.
COPIED = frozenset(
    f"{kind}{bits}"
    for kind, widths in (
        ("int", (8, 16, 32, 64)),
        ("uint", (8, 16, 32, 64)),
        ("float", (16, 32, 64)),
        ("complex", (64, 128)),
    )
    for bits in widths
) | {"bfloat16"}


def array_module(*arrays):
    """NumPy for arrays of the host, else jax.numpy."""
    return jnp if any(isinstance(array, jax.Array) for array in arrays) else np


def as_jax(array) -> jax.Array:
    """The array itself, or one of JAX for one of the host.

    `jnp.asarray` compiles a program for each new shape of a host array: 20 ms, on JAX 0.10.2 and
    0.12.0, which is most of what it takes to make the patterns of a small model.
    """
    return array if isinstance(array, jax.Array) else jax.device_put(array)


def batch_class(batch: int) -> str:
    """The part of a shape class that says how many rows a product has."""
    bounds = (8, 64, 512, 2048)
    return next((f"batch<{n}" for n in bounds if batch < n), f"batch>={bounds[-1]}")


def matrix_view(weight_shape: tuple[int, ...]) -> tuple[int, int]:
    """`(prod(kernel) * in, out)`: the shape as which patterns see a weight `[*kernel, in, out]`."""
    return math.prod(weight_shape[:-1]), weight_shape[-1]


class Format(abc.ABC):
    """How a weight is cut into parts, of which a pattern stores some. Frozen and hashable.

    The grid's entries are *listed* in the order in which patterns store them; a *place* is a number
    in that list.
    """

    noun: ClassVar[str]  # what the parts are called

    @property
    @abc.abstractmethod
    def extent(self) -> tuple[int, int]:
        """How many inputs and outputs a part has."""

    @abc.abstractmethod
    def grid(self, weight_shape: tuple[int, ...]) -> tuple[int, int]:
        """How many parts lie along the rows and the columns of a weight of this shape."""

    @abc.abstractmethod
    def listed(self, grid_array, weight_shape: tuple[int, ...]) -> Any:
        """The entries of `[grid_rows, grid_cols]` in one axis, in the order of patterns."""

    @abc.abstractmethod
    def parts(self, rows, cols, weight_shape: tuple[int, ...], order=None) -> tuple[Any, tuple]:
        """Where entries of the matrix view are stored: their part's place, and where inside it."""

    @abc.abstractmethod
    def tiles(self, array, order=None) -> tuple[Any, tuple[int, ...]]:
        """An array's matrix view cut into parts, zeros beyond its edge, and which axes they span.

        The other axes are the grid's.
        """

    def reduce(self, array, how: str, order=None) -> Any:
        """One number per part of an array's matrix view: "any", "sum" or "max" of its entries."""
        tiles, inside = self.tiles(array, order)
        return getattr(tiles, how)(axis=inside)

    @abc.abstractmethod
    def spread(self, grid_array, weight_shape: tuple[int, ...], order=None) -> Any:
        """One entry per part, `[grid_rows, grid_cols]`, as one per entry of the matrix view."""

    @abc.abstractmethod
    def pattern(self, places, weight_shape: tuple[int, ...], order=None) -> "Pattern":
        """The pattern of these places, which rise; as many as there are parts means unused."""


class WeightSpec(abc.ABC):
    """What is fixed about a stored weight before any array is seen; the spec of its copies.

    Hashable. Functions of index arrays are plain JAX, for one pattern without group axes.
    """

    weight_shape: tuple[int, int]  # of the matrix view

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """What the families of ops for such weights are called by."""

    @property
    @abc.abstractmethod
    def format(self) -> Format:
        """What the parts are."""

    @property
    @abc.abstractmethod
    def copies(self) -> LinearMap:
        """Takes the stored parts out of a matrix, and puts them back."""

    @property
    @abc.abstractmethod
    def part_shape(self) -> tuple[int, ...]:
        """The axes of one stored part."""

    @property
    def cast_from(self) -> str | None:
        return None

    @abc.abstractmethod
    def attributes(self) -> dict[str, Any]:
        """The FFI attributes of the copies."""

    def macs(self, batch: int) -> int:
        return 0  # copies multiply nothing

    @abc.abstractmethod
    def unmeasured_break_even(self) -> float:
        """The density up to which to expect that a kernel pays, where nothing was measured."""

    @abc.abstractmethod
    def shape_class(self, batch: int) -> str:
        """The class of problems that this one shares its break-even point with."""

    @property
    @abc.abstractmethod
    def thin(self) -> int:
        """With fewer inputs or outputs than this, missing weights do not pay for large batches."""

    def is_thin(self, batch: int, role: str) -> bool:
        """Whether reading x and writing y takes so long that there is nothing to win by zeros.

        Measured against XLA's products, one core, AVX-512: from 512 rows on, down to a quarter of
        its speed at any density; with 64 rows kernels were still faster, and so they were for
        gradients where only outputs are few.
        """
        few = min(self.weight_shape) if role == "forward" else self.weight_shape[0]
        return batch >= 512 and few < self.thin

    @abc.abstractmethod
    def is_valid(self, *indices) -> jax.Array:
        """Whether kernels would take these indices. Group axes are allowed here."""

    @abc.abstractmethod
    def positions(self, *indices) -> tuple[jax.Array, jax.Array]:
        """Row and column in the grid of each part; unused places have no column of the grid."""

    @abc.abstractmethod
    def coordinates(self, *indices) -> tuple[jax.Array, jax.Array]:
        """Row and column of the matrix view of each stored entry, outside of it where it is none.

        Their shapes broadcast to that of the values.
        """

    @abc.abstractmethod
    def mask(self, *indices) -> jax.Array:
        """Bool, of the matrix view: where weights may be non-zero."""

    @abc.abstractmethod
    def gather(self, matrix, *indices) -> jax.Array:
        """The stored parts of a matrix."""

    @abc.abstractmethod
    def scatter(self, values, *indices) -> jax.Array:
        """The matrix with these stored parts."""

    @property
    def grid(self) -> tuple[int, int]:
        """How many parts there are along rows and columns."""
        return self.format.grid(self.weight_shape)

    def inner(self, kind: str) -> tuple[int, ...]:
        return {"w": self.part_shape, "dense": self.weight_shape}[kind]

    def grid_mask(self, *indices) -> jax.Array:
        """`bool[grid_rows, grid_cols]`: which parts are stored."""
        return jnp.zeros(self.grid, bool).at[self.positions(*indices)].set(True, mode="drop")

    def density(self, stored: int) -> float:
        return stored / max(1, math.prod(self.grid))

    def stored_values(self, matrix, *indices) -> jax.Array:
        """The stored parts of a matrix: the reference of the copies."""
        # Twice: for the scatter, which is the transpose of this, and for the values.
        values = self.gather(self.nan_if_invalid(matrix, *indices), *indices)
        return self.nan_if_invalid(values, *indices)

    def dense_matrix(self, values, *indices) -> jax.Array:
        """The weight as a whole: what references compute with."""
        # Twice: for the gradient by the values, and for whatever else is computed from the weight.
        matrix = self.scatter(self.nan_if_invalid(values, *indices), *indices)
        return self.nan_if_invalid(matrix, *indices)

    def restricted_matrix(self, matrix, *indices) -> jax.Array:
        """A weight that is stored whole, with zeros off the pattern."""
        kept = jnp.where(self.mask(*indices), matrix, jnp.zeros((), matrix.dtype))
        return self.nan_if_invalid(kept, *indices)

    def nan_if_invalid(self, array, *indices):
        """NaN (or the least integer) everywhere for indices that kernels refuse, to be seen."""
        is_valid = self.is_valid(*indices)
        if jnp.issubdtype(array.dtype, jnp.integer):  # the nearest to NaN that integers have
            return jnp.where(is_valid, array, jnp.iinfo(array.dtype).min)
        if not jnp.issubdtype(array.dtype, jnp.inexact):
            return array
        # A factor, not a choice: the derivatives are NaN as well.
        return array * jnp.where(is_valid, 1, jnp.nan).astype(array.dtype)


class Pattern(abc.ABC):
    """Which parts of a weight are stored. The classes that derive from it are pytrees.

    Attributes:
        shape: the weight's shape, `(in, out)` or `(*kernel, in, out)`. Static.
        format: what the parts are. Static.

    Index arrays have one axis; group axes before it are for patterns stacked over `vmap` or `scan`,
    and ops outside of these take none. Unused places come at the end: a pattern made inside `jit`
    has a fixed capacity that it need not fill. Kernels refuse indices that are out of order or
    range; in plain JAX they make all results NaN.
    """

    shape: tuple[int, ...]
    format: Any

    @property
    @abc.abstractmethod
    def indices(self) -> tuple[Any, ...]:
        """The index operands of the ops; the first has one entry per stored part."""

    @abc.abstractmethod
    def with_indices(self, *indices, shape: tuple[int, ...] | None = None) -> "Pattern":
        """A pattern of the same format with other index arrays, perhaps for another shape."""

    @abc.abstractmethod
    def lost_where(self, is_lost) -> "Pattern":
        """This pattern, or if the bool scalar `is_lost` is true, one that nothing takes."""

    @abc.abstractmethod
    def spec(self) -> WeightSpec:
        """What ops need to know of this pattern that no array says."""

    # Sizes, all static -------------------------------------------------------------------------

    @property
    def capacity(self) -> int:
        """How many parts there is room for."""
        return self.indices[0].shape[-1]

    @property
    def group(self) -> tuple[int, ...]:
        """The sizes of the group axes; none for a single pattern."""
        return self.indices[0].shape[:-1]

    @property
    def grid(self) -> tuple[int, int]:
        """How many parts would tile the weight, along its rows and columns."""
        return self.format.grid(self.shape)

    @property
    def density(self) -> float:
        """Stored over all parts, unused places counted as stored. Static."""
        return self.spec().density(self.capacity)

    @property
    def values_shape(self) -> tuple[int, ...]:
        """The shape of the values that this pattern places."""
        return (*self.indices[0].shape, *self.spec().part_shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the indices."""
        return sum(index.nbytes for index in self.indices)

    # To and from dense arrays ------------------------------------------------------------------

    def gather(self, dense: jax.Array) -> jax.Array:
        """The values of the stored parts of `dense`, `[capacity, *part]`."""
        check_same_shape("gather", dense, self.shape)
        spec = self.spec()
        return spec.copies.gather(spec, jnp.reshape(dense, spec.weight_shape), *self.indices)

    def scatter(self, values: jax.Array) -> jax.Array:
        """The dense array with these values in the stored parts and zero elsewhere."""
        spec = self.spec()
        return jnp.reshape(spec.copies.scatter(spec, values, *self.indices), self.shape)

    def restrict(self, dense: jax.Array) -> jax.Array:
        """`dense` with exact zeros where nothing is stored, NaN there or not."""
        check_same_shape("restrict", dense, self.shape)
        spec = self.spec()
        matrix = jnp.reshape(dense, spec.weight_shape)
        return jnp.reshape(spec.restricted_matrix(matrix, *self.indices), self.shape)

    def grid_mask(self) -> jax.Array:
        """`bool[*group, grid_rows, grid_cols]`: which parts are stored."""
        return self.over_groups(self.spec().grid_mask)(*self.indices)

    def mask(self) -> jax.Array:
        """Bool, `[*group, *shape]`: where weights may be non-zero."""
        whole = self.over_groups(self.spec().mask)(*self.indices)
        return whole.reshape(*self.group, *self.shape)

    def is_valid(self) -> jax.Array:
        """Bool scalar: whether the indices are as they must be; if not, kernels refuse them."""
        return self.spec().is_valid(*self.indices)

    def over_groups(self, function: Callable) -> Callable:
        """`function`, of arrays and patterns, mapped over the group axes of this pattern."""
        for _ in self.group:
            function = jax.vmap(function)
        return function

    def __repr__(self) -> str:
        capacity = (getattr(self.indices[0], "shape", None) or ("?",))[-1]
        total, kind = math.prod(self.grid), type(self).__name__
        parts = f"{self.format} {self.format.noun}"
        return f"{kind}({parts}, {capacity} of {total}, shape={self.shape})"


def check_same_shape(function: str, array, shape: tuple[int, ...]) -> None:
    """Raises unless `array` has the weight's shape."""
    if tuple(array.shape) != tuple(shape):
        raise ValueError(
            f"{function}: the pattern is for a weight of shape {shape}, got {tuple(array.shape)}. "
            "Make a pattern for this shape."
        )


def check_pattern(function: str, pattern) -> None:
    """Raises unless this is a pattern of some format."""
    if not isinstance(pattern, Pattern):
        raise TypeError(f"{function}: expected a pattern, got {type(pattern).__name__}.")


def check_single(function: str, pattern: Pattern) -> None:
    """Raises where patterns are stacked, which only `vmap` and `scan` take apart."""
    if len(pattern.indices[0].shape) != 1:
        raise ValueError(
            f"{function}: one pattern is needed, with indices [capacity], got stacked ones "
            f"of shape {pattern.indices[0].shape}. Map over them with jax.vmap."
        )


def check_usable(function: str, pattern: Pattern) -> None:
    """Raises unless this is a single pattern, known here, that kernels would take."""
    if any(isinstance(index, Tracer) for index in pattern.indices):
        raise ValueError(f"{function}: the pattern is traced. Call it outside jit.")
    check_single(function, pattern)
    if not pattern.is_valid():
        raise ValueError(
            f"{function}: the pattern is not usable: its {pattern.format.noun} are out of order or "
            "range, or it was made inside jit with too small a capacity. Make it with "
            "jaxsparse.patterns."
        )
