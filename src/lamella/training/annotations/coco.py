"""Objects of drawings in the COCO format (https://cocodataset.org/#format-data).

Polygons stay polygons; what has no outline of its own (masks, lines, points, mixtures) is written
as run lengths down the columns, uncompressed. Areas and boxes are those of the pixels.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lamella.training.annotations.shape import Shape, covered

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lamella.training.annotations.classes import ClassList
    from lamella.training.annotations.rasterise import DrawnObject

__all__ = ["coco_annotation", "coco_document", "run_lengths"]

_CIRCLE_ERROR = 0.1
"""Largest distance, in pixels, between a circle and the polygon written for it."""


def coco_document(
    images: Sequence[dict[str, Any]], annotations: Sequence[dict[str, Any]], known: ClassList
) -> dict[str, Any]:
    """Return the whole document; category ids are the class values."""
    categories = [
        {"supercategory": None, "id": value, "name": name} for value, name in enumerate(known.names)
    ]
    return {
        "info": {"description": "converted from Labelme"},
        "licenses": [],
        "images": list(images),
        "type": "instances",
        "annotations": list(annotations),
        "categories": categories,
    }


def coco_annotation(
    found: DrawnObject, image_shape: tuple[int, int], *, category: int
) -> dict[str, Any] | None:
    """Return one object without its ids, None where it covers no pixel of the image.

    Args:
        found: the object.
        image_shape: (y, x).
        category: class value.
    """
    pixels = np.zeros(image_shape, bool)
    for shape in found.shapes:
        pixels |= covered(shape, image_shape)
    rows, columns = np.flatnonzero(pixels.any(axis=1)), np.flatnonzero(pixels.any(axis=0))
    if len(rows) == 0:
        return None
    outlines = [_outline(shape) for shape in found.shapes]
    is_outlined = all(outline is not None for outline in outlines)
    return {
        "category_id": category,
        "segmentation": outlines
        if is_outlined
        else {"size": list(image_shape), "counts": run_lengths(pixels)},
        "area": float(np.count_nonzero(pixels)),
        "bbox": [
            float(columns[0]),
            float(rows[0]),
            float(columns[-1] - columns[0] + 1),
            float(rows[-1] - rows[0] + 1),
        ],
        "iscrowd": 0,
    }


def run_lengths(pixels: NDArray[np.bool_]) -> list[int]:
    """Lengths of runs of 0 and 1 in turn, down the columns, the first of 0.

    Examples:
        >>> run_lengths(np.array([[1, 0], [1, 1]], bool))
        [0, 2, 1, 1]
    """
    flat = pixels.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    lengths = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    return [0, *lengths] if flat[0] else lengths


def _outline(shape: Shape) -> list[float] | None:
    """Corners x0, y0, x1, y1, ... of a shape that is a polygon."""
    points = shape.points
    if shape.kind == "rectangle":
        (x0, y0), (x1, y1) = points
        points = ((x0, y0), (x1, y0), (x1, y1), (x0, y1))
    elif shape.kind == "circle":
        points = _circle(*points)
    elif shape.kind not in ("polygon", "oriented_rectangle"):
        return None
    return list(itertools.chain.from_iterable(points))


def _circle(
    center: tuple[float, float], edge: tuple[float, float]
) -> tuple[tuple[float, float], ...]:
    radius = math.dist(center, edge)
    # The middle of a chord lies r (1 - cos(pi / n)) inside the circle.
    n = 12
    if radius > _CIRCLE_ERROR:
        n = max(n, math.ceil(math.pi / math.acos(1 - _CIRCLE_ERROR / radius)))
    angles = (2 * math.pi * i / n for i in range(n))
    return tuple(
        (center[0] + radius * math.cos(angle), center[1] + radius * math.sin(angle))
        for angle in angles
    )
