"""Slabs: a volume as the network wants to read it, box by box and channel first.

Sources are stacked like lenses, each with a ``read(box)`` of its own::

    VolumeSlabs → NormalisedSlabs → ResampledSlabs → AveragedSlabs
    (the file)    (intensities)      (spacing)         (preview only)

Nothing is ever read whole; every ``read`` costs memory in proportion to its box.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lamella.core.errors import AxesError, InputError
from lamella.volume.box import Box
from lamella.volume.pyramid import downsample_mean
from lamella.volume.volume import Volume

__all__ = ["AveragedSlabs", "Slabs", "VolumeSlabs", "Window"]

BLOCK_LAYERS = 64
BLOCK_BYTES = 256 << 20


class Slabs(Protocol):
    """A source of intensities.

    Contract:
        * ``read`` takes a box inside ``shape`` and returns a new or read-only float32 array,
          (c, z, y, x); what it returns for a voxel does not depend on the box around it.
        * Reads come from one thread at a time.
    """

    @property
    def shape(self) -> tuple[int, int, int]:
        """Extent in voxels, (z, y, x); z is 1 for an image."""
        ...

    @property
    def n_channels(self) -> int:
        """Length of the channel axis."""
        ...

    def read(self, box: Box) -> NDArray[np.float32]:
        """Read a box, (c, z, y, x)."""
        ...


class VolumeSlabs:
    """A volume's own voxels as float32.

    Layers of an array that is not in memory are fetched in blocks of up to 64 and kept until the
    next block: chunks of a file are usually that deep, and decoding one for every few layers asked
    for would cost many times the reading itself.

    Args:
        volume: with the axes (c) (z) y x; a time axis only of length 1.

    Raises:
        AxesError: for several time points.
        InputError: for complex values or empty axes.
    """

    def __init__(self, volume: Volume) -> None:
        if "t" in volume.axes and volume.shape[volume.axes.index("t")] != 1:
            raise AxesError(
                f"the input has {volume.shape[volume.axes.index('t')]} time points; one is run at"
                " a time",
                hint="choose one with --time N",
            )
        if volume.dtype.kind not in "uifb":
            raise InputError(
                f"intensities of type {volume.dtype} cannot be segmented",
                hint="convert them to real numbers first, for example with --dtype float32",
            )
        if 0 in volume.shape:
            raise InputError(f"the input has no voxels: shape {volume.shape}, axes {volume.axes}")
        self._volume = volume
        spatial = volume.spatial_shape
        z = 1 if "z" not in volume.axes else spatial[0]
        self.shape: tuple[int, int, int] = (z, spatial[-2], spatial[-1])
        self.n_channels = volume.n_channels

        self._block: NDArray[Any] | None = None
        self._block_at: Box | None = None

    def read(self, box: Box) -> NDArray[np.float32]:
        """Read a box, (c, z, y, x)."""
        depth = self._block_depth(box)
        if box.shape[0] >= depth:
            return self._fetch(box).astype(np.float32)
        result = np.empty((self.n_channels, *box.shape), np.float32)
        (start, *low), (stop, *high) = box.start, box.stop
        for first in range(start // depth * depth, stop, depth):
            last = min(first + depth, self.shape[0])
            at = Box((first, *low), (last, *high))
            if self._block is None or self._block_at != at:
                self._block, self._block_at = None, at  # free the old one before the new is read
                self._block = self._fetch(at)
            a, b = max(first, start), min(last, stop)
            result[:, a - start : b - start] = self._block[:, a - first : b - first]
        return result

    def _block_depth(self, box: Box) -> int:
        """Layers to fetch at once; 1 where there is nothing to gain."""
        if isinstance(self._volume.data, np.ndarray) or self.shape[0] == 1:
            return 1
        layer = self.n_channels * box.shape[1] * box.shape[2] * self._volume.dtype.itemsize
        depth = max(1, min(BLOCK_LAYERS, BLOCK_BYTES // max(1, layer)))
        return 1 << (depth.bit_length() - 1)

    def _fetch(self, box: Box) -> NDArray[Any]:
        spatial = box.slices() if "z" in self._volume.axes else box.slices()[1:]
        leading = (slice(None),) * self._volume.axes.n_leading
        data = np.asarray(self._volume.data[leading + spatial])
        return data.reshape(self.n_channels, *box.shape)


class AveragedSlabs:
    """A coarse grid: the mean of blocks of voxels.

    Args:
        inner: the fine grid.
        factors: fine voxels per coarse voxel, (z, y, x).
        picks_layers: take the middle layer of a block instead of the mean over its layers.
    """

    def __init__(
        self, inner: Slabs, factors: tuple[int, int, int], *, picks_layers: bool = False
    ) -> None:
        self._inner = inner
        self._factors = factors
        self._picks_layers = picks_layers
        z, y, x = (-(-n // f) for n, f in zip(inner.shape, factors, strict=True))
        self.shape = (z, y, x)
        self.n_channels = inner.n_channels

    def read(self, box: Box) -> NDArray[np.float32]:
        """Read a box, (c, z, y, x), layer by layer: memory is that of the coarse box."""
        factors = self._factors
        (y0, x0), (y1, x1) = (
            tuple(a * f for a, f in zip(corner[1:], factors[1:], strict=True))
            for corner in (box.start, box.stop)
        )
        y1, x1 = min(y1, self._inner.shape[1]), min(x1, self._inner.shape[2])
        result = np.empty((self.n_channels, *box.shape), np.float32)
        for z in range(box.start[0], box.stop[0]):
            first, last = z * factors[0], min((z + 1) * factors[0], self._inner.shape[0])
            if self._picks_layers:
                first = (first + last - 1) // 2
                last = first + 1
            fine = self._inner.read(Box((first, y0, x0), (last, y1, x1)))
            result[:, z - box.start[0]] = downsample_mean(fine, factors)[:, 0]
        return result


class Window:
    """The layers of a source that the tiles of one row read, each loaded once.

    A ring like :class:`~lamella.inference.band.Band`: layer z lives at ``z % depth``.

    Args:
        source: what is read.
        region: the (y, x) box that the tiles of a column reach, clamped to the source.
        depth: z extent of a tile.
    """

    def __init__(self, source: Slabs, *, region: Box, depth: int) -> None:
        self._source = source
        self._region = region
        self._depth = min(depth, source.shape[0])
        self._ring = np.empty((source.n_channels, self._depth, *region.shape), np.float32)
        self._loaded = 0

    def advance(self, start: int, stop: int) -> None:
        """Load what is missing of layers ``start`` to ``stop`` (clamped to the source).

        Layers before ``start`` may be overwritten: rows come in the order of z.
        """
        stop = min(stop, self._source.shape[0])
        first = max(start, self._loaded, 0)
        # At most half a ring a time: what a read returns lives beside the ring.
        step = max(1, self._depth // 2)
        for z in range(first, stop, step):
            end = min(stop, z + step)
            (y0, x0), (y1, x1) = self._region.start, self._region.stop
            slab = self._source.read(Box((z, y0, x0), (end, y1, x1)))
            for offset in range(end - z):
                self._ring[:, (z + offset) % self._depth] = slab[:, offset]
        self._loaded = max(self._loaded, stop)

    def copy_tile(self, read: Box, out: NDArray[np.float32]) -> None:
        """Copy a tile; what lies beyond the source becomes 0, the mean of normalised input.

        Args:
            read: the tile, in voxels of the source.
            out: receives it, float32, (c, z, y, x).
        """
        inside = read.clamp(self._source.shape)
        target = inside.relative_to(read)
        if inside.shape != read.shape:
            out[...] = 0
        (y0, x0) = self._region.start
        (za, ya, xa), (zb, yb, xb) = inside.start, inside.stop
        rows = (slice(ya - y0, yb - y0), slice(xa - x0, xb - x0))
        _, *to = target.slices()
        z = za
        while z < zb:  # at most two pieces: before and after the end of the ring
            at = z % self._depth
            n = min(zb - z, self._depth - at)
            to_z = z - read.start[0]
            out[(slice(None), slice(to_z, to_z + n), *to)] = self._ring[
                (slice(None), slice(at, at + n), *rows)
            ]
            z += n
