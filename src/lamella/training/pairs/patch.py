"""A patch around a voxel, padded where the image ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lamella.training.augment import Sample
from lamella.volume.box import Box

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lamella.training.pairs.store import PairStore

__all__ = ["as_sample", "cut_patch", "reflected"]


def cut_patch(
    store: PairStore,
    number: int,
    within: Box,
    center: tuple[int, ...],
    size: tuple[int, ...],
    *,
    axes: Literal["zyx", "yx"],
) -> Sample:
    """Cut a patch of exactly a size.

    A patch that would reach over the border is moved inside. Where the image is smaller, it lies in
    the middle, the image is continued by reflection, and nothing there is valid.

    Args:
        store: reads images and labels.
        number: of the pair.
        within: what may be seen, (z, y, x).
        center: voxel in the middle.
        size: (z, y, x).
        axes: of the patch.
    """
    start, stop = [], []
    for a, b, c, n in zip(within.start, within.stop, center, size, strict=True):
        first = a - (n - (b - a)) // 2 if n > b - a else min(max(c - n // 2, a), b - n)
        start.append(first)
        stop.append(first + n)
    wanted = Box(tuple(start), tuple(stop))
    inside = wanted.intersect(within)
    image = store.image(number, inside)
    labels, valid = store.labels(number, inside)
    known = np.ones(labels.shape, bool) if valid is None else valid
    if inside != wanted:
        before = [a - b for a, b in zip(inside.start, wanted.start, strict=True)]
        after = [b - a for a, b in zip(inside.stop, wanted.stop, strict=True)]
        image = reflected(image, before, after)
        labels = reflected(labels, before, after)
        widths = [(0, 0), *zip(before, after, strict=True)]
        known = np.pad(known, widths)
    return as_sample(image, labels, known, store.codec.kind, axes)


def as_sample(
    image: NDArray[np.float32],
    labels: NDArray[Any],
    valid: NDArray[np.bool_] | None,
    kind: str,
    axes: str,
) -> Sample:
    """A sample with the axes of patches, in memory of its own.

    Args:
        image: (c, z, y, x).
        labels: (m, z, y, x).
        valid: the same shape; None = everywhere.
        kind: of :class:`lamella.training.pairs.codec.LabelCodec`.
        axes: ``zyx`` or ``yx`` (z is 1).
    """
    known = np.ones(labels.shape, bool) if valid is None else valid
    arrays = [image, labels.astype(np.int64) if kind == "ids" else labels, known]
    if axes == "yx":
        arrays = [array[:, 0] for array in arrays]
    return Sample(*(np.array(array, order="C") for array in arrays))


def reflected(array: NDArray[Any], before: list[int], after: list[int]) -> NDArray[Any]:
    """Continue an array by reflection along all but its first axis; by zeros where it is one thick.

    Examples:
        >>> reflected(np.array([[1, 2, 3]]), [1], [3]).tolist()
        [[2, 1, 2, 3, 2, 1, 2]]
    """
    for axis, (a, b) in enumerate(zip(before, after, strict=True), start=1):
        if a == b == 0:
            continue
        widths = [(0, 0)] * array.ndim
        widths[axis] = (a, b)
        if array.shape[axis] > 1:
            array = np.pad(array, widths, mode="reflect")
        else:
            array = np.pad(array, widths)
    return array
