"""Volumes on another grid over the same space, and labels back again, lazily.

Both grids fill the same box, edge to edge: voxel i of n lies at (i + 1/2) / n of the extent. The
number of voxels is a whole number, so the spacing that comes out is the one asked for as nearly as
that allows, and the affine of the result says exactly where its voxel centres lie::

    4 voxels   |   x   |   x   |   x   |   x   |
    7 voxels   | x | x | x | x | x | x | x |         first centre: half a new voxel from the edge

Intensities are interpolated (linear or cubic), with the kernel widened where the grid becomes
coarser, so that nothing aliases; labels take the nearest voxel, so no id is ever invented. Labels
that went to a finer grid and come back are the same, voxel for voxel.

Examples:
    >>> thick = Volume.from_array(np.zeros((4, 10, 10), np.uint8), spacing=(3, 1, 1), unit="um")
    >>> resampler = Resampler.to_isotropic(thick)
    >>> resampler.shape, str(resampler.resample(thick).spacing)
    ((12, 10, 10), '1 x 1 x 1 um')
    >>> resampler.resample(thick).affine.origin
    (-1.0, 0.0, 0.0)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from lamella.core.errors import AxesError, GeometryError, InputError
from lamella.inference.resample import Kernel, Taps, combine, nearest_index
from lamella.volume.labels import Labels
from lamella.volume.source import FunctionArray, LazyArray
from lamella.volume.volume import Volume

__all__ = ["Resampler"]

MAX_VOXELS = 2**40
"""More than this comes of a wrong spacing, not of a microscope."""
_LAYERS = 16
"""Layers of the old grid read at once."""

L = TypeVar("L", bound=Labels)


class Resampler:
    """The way from a volume's grid to another one and back.

    Args:
        like: a volume (or image) on the grid to leave from.
        spacing: wanted centre-to-centre distance per spatial axis, in the unit of ``like``.

    Raises:
        GeometryError: for a spacing that is not positive, has another number of axes, or gives an
            absurd number of voxels.
    """

    def __init__(self, like: Volume, spacing: Sequence[float]) -> None:
        have, old = like.spacing.values, like.spatial_shape
        wanted = tuple(float(value) for value in spacing)
        if len(wanted) != len(have) or not all(np.isfinite(v) and v > 0 for v in wanted):
            raise GeometryError(
                f"a spacing of {wanted} cannot be made from one of {have}",
                hint=f"give {len(have)} positive numbers, (z, y, x)",
            )
        shape = tuple(max(1, round(n * h / w)) for n, h, w in zip(old, have, wanted, strict=True))
        if np.prod(shape, dtype=float) > MAX_VOXELS:
            raise GeometryError(
                f"{old} voxels of {have} would become {shape} of {wanted}",
                hint="check the spacing of the input with `lamella info`",
            )
        self._like = like
        self.old_shape = old
        """Spatial shape to leave from."""
        self.shape = shape
        """Spatial shape to arrive at."""

    @classmethod
    def to_isotropic(cls, like: Volume, spacing: float | None = None) -> Resampler:
        """To the same spacing along every axis; the finest one of ``like`` unless given.

        Raises:
            GeometryError: as for the class.
        """
        values = like.spacing.values
        return cls(like, (min(values) if spacing is None else spacing,) * len(values))

    @property
    def is_identity(self) -> bool:
        """Whether both grids are the same."""
        return self.shape == self.old_shape

    def resample(self, volume: Volume, *, kernel: Kernel = "linear") -> Volume:
        """Intensities on the new grid, float32, lazy: what is read is computed.

        Args:
            volume: on the old grid, with any leading axes.
            kernel: ``linear`` never overshoots; ``cubic`` (Keys 1981,
                doi:10.1109/TASSP.1981.1163711, a = -1/2) keeps more detail.

        Raises:
            AxesError: for a volume on another grid.
            InputError: for values that cannot be averaged.
        """
        if volume.dtype.kind not in "uifb":
            raise InputError(f"values of type {volume.dtype} cannot be interpolated")
        taps = [
            None if a == b else Taps.make(a, b, kernel)
            for a, b in zip(self._check(volume), self.shape, strict=True)
        ]
        leading = volume.axes.n_leading
        source = volume.data

        def read(box: tuple[slice, ...]) -> NDArray[Any]:
            return _interpolate(source, box, taps, leading)

        data = FunctionArray((*volume.shape[:leading], *self.shape), np.float32, read)
        return replace(volume, data=data, affine=self._affine(volume), levels=())

    def resample_labels(self, labels: L) -> L:
        """Labels on the new grid by the nearest voxel, lazy; same dtype, same ids.

        Raises:
            AxesError: for labels on another grid.
        """
        data = _pick(labels.data, self._check(labels), self.shape)
        return replace(labels, data=data, affine=self._affine(labels), levels=())

    def restore_labels(self, labels: L) -> L:
        """Labels of the new grid back on the old one, of exactly its shape and geometry.

        Raises:
            AxesError: for labels that are not on the new grid.
        """
        if labels.spatial_shape != self.shape:
            raise AxesError(
                f"labels of shape {labels.spatial_shape} are not on the grid of {self.shape}"
            )
        data = _pick(labels.data, self.shape, self.old_shape)
        return replace(labels, data=data, affine=self._like.affine, levels=())

    def _check(self, volume: Volume) -> tuple[int, ...]:
        if volume.spatial_shape != self.old_shape:
            raise AxesError(
                f"a volume of shape {volume.spatial_shape} is not on the grid of"
                f" {self.old_shape} that this was made for"
            )
        return volume.spatial_shape

    def _affine(self, volume: Volume) -> Any:
        factors = [a / b for a, b in zip(self.old_shape, self.shape, strict=True)]
        return volume.affine.downsampled(factors)


def _interpolate(
    source: LazyArray, box: tuple[slice, ...], taps: list[Taps | None], leading: int
) -> NDArray[np.float32]:
    """A box of the new grid; only what it needs of the old one is read, a few layers at a time."""
    ranges = [
        (s.start, s.stop) if t is None else t.source_range(s.start, s.stop)
        for t, s in zip(taps, box[leading:], strict=True)
    ]
    inner = tuple(slice(a, b) for a, b in ranges)
    first = taps[0]
    if first is None:
        slab = np.asarray(source[(*box[:leading], *inner)]).astype(np.float32)
        return _in_plane(slab, box, taps, ranges, leading)
    extent = box[leading]
    index, weight = first.index[extent], first.weight[extent]
    result: NDArray[np.float32] | None = None
    for start in range(*ranges[0], _LAYERS):
        stop = min(start + _LAYERS, ranges[0][1])
        part = (*box[:leading], slice(start, stop), *inner[1:])
        slab = np.asarray(source[part]).astype(np.float32)
        layers = np.moveaxis(_in_plane(slab, box, taps, ranges, leading), leading, 0)
        if result is None:
            result = np.zeros((extent.stop - extent.start, *layers.shape[1:]), np.float32)
        for at in range(start, stop):
            # Ascending layers, then ascending taps: the same sums whatever box is read.
            for target, tap in np.argwhere((index == at) & (weight != 0)):
                result[target] += layers[at - start] * weight[target, tap]
    assert result is not None, "every voxel has taps"
    return np.moveaxis(result, 0, leading)


def _in_plane(
    slab: NDArray[np.float32],
    box: tuple[slice, ...],
    taps: list[Taps | None],
    ranges: list[tuple[int, int]],
    leading: int,
) -> NDArray[np.float32]:
    """The axes after the first spatial one."""
    for axis in range(1, len(taps)):
        known = taps[axis]
        if known is not None:
            extent = box[leading + axis]
            index = known.index[extent] - ranges[axis][0]
            slab = combine(slab, leading + axis, index, known.weight[extent])
    return slab


def _pick(source: LazyArray, old: Sequence[int], new: Sequence[int]) -> FunctionArray:
    """The nearest voxel of every voxel of the new grid."""
    leading = source.ndim - len(old)
    nearest = [nearest_index(b, a) for a, b in zip(old, new, strict=True)]

    def read(box: tuple[slice, ...]) -> NDArray[Any]:
        picked = [n[s] for n, s in zip(nearest, box[leading:], strict=True)]
        inner = tuple(slice(int(p[0]), int(p[-1]) + 1) for p in picked)
        region = np.asarray(source[(*box[:leading], *inner)])
        for axis, (p, s) in enumerate(zip(picked, inner, strict=True), start=leading):
            region = np.take(region, p - s.start, axis=axis)
        return region

    shape = (*source.shape[:leading], *new)
    return FunctionArray(shape, source.dtype, read)
