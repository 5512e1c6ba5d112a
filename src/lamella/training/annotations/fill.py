"""Which pixels lie inside outlines: those whose middle does.

Drawing programs that measure (ImageJ, QuPath) and COCO's outlines mean areas: an outline runs
between pixels, and a pixel belongs to what covers its middle. Two neighbours that share an outline
share no pixel. (Labelme fills as it paints, borders included; see
:mod:`lamella.training.annotations.shape`.)

Examples:
    >>> square = np.array([[1.0, 1.0], [3.0, 1.0], [3.0, 3.0], [1.0, 3.0]])
    >>> filled([square], (4, 4)).pixels.astype(int)
    array([[1, 1],
           [1, 1]])
    >>> filled([square], (4, 4)).start
    (1, 1)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lamella.training.annotations.shape import Shape

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Patch", "cropped", "ellipse", "filled", "joined"]


@dataclass(frozen=True, slots=True, eq=False)
class Patch:
    """Pixels somewhere in an image.

    Attributes:
        start: (y, x) of the first one.
        pixels: bool, (y, x).
    """

    start: tuple[int, int]
    pixels: NDArray[np.bool_]

    def to_shape(self, label: str, *, group_id: int | None = None) -> Shape | None:
        """A shape of these pixels; None where there are none.

        Args:
            label: class name.
            group_id: parts with the same label and group are one object.
        """
        tight = cropped(self.pixels, self.start)
        if tight is None:
            return None
        (y, x), (height, width) = tight.start, tight.pixels.shape
        corners = ((float(x), float(y)), (float(x + width - 1), float(y + height - 1)))
        return Shape(label, "mask", corners, group_id=group_id, mask=tight.pixels)


def filled(rings: Sequence[NDArray[np.float64]], image_shape: tuple[int, int]) -> Patch:
    """Fill rings by the even-odd rule: a ring inside another is a hole.

    Args:
        rings: (n, 2) corners (x, y) each, the corner of the first pixel at (0, 0); closed or not.
        image_shape: (y, x); what lies outside is cut off.
    """
    edges = [_edges(ring) for ring in rings if len(ring) >= 3]
    if sum(map(len, edges)) == 0:
        return Patch((0, 0), np.zeros((0, 0), bool))
    x0, y0, x1, y1 = np.concatenate(edges).T
    top = max(0, math.ceil(min(y0.min(), y1.min()) - 0.5))
    bottom = min(image_shape[0], math.ceil(max(y0.max(), y1.max()) - 0.5))
    left = max(0, math.ceil(min(x0.min(), x1.min()) - 0.5))
    right = min(image_shape[1], math.ceil(max(x0.max(), x1.max()) - 0.5))
    if bottom <= top or right <= left:
        return Patch((0, 0), np.zeros((0, 0), bool))
    # An edge crosses the middles of rows first..last-1, and what is right of it changes sides.
    first = np.ceil(np.minimum(y0, y1) - 0.5).astype(np.int64).clip(top, bottom)
    last = np.ceil(np.maximum(y0, y1) - 0.5).astype(np.int64).clip(top, bottom)
    n = last - first
    edge = np.repeat(np.arange(len(n)), n)
    row = np.arange(n.sum()) - np.repeat(np.cumsum(n) - n, n) + np.repeat(first, n)
    slope = (x1 - x0)[edge] / (y1 - y0)[edge]
    crossing = x0[edge] + (row + 0.5 - y0[edge]) * slope
    column = np.ceil(crossing - 0.5).clip(left, right).astype(np.int64)
    turns = np.zeros((bottom - top, right - left + 1), np.int32)
    np.add.at(turns, (row - top, column - left), 1)
    inside = np.cumsum(turns, axis=1)[:, :-1] % 2 == 1
    return Patch((top, left), inside)


def ellipse(box: tuple[float, float, float, float], image_shape: tuple[int, int]) -> Patch:
    """Fill the ellipse in a box.

    Args:
        box: left, top, right, bottom, pixels.
        image_shape: (y, x).
    """
    left, top, right, bottom = box
    rows = np.arange(max(0, math.floor(top)), min(image_shape[0], math.ceil(bottom)))
    columns = np.arange(max(0, math.floor(left)), min(image_shape[1], math.ceil(right)))
    if len(rows) == 0 or len(columns) == 0 or right <= left or bottom <= top:
        return Patch((0, 0), np.zeros((0, 0), bool))
    y = (rows + 0.5 - (top + bottom) / 2) / ((bottom - top) / 2)
    x = (columns + 0.5 - (left + right) / 2) / ((right - left) / 2)
    return Patch((int(rows[0]), int(columns[0])), y[:, None] ** 2 + x[None, :] ** 2 <= 1)


def joined(patches: Sequence[Patch]) -> Patch:
    """All pixels of several patches."""
    parts = [patch for patch in patches if patch.pixels.size]
    if not parts:
        return Patch((0, 0), np.zeros((0, 0), bool))
    starts = np.array([part.start for part in parts])
    stops = starts + np.array([part.pixels.shape for part in parts])
    start, stop = starts.min(axis=0), stops.max(axis=0)
    pixels = np.zeros(tuple(stop - start), bool)
    for part, at in zip(parts, starts - start, strict=True):
        height, width = part.pixels.shape
        pixels[at[0] : at[0] + height, at[1] : at[1] + width] |= part.pixels
    return Patch((int(start[0]), int(start[1])), pixels)


def cropped(pixels: NDArray[np.bool_], start: tuple[int, int] = (0, 0)) -> Patch | None:
    """The smallest patch that holds all pixels; None without any."""
    rows, columns = np.flatnonzero(pixels.any(axis=1)), np.flatnonzero(pixels.any(axis=0))
    if len(rows) == 0:
        return None
    y, x = int(rows[0]), int(columns[0])
    tight = pixels[y : int(rows[-1]) + 1, x : int(columns[-1]) + 1]
    return Patch((start[0] + y, start[1] + x), np.ascontiguousarray(tight))


def _edges(ring: NDArray[np.float64]) -> NDArray[np.float64]:
    """Edges x0, y0, x1, y1 that are not level."""
    ends = np.roll(ring, -1, axis=0)
    edges = np.concatenate([ring, ends], axis=1)
    return edges[edges[:, 1] != edges[:, 3]]
