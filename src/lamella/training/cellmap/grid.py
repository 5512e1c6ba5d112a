"""Where voxels of raw data and labels lie, in nanometres; levels are found by size, not by number.

A *grid* has a shape, a spacing and the world position of its first voxel centre. Grids of one data
set share a world, and their origins differ by fractions of a voxel as a rule: labels drawn on
voxels half as large begin a quarter of a raw voxel earlier. Nothing is rounded here.

Examples:
    >>> raw = Grid((20, 1024, 1024), (50.0, 4.6, 4.6), (0.0, 0.0, 0.0))
    >>> labels = Grid((20, 768, 768), (50.0, 2.3, 2.3), (0.0, 182.85, 228.85))
    >>> [round(i, 6) for i in raw.index_of(labels.origin)]
    [0.0, 39.75, 49.75]
    >>> raw.box_around(labels)
    Box(start=(0, 40, 50), stop=(20, 424, 434))
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lamella.core.errors import GeometryError
from lamella.volume.box import Box

__all__ = ["Grid", "LevelChoice", "choose_level"]

Triple = tuple[float, float, float]
_HAIR = 1e-6
"""Voxels by which a border may miss a whole number because of rounding in attributes."""
TOLERATED_RATIO = 1.25
"""Ratio of spacings from which resampling is worth a warning."""


@dataclass(frozen=True, slots=True)
class Grid:
    """Voxel centres at ``origin + index * spacing``.

    Attributes:
        shape: voxels, (z, y, x).
        spacing: nm, (z, y, x).
        origin: world position of the first voxel's centre, nm, (z, y, x).
    """

    shape: tuple[int, int, int]
    spacing: Triple
    origin: Triple

    def __post_init__(self) -> None:
        values = (*self.spacing, *self.origin)
        if not all(math.isfinite(v) for v in values) or min(self.spacing) <= 0:
            raise GeometryError(
                f"spacing {self.spacing} and origin {self.origin} do not make a grid",
                hint="spacings are positive, in nm; check the coordinate transformations",
            )

    def index_of(self, world: Sequence[float]) -> Triple:
        """Index of a world position; a fraction of a voxel as a rule."""
        z, y, x = ((w - o) / s for w, o, s in zip(world, self.origin, self.spacing, strict=True))
        return z, y, x

    def world_of(self, index: Sequence[float]) -> Triple:
        """World position of an index, nm."""
        z, y, x = (o + i * s for i, o, s in zip(index, self.origin, self.spacing, strict=True))
        return z, y, x

    @property
    def low(self) -> Triple:
        """World position of the lower border (not the centre) of the first voxel, nm."""
        return self.world_of((-0.5, -0.5, -0.5))

    @property
    def high(self) -> Triple:
        """World position of the upper border of the last voxel, nm."""
        return self.world_of([n - 0.5 for n in self.shape])

    def slab(self, start: int, stop: int) -> Grid:
        """The grid of layers ``start`` to ``stop`` along z."""
        _, y, x = self.shape
        return Grid((stop - start, y, x), self.spacing, self.world_of((start, 0, 0)))

    def box_around(self, other: Grid) -> Box:
        """Voxels of this grid that another grid's extent touches; may reach beyond this grid."""
        low, high = self.index_of(other.low), self.index_of(other.high)
        start = tuple(math.floor(i + 0.5 + _HAIR) for i in low)
        stop = tuple(math.ceil(i + 0.5 - _HAIR) for i in high)
        return Box(start, stop)

    def holds(self, other: Grid) -> bool:
        """Whether the other grid's extent lies within this one's, to a thousandth of a voxel."""
        return all(
            mine_low - 1e-3 * s <= low and high <= mine_high + 1e-3 * s
            for mine_low, mine_high, low, high, s in zip(
                self.low, self.high, other.low, other.high, self.spacing, strict=True
            )
        )


@dataclass(frozen=True, slots=True)
class LevelChoice:
    """A level and how far it is from what was wanted.

    Attributes:
        index: of the level in the sequence given.
        ratio: wanted spacing over the level's, per axis; above 1 the level is finer.
    """

    index: int
    ratio: Triple

    @property
    def worst(self) -> float:
        """Largest ratio of any axis, whichever way round."""
        return max(max(r, 1 / r) for r in self.ratio)

    @property
    def is_far(self) -> bool:
        """Whether data of this level have to be resampled a good deal."""
        return self.worst > TOLERATED_RATIO


def choose_level(spacings: Sequence[Triple], wanted: Triple) -> LevelChoice:
    """Choose the level whose worst axis is nearest to a spacing; the finer of equals.

    The measure is the largest ``|log2|`` of the ratio of spacings over the axes: a mean over axes
    would call 2, 10, 12 nm a perfect match for 8 nm.

    Args:
        spacings: nm, one triple a level.
        wanted: nm.

    Examples:
        >>> choose_level([(4, 4, 4), (8, 8, 8), (16, 16, 16)], (8.0, 8.0, 8.0)).index
        1
        >>> choose_level([(2, 10, 12), (10, 10, 10)], (8.0, 8.0, 8.0)).index
        1

    Raises:
        GeometryError: without levels.
    """
    if not spacings:
        raise GeometryError("there are no levels to choose from", hint="check the multiscales")
    choices = [
        LevelChoice(i, (wanted[0] / s[0], wanted[1] / s[1], wanted[2] / s[2]))
        for i, s in enumerate(spacings)
    ]
    return min(
        choices, key=lambda choice: (round(choice.worst, 9), math.prod(spacings[choice.index]))
    )
