"""Stored numbers → values, the linear way of DICOM, NIfTI and others.

Integers stay integers where slope and intercept are whole numbers: Hounsfield units come out as
int16, not as float64 that happens to be whole.

Examples:
    >>> Rescale(1.0, -1024.0).dtype_of(np.dtype("uint16"), (0, 4095))
    dtype('int16')
    >>> Rescale(0.5, 0.0).dtype_of(np.dtype("int16"))
    dtype('float32')
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Rescale"]

_INTEGERS = ("uint8", "int16", "uint16", "int32", "uint32", "int64")


@dataclass(frozen=True, slots=True)
class Rescale:
    """``value = slope * stored + intercept``."""

    slope: float = 1.0
    intercept: float = 0.0

    @property
    def is_identity(self) -> bool:
        """Whether nothing changes."""
        return self.slope == 1.0 and self.intercept == 0.0

    @property
    def is_whole(self) -> bool:
        """Whether integers stay integers."""
        return self.slope.is_integer() and self.intercept.is_integer()

    def bounds(self, low: int, high: int) -> tuple[float, float]:
        """Range of values for a range of stored numbers."""
        ends = (self.slope * low + self.intercept, self.slope * high + self.intercept)
        return min(ends), max(ends)

    def dtype_of(
        self, stored: np.dtype[Any], bounds: tuple[int, int] | None = None
    ) -> np.dtype[Any]:
        """The type of the values.

        Args:
            stored: type of the stored numbers.
            bounds: their range where it is narrower than the type's (DICOM: bits stored).

        Returns:
            ``stored`` for the identity; the smallest signed or unsigned integer type, 16 bits or
            more, that holds every value where they are whole; else float32 (float64 for stored
            types of 32 bits and more, whose numbers float32 cannot tell apart).
        """
        if self.is_identity:
            return stored.newbyteorder("=")
        if stored.kind in "ui" and self.is_whole:
            info = np.iinfo(stored)
            low, high = self.bounds(*(bounds or (int(info.min), int(info.max))))
            for name in _INTEGERS[1:]:
                if np.iinfo(name).min <= low and high <= np.iinfo(name).max:
                    return np.dtype(name)
        wide = stored.itemsize > 4 or (stored.kind in "ui" and stored.itemsize == 4)
        return np.dtype(np.float64 if wide else np.float32)

    def apply(self, stored: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Values as ``dtype``, computed in float64 where they are not whole."""
        if self.is_identity:
            return stored.astype(dtype, copy=False)
        if dtype.kind in "ui":
            whole = stored.astype(np.int64) * int(self.slope) + int(self.intercept)
            return whole.astype(dtype)
        with np.errstate(over="ignore", invalid="ignore"):
            return (stored.astype(np.float64) * self.slope + self.intercept).astype(dtype)
