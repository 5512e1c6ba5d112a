"""Confidence in the report: columns with bars, and the objects that want a look, least sure first.

Examples:
    >>> least_first(np.array([0.9, 0.2, np.nan]), is_doubt=False).tolist()
    [1, 0]
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamella.measurement.confidence import mean_by_class
from lamella.measurement.report_html import Card, Column, Picture
from lamella.measurement.report_slices import (
    contrast_limits,
    draw_grey,
    encode_png,
    outline_of,
)
from lamella.measurement.table import ObjectTable
from lamella.volume.labels import Labels
from lamella.volume.volume import Volume

__all__ = [
    "DOUBTS",
    "Gallery",
    "class_confidence",
    "least_certain",
    "least_first",
    "object_confidence",
]

DOUBTS = ("entropy", "tta_spread", "flow_error")
"""Measures of which 0 is sure; of all others 1 is."""

_N_CARDS = 8
_SIZE_PX = 240
_MARGIN = 1.35
"""Extent of a picture over that of its object."""
_SMALLEST = 12
_LARGEST = 400
_OBJECT = np.array([255, 176, 64], np.float32)
_OTHERS = np.array([150, 170, 190], np.float32)


@dataclass(frozen=True, slots=True)
class Gallery:
    """Objects that want a look.

    Attributes:
        cards: their pictures, least sure first.
        ids: the same objects.
        title: of the section.
        note: how to read it.
    """

    cards: tuple[Card, ...] = ()
    ids: tuple[int, ...] = ()
    title: str = ""
    note: str = ""


def class_confidence(table: ObjectTable, values: Sequence[int]) -> tuple[Column, ...]:
    """One column a measure: the mean over all voxels of each class.

    Args:
        table: the objects.
        values: classes, in the order of the rows.
    """
    columns = []
    for name, means in table.confidence.items():
        found = mean_by_class(means, table.voxels, table.classes)
        columns.append(Column(_title(name), [found.get(v) for v in values], "mean", is_share=True))
    return tuple(columns)


def object_confidence(table: ObjectTable, order: NDArray[np.intp]) -> tuple[Column, ...]:
    """One column a measure: the mean over the voxels of each object, and further columns.

    Args:
        table: the objects.
        order: rows that are shown.
    """
    word = "calibrated" if table.is_calibrated else "uncalibrated"
    sure = [
        Column(_title(name), _floats(means, order), word, is_share=True)
        for name, means in table.confidence.items()
    ]
    further = [
        Column(_title(name), _floats(values, order)) for name, values in table.further.items()
    ]
    return (*sure, *further)


def least_certain(*, table: ObjectTable, ids: Labels | None, image: Volume | None) -> Gallery:
    """Pictures of the least sure objects.

    Args:
        table: all objects.
        ids: where they are; None draws nothing.
        image: what is shown below; grey without.
    """
    if ids is None or not table.confidence:
        return Gallery()
    name = "margin" if "margin" in table.confidence else next(iter(table.confidence))
    means = table.confidence[name]
    rows = least_first(means, is_doubt=name in DOUBTS)[:_N_CARDS]
    cards = [_card(table, int(row), ids, image, float(means[row])) for row in rows]
    calibrated = (
        "The numbers are calibrated on held-out data."
        if table.is_calibrated
        else "The numbers are uncalibrated: they rank objects, they are no probabilities of being"
        " right."
    )
    return Gallery(
        tuple(cards),
        tuple(int(table.ids[row]) for row in rows),
        "Least certain objects",
        f"The bar is the mean {_title(name)} over the object"
        + (", best minus second best class. " if name == "margin" else ". ")
        + calibrated
        + " Each picture is the plane through the object's middle.",
    )


def least_first(values: NDArray[np.float64], *, is_doubt: bool) -> NDArray[np.intp]:
    """Rows from the least to the most certain; unknown ones are left out.

    Args:
        values: of each object.
        is_doubt: whether large values mean uncertain.
    """
    order = np.argsort(-values if is_doubt else values, kind="stable")
    return order[np.isfinite(values[order])]


def _card(table: ObjectTable, row: int, ids: Labels, image: Volume | None, share: float) -> Card:
    number = int(table.ids[row])
    name = table.class_names.get(int(table.classes[row]), "") or "object"
    picture = encode_png(_draw(table, row, ids, image))
    caption = f"{number} · {name}"
    return Card(Picture(picture, caption, f"object {number}"), share)


def _draw(table: ObjectTable, row: int, ids: Labels, image: Volume | None) -> NDArray[np.uint8]:
    """The plane through an object's middle, its outline drawn over the image."""
    start, stop = table.box_start[row], table.box_stop[row]
    centre = table.centroid_voxel[row]
    spacing = ids.spacing.values[-2:]
    size = max((stop[-2] - start[-2]) * spacing[0], (stop[-1] - start[-1]) * spacing[1]) * _MARGIN
    window: list[slice] = []
    for axis in (-2, -1):
        wanted = int(np.clip(math.ceil(size / spacing[axis]), _SMALLEST, _LARGEST))
        middle = round(float(start[axis] + stop[axis] - 1) / 2)
        if stop[axis] - start[axis] > wanted:
            middle = round(float(centre[axis]))
        low = max(0, min(middle - wanted // 2, ids.spatial_shape[axis] - wanted))
        window.append(slice(low, min(ids.spatial_shape[axis], low + wanted)))
    plane, at = _plane_of(table, row, ids, window)
    grey = None
    if image is not None:
        index = (*at, *window)
        leading = (0,) * (len(image.shape) - len(index))
        pixels = np.asarray(image.data[(*leading, *index)])
        grey = pixels.reshape(pixels.shape[-2:])
    picture = _square(plane, spacing)
    limits = contrast_limits([] if grey is None else [grey])
    drawn = draw_grey(grey, picture, limits).astype(np.float32)
    rows = np.arange(picture[0]) * plane.shape[0] // picture[0]
    columns = np.arange(picture[1]) * plane.shape[1] // picture[1]
    large = plane[rows][:, columns]
    own = large == table.ids[row]
    others = (large != 0) & ~own & outline_of(large)
    edge = _thick(outline_of(own.astype(np.uint8)) & own)
    drawn[others] = 0.45 * drawn[others] + 0.55 * _OTHERS
    drawn[own] = 0.88 * drawn[own] + 0.12 * _OBJECT
    drawn[edge] = _OBJECT
    canvas = np.full((_SIZE_PX, _SIZE_PX, 3), 24, np.uint8)
    y, x = ((_SIZE_PX - n) // 2 for n in picture)
    canvas[y : y + picture[0], x : x + picture[1]] = np.rint(drawn)
    return canvas


def _plane_of(
    table: ObjectTable, row: int, ids: Labels, window: list[slice]
) -> tuple[NDArray[Any], tuple[slice, ...]]:
    """A plane that shows the object: through its centre, or else the first of a few that does."""
    if len(ids.spatial_shape) == 2:
        return np.asarray(ids.data[tuple(window)]), ()
    first, last = int(table.box_start[row][0]), int(table.box_stop[row][0]) - 1
    tries = [round(float(table.centroid_voxel[row][0])), (first + last) // 2, first, last]
    plane: NDArray[Any] | None = None
    at = slice(tries[0], tries[0] + 1)
    for z in tries:
        at = slice(z, z + 1)
        plane = np.asarray(ids.data[(at, *window)])[0]
        if (plane == table.ids[row]).any():
            break
    assert plane is not None, "there is at least one plane to try"
    return plane, (at,)


def _square(plane: NDArray[Any], spacing: Sequence[float]) -> tuple[int, int]:
    """Rows and columns of a picture that keeps proportions and fits."""
    height, width = plane.shape[0] * spacing[0], plane.shape[1] * spacing[1]
    scale = _SIZE_PX / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def _thick(edge: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """A line of two pixels."""
    result = edge.copy()
    result[1:] |= edge[:-1]
    result[:, 1:] |= edge[:, :-1]
    return result


def _title(name: str) -> str:
    words = {"tta_spread": "TTA spread", "flow_error": "flow error"}
    return words.get(name, name.replace("_", " "))


def _floats(values: NDArray[Any], order: NDArray[np.intp]) -> list[float]:
    return [float(value) for value in values[order]]
