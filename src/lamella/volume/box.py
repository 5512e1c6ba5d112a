"""Boxes: axis-aligned, half-open, integer regions of an index space, in (z, y, x).

A box may lie anywhere (negative starts too), so that reading with a halo beyond the border is
arithmetic here and a decision (pad, reflect, clamp) elsewhere.

Examples:
    >>> write = Box((0, 32, 32), (32, 64, 64))
    >>> read = write.grow(8)
    >>> read, read.clamp((64, 64, 64)).shape
    (Box(start=(-8, 24, 24), stop=(40, 72, 72)), (40, 40, 40))
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lamella.core.errors import BoxOutOfBoundsError

__all__ = ["Box"]


@dataclass(frozen=True, slots=True)
class Box:
    """The integer points p with ``start <= p < stop`` on every axis."""

    start: tuple[int, ...]
    stop: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.start) != len(self.stop):
            raise BoxOutOfBoundsError(
                f"box start {self.start} and stop {self.stop} differ in their number of axes"
            )
        if any(a > b for a, b in zip(self.start, self.stop, strict=True)):
            raise BoxOutOfBoundsError(f"box start {self.start} lies beyond its stop {self.stop}")

    @classmethod
    def from_shape(cls, shape: Sequence[int]) -> "Box":
        """The box of a whole array."""
        return cls((0,) * len(shape), tuple(int(n) for n in shape))

    @classmethod
    def from_slices(cls, slices: Sequence[slice]) -> "Box":
        """The box of plain slices with both ends given."""
        return cls(tuple(int(s.start) for s in slices), tuple(int(s.stop) for s in slices))

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.start)

    @property
    def shape(self) -> tuple[int, ...]:
        """Extent along each axis."""
        return tuple(b - a for a, b in zip(self.start, self.stop, strict=True))

    @property
    def size(self) -> int:
        """Number of points."""
        return math.prod(self.shape)

    @property
    def is_empty(self) -> bool:
        """Whether no point lies inside."""
        return self.size == 0

    def slices(self) -> tuple[slice, ...]:
        """Slices that cut this box out of an array whose index space it lies in.

        Raises:
            BoxOutOfBoundsError: for negative starts, which numpy would wrap around in silence.
        """
        if any(a < 0 for a in self.start):
            raise BoxOutOfBoundsError(
                f"{self} starts before the array", hint="clamp it or shift it first"
            )
        return tuple(slice(a, b) for a, b in zip(self.start, self.stop, strict=True))

    def intersect(self, other: "Box") -> "Box":
        """The common points; an empty box (start == stop somewhere) when there are none."""
        start = tuple(max(a, b) for a, b in zip(self.start, other.start, strict=True))
        stop = tuple(min(a, b) for a, b in zip(self.stop, other.stop, strict=True))
        return Box(start, tuple(max(a, b) for a, b in zip(start, stop, strict=True)))

    def hull(self, other: "Box") -> "Box":
        """The smallest box that contains both."""
        return Box(
            tuple(min(a, b) for a, b in zip(self.start, other.start, strict=True)),
            tuple(max(a, b) for a, b in zip(self.stop, other.stop, strict=True)),
        )

    def grow(self, before: int | Sequence[int], after: int | Sequence[int] | None = None) -> "Box":
        """The box with margins added on each side (one number, or one per axis)."""
        low = (before,) * self.ndim if isinstance(before, int) else tuple(before)
        high = low if after is None else after
        high = (high,) * self.ndim if isinstance(high, int) else tuple(high)
        return Box(
            tuple(a - m for a, m in zip(self.start, low, strict=True)),
            tuple(b + m for b, m in zip(self.stop, high, strict=True)),
        )

    def shift(self, offset: Sequence[int]) -> "Box":
        """The box moved by ``offset``."""
        return Box(
            tuple(a + o for a, o in zip(self.start, offset, strict=True)),
            tuple(b + o for b, o in zip(self.stop, offset, strict=True)),
        )

    def relative_to(self, other: "Box") -> "Box":
        """The same points in the index space whose origin is ``other.start``."""
        return self.shift(tuple(-a for a in other.start))

    def clamp(self, shape: Sequence[int]) -> "Box":
        """The part inside an array of ``shape``."""
        return self.intersect(Box.from_shape(shape))

    def contains(self, other: "Box") -> bool:
        """Whether every point of ``other`` lies inside (an empty box lies inside everything)."""
        return other.is_empty or self.intersect(other) == other

    def __str__(self) -> str:
        spans = ", ".join(f"{a}:{b}" for a, b in zip(self.start, self.stop, strict=True))
        return f"box [{spans}]"
