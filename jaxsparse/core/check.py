"""Every sparse call computed in more than one way, and the results compared.

Comparisons are lowered together with the calls, so all of JAX's transformations have been applied:
what is compared is what runs, in the forward pass and in the backward pass alike. A comparison only
sends its worst element to the host.

Two ways may differ by twice the forward error of a sum of products, `slack * unit * sum |x w|` for
each element, with a slack of 8, or of the root of the number of products where all may have one
sign. Copies may not differ at all.
"""

import dataclasses
import functools
import math
import re
import threading

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import ShapedArray

from jaxsparse.core import compat, dispatch, modes
from jaxsparse.core.kinds import Role

# The rounding of one operation, in the dtype of the operands. TF32 products have ten bits.
_UNITS = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
_TF32 = 2.0**-11


class CheckError(ArithmeticError):
    """A sparse call whose result is not that of the dense one."""


@dataclasses.dataclass
class Compared:
    """A sparse call, and how far its ways are apart. Changes while programs run.

    Attributes:
        name: the name stack where it was traced: the layer, in Flax models.
        member: such as "block_matmul_forward".
        way: what was compared with the dense op: "ffi", or "dense" for the one with compiled
            copies; "none" where there is nothing to compare.
        why: why that is not what runs here, or why there is nothing to compare; or empty.
        runs: how often it was compared.
        worst: the largest error, relative to what is allowed there.
        num_bad: how many elements were off by more, in all runs.
        index, got, expected: of the worst element, in `[*group, *batch or stored, *inner]`.
    """

    name: str
    member: str
    way: str
    why: str = ""
    runs: int = 0
    worst: float = 0.0
    num_bad: int = 0
    index: tuple[int, ...] = ()
    got: float = 0.0
    expected: float = 0.0

    def __str__(self) -> str:
        where = f"{self.name or '(no name)'}: {self.member}"
        if self.way == "none":
            return f"{where}: not compared, {self.why}"
        where += f" ({self.way}{self.why and f', not chosen: {self.why}'})"
        if not self.runs:
            return f"{where}: did not run"
        if not self.num_bad:
            return f"{where}: agrees, worst error {self.worst:.2g} of what is allowed"
        return (
            f"{where}: {self.num_bad} elements differ in {self.runs} runs, worst "
            f"{self.got:.8g} instead of {self.expected:.8g} at {self.index}, an error "
            f"{self.worst:.3g} times as large as is allowed"
        )


class Check:
    """Compares every sparse call that is traced inside its `with` block.

    Attributes:
        rows: a Compared for every call and way, in the order in which they were compiled.
    """

    def __init__(self, rtol: float | None, raises: bool):
        self._rtol, self._raises = rtol, raises
        self._lock = threading.Lock()
        self.rows: list[Compared] = []

    @property
    def bad(self) -> list[Compared]:
        """The calls that differ."""
        return [row for row in self.rows if row.num_bad]

    def __str__(self) -> str:
        return "\n".join(map(str, self.rows)) or "no sparse call was compiled"

    def __enter__(self) -> "Check":
        modes.enter(check=self)
        return self

    def __exit__(self, error_type, error, traceback) -> None:
        modes.leave(error_type, error, traceback)
        # Comparisons end before the results that they belong to.
        jax.effects_barrier()
        jax.block_until_ready(jax.live_arrays())
        if self._raises and error_type is None and self.bad:
            lines = "\n  ".join(map(str, self.bad))
            raise CheckError(f"check: sparse results must be those of the dense op, got\n  {lines}")

    def lower(self, member, context, operands, spec, n_group, label, choice, choose, by):
        """The lowered result of a call, with a comparison beside it.

        Args:
            member, context, operands, spec, n_group: as a lowering rule has them.
            label: the name of the layer, or the name stack where the call was traced.
            choice: the way that the call takes.
            choose: `choose(implementation)`, as `dispatch.choose` for this call.
            by: `by(path)`, the lowered result in that way.
        """
        result, name, why = by(choice.path), _readable(label), ""
        is_copied = choice.path == "dense" and member.family.dense is not None
        ways = {choice.path if is_copied or choice.path == "ffi" else "xla": result}
        if choice.path != "ffi":
            try:
                if choose("ffi").path == "ffi":
                    ways["ffi"] = by("ffi")
                why = choice.reason
            except NotImplementedError as error:
                why = str(error)
        if set(ways) == {"xla"}:
            self._add(Compared(name, member.name, "none", why))
            return result
        if choice.path == "ffi" and member.family.choose:
            with modes.set_to(mode="sparse"):  # not what was decided, which may be XLA's op
                ways["ffi"] = by("ffi")
        expected = ways.get("xla") or by("xla")
        (kind,) = context.avals_out
        avals = (*context.avals_in, kind, kind)
        context = context.replace(avals_in=avals, avals_out=[ShapedArray((), jnp.int32)])
        platform = compat.lowering_platforms(context)[0]
        for way, got in ways.items():
            if way == "xla":
                continue
            row = Compared(name, member.name, way, why if way == "ffi" else "")
            self._add(row)
            compare = functools.partial(
                self._compare, row, member, spec=spec, n_group=n_group, platform=platform
            )
            own = context.replace(tokens_out=None)
            compat.lower_without_mesh(compare, own, *operands, got[0], expected[0])
        return result

    def _add(self, row: Compared) -> None:
        with self._lock:
            self.rows.append(row)

    def _note(self, row: Compared, shape, num_bad, worst, index, got, expected) -> None:
        with self._lock:
            row.runs += 1
            row.num_bad += int(num_bad)
            if row.runs == 1 or not worst <= row.worst:
                row.worst, row.got, row.expected = float(worst), float(got), float(expected)
                row.index = tuple(int(i) for i in np.unravel_index(int(index), shape))

    def _compare(self, row, member, *arrays, spec, n_group, platform):
        """Sends how far the last two arrays are apart to the host; how many elements differ."""
        *operands, got, expected = arrays
        if got.size == 0:
            return jnp.int32(0)
        is_copy = all(kind.role is not Role.BATCHED for kind in member.family.kinds)
        if is_copy or not jnp.issubdtype(got.dtype, jnp.floating):
            same = (got == expected) | ((got != got) & (expected != expected))
            error = jnp.where(same, 0.0, jnp.inf)
        else:
            relative = self._relative_tolerance(member, spec, n_group, operands, got, platform)
            error = _errors(member, spec, n_group, operands, got, expected, relative)
        error = error.reshape(-1)
        num_bad, index = jnp.sum(~(error <= 1)), jnp.argmax(error)
        both = (array.reshape(-1)[index].astype(jnp.float32) for array in (got, expected))
        note = functools.partial(self._note, row, got.shape)
        jax.debug.callback(note, num_bad, error[index], index, *both)
        return num_bad.astype(jnp.int32)

    def _relative_tolerance(self, member, spec, n_group, operands, result, platform) -> float:
        """What results may differ by, as a share of the sum of absolute products."""
        if self._rtol is not None:
            return self._rtol
        shapes = [operand.shape for operand in operands]
        groups = math.prod(result.shape[:n_group])
        products = spec.macs(dispatch.batch_size(member, spec, n_group, shapes)) * groups
        if member.result.role is Role.STORED:
            products *= spec.density(member.num_stored(shapes))
        slack = max(8.0, math.sqrt(products / result.size))
        unit = _UNITS[member.cast_from(spec) or result.dtype.name]
        if platform != "cpu" and result.dtype == jnp.float32:
            unit = max(unit, _TF32)
        return 2 * slack * unit


def _errors(member, spec, n_group, operands, got, expected, relative):
    """For each element how far apart the results are, in units of what is allowed.

    Where plain JAX multiplies an Inf or a NaN by the zero of a weight that is not stored, it has
    NaN, and a kernel has what the other products make. Both are right; so are both by a zero of a
    sparse input, in ops that decide by counting these.
    """
    count = len(member.operands)
    indices = operands[count:]
    run = functools.partial(member.run_reference, spec=spec, n_group=n_group)
    finite = [jnp.where(jnp.isfinite(a), a, jnp.zeros((), a.dtype)) for a in operands[:count]]
    sums = run(*map(jnp.abs, finite), *indices)
    info = jnp.finfo(got.dtype)
    # Kernels take subnormal numbers for zeros, as XLA does.
    allowed = jnp.asarray(relative, sums.dtype) * sums + jnp.asarray(info.tiny, sums.dtype)

    def apart(expected):
        same = (got == expected) | (jnp.isnan(got) & jnp.isnan(expected))
        off = jnp.abs(got - expected) / allowed
        return jnp.where(same, 0, jnp.where(jnp.isnan(off), jnp.inf, off)).astype(jnp.float32)

    def with_special_values():
        sparse_input = spec.source if member.family.choose else None
        ones = [
            (a != 0).astype(a.dtype) if kind.name == sparse_input else jnp.ones_like(a)
            for kind, a in zip(member.operands, operands[:count], strict=True)
        ]
        special = [(~jnp.isfinite(a)).astype(a.dtype) for a in operands[:count]]
        met = sum(run(*ones[:i], special[i], *ones[i + 1 :], *indices) for i in range(count))
        of_finite = jnp.where(met > 0, jnp.inf, apart(run(*finite, *indices)))
        of_others = jnp.where(jnp.isfinite(expected), jnp.inf, 0.0).astype(jnp.float32)
        return jnp.where(jnp.isfinite(got), of_finite, of_others)

    is_finite = functools.reduce(
        jnp.logical_and, [jnp.all(jnp.isfinite(a)) for a in operands[:count]]
    )
    return lax.cond(is_finite, lambda: apart(expected), with_special_values)


def _readable(name_stack: str | None) -> str:
    """A name stack without the names of transformations."""
    return re.sub(r"\w+\(|\)", "", name_stack or "").strip("/")


def check(*, rtol: float | None = None, raises: bool = True) -> Check:
    """A context in which every sparse call also runs dense, and the results are compared.

        with jaxsparse.check() as checked:
            grads = jax.grad(loss)(params, x)
        print(checked)                          # a line for every call

    Compared are the compiled kernels with XLA's op on the whole weight, under every transformation,
    forward and backward; also where the dense op is what runs, because the kernel would not pay.
    What a call returns does not change. Functions that are compiled already are compiled anew
    inside, and found again afterwards. A check computes every op some four times.

    Args:
        rtol: how far results may be apart, relative to the sum of the absolute products of each
            element. If None, what rounding allows in the dtype of the operands: two times 8 units,
            or the root of the number of products where that is more.
        raises: whether leaving the block raises for what differs; if not, see `rows` and `bad`.

    Returns:
        A Check, which prints every call with its layer, its worst error, and why a kernel that was
        compared is not what runs. NaN in one place is the same as NaN; an Inf or NaN of an operand
        that meets weights which are not stored may show or not.

    Raises:
        CheckError: when leaving the block, with the layer, the op and the worst element of all
            calls that differ.
    """
    if rtol is not None and not rtol > 0:
        raise ValueError(f"check: rtol must be positive, got {rtol}.")
    return Check(rtol, raises)
