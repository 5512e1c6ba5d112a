"""A drawn shape, and the pixels it covers.

Coordinates are (x, y) in pixels, the corner of the first pixel at (0, 0), as drawing programs keep
them. What a shape covers follows Labelme: borders count, a line is ten pixels wide, a point is a
disc of radius five. Pillow draws, as it does there, so that label images agree to the pixel.

Examples:
    >>> square = Shape("cell", "rectangle", ((1.0, 1.0), (3.0, 2.0)))
    >>> covered(square, (4, 5)).astype(int)
    array([[0, 0, 0, 0, 0],
           [0, 1, 1, 1, 0],
           [0, 1, 1, 1, 0],
           [0, 0, 0, 0, 0]])
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lamella.core.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["KINDS", "LINE_WIDTH", "POINT_RADIUS", "Shape", "covered"]

LINE_WIDTH = 10
POINT_RADIUS = 5
Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Shape:
    """One shape as a person drew it.

    Attributes:
        label: class name.
        kind: one of :data:`KINDS`.
        points: (x, y) corners or other points, as the kind wants them.
        group_id: parts with the same label and group are one object.
        mask: of the kind ``mask``: bool, (y, x), its first pixel at the first point.
        description: free text.
        flags: truth values by name.
    """

    label: str
    kind: str
    points: tuple[Point, ...]
    group_id: int | None = None
    mask: NDArray[np.bool_] | None = None
    description: str = ""
    flags: tuple[tuple[str, bool], ...] = ()


def covered(shape: Shape, image_shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the pixels a shape covers.

    Args:
        shape: what was drawn; parts outside the image are cut off.
        image_shape: (y, x) of the image.

    Returns:
        bool, (y, x).

    Raises:
        InputError: for a kind that is not known or points that do not make one.
    """
    try:
        kind = KINDS[shape.kind]
    except KeyError:
        raise InputError(
            f"shape {shape.label!r} is of the unknown kind {shape.kind!r}",
            hint=f"known kinds: {', '.join(KINDS)}",
        ) from None
    n = len(shape.points)
    if n < kind.least or (kind.most is not None and n > kind.most):
        expected = str(kind.least) if kind.least == kind.most else f"at least {kind.least}"
        raise InputError(
            f"the {shape.kind} {shape.label!r} has {n} points, expected {expected}",
            hint="delete or redraw it in the drawing program",
        )
    if not all(math.isfinite(value) for point in shape.points for value in point):
        raise InputError(
            f"the {shape.kind} {shape.label!r} has a point that is no number",
            hint="delete or redraw it in the drawing program",
        )
    if shape.kind == "mask":
        return _pasted(shape, image_shape)
    from PIL import Image, ImageDraw

    canvas = Image.new("L", (image_shape[1], image_shape[0]), 0)
    kind.draw(ImageDraw.Draw(canvas), list(shape.points))
    return np.asarray(canvas, dtype=bool)


def _pasted(shape: Shape, image_shape: tuple[int, int]) -> NDArray[np.bool_]:
    """A mask at its place; the box of its two points includes both."""
    if shape.mask is None:
        raise InputError(
            f"the mask {shape.label!r} holds no picture", hint="draw it again, or delete it"
        )
    (x0, y0), (x1, y1) = (tuple(round(value) for value in point) for point in shape.points)
    expected = (abs(y1 - y0) + 1, abs(x1 - x0) + 1)
    if shape.mask.shape != expected:
        raise InputError(
            f"the mask {shape.label!r} has {shape.mask.shape} pixels (y, x), its points say"
            f" {expected}",
            hint="draw it again, or delete it",
        )
    result = np.zeros(image_shape, bool)
    top, left = min(y0, y1), min(x0, x1)
    bottom, right = (
        min(image_shape[0], top + expected[0]),
        min(image_shape[1], left + expected[1]),
    )
    y, x = max(0, top), max(0, left)
    if y < bottom and x < right:
        result[y:bottom, x:right] = shape.mask[y - top : bottom - top, x - left : right - left]
    return result


def _polygon(draw: Any, points: list[Point]) -> None:
    draw.polygon(points, outline=1, fill=1)


def _rectangle(draw: Any, points: list[Point]) -> None:
    (x0, y0), (x1, y1) = points
    draw.rectangle([min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)], outline=1, fill=1)


def _circle(draw: Any, points: list[Point]) -> None:
    center, edge = points
    _disc(draw, center, math.dist(center, edge))


def _line(draw: Any, points: list[Point]) -> None:
    draw.line(points, fill=1, width=LINE_WIDTH)


def _points(draw: Any, points: list[Point]) -> None:
    for center in points:
        _disc(draw, center, POINT_RADIUS)


def _disc(draw: Any, center: Point, radius: float) -> None:
    x, y = center
    draw.ellipse([x - radius, y - radius, x + radius, y + radius], outline=1, fill=1)


@dataclass(frozen=True, slots=True)
class _Kind:
    least: int
    most: int | None
    draw: Callable[[Any, list[Point]], None]


KINDS = {
    "polygon": _Kind(3, None, _polygon),
    "rectangle": _Kind(2, 2, _rectangle),
    "oriented_rectangle": _Kind(4, 4, _polygon),
    "circle": _Kind(2, 2, _circle),
    "line": _Kind(2, 2, _line),
    "linestrip": _Kind(2, None, _line),
    "point": _Kind(1, 1, _points),
    "points": _Kind(1, None, _points),
    "mask": _Kind(2, 2, _polygon),
}
"""What a drawing program can draw: how many points each kind has, and how it is filled."""
