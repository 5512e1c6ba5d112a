"""Labels that lie on a grid in another order: the same voxels, counted along other axes.

Programs store the same volume with its axes flipped or swapped (dcm2niix turns y around, for one).
Where every voxel of the labels falls on one of the grid, nothing needs to be resampled: they are
counted again in the grid's order.

Examples:
    >>> import numpy as np
    >>> from lamella.volume import Affine
    >>> series = Affine.diagonal((2.0, 1.0, 1.0), frame="RAS")
    >>> turned = ((1.0, 0.0, 0.0), (0.0, -1.0, 0.0), (0.0, 0.0, 1.0))
    >>> flipped = Affine((2.0, 1.0, 1.0), (0.0, 9.0, 0.0), turned, "RAS")
    >>> found = placement(flipped, (4, 10, 10), series, (4, 10, 10))
    >>> found.axes, found.steps, found.offset
    ((0, 1, 2), (1, -1, 1), (0, 9, 0))
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamella.core.errors import GeometryError
from lamella.io.frames import affine_in_unit
from lamella.volume import Affine, Box, FunctionArray, Labels, Volume

__all__ = ["Placement", "covered_box", "onto_grid", "placement"]

_SAME_PLACE = 0.05
"""Largest distance between two voxels that count as the same, in voxels."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where labels lie in a grid of the same spacing.

    Label index ``i`` lies at grid index ``offset[k] + steps[k] * i[axes[k]]`` along axis ``k``.

    Args:
        axes: which axis of the labels runs along each axis of the grid.
        steps: 1, or -1 where it runs the other way.
        offset: grid index of the labels' first voxel.
    """

    axes: tuple[int, ...]
    steps: tuple[int, ...]
    offset: tuple[int, ...]

    def box(self, labels_shape: Sequence[int]) -> Box:
        """The part of the grid that labels of this extent cover."""
        lasts = [
            first + step * (labels_shape[axis] - 1)
            for first, step, axis in zip(self.offset, self.steps, self.axes, strict=True)
        ]
        ends = list(zip(self.offset, lasts, strict=True))
        return Box(tuple(min(pair) for pair in ends), tuple(max(pair) + 1 for pair in ends))


def placement(
    labels: Affine, labels_shape: Sequence[int], grid: Affine, shape: Sequence[int]
) -> Placement:
    """How labels lie in a grid, where no resampling is needed.

    Args:
        labels: affine of the labels.
        labels_shape: their extent.
        grid: affine of the grid, in the same unit.
        shape: its extent.

    Raises:
        GeometryError: with the numbers, where voxels do not fall on voxels.
    """
    if labels.frame != grid.frame:
        raise GeometryError(
            f"the labels lie in the {labels.frame} frame, the image in {grid.frame}: nothing says"
            " where they are in the patient",
            hint="write the labels in a format that keeps the patient's frame (NIfTI, NRRD)",
        )
    step = np.linalg.inv(grid.matrix[:3, :3]) @ labels.matrix[:3, :3]
    offset = grid.inverse_apply(labels.origin)
    signs = np.rint(step).astype(int)
    far = np.abs(step - signs) @ (np.asarray(labels_shape, float) - 1) + np.abs(
        offset - np.rint(offset)
    )
    is_permutation = bool(
        (np.abs(signs).sum(axis=0) == 1).all() and (np.abs(signs).sum(axis=1) == 1).all()
    )
    if not is_permutation or far.max() > _SAME_PLACE:
        raise GeometryError(
            "the labels do not lie on the image's grid: "
            + (
                f"their voxels are up to {far.max():.3g} voxels off"
                if is_permutation
                else f"spacing {_times(labels.spacing)} against {_times(grid.spacing)} mm,"
                " or other directions"
            ),
            hint="segment the image itself, or resample the labels onto it (nearest)",
        )
    axes = tuple(int(np.argmax(np.abs(row))) for row in signs)
    steps = tuple(int(signs[k, axis]) for k, axis in enumerate(axes))
    known = Placement(axes, steps, tuple(round(float(value)) for value in offset))
    if not Box.from_shape(shape).contains(known.box(labels_shape)):
        raise GeometryError(
            f"labels of shape {tuple(labels_shape)} reach beyond the image of shape {tuple(shape)}",
            hint="name the image that they were made on",
        )
    return known


def covered_box(labels: Labels, volume: Volume) -> Box:
    """The part of a volume that labels tell of, (z, y, x) voxels of the volume.

    Args:
        labels: (z, y, x).
        volume: on whose voxels they lie.

    Raises:
        GeometryError: where voxels do not fall on voxels.
    """
    if labels.same_grid(volume):
        return Box.from_shape(volume.spatial_shape)
    return _placed(labels, volume).box(labels.spatial_shape)


def onto_grid(labels: Labels, volume: Volume) -> Labels:
    """Labels in the order of a volume's voxels, lazy; background where they do not reach.

    Args:
        labels: (z, y, x).
        volume: whose spatial grid they shall have.

    Raises:
        GeometryError: where voxels do not fall on voxels.
    """
    if labels.same_grid(volume):
        return labels
    known, covered = _placed(labels, volume), covered_box(labels, volume)
    source = labels.data

    def read(slices: tuple[slice, ...]) -> NDArray[Any]:
        block = np.zeros(tuple(part.stop - part.start for part in slices), labels.dtype)
        inner: list[slice] = []
        wanted: list[slice] = [slice(0, 0)] * 3
        for k, part in enumerate(slices):
            start, stop = max(part.start, covered.start[k]), min(part.stop, covered.stop[k])
            if start >= stop:
                return block
            inner.append(slice(start - part.start, stop - part.start))
            first, step = known.offset[k], known.steps[k]
            at = ((start - first) * step, (stop - 1 - first) * step)
            wanted[known.axes[k]] = slice(min(at), max(at) + 1)
        part = np.asarray(source[tuple(wanted)]).transpose(known.axes)
        flips = tuple(k for k in range(3) if known.steps[k] < 0)
        block[tuple(inner)] = np.flip(part, flips)
        return block

    return replace(
        labels,
        data=FunctionArray(volume.spatial_shape, labels.dtype, read),
        affine=volume.affine,
        unit=volume.unit,
        levels=(),
    )


def _placed(labels: Labels, volume: Volume) -> Placement:
    shape = volume.spatial_shape
    if len(shape) != 3 or len(labels.spatial_shape) != 3:
        raise GeometryError(
            f"labels of shape {labels.spatial_shape} do not lie on an image of shape {shape}",
            hint="name the image that they were made on",
        )
    return placement(
        affine_in_unit(labels.affine, labels.unit, "mm"),
        labels.spatial_shape,
        affine_in_unit(volume.affine, volume.unit, "mm"),
        shape,
    )


def _times(values: Sequence[Any]) -> str:
    return " x ".join(f"{value:.6g}" for value in values)
