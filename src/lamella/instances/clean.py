"""Cleaning labels: drop the small, fill holes, keep the largest, renumber.

All of it is one count per id and one look-up per voxel, never a loop over objects, so a million
objects cost what ten do. Functions return new arrays and keep the dtype of the labels.

Examples:
    >>> import numpy as np
    >>> labels = np.array([[7, 7, 0, 9], [7, 7, 0, 0]], np.uint16)
    >>> remove_small(labels, 2).tolist()
    [[7, 7, 0, 0], [7, 7, 0, 0]]
    >>> relabel_sequential(labels).tolist()
    [[1, 1, 0, 2], [1, 1, 0, 0]]
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lamella.core.errors import InputError
from lamella.instances.components import id_dtype, label_components

__all__ = ["count_voxels", "fill_holes", "keep_largest", "relabel_sequential", "remove_small"]

# Ids up to this many times the number of voxels (and 2^20) are counted in a dense table.
_DENSE = 2


def count_voxels(labels: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Ids that occur, ascending and without 0, and how many voxels each has.

    Args:
        labels: integer, any shape; 0 is background.

    Returns:
        ids, dtype of the labels, and voxel counts, int64.

    Raises:
        InputError: for labels that are not integers, or negative.

    Examples:
        >>> import numpy as np
        >>> [part.tolist() for part in count_voxels(np.array([5, 0, 5, 2]))]
        [[2, 5], [1, 2]]
    """
    _check(labels)
    ids, _, counts = _index(labels)
    keep = ids != 0
    return ids[keep], counts[keep]


def remove_small(labels: NDArray[Any], min_size: float) -> NDArray[Any]:
    """Drop objects of fewer than ``min_size`` voxels; ids of the rest do not change.

    Args:
        labels: integer, any shape.
        min_size: in voxels; see :meth:`lamella.volume.spacing.Size.to_voxels` for physical sizes.

    Returns:
        Labels without the small objects.

    Raises:
        InputError: for labels that are not integers, or negative.
    """
    _check(labels)
    ids, inverse, counts = _index(labels)
    return np.where(counts >= min_size, ids, 0).astype(labels.dtype)[inverse]


def keep_largest(labels: NDArray[Any], *, connectivity: int | None = None) -> NDArray[Any]:
    """Keep the largest connected piece of every label (class or object).

    Args:
        labels: integer or bool, (z, y, x) or (y, x).
        connectivity: 6, 18 or 26; 4 or 8 in 2-D; default the largest.

    Returns:
        Labels with one piece per value; of equally large pieces the first in scan order stays.
    """
    pieces = label_components(labels, connectivity=connectivity)
    sizes = np.bincount(pieces.labels.ravel(), minlength=pieces.count + 1)
    # Sorted by class, then by size downwards, then by id: the first of each class stays.
    order = np.lexsort((np.arange(len(sizes)), -sizes, pieces.classes))
    order = order[order != 0]
    _, first = np.unique(pieces.classes[order], return_index=True)
    lut = np.zeros(pieces.count + 1, labels.dtype)
    lut[order[first]] = pieces.classes[order[first]]
    return lut[pieces.labels]


def fill_holes(
    labels: NDArray[Any],
    *,
    max_size: float | None = None,
    per_slice: bool = False,
) -> NDArray[Any]:
    """Fill background that one object encloses on all sides, with that object's label.

    A hole is background that cannot reach the border of the volume through faces of voxels.
    Background enclosed by several touching objects belongs to none of them and stays.

    Args:
        labels: integer or bool, (z, y, x) or (y, x).
        max_size: fill only holes of at most this many voxels; default any.
        per_slice: look at every (y, x) slice on its own, where tubes are open along z.

    Returns:
        Labels with holes filled.

    Raises:
        InputError: for labels that are not integers, or have other axes.
    """
    _check(labels)
    if labels.ndim not in (2, 3):
        raise InputError(f"labels have {labels.ndim} axes, expected (y, x) or (z, y, x)")
    if per_slice and labels.ndim == 3:
        return np.stack([fill_holes(plane, max_size=max_size) for plane in labels])
    if labels.size == 0:
        return labels.copy()
    pieces = label_components(labels == 0, connectivity=4 if labels.ndim == 2 else 6)
    lowest, highest = neighbour_range(labels, pieces.labels, pieces.count)
    is_hole = (lowest == highest) & (highest > 0)
    for axis in range(labels.ndim):
        for side in (0, -1):
            is_hole[np.take(pieces.labels, side, axis=axis).ravel()] = False
    if max_size is not None:
        is_hole &= np.bincount(pieces.labels.ravel(), minlength=pieces.count + 1) <= max_size
    is_hole[0] = False
    fill = np.where(is_hole, highest, 0).astype(labels.dtype)
    return np.where(labels == 0, fill[pieces.labels], labels)


def relabel_sequential(
    labels: NDArray[Any], *, order: Literal["id", "scan"] = "id"
) -> NDArray[Any]:
    """Renumber labels 1..n.

    Args:
        labels: integer, any shape.
        order: "id" keeps the order of the ids, "scan" numbers by the first voxel in scan order.

    Returns:
        uint32 labels (uint64 from 2³² objects).

    Raises:
        InputError: for labels that are not integers, or negative.
    """
    _check(labels)
    ids, inverse, _ = _index(labels)
    rank = np.zeros(len(ids), np.int64)
    present = np.flatnonzero(ids != 0)
    if order == "scan":
        first = np.full(len(ids), labels.size, np.int64)
        # Written from the last voxel to the first, so the first one stays.
        first[inverse.ravel()[::-1]] = np.arange(labels.size - 1, -1, -1)
        present = present[np.argsort(first[present], kind="stable")]
    rank[present] = np.arange(1, len(present) + 1)
    return rank.astype(id_dtype(len(present)))[inverse]


def _index(labels: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.int64]]:
    """Ids that occur, the position of every voxel's id among them, and voxel counts."""
    if labels.size == 0:
        return labels.ravel()[:0], np.zeros(labels.shape, np.intp), np.zeros(0, np.int64)
    top = int(labels.max())
    if top > max(_DENSE * labels.size, 2**20):
        ids, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
        return ids, inverse.reshape(labels.shape), counts
    counts = np.bincount(labels.ravel().astype(np.int64, copy=False), minlength=top + 1)
    # Dense: an id is its own position. Ids that do not occur have count 0.
    return np.where(counts > 0, np.arange(top + 1), 0).astype(labels.dtype), labels, counts


def neighbour_range(
    labels: NDArray[Any], pieces: NDArray[Any], count: int
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Smallest and largest label beside every background piece.

    Args:
        labels: integer or bool, (z, y, x) or (y, x).
        pieces: pieces of background 1..count, 0 elsewhere, same shape.
        count: number of pieces.

    Returns:
        Two arrays (count + 1,) of the labels' dtype; 0 and 0 for a piece without neighbours.
    """
    top = np.iinfo(labels.dtype).max if labels.dtype != np.bool_ else True
    lowest = np.full(count + 1, top, labels.dtype)
    highest = np.zeros(count + 1, labels.dtype)
    for axis in range(labels.ndim):
        before = (slice(None),) * axis + (slice(None, -1),)
        after = (slice(None),) * axis + (slice(1, None),)
        for here, there in ((before, after), (after, before)):
            touching = (labels[here] == 0) & (labels[there] != 0)
            piece, label = pieces[here][touching], labels[there][touching]
            np.minimum.at(lowest, piece, label)
            np.maximum.at(highest, piece, label)
    return np.where(highest > 0, lowest, 0), highest


def _check(labels: NDArray[Any] | Sequence[Any]) -> None:
    array = np.asarray(labels)
    if array.dtype.kind not in "uib":
        raise InputError(
            f"labels have dtype {array.dtype}, expected integers",
            hint="threshold probabilities first",
        )
    if array.dtype.kind == "i" and array.size and int(array.min()) < 0:
        raise InputError(
            f"labels go down to {int(array.min())}, expected 0 (background) and positive ids",
            hint="map an ignore label such as -1 to 0 first",
        )
