"""The input as nnU-Net's preprocessing would make it, but read box by box and never whole.

::

    VolumeSlabs → NormalisedCrop → TransposedSlabs → SplineSlabs → CascadeSlabs
    (the file)    (cut, scaled)    (axes of plans)   (spacing)     (labels of the first stage)

Every step computes, voxel for voxel, what nnU-Net's ``DefaultPreprocessor`` does (Apache-2.0), to
the rounding of float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamella.engines.nnunet.resample import Operator, Rule, operators
from lamella.inference.slab import Slabs
from lamella.volume.box import Box

__all__ = ["CascadeSlabs", "Limits", "SplineSlabs", "TransposedSlabs", "permuted"]

_BLOCK_BYTES = 256 << 20
# Shares this close are equal: they are sums of float32.
_TIE = 1e-6


# --- Axes ---------------------------------------------------------------------------------------


def permuted(values: tuple[Any, ...], transpose: tuple[int, int, int]) -> tuple[Any, Any, Any]:
    """Three values of the input's axes in the order of the network's.

    Examples:
        >>> permuted((10, 20, 30), (2, 0, 1))
        (30, 10, 20)
    """
    z, y, x = (values[axis] for axis in transpose)
    return z, y, x


class TransposedSlabs:
    """A source with its axes in another order.

    Args:
        inner: the source.
        transpose: axis of ``inner`` that becomes axis i.
    """

    def __init__(self, inner: Slabs, transpose: tuple[int, int, int]) -> None:
        self._inner = inner
        self._transpose = transpose
        self._back = tuple(transpose.index(axis) for axis in range(3))
        self.shape: tuple[int, int, int] = permuted(inner.shape, transpose)
        self.n_channels = inner.n_channels
        self._block: NDArray[np.float32] | None = None
        self._block_at: Box | None = None

    def read(self, box: Box) -> NDArray[np.float32]:
        """Read a box, (c, z, y, x).

        Layers across the layers of the file are fetched in blocks: each one alone would mean to
        read the whole file.
        """
        if self._transpose == (0, 1, 2):
            return self._inner.read(box)
        at = self._block_at
        if self._block is None or at is None or not at.contains(box):
            layer = 4 * self.n_channels * box.shape[1] * box.shape[2]
            depth = max(box.shape[0], min(64, _BLOCK_BYTES // max(1, layer)))
            stop = min(self.shape[0], box.start[0] + depth)
            self._block = None
            at = self._block_at = Box(box.start, (stop, *box.stop[1:]))
            back = self._back
            there = Box(
                tuple(at.start[axis] for axis in back), tuple(at.stop[axis] for axis in back)
            )
            order = (0, *(1 + axis for axis in self._transpose))
            self._block = np.ascontiguousarray(self._inner.read(there).transpose(order))
        return self._block[(slice(None), *box.relative_to(at).slices())]


# --- Spacing ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Limits:
    """Smallest and largest values that resampling may give, as splines overshoot.

    Attributes:
        axis: axis along which they differ, 0..2; None = the same everywhere.
        lower: float32, (c, n) along the new axis; n is 1 without an axis.
        upper: as ``lower``.
    """

    axis: int | None
    lower: NDArray[np.float32]
    upper: NDArray[np.float32]

    def clip(self, values: NDArray[np.float32], box: Box) -> None:
        """Clip a box (c, z, y, x) in place."""
        part = slice(None) if self.axis is None else slice(*self._range(box))
        shape = [len(values), 1, 1, 1]
        if self.axis is not None:
            shape[1 + self.axis] = box.shape[self.axis]
        lower, upper = (bound[:, part].reshape(shape) for bound in (self.lower, self.upper))
        np.clip(values, lower, upper, out=values)

    def _range(self, box: Box) -> tuple[int, int]:
        assert self.axis is not None, "asked for only with an axis"
        return box.start[self.axis], box.stop[self.axis]


class SplineSlabs:
    """A source on the grid of the network.

    Args:
        inner: the source.
        shape: extent of the new grid.
        rule: orders.
        separate: axis that is treated on its own.
        limits: what values may be, for orders above 1.
    """

    def __init__(
        self,
        inner: Slabs,
        shape: tuple[int, int, int],
        rule: Rule,
        separate: int | None,
        limits: Limits | None = None,
    ) -> None:
        self._inner = inner
        self.shape = shape
        self.n_channels = inner.n_channels
        self._operators = operators(inner.shape, shape, rule, separate)
        self._limits = limits
        self._planes: NDArray[np.float32] | None = None
        self._planes_at: tuple[Box, int, int] | None = None

    def read(self, box: Box) -> NDArray[np.float32]:
        """Read a box, (c, z, y, x)."""
        along_z = self._operators[0]
        result = self._in_plane(box) if along_z is None else self._along_z(along_z, box)
        if self._limits is not None:
            self._limits.clip(result, box)
        return result

    def _along_z(self, operator: Operator, box: Box) -> NDArray[np.float32]:
        result = np.empty((self.n_channels, *box.shape), np.float32)
        low, high = operator.sources(box.start[0], box.stop[0])
        planes = self._load(low, high, box)
        for z in range(box.start[0], box.stop[0]):
            first, last = int(operator.start[z]), int(operator.stop[z])
            taps = operator.taps[z, : last - first]
            part = planes[first - low : last - low]
            # One product per new layer: the same additions in the same order for every box.
            mixed = taps @ part.reshape(len(part), -1)
            result[:, z - box.start[0]] = mixed.reshape(part.shape[1:])
        return result

    def _load(self, low: int, high: int, box: Box) -> NDArray[np.float32]:
        """Layers ``low`` to ``high`` of the source, resampled in plane, (z, c, y, x).

        What the last read had already resampled is taken from there.
        """
        (y0, x0), (y1, x1) = box.start[1:], box.stop[1:]
        here = Box((y0, x0), (y1, x1))
        planes = np.empty((high - low, self.n_channels, *here.shape), np.float32)
        done = low
        if self._planes is not None and self._planes_at is not None:
            region, first, last = self._planes_at
            if region == here and first <= low < last:
                done = min(high, last)
                planes[: done - low] = self._planes[low - first : done - first]
        for z in range(done, high):
            planes[z - low] = self._in_plane(Box((z, y0, x0), (z + 1, y1, x1)))[:, 0]
        self._planes, self._planes_at = planes, (here, low, high)
        return planes

    def _in_plane(self, box: Box) -> NDArray[np.float32]:
        """A box whose z is of the source and whose y and x are of the new grid."""
        _, along_y, along_x = self._operators
        (z0, y0, x0), (z1, y1, x1) = box.start, box.stop
        ya, yb = (y0, y1) if along_y is None else along_y.block_sources(y0, y1)
        xa, xb = (x0, x1) if along_x is None else along_x.block_sources(x0, x1)
        values = self._inner.read(Box((z0, ya, xa), (z1, yb, xb)))
        if along_y is None and along_x is None:
            return np.array(values, np.float32)
        result = np.empty((self.n_channels, *box.shape), np.float32)
        for z in range(z1 - z0):
            layer = values[:, z]
            if along_y is not None:
                layer = along_y.part(layer, axis=1, start=y0, stop=y1, offset=ya)
            if along_x is not None:
                layer = along_x.part(layer, axis=2, start=x0, stop=x1, offset=xa)
            result[:, z] = layer
        return result


# --- Cascade ------------------------------------------------------------------------------------


class CascadeSlabs:
    """An image with, behind its channels, one for every foreground label of the first stage.

    Args:
        image: on the grid of the network.
        labels: of the first stage, one channel, on the grid the image had before resampling.
        foreground: label values, in order.
        rule: how segmentations are resampled.
        separate: axis that is treated on its own.
    """

    def __init__(
        self,
        image: Slabs,
        labels: Slabs,
        foreground: tuple[int, ...],
        rule: Rule,
        separate: int | None,
    ) -> None:
        self._image = image
        self._foreground = foreground
        self._rule = rule
        self.shape = image.shape
        self.n_channels = image.n_channels + len(foreground)
        self._inner = labels
        self._shares = SplineSlabs(_LabelSlabs(labels, foreground), image.shape, rule, separate)
        self._nearest = SplineSlabs(labels, image.shape, Rule(order=0), separate)
        self._is_same = labels.shape == image.shape

    def read(self, box: Box) -> NDArray[np.float32]:
        """Read a box, (c, z, y, x)."""
        image = self._image.read(box)
        chosen = self._same(box) if self._is_same else self._resampled(box)
        result = np.empty((self.n_channels, *box.shape), np.float32)
        n = self._image.n_channels
        result[:n] = image
        for index in range(len(self._foreground)):
            result[n + index] = chosen == index + 1
        return result

    def _same(self, box: Box) -> NDArray[np.int16]:
        return _index_of(self._inner.read(box)[0], self._foreground)

    def _resampled(self, box: Box) -> NDArray[np.int16]:
        """Of every voxel the label with the largest share; 0 is background, i + 1 label i.

        Of equally large shares the nearest voxel's label wins, if it is one of them, else the
        lowest. Source: batchgenerators ``resize_segmentation`` (Apache-2.0), which nnU-Net calls.
        """
        shares = self._shares.read(box)
        best = 1.0 - shares.sum(axis=0)
        chosen = np.zeros(box.shape, np.int16)
        largest = np.maximum(best, shares.max(axis=0, initial=0.0)) - np.float32(_TIE)
        for index, share in enumerate(shares):
            is_best = share > best + np.float32(_TIE)
            chosen[is_best] = index + 1
            best = np.maximum(best, share)
        if self._rule.ties_to_lowest:
            return chosen
        nearest = _index_of(self._nearest.read(box)[0], self._foreground)
        background = 1.0 - shares.sum(axis=0)
        for index in range(len(self._foreground) + 1):
            share = background if index == 0 else shares[index - 1]
            chosen[(nearest == index) & (share >= largest)] = index
        return chosen


def _index_of(labels: NDArray[np.float32], values: tuple[int, ...]) -> NDArray[np.int16]:
    """Position of each label among some values, from 1 on; 0 for any other."""
    index = np.zeros(labels.shape, np.int16)
    for number, value in enumerate(values):
        index[labels == value] = number + 1
    return index


class _LabelSlabs:
    """Labels as one channel of 0 and 1 for each of some values."""

    def __init__(self, inner: Slabs, values: tuple[int, ...]) -> None:
        self._inner = inner
        self._values = values
        self.shape = inner.shape
        self.n_channels = len(values)

    def read(self, box: Box) -> NDArray[np.float32]:
        """Read a box, (c, z, y, x)."""
        labels = self._inner.read(box)[0]
        return np.stack([labels == value for value in self._values]).astype(np.float32)
