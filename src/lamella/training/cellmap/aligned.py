"""Labels of any grid brought to the grid of a crop.

Ids are taken from the nearest voxel; presence is interpolated linearly and cut at one half; beyond
the labels everything is 0. A prediction on voxels more than 16³ times smaller or larger than the
crop's is refused, as the challenge does.

Examples:
    >>> from lamella.training.cellmap.grid import Grid
    >>> coarse = Grid((1, 2, 2), (8.0, 8.0, 8.0), (0.0, 0.0, 0.0))
    >>> fine = Grid((1, 4, 4), (8.0, 4.0, 4.0), (0.0, -2.0, -2.0))
    >>> align(np.array([[[1, 2], [3, 4]]]), coarse, fine, is_instance=True)[0]
    array([[1, 1, 2, 2],
           [1, 1, 2, 2],
           [3, 3, 4, 4],
           [3, 3, 4, 4]])
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from lamella.core.errors import GeometryError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lamella.training.cellmap.grid import Grid
    from lamella.volume.source import LazyArray

__all__ = ["align"]

MAX_VOLUME_RATIO = 16.0**3
_HAIR = 1e-6


def align(labels: LazyArray, source: Grid, target: Grid, *, is_instance: bool) -> NDArray[Any]:
    """Return labels on another grid.

    Args:
        labels: (z, y, x) on ``source``; only what the target needs is read.
        source: grid of the labels.
        target: grid wanted.
        is_instance: ids (nearest) or presence (linear, above one half).

    Returns:
        (z, y, x) of the target: the dtype of the labels for ids, bool for presence.

    Raises:
        GeometryError: voxels of volumes too far apart.
    """
    ratio = math.prod(target.spacing) / math.prod(source.spacing)
    if not 1 / MAX_VOLUME_RATIO <= ratio <= MAX_VOLUME_RATIO:
        raise GeometryError(
            f"voxels of {source.spacing} nm cannot stand for voxels of {target.spacing} nm: their"
            f" volumes differ by more than {MAX_VOLUME_RATIO:.0f}",
            hint="predict on voxels nearer to those of the crop",
        )
    positions = [_positions(axis, source, target) for axis in range(3)]
    low = [max(0, math.floor(p[0]) - 1) for p in positions]
    high = [min(n, math.ceil(p[-1]) + 2) for p, n in zip(positions, source.shape, strict=True)]
    if any(a >= b for a, b in zip(low, high, strict=True)):
        return np.zeros(target.shape, labels.dtype if is_instance else bool)
    block = np.asarray(labels[tuple(slice(a, b) for a, b in zip(low, high, strict=True))])
    local = [p - a for p, a in zip(positions, low, strict=True)]
    if is_instance:
        return _nearest(block, local)
    presence = block > 0
    if all(np.all(np.abs(p - np.rint(p)) < _HAIR) for p in local):
        return _nearest(presence, local)
    return _linear(presence.astype(np.float32), local) > 0.5


def _positions(axis: int, source: Grid, target: Grid) -> NDArray[np.float64]:
    """Index in the source of every voxel centre of the target along an axis."""
    world = target.origin[axis] + np.arange(target.shape[axis]) * target.spacing[axis]
    return np.asarray((world - source.origin[axis]) / source.spacing[axis], np.float64)


def _nearest(block: NDArray[Any], positions: list[NDArray[np.float64]]) -> NDArray[Any]:
    # Half way between two voxels the upper one is taken, whatever rounding did to the attributes.
    indices = [np.floor(p + 0.5 + _HAIR).astype(np.int64) for p in positions]
    inside = [(i >= 0) & (i < n) for i, n in zip(indices, block.shape, strict=True)]
    result = np.zeros([len(i) for i in indices], block.dtype)
    result[np.ix_(*inside)] = block[
        np.ix_(*(i[keep] for i, keep in zip(indices, inside, strict=True)))
    ]
    return result


def _linear(
    block: NDArray[np.float32], positions: list[NDArray[np.float64]]
) -> NDArray[np.float32]:
    """Trilinear interpolation, axis by axis, 0 beyond the block."""
    for axis, position in enumerate(positions):
        n = block.shape[axis]
        lower = np.floor(position).astype(np.int64)
        weight = (position - lower).astype(np.float32)
        shape = [1, 1, 1]
        shape[axis] = len(position)
        parts = []
        for index, part in ((lower, 1 - weight), (lower + 1, weight)):
            taken = np.take(block, np.clip(index, 0, n - 1), axis=axis)
            parts.append(taken * (part * ((index >= 0) & (index < n))).reshape(shape))
        block = parts[0] + parts[1]
    return block
