"""Between the input's grid and the grid a network was trained on.

Both grids fill the same space, edge to edge; voxel i of n lies at (i + 1/2) / n of the extent.
Intensities are interpolated linearly, with the kernel widened to the coarser voxel where the grid
becomes coarser (no aliasing), one axis after the other and only for the box asked for. Labels
come back by the nearest voxel: :func:`nearest_index` is monotone, so finished layers of one grid
are finished layers of the other and nothing waits for the whole volume.

Examples:
    >>> target_shape((10, 100, 100), (5.0, 1.0, 1.0), (1.0, 1.0, 1.0), tolerance=0.1)
    (50, 100, 100)
    >>> nearest_index(4, 8).tolist()
    [1, 3, 5, 7]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lamella.core.errors import InputError
from lamella.inference.slab import Slabs
from lamella.volume.box import Box

__all__ = ["Kernel", "ResampledSlabs", "Taps", "combine", "nearest_index", "target_shape"]

Kernel = Literal["linear", "cubic"]
_HALF_WIDTH: dict[Kernel, float] = {"linear": 1.0, "cubic": 2.0}

# Beyond this the spacing is far likelier wrong (Å for nm, a header's 1.0) than meant.
MAX_RATIO = 12.0


def target_shape(
    shape: Sequence[int],
    spacing: Sequence[float],
    wanted: Sequence[float],
    *,
    tolerance: float,
) -> tuple[int, ...]:
    """Extent of a volume on the grid of the network.

    Args:
        shape: extent of the input, per axis.
        spacing: of the input, per axis.
        wanted: spacing the network was trained at, per axis, in the same unit.
        tolerance: an axis is left alone where the two differ by no more than this fraction.

    Raises:
        InputError: when the two differ so much that one of them must be wrong.
    """
    result: list[int] = []
    for length, have, want in zip(shape, spacing, wanted, strict=True):
        ratio = have / want
        if not 1.0 / MAX_RATIO <= ratio <= MAX_RATIO:
            raise InputError(
                f"the input's spacing {tuple(spacing)} and the model's {tuple(wanted)} differ by a"
                f" factor of {max(ratio, 1 / ratio):.3g}",
                hint="check the header; set the true spacing with --spacing z,y,x --unit U",
            )
        is_close = abs(ratio - 1.0) <= tolerance
        result.append(length if is_close else max(1, round(length * ratio)))
    return tuple(result)


def nearest_index(n_from: int, n_to: int) -> NDArray[np.int64]:
    """For every voxel of an axis of ``n_from`` the nearest of ``n_to`` over the same extent.

    In integers, so that it is exact: floor((i + 1/2) * n_to / n_from).
    """
    i = np.arange(n_from, dtype=np.int64)
    return ((2 * i + 1) * n_to) // (2 * n_from)


def _cubic(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keys' cubic convolution, a = -1/2; 0 from distance 2 on."""
    near = (1.5 * distance - 2.5) * distance**2 + 1.0
    far = ((-0.5 * distance + 2.5) * distance - 4.0) * distance + 2.0
    return np.where(distance <= 1.0, near, np.where(distance < 2.0, far, 0.0))


@dataclass(frozen=True, slots=True)
class Taps:
    """Which source voxels make a target voxel of one axis, and how much: (n_target, n_taps)."""

    index: NDArray[np.int64]
    weight: NDArray[np.float32]

    @classmethod
    def make(cls, n_source: int, n_target: int, kernel: Kernel = "linear") -> Taps:
        """Taps of an axis of ``n_source`` voxels for one of ``n_target`` over the same extent."""
        ratio = n_source / n_target
        stretch = max(1.0, ratio)
        support = stretch * _HALF_WIDTH[kernel]  # half width of the kernel, in source voxels
        centre = (np.arange(n_target) + 0.5) * ratio - 0.5
        n_taps = 2 * int(np.ceil(support)) + 1
        first = np.floor(centre).astype(np.int64) - int(np.ceil(support)) + 1
        index = first[:, None] + np.arange(n_taps)
        distance = np.abs(index - centre[:, None]) / stretch
        weight = _cubic(distance) if kernel == "cubic" else np.maximum(0.0, 1.0 - distance)
        # Beyond the border there is nothing: the kernel is cut and weighs the rest up.
        weight[(index < 0) | (index >= n_source)] = 0.0
        weight /= weight.sum(axis=1, keepdims=True)
        used = weight.any(axis=0)
        return cls(np.clip(index[:, used], 0, n_source - 1), weight[:, used].astype(np.float32))

    @classmethod
    def at(cls, n_source: int, positions: NDArray[np.float64], *, is_nearest: bool) -> Taps:
        """Linear between the two source voxels around a position, or the nearest of them.

        Beyond the border the outermost voxel goes on; halfway between two the even one is nearest,
        as in PyTorch.
        """
        at = np.clip(positions, 0.0, n_source - 1.0)
        if is_nearest:
            index = np.rint(at).astype(np.int64)[:, None]
            return cls(index, np.ones(index.shape, np.float32))
        first = np.minimum(np.floor(at).astype(np.int64), max(0, n_source - 2))
        share = (at - first).astype(np.float32)
        index = np.stack([first, np.minimum(first + 1, n_source - 1)], axis=1)
        return cls(index, np.stack([np.float32(1.0) - share, share], axis=1))

    def source_range(self, start: int, stop: int) -> tuple[int, int]:
        """First and last + 1 source voxel that some target voxels need."""
        part = self.index[start:stop]
        return int(part.min()), int(part.max()) + 1


class ResampledSlabs:
    """A source on another grid over the same extent.

    Args:
        inner: the source.
        shape: extent of the new grid, (z, y, x).
    """

    def __init__(self, inner: Slabs, shape: tuple[int, int, int]) -> None:
        self._inner = inner
        self.shape = shape
        self.n_channels = inner.n_channels
        self._taps = [
            None if a == b else Taps.make(a, b) for a, b in zip(inner.shape, shape, strict=True)
        ]

    @classmethod
    def at_positions(
        cls,
        inner: Slabs,
        shape: tuple[int, int, int],
        positions: Sequence[NDArray[np.float64] | None],
        *,
        is_nearest: bool = False,
    ) -> ResampledSlabs:
        """A source on any grid along the same axes, interpolated linearly and not smoothed.

        Args:
            inner: the source.
            shape: extent of the new grid, (z, y, x).
            positions: per axis, where in ``inner`` each new voxel lies; None = the same axis.
            is_nearest: take the nearest voxel instead.
        """
        made = cls(inner, inner.shape)
        made.shape = shape
        made._taps = [
            None if at is None else Taps.at(n, at, is_nearest=is_nearest)
            for n, at in zip(inner.shape, positions, strict=True)
        ]
        return made

    def read(self, box: Box) -> NDArray[np.float32]:
        """Read a box, (c, z, y, x)."""
        ranges = [
            (a, b) if taps is None else taps.source_range(a, b)
            for taps, a, b in zip(self._taps, box.start, box.stop, strict=True)
        ]
        # Along z in pieces: a much finer input would otherwise be held far deeper than the box.
        taps_z = self._taps[0]
        (ya, yb), (xa, xb) = ranges[1], ranges[2]
        if taps_z is None:
            inner = self._inner.read(Box((ranges[0][0], ya, xa), (ranges[0][1], yb, xb)))
            return self._in_plane(inner, box, ranges)
        result = np.zeros((self.n_channels, *box.shape), np.float32)
        index, weight = taps_z.index[box.start[0] : box.stop[0]], taps_z.weight[box.start[0] :]
        for z in range(*ranges[0]):
            users = np.argwhere(index == z)
            if len(users) == 0:
                continue
            layer = self._in_plane(
                self._inner.read(Box((z, ya, xa), (z + 1, yb, xb))), box, ranges
            )[:, 0]
            # Ascending z, then ascending tap: the same order of additions for every box.
            for target, tap in users:
                if weight[target, tap] != 0:
                    result[:, target] += layer * weight[target, tap]
        return result

    def _in_plane(
        self, slab: NDArray[np.float32], box: Box, ranges: list[tuple[int, int]]
    ) -> NDArray[np.float32]:
        for axis in (1, 2):
            taps = self._taps[axis]
            if taps is not None:
                part = slice(box.start[axis], box.stop[axis])
                index = taps.index[part] - ranges[axis][0]
                slab = combine(slab, axis + 1, index, taps.weight[part])
        return slab


def combine(
    slab: NDArray[np.float32], axis: int, index: NDArray[np.int64], weight: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Weighted sums of voxels along one axis of a slab, in the order of the taps."""
    shape = [1] * slab.ndim
    shape[axis] = len(index)
    result = np.take(slab, index[:, 0], axis=axis) * weight[:, 0].reshape(shape)
    for tap in range(1, index.shape[1]):
        result += np.take(slab, index[:, tap], axis=axis) * weight[:, tap].reshape(shape)
    return result
