"""Raw data and labels brought to the voxels a network sees, whatever voxels they are stored on.

All three readings take positions in nanometres and never a level's number or a rounded offset:

* *intensities*: linear between voxel centres; where the wanted voxels are coarser, the kernel is
  widened to them (no aliasing), with the weights of :mod:`lamella.inference.resample`, so that
  inference on a whole volume gives the network the same numbers;
* *presence*: the share of the wanted voxel that the class fills, above one half; linear between
  centres where the wanted voxels are finer;
* *ids*: presence decides what is an object, the nearest voxel with an id decides which.

Examples:
    >>> from lamella.training.cellmap.grid import Grid
    >>> fine = Grid((1, 1, 4), (8.0, 8.0, 4.0), (0.0, 0.0, 0.0))
    >>> coarse = Grid((1, 1, 2), (8.0, 8.0, 8.0), (0.0, 0.0, 2.0))
    >>> take_ids(np.array([[[0, 7, 7, 7]]]), fine, coarse).tolist()
    [[[0, 7]]]
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lamella.core.errors import GeometryError, UnreadableFileError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from lamella.training.cellmap.grid import Grid
    from lamella.volume.source import LazyArray

__all__ = [
    "AxisTaps", "intensity_taps", "read_block", "share_taps", "take_ids", "take_intensities",
    "take_presence",
]  # fmt: skip

_HAIR = 1e-6
"""Share of a voxel that rounding in attributes may cost."""


@dataclass(frozen=True, slots=True, eq=False)
class AxisTaps:
    """Which stored voxels make the wanted ones along one axis.

    Attributes:
        start: first stored voxel that is needed.
        stop: one past the last.
        weights: float32, (n_wanted, stop - start); each row adds up to 1. None where the wanted
            voxels are the stored ones.
    """

    start: int
    stop: int
    weights: NDArray[np.float32] | None

    def apply(self, block: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
        """Weighted sums along an axis."""
        if self.weights is None:
            return block
        moved = np.moveaxis(block, axis, -1)
        return np.moveaxis(moved @ self.weights.T, -1, axis)


def intensity_taps(axis: int, source: Grid, target: Grid) -> AxisTaps:
    """Linear weights, the kernel widened where the target is coarser.

    Args:
        axis: 0 to 2.
        source: grid of what is stored.
        target: grid wanted.
    """
    stretch = max(1.0, target.spacing[axis] / source.spacing[axis])
    # Equal but for rounding: the voxels themselves, not a mixture with a millionth of another.
    return _taps(axis, source, target, stretch, lambda away: np.maximum(0.0, 1.0 - away / stretch))


def share_taps(axis: int, source: Grid, target: Grid) -> AxisTaps:
    """Share of a wanted voxel that each stored voxel fills; linear where the target is finer."""
    ratio = target.spacing[axis] / source.spacing[axis]
    if ratio < 1:
        return intensity_taps(axis, source, target)
    reach = 0.5 * (ratio + 1.0)
    return _taps(axis, source, target, reach, lambda away: np.clip(reach - away, 0.0, 1.0))


def take_intensities(block: NDArray[Any], taps: Sequence[AxisTaps]) -> NDArray[np.float32]:
    """Intensities on other voxels, float32, (z, y, x).

    Args:
        block: stored voxels from ``start`` to ``stop`` of the taps.
        taps: of z, y and x.
    """
    result = np.asarray(block, np.float32)
    for axis, along in enumerate(taps):
        result = along.apply(result, axis)
    return np.ascontiguousarray(result)


def take_presence(labels: LazyArray, source: Grid, target: Grid, *, path: str = "labels") -> Any:
    """Where a class is, bool, (z, y, x) of the target; False beyond the labels.

    Args:
        labels: (z, y, x) on ``source``; only what the target needs is read.
        source: grid of the labels.
        target: grid wanted.
        path: of the array, for messages.

    Raises:
        UnreadableFileError: a chunk that cannot be decoded.
    """
    if not _overlap(source, target):
        return np.zeros(target.shape, bool)
    taps = [share_taps(axis, source, target) for axis in range(3)]
    block = read_block(labels, taps, path=path)
    return _present(block > 0, taps) & _inside(source, target)


def take_ids(
    labels: LazyArray, source: Grid, target: Grid, *, path: str = "labels"
) -> NDArray[np.int64]:
    """Ids of objects, int64, (z, y, x) of the target; 0 beyond the labels.

    Args:
        labels: (z, y, x) on ``source``; only what the target needs is read.
        source: grid of the labels.
        target: grid wanted.
        path: of the array, for messages.

    Raises:
        UnreadableFileError: a chunk that cannot be decoded.
    """
    if not _overlap(source, target):
        return np.zeros(target.shape, np.int64)
    taps = [share_taps(axis, source, target) for axis in range(3)]
    block = read_block(labels, taps, path=path).astype(np.int64)
    present = _present(block > 0, taps) & _inside(source, target)
    nearest = block
    largest = block
    for axis, along in enumerate(taps):
        if along.weights is None:
            continue
        nearest = np.take(nearest, along.weights.argmax(axis=1), axis=axis)
        largest = _largest(largest, along, axis)
    # A voxel that is object for the greater part may have background nearest to its centre.
    return np.where(present, np.where(nearest > 0, nearest, largest), 0)


def read_block(array: LazyArray, taps: Sequence[AxisTaps], *, path: str) -> NDArray[Any]:
    """Read what taps need.

    Raises:
        UnreadableFileError: naming the chunk that cannot be decoded.
    """
    slices = tuple(slice(along.start, along.stop) for along in taps)
    try:
        return np.asarray(array[slices])
    except UnreadableFileError:
        raise
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        chunk = _bad_chunk(array, slices)
        raise UnreadableFileError(
            f"{chunk}{path} cannot be decoded: {error}",
            hint="fetch it again, or leave this crop out with data.crops",
        ) from None


def _bad_chunk(array: Any, slices: tuple[slice, ...]) -> str:
    """Words that name the first chunk that cannot be read, empty where none can be named."""
    chunks = getattr(array, "chunks", None)
    if not chunks:
        return ""
    ranges = [
        range(part.start // size, -(-part.stop // size))
        for part, size in zip(slices, chunks, strict=True)
    ]
    for index in np.ndindex(*(len(r) for r in ranges)):
        chunk = tuple(r[i] for r, i in zip(ranges, index, strict=True))
        try:
            _ = array[tuple(slice(i * c, (i + 1) * c) for i, c in zip(chunk, chunks, strict=True))]
        except (OSError, ValueError, RuntimeError, TypeError):
            return f"chunk {'.'.join(map(str, chunk))} of "
    return ""


def _taps(axis: int, source: Grid, target: Grid, reach: float, kernel: Any) -> AxisTaps:
    n_source, n_target = source.shape[axis], target.shape[axis]
    world = target.origin[axis] + np.arange(n_target) * target.spacing[axis]
    centers = (world - source.origin[axis]) / source.spacing[axis]
    whole = np.rint(centers)
    is_same = abs(target.spacing[axis] / source.spacing[axis] - 1) * n_target < _HAIR * 1e3
    if is_same and np.all(np.abs(centers - whole) < 1e-3):
        first, last = int(whole[0]), int(whole[-1])
        if first >= 0 and last < n_source:
            return AxisTaps(first, last + 1, None)
        centers = whole
    start = min(max(0, math.ceil(centers[0] - reach)), n_source - 1)
    stop = max(start + 1, min(n_source, math.floor(centers[-1] + reach) + 1))
    away = np.abs(np.arange(start, stop) - centers[:, None])
    weights = kernel(away)
    total = weights.sum(axis=1, keepdims=True)
    # Beyond the border nothing is stored: the kernel is cut and weighs the rest up.
    empty = total[:, 0] < _HAIR
    if empty.any():
        nearest = np.clip(np.rint(centers[empty]), start, stop - 1).astype(np.int64) - start
        weights[empty] = 0.0
        weights[np.flatnonzero(empty), nearest] = 1.0
        total = weights.sum(axis=1, keepdims=True)
    return AxisTaps(start, stop, (weights / total).astype(np.float32))


def _present(mask: NDArray[np.bool_], taps: Sequence[AxisTaps]) -> NDArray[np.bool_]:
    if all(along.weights is None for along in taps):
        return mask
    if not mask.any():
        shape = [
            n if along.weights is None else len(along.weights)
            for n, along in zip(mask.shape, taps, strict=True)
        ]
        return np.zeros(shape, bool)
    # Half and half, as where labels are twice as fine, must not be decided by rounding.
    return take_intensities(mask.astype(np.float32), taps) > 0.5 + _HAIR


def _inside(source: Grid, target: Grid) -> NDArray[np.bool_]:
    """Whether a wanted voxel's centre lies among the labels, broadcast to (z, y, x)."""
    inside = []
    for axis in range(3):
        index = np.arange(target.shape[axis]) * target.spacing[axis] + target.origin[axis]
        at = (index - source.origin[axis]) / source.spacing[axis]
        n = source.shape[axis]
        inside.append((at > -0.5 - _HAIR) & (at < n - 0.5 + _HAIR))
    z, y, x = inside
    return z[:, None, None] & y[:, None] & x


def _overlap(source: Grid, target: Grid) -> bool:
    if 0 in target.shape or 0 in source.shape:
        raise GeometryError("a grid without voxels holds nothing", hint="check the shapes")
    return all(
        a < d and c < b
        for a, b, c, d in zip(source.low, source.high, target.low, target.high, strict=True)
    )


def _largest(block: NDArray[np.int64], along: AxisTaps, axis: int) -> NDArray[np.int64]:
    """Largest id among the stored voxels that make each wanted one, along an axis."""
    assert along.weights is not None, "asked for only where voxels differ"
    used = along.weights > _HAIR
    width = int(used.sum(axis=1).max())
    first = used.argmax(axis=1)
    last = used.shape[1] - 1
    result = np.take(block, first, axis=axis)
    for tap in range(1, width):
        index = np.minimum(first + tap, last)
        is_used = used[np.arange(len(first)), index]
        shape = [1, 1, 1]
        shape[axis] = len(first)
        values = np.take(block, index, axis=axis)
        result = np.maximum(result, np.where(is_used.reshape(shape), values, 0))
    return result
