"""Column patterns: for each output channel, or for each group of them, a list of its weights."""

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.core.bilinear import LinearMap
from jaxsparse.core.kinds import Role
from jaxsparse.formats.pattern import (
    COPIED,
    INT32_MAX,
    OVERFLOW,
    Format,
    Pattern,
    WeightSpec,
    array_module,
    as_jax,
    batch_class,
    matrix_view,
)


class _Columns(Format):
    """What the two formats share: the grid of a weight's inputs and its columns of outputs.

    Place `column * K + channel * T + tap` of the list is row `tap * in + channel` of the matrix
    view, where T = prod(kernel) and K = T * in: the list is in the order of the weight transposed
    to `[out, in, *kernel]`, so that the taps of a channel are neighbours.
    """

    def grid(self, weight_shape):
        size_in, size_out = matrix_view(weight_shape)
        return size_in, -(-size_out // self.extent[1])

    def listed(self, grid_array, weight_shape):
        taps, (size_in, columns) = num_taps(weight_shape), grid_array.shape
        by_tap = grid_array.reshape(taps, size_in // taps, columns)
        return by_tap.transpose(2, 1, 0).ravel()

    def parts(self, rows, cols, weight_shape, order=None):
        taps, (size_in, _) = num_taps(weight_shape), matrix_view(weight_shape)
        channels = max(1, size_in // taps)
        column, slot = cols, ()
        if isinstance(self, Grouped):
            xp = array_module(rows, cols)
            order = self.default_order(weight_shape) if order is None else xp.asarray(order)
            slots = xp.argsort(order)[cols]  # the inverse: padding comes after all outputs
            column, slot = slots // self.width, (slots % self.width,)
        return column * size_in + rows % channels * taps + rows // channels, slot


@dataclasses.dataclass(frozen=True)
class Unstructured(_Columns):
    """The format of single weights, also written "unstructured"."""

    noun: ClassVar[str] = "weights"

    def __str__(self) -> str:
        return "unstructured"

    @property
    def extent(self) -> tuple[int, int]:
        return 1, 1

    def tiles(self, array, order=None):
        return array.reshape(matrix_view(array.shape)), ()

    def spread(self, grid_array, weight_shape, order=None):
        return grid_array

    def pattern(self, places, weight_shape, order=None) -> "ColumnPattern":
        places = as_jax(places.astype(np.int32))
        return ColumnPattern(places, None, tuple(weight_shape), self)


@dataclasses.dataclass(frozen=True)
class Grouped(_Columns):
    """Groups of `width` output channels that share one list of weights; written "grouped:8".

    Which outputs form a group is up to the pattern: `order` lists them, group after group.
    """

    width: int

    noun: ClassVar[str] = "strips"

    def __post_init__(self):
        given: Any = self.width
        is_int = isinstance(given, (int, np.integer)) and not isinstance(given, bool)
        if not is_int or not 0 < given <= INT32_MAX:
            raise ValueError(
                f"Grouped: the width is a positive int, the number of output channels in a group, "
                f"got {given!r}. Write, for example, Grouped(8)."
            )
        object.__setattr__(self, "width", int(given))

    def __str__(self) -> str:
        return f"grouped:{self.width}"

    @property
    def extent(self) -> tuple[int, int]:
        return 1, self.width

    def default_order(self, weight_shape) -> np.ndarray:
        """Neighbours together; the slots that are left over hold `out`, which is no output."""
        size_out = weight_shape[-1]
        slots = self.grid(weight_shape)[1] * self.width
        return np.minimum(np.arange(slots), size_out).astype(np.int32)

    def tiles(self, array, order=None):
        xp = array_module(array)
        size_in, size_out = matrix_view(array.shape)
        columns = self.grid(array.shape)[1]
        matrix = array.reshape(size_in, size_out)
        if order is None:
            slots = xp.pad(matrix, ((0, 0), (0, columns * self.width - size_out)))
        else:
            slots = xp.pad(matrix, ((0, 0), (0, 1)))[:, xp.asarray(order)]
        return slots.reshape(size_in, columns, self.width), (2,)

    def spread(self, grid_array, weight_shape, order=None):
        xp = array_module(grid_array)
        whole = xp.repeat(grid_array, self.width, axis=1)
        if order is not None:
            whole = whole[:, xp.argsort(order)]
        return whole[:, : weight_shape[-1]]

    def pattern(self, places, weight_shape, order=None) -> "ColumnPattern":
        order = self.default_order(weight_shape) if order is None else order
        places, order = (as_jax(a.astype(np.int32)) for a in (places, order))
        return ColumnPattern(places, order, tuple(weight_shape), self)


def num_taps(weight_shape) -> int:
    """How many taps the kernel of a weight `[*kernel, in, out]` has; at least 1."""
    return max(1, math.prod(weight_shape[:-2]))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class ColumnPattern(Pattern):
    """Which weights are stored, column by column: those of an output, or of a group of outputs.

    Make patterns with `jaxsparse.patterns`, which checks and sorts; this class does not, because
    JAX also rebuilds it around things that are not arrays.

    Attributes:
        places: `int32[*group, capacity]`: `column * K + channel * T + tap`, for a weight
            `[*kernel, in, out]` with T = prod(kernel) taps, in row-major order, and K = T * in.
        order: for groups, `int32[*group, columns * width]`: slot `s` of column `j` is output
            `order[j * width + s]`; every output once, and `out` in slots that are none. None for
            single weights, where the column is the output.
        shape: the weight's shape, `(in, out)` or `(*kernel, in, out)`. Static.
        format: `Unstructured()` or `Grouped(width)`. Static.

    Places rise strictly. One that stores nothing is `columns * K`, one past the last, and comes at
    the end: a pattern made inside `jit` has a fixed capacity that it need not fill. Kernels refuse
    any other pattern; in plain JAX it makes all results NaN.

    Group axes are for patterns stacked over `vmap` or `scan`; ops outside of these take none.
    """

    places: Any
    order: Any
    shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    format: Unstructured | Grouped = dataclasses.field(metadata={"static": True})

    @property
    def indices(self) -> tuple[Any, ...]:
        return (
            (self.places,) if isinstance(self.format, Unstructured) else (self.places, self.order)
        )

    def with_indices(self, *indices, shape=None) -> "ColumnPattern":
        places, order = indices if len(indices) == 2 else (*indices, None)
        return ColumnPattern(places, order, self.shape if shape is None else shape, self.format)

    def lost_where(self, is_lost) -> "ColumnPattern":
        return self.with_indices(jnp.where(is_lost, OVERFLOW, self.places), *self.indices[1:])

    def spec(self) -> "ColumnSpec":
        width = None if isinstance(self.format, Unstructured) else self.format.width
        return ColumnSpec(matrix_view(self.shape), num_taps(self.shape), width)


@dataclasses.dataclass(frozen=True)
class ColumnSpec(WeightSpec):
    """What is fixed about a weight in columns."""

    weight_shape: tuple[int, int]  # (taps * in, out), of the matrix view
    taps: int
    width: int | None  # None for single weights, which have no axis of outputs

    @property
    def name(self) -> str:
        return "unstructured" if self.width is None else "grouped"

    @property
    def format(self) -> Unstructured | Grouped:
        return Unstructured() if self.width is None else Grouped(self.width)

    @property
    def copies(self) -> LinearMap:
        return unstructured_copy if self.width is None else grouped_copy

    @property
    def part_shape(self) -> tuple[int, ...]:
        return () if self.width is None else (self.width,)

    def attributes(self) -> dict[str, Any]:
        return {"taps": np.int64(self.taps)}

    def unmeasured_break_even(self) -> float:
        return 0.5

    def shape_class(self, batch: int) -> str:
        """Such as "batch<64,width<8": kernels differ by these two more than by anything else."""
        if self.width is None:
            return batch_class(batch)
        return f"{batch_class(batch)},width{'>=8' if self.width >= 8 else '<8'}"

    @property
    def thin(self) -> int:
        return 32

    def is_valid(self, *indices) -> jax.Array:
        places, *order = indices
        end = math.prod(self.grid)
        in_range = (places >= 0) & (places <= end)
        before, after = places[..., :-1], places[..., 1:]
        is_valid = jnp.all(in_range) & jnp.all((after > before) | (after == end))
        if not order:
            return is_valid
        slots = jnp.arange(order[0].shape[-1], dtype=order[0].dtype)
        every_output_once = jnp.minimum(slots, self.weight_shape[1])
        return is_valid & jnp.all(jnp.sort(order[0], axis=-1) == every_output_once)

    def positions(self, *indices) -> tuple[jax.Array, jax.Array]:
        places = indices[0]
        size_in = max(1, self.weight_shape[0])
        column, inside = places // size_in, places % size_in
        channel, tap = inside // self.taps, inside % self.taps
        return tap * (self.weight_shape[0] // self.taps) + channel, column

    def mask(self, *indices) -> jax.Array:
        whole = jnp.zeros(self.weight_shape, bool)
        return whole.at[self.coordinates(*indices)].set(True, mode="drop")

    def gather(self, matrix, *indices) -> jax.Array:
        where = matrix.at[self.coordinates(*indices)]
        return where.get(mode="fill", fill_value=0, unique_indices=True)

    def scatter(self, values, *indices) -> jax.Array:
        where = jnp.zeros(self.weight_shape, values.dtype).at[self.coordinates(*indices)]
        return where.set(values, mode="drop", unique_indices=True)

    def coordinates(self, *indices) -> tuple[jax.Array, jax.Array]:
        places, *order = indices
        rows, columns = self.positions(places)
        if not order:
            return rows, columns
        groups = order[0].reshape(self.grid[1], self.width)
        outputs = groups.at[columns].get(mode="fill", fill_value=self.weight_shape[1])
        return jnp.broadcast_to(rows[:, None], outputs.shape), outputs


unstructured_copy = LinearMap(
    "unstructured", ColumnSpec.stored_values, {"cpu": COPIED}, indices=(Role.STORED,)
)
grouped_copy = LinearMap(
    "grouped", ColumnSpec.stored_values, {"cpu": COPIED}, indices=(Role.STORED, Role.WHOLE)
)
