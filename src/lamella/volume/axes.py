"""Axes of an array: names from NGFF, always in the order t, c, z, y, x.

Examples:
    >>> axes = Axes.parse("czyx")
    >>> axes.spatial, axes.index("z"), "t" in axes
    (('z', 'y', 'x'), 1, False)
"""

from dataclasses import dataclass

from lamella.core.errors import AxesError

__all__ = ["ORDER", "Axes"]

ORDER = ("t", "c", "z", "y", "x")


@dataclass(frozen=True, slots=True)
class Axes:
    """Which axes an array has. A subset of ``t c z y x`` in this order, with at least y and x."""

    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.names != tuple(name for name in ORDER if name in self.names):
            raise AxesError(
                f"axes {self.names} are not an ordered subset of {ORDER}",
                hint="transpose the array so that its axes follow t, c, z, y, x",
            )
        if "y" not in self.names or "x" not in self.names:
            raise AxesError(f"axes {self.names} lack y or x", hint="an image has at least y and x")

    @classmethod
    def parse(cls, text: str) -> "Axes":
        """Axes from a string such as ``"zyx"`` or ``"CZYX"``.

        Raises:
            AxesError: for unknown, repeated or unordered letters.
        """
        return cls(tuple(text.lower()))

    @property
    def spatial(self) -> tuple[str, ...]:
        """The spatial axes present: (z, y, x) or (y, x)."""
        return tuple(name for name in self.names if name in ("z", "y", "x"))

    @property
    def n_spatial(self) -> int:
        """2 or 3."""
        return len(self.spatial)

    @property
    def n_leading(self) -> int:
        """How many non-spatial axes (t, c) come first."""
        return len(self.names) - self.n_spatial

    def index(self, name: str) -> int:
        """Position of an axis.

        Raises:
            AxesError: when the axis is absent.
        """
        if name not in self.names:
            raise AxesError(f"there is no axis {name!r} among {self}")
        return self.names.index(name)

    def without(self, *names: str) -> "Axes":
        """The same axes less ``names``."""
        return Axes(tuple(name for name in self.names if name not in names))

    def __len__(self) -> int:
        return len(self.names)

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __str__(self) -> str:
        return "".join(self.names)
