"""Shapes of an image become a class image and an object image.

Shapes are drawn in their order, so that later ones lie on top. Parts with the same label and group
are one object; objects are numbered in the order in which they were first drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lamella.training.annotations.shape import Shape, covered

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lamella.training.annotations.classes import ClassList

__all__ = ["Drawing", "DrawnObject", "gather_objects", "rasterise"]


@dataclass(frozen=True, slots=True)
class DrawnObject:
    """Shapes that are one object.

    Attributes:
        number: 1..n in the order of drawing, ignored ones counted too.
        label: class name.
        shapes: its parts, in the order of drawing.
    """

    number: int
    label: str
    shapes: tuple[Shape, ...]


@dataclass(frozen=True, slots=True)
class Drawing:
    """The label images of one annotated image.

    Attributes:
        classes: int32, (y, x): class values, -1 = ignore.
        objects: int32, (y, x): object numbers, 0 = none; ignored pixels are 0.
    """

    classes: NDArray[np.int32]
    objects: NDArray[np.int32]


def gather_objects(shapes: Sequence[Shape]) -> tuple[DrawnObject, ...]:
    """Join shapes of the same label and group; a shape without a group is an object of its own."""
    parts: dict[tuple[str, int, bool], list[Shape]] = {}
    for i, shape in enumerate(shapes):
        is_grouped = shape.group_id is not None
        key = (shape.label, shape.group_id if shape.group_id is not None else i, is_grouped)
        parts.setdefault(key, []).append(shape)
    return tuple(
        DrawnObject(number, key[0], tuple(found))
        for number, (key, found) in enumerate(parts.items(), start=1)
    )


def rasterise(shapes: Sequence[Shape], image_shape: tuple[int, int], known: ClassList) -> Drawing:
    """Draw all shapes of an image.

    Args:
        shapes: in the order of drawing.
        image_shape: (y, x).
        known: values of the class names.

    Raises:
        InputError: for a class that is not known or a shape that cannot be drawn.
    """
    number_of = {
        id(shape): found.number for found in gather_objects(shapes) for shape in found.shapes
    }
    classes = np.zeros(image_shape, np.int32)
    objects = np.zeros(image_shape, np.int32)
    for shape in shapes:
        pixels = covered(shape, image_shape)
        classes[pixels] = known.value(shape.label)
        objects[pixels] = number_of[id(shape)]
    objects[classes == -1] = 0
    return Drawing(classes, objects)
