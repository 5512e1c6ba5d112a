"""The spine seen from the side and from the front, along its own curve.

A projection of a whole body shows ribs, pelvis and arms before the spine. Only a slab is projected
that follows the spine: for each height, what lies within some millimetres of its curve::

        from the front              the slab seen from the side goes along
           |  o  |                  with the bend of a scoliosis
          |  o  |
           |  o  |
             |  o  |
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamella.measurement.spine_curve import spine_samples
from lamella.measurement.vertebrae import Vertebra
from lamella.volume.box import Box
from lamella.volume.labels import Labels
from lamella.volume.spacing import convert_length
from lamella.volume.volume import Volume

__all__ = ["Projection", "project_spine"]

_AROUND_MM = (25.0, 45.0, 45.0)
"""What is shown beyond the vertebrae, (superior-inferior, anterior-posterior, right-left)."""
_HALF_SLAB_MM = 14.0


@dataclass(frozen=True, slots=True)
class Projection:
    """One view; rows run from superior to inferior.

    Args:
        name: what it is called.
        intensities: float32, (rows, columns), brightest value within the slab; None without image.
        labels: label value of the vertebra nearest to the spine's curve, (rows, columns).
        pixel_mm: height and width of a pixel.
        centroids: (row, column) of each vertebra's centroid, pixel centres are whole numbers.
        left: what lies to the left of the picture: ``A`` or ``R``.
        right: what lies to the right: ``P`` or ``L``.
    """

    name: str
    intensities: NDArray[np.float32] | None
    labels: NDArray[Any]
    pixel_mm: tuple[float, float]
    centroids: NDArray[np.float64]
    left: str
    right: str


def project_spine(
    labels: Labels, vertebrae: Sequence[Vertebra], image: Volume | None = None
) -> tuple[Projection, Projection]:
    """The view from the side (anterior left) and from the front (the patient's right left).

    Args:
        labels: class ids, (z, y, x), RAS.
        vertebrae: in their order along the spine; at least one.
        image: intensities on the same grid.

    Returns:
        Sagittal and coronal projection, both as radiologists hang them.
    """
    spacing = np.array(
        [convert_length(value, labels.unit, "mm") for value in labels.affine.spacing]
    )
    upright = _Upright.of(labels, spacing)
    box = _region(labels, vertebrae, upright)
    values = upright.turn(np.asarray(labels.read(box)))
    shown = np.isin(values, [known.value for known in vertebrae])
    values = np.where(shown, values, 0)
    grey = None if image is None else upright.turn(np.asarray(image.read(box))).astype(np.float32)
    points = np.array([known.centroid_voxel for known in vertebrae]) - np.array(box.start)
    turned = upright.turn_points(points, box.shape)
    curve = _curve(turned, upright.spacing, values.shape[0])
    views = []
    for name, across, left, right in (("sagittal", 2, "A", "P"), ("coronal", 1, "R", "L")):
        kept = 3 - across
        views.append(
            Projection(
                name,
                None if grey is None else _brightest(grey, curve[:, across - 1], across, upright),
                _nearest(values, curve[:, across - 1], across, upright),
                (float(upright.spacing[0]), float(upright.spacing[kept])),
                turned[:, [0, kept]],
                left,
                right,
            )
        )
    return views[0], views[1]


@dataclass(frozen=True, slots=True)
class _Upright:
    """Turns an array so that its axes run to inferior, posterior and left.

    Args:
        axes: which axis of the volume comes to stand where.
        flips: the new axes that run the other way.
        spacing: mm, of the new axes.
    """

    axes: tuple[int, int, int]
    flips: tuple[int, ...]
    spacing: NDArray[np.float64]

    @classmethod
    def of(cls, labels: Labels, spacing: NDArray[np.float64]) -> "_Upright":
        direction = np.asarray(labels.affine.direction)
        # The strongest pairs first, so that an oblique volume uses every axis once.
        free, axes = {0, 1, 2}, [0, 0, 0]
        for world in np.argsort(-np.abs(direction).max(axis=1)):
            axis = max(free, key=lambda a, w=int(world): abs(direction[w, a]))
            free.discard(axis)
            axes[int(world)] = axis
        # World axes run to superior, anterior, right; pictures to inferior, posterior, left.
        flips = tuple(k for k in range(3) if direction[k, axes[k]] > 0)
        return cls((axes[0], axes[1], axes[2]), flips, spacing[axes])

    def turn(self, data: NDArray[Any]) -> NDArray[Any]:
        return np.flip(data.transpose(self.axes), self.flips)

    def turn_points(self, points: NDArray[np.float64], shape: Sequence[int]) -> NDArray[np.float64]:
        turned = points[:, list(self.axes)].copy()
        for k in self.flips:
            turned[:, k] = shape[self.axes[k]] - 1 - turned[:, k]
        return turned


def _region(labels: Labels, vertebrae: Sequence[Vertebra], upright: _Upright) -> Box:
    start = np.min([known.box.start for known in vertebrae], axis=0)
    stop = np.max([known.box.stop for known in vertebrae], axis=0)
    for k, axis in enumerate(upright.axes):
        extra = int(np.ceil(_AROUND_MM[k] / upright.spacing[k]))
        start[axis] = max(0, start[axis] - extra)
        stop[axis] = min(labels.spatial_shape[axis], stop[axis] + extra)
    return Box(tuple(int(v) for v in start), tuple(int(v) for v in stop))


def _curve(
    points: NDArray[np.float64], spacing: NDArray[np.float64], n_rows: int
) -> NDArray[np.float64]:
    """Where the spine is in each row: posterior and left index, (rows, 2)."""
    samples = spine_samples(points * spacing) / spacing
    order = np.argsort(samples[:, 0], kind="stable")
    rows = np.arange(n_rows)
    return np.stack([np.interp(rows, samples[order, 0], samples[order, k]) for k in (1, 2)], axis=1)


def _slabs(
    centre: NDArray[np.float64], across: int, length: int, upright: _Upright
) -> list[NDArray[np.intp]]:
    """Index along the projected axis for every row, from the slab's borders to its middle."""
    half = max(1, round(_HALF_SLAB_MM / float(upright.spacing[across])))
    middle = np.rint(centre).astype(np.intp)
    offsets = sorted(range(-half, half + 1), key=abs, reverse=True)
    return [np.clip(middle + offset, 0, length - 1) for offset in offsets]


def _brightest(
    grey: NDArray[np.float32], centre: NDArray[np.float64], across: int, upright: _Upright
) -> NDArray[np.float32]:
    rows = np.arange(grey.shape[0])
    planes = _slabs(centre, across, grey.shape[across], upright)
    stack = [grey[rows, at, :] if across == 1 else grey[rows, :, at] for at in planes]
    return np.maximum.reduce(stack)


def _nearest(
    values: NDArray[Any], centre: NDArray[np.float64], across: int, upright: _Upright
) -> NDArray[Any]:
    rows = np.arange(values.shape[0])
    found: NDArray[Any] | None = None
    for at in _slabs(centre, across, values.shape[across], upright):
        plane = values[rows, at, :] if across == 1 else values[rows, :, at]
        found = plane.copy() if found is None else np.where(plane != 0, plane, found)
    assert found is not None
    return found
