"""What the core knows about an op: the kinds of array it relates, and what is fixed about them."""

import dataclasses
import enum
from typing import Any, Protocol


class Role(enum.Enum):
    """Which axes arrays of a kind have between the group axes and the inner ones."""

    BATCHED = enum.auto()  # any number of batch axes
    STORED = enum.auto()  # one axis, of the stored parts of a weight
    WHOLE = enum.auto()  # none


@dataclasses.dataclass(frozen=True)
class Kind:
    """One of the arrays that an op relates: its name, its role, and the member that returns it."""

    name: str
    role: Role
    member: str


def role_of(index: Role | Kind) -> Role:
    """The role of an index array, of which a kind says more."""
    return index.role if isinstance(index, Kind) else index


class Spec(Protocol):
    """What is fixed before any array is seen. Must be hashable."""

    @property
    def cast_from(self) -> str | None:
        """The short dtype that float32 operands of the last kind's member were cast from, if any.

        Its handler then takes them in that dtype, and returns float32.
        """
        ...

    def inner(self, kind: str) -> tuple[int, ...]:
        """The inner axes of an array of this kind."""
        ...

    def attributes(self) -> dict[str, Any]:
        """The FFI attributes of the handlers: small and static, never sizes of buffers."""
        ...

    def density(self, stored: int) -> float:
        """The share of the weight that `stored` parts hold."""
        ...

    def macs(self, batch: int) -> int:
        """Multiply-adds with every weight, for a batch of this size."""
        ...

    def unmeasured_break_even(self) -> float:
        """The density up to which to expect that a kernel pays, where nothing was measured."""
        ...

    def shape_class(self, batch: int) -> str:
        """The class of problems that this one shares its break-even point with."""
        ...

    def is_thin(self, batch: int, role: str) -> bool:
        """Whether a member such as "forward" has nothing to win by zeros, at any density."""
        ...


class Device(Protocol):
    """What a platform's handlers of a family are, where it is not what the CPU's are.

    `role` is the member's, such as "forward". A family without handlers of its own shares this with
    the one that it calls.
    """

    def attributes(self, spec) -> dict[str, Any]:
        """The FFI attributes of the handlers."""
        ...

    def scratch_bytes(self, role: str, spec, shapes: dict[str, tuple[int, ...]], dtype: str) -> int:
        """The size of the scratch memory that a handler takes as a second result.

        Args:
            role: of the member.
            spec: of the call.
            shapes: of every kind of array, by its name, and of the indices, as "indices".
            dtype: of the operands.
        """
        ...

    def unmeasured_break_even(self, role: str, spec, dtype: str, batch: int) -> float:
        """The density up to which to expect that a kernel pays, where nothing was measured."""
        ...

    def shape_class(self, spec, batch: int) -> str:
        """The class of problems that this one shares its break-even point with."""
        ...
