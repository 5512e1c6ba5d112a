"""Restoring a volume of any size tile by tile, in the memory of a few tiles.

A restorer says how much context it needs (its halo) and on which grid its tiles must start; the
walk reads each tile with its halo, mirrored at the border of the volume, and keeps the middle. What
a voxel becomes therefore does not depend on the tiles::

    read    |<-- halo -->|<---- tile ---->|<-- halo -->|
    keep                 |<---- tile ---->|
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lamella.core.progress import Progress, ProgressSink
from lamella.restoration.source import ChannelSource
from lamella.volume.box import Box

__all__ = ["Restorer", "Triple", "iter_restored"]

Triple = tuple[int, int, int]


class Restorer(Protocol):
    """A method that is ready for an image: trained, tuned, its parameters fixed.

    Contract:
        * ``apply`` takes float32 (z, y, x) and returns float32 of the same shape;
        * where its block starts at a multiple of ``alignment``, what it returns more than ``halo``
          away from the block's faces depends on the voxels within ``halo`` only (methods that
          iterate: to within their stated tolerance).
    """

    @property
    def halo(self) -> Triple:
        """Context on each side, in voxels, (z, y, x)."""
        ...

    @property
    def alignment(self) -> Triple:
        """Grid on which blocks must start and end, (z, y, x)."""
        ...

    @property
    def tile(self) -> Triple:
        """Extent of a tile without its halo, (z, y, x), multiples of ``alignment``."""
        ...

    @property
    def parameters(self) -> dict[str, Any]:
        """Everything that decides the result, for the record; JSON values."""
        ...

    def apply(self, block: NDArray[np.float32]) -> NDArray[np.float32]:
        """Restore a block."""
        ...


def iter_restored(
    source: ChannelSource,
    restorer: Restorer,
    sink: ProgressSink,
    *,
    stage: str = "restore",
    tile: Triple | None = None,
) -> Iterator[tuple[Box, NDArray[np.float32]]]:
    """Restore a channel slab by slab.

    Args:
        source: what is restored.
        restorer: how.
        sink: progress in voxels, and cancellation between tiles.
        stage: name of the stage.
        tile: extent of a tile without its halo; the restorer's own unless given.

    Yields:
        Boxes of full planes, in the order of z, and their float32 voxels (z, y, x).
    """
    extent = _fitted(tile or restorer.tile, source.shape, restorer.alignment)
    depth, height, width = source.shape
    done, total = 0, float(depth * height * width)
    for z in range(0, depth, extent[0]):
        slab_box = Box((z, 0, 0), (min(depth, z + extent[0]), height, width))
        slab = np.empty(slab_box.shape, np.float32)
        for y in range(0, height, extent[1]):
            for x in range(0, width, extent[2]):
                sink.check()
                stop = tuple(a + t for a, t in zip((z, y, x), extent, strict=True))
                keep = Box((z, y, x), stop).clamp(source.shape)
                slab[keep.relative_to(slab_box).slices()] = _restored(source, restorer, keep)
                done += keep.size
                sink.emit(Progress(stage, float(done), total, "voxels"))
        yield slab_box, slab


def _restored(source: ChannelSource, restorer: Restorer, keep: Box) -> NDArray[np.float32]:
    """One tile: read with its halo up to the grid, restored, the middle cut out."""
    ends = tuple(
        -(-(b + h) // a) * a
        for b, h, a in zip(keep.stop, restorer.halo, restorer.alignment, strict=True)
    )
    starts = tuple(
        (s - h) // a * a
        for s, h, a in zip(keep.start, restorer.halo, restorer.alignment, strict=True)
    )
    read = Box(starts, ends)
    result = restorer.apply(source.read(read))
    return result[keep.relative_to(read).slices()]


def _fitted(tile: Triple, shape: Triple, alignment: Triple) -> Triple:
    """The tile, no larger than the volume, on the restorer's grid."""
    z, y, x = (
        max(a, min(-(-t // a) * a, -(-n // a) * a))
        for t, n, a in zip(tile, shape, alignment, strict=True)
    )
    return z, y, x
