"""Lawful covers of an index space by tiles or blocks.

A tile **reads** a box and **writes** a smaller or equal one::

    read   |<---- tile ---->|
                     |<---- tile ---->|
    write  |<-----------|----------->|      seams in the middle of the overlap

Laws (tested with hypothesis for any shape, tile and overlap):

* the write boxes partition the volume: every voxel is written exactly once;
* every read box lies in the volume, has the tile's shape (or the volume's, where that is
  smaller), and contains its write box.

Examples:
    >>> [t.write.shape for t in cover((10,), (6,), (2,))]
    [(5,), (5,)]
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from lamella.core.errors import InputError
from lamella.volume.box import Box

__all__ = ["Tile", "axis_starts", "cover"]


@dataclass(frozen=True, slots=True)
class Tile:
    """A window of a cover; ``write`` lies inside ``read``."""

    read: Box
    write: Box


def axis_starts(length: int, tile: int, stride: int) -> tuple[int, ...]:
    """Starts of windows of ``tile`` every ``stride`` along an axis; the last is moved inward.

    Raises:
        InputError: for a tile or stride below 1.
    """
    if tile < 1 or stride < 1:
        raise InputError(
            f"tile {tile} and stride {stride} must both be at least 1",
            hint="choose an overlap smaller than the tile",
        )
    if length <= tile:
        return (0,)
    starts = list(range(0, length - tile, stride))
    return (*starts, length - tile)


def cover(shape: Sequence[int], tile: Sequence[int], overlap: Sequence[int]) -> tuple[Tile, ...]:
    """Cover a volume by tiles in z-major order.

    Args:
        shape: extent of the volume in voxels, (z, y, x).
        tile: extent of a read box; cut to the volume where that is smaller.
        overlap: voxels shared by neighbouring read boxes per axis, smaller than the tile.

    Raises:
        InputError: when an overlap is negative or not smaller than its tile.
    """
    per_axis: list[list[tuple[int, int, int, int]]] = []
    for length, size, shared in zip(shape, tile, overlap, strict=True):
        if not 0 <= shared < size:
            raise InputError(f"overlap {shared} must be at least 0 and smaller than tile {size}")
        extent = min(size, length)
        starts = axis_starts(length, extent, max(1, extent - shared))
        seams = [(a + extent + b) // 2 for a, b in itertools.pairwise(starts)]
        edges = [0, *seams, length]
        per_axis.append([(s, s + extent, edges[i], edges[i + 1]) for i, s in enumerate(starts)])
    return tuple(
        Tile(
            read=Box(tuple(a[0] for a in spans), tuple(a[1] for a in spans)),
            write=Box(tuple(a[2] for a in spans), tuple(a[3] for a in spans)),
        )
        for spans in itertools.product(*per_axis)
    )
