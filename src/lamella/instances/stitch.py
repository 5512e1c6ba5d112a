"""Objects that were found block by block, stitched across faces: a sparse overlap graph.

Every block is read with a *halo* and its objects are found there, so neighbours have found the
same objects twice in a band around the face between them. The nodes of the graph are the objects
of single blocks, its edges pairs that share most of their voxels in such a band; what hangs
together is one object. Voxels go to the block that they lie in, so the halo is cut away again.

::

    block a  |======================|~~~halo~~~|
    block b             |~~~halo~~~~|======================|
                              |--band--|                        compared here

Voxels that merely touch across a face are never joined: two cells side by side stay two.
Objects that fit into the halo, together with what they touch, come out as if the volume had been
looked at in one piece, and so do their ids: 1..n by first voxel. Larger ones are joined all the
same, as long as both blocks see the part between them alike.

Examples:
    >>> whole = np.array([[[5, 5, 0, 7, 7, 7, 0, 9]]])
    >>> grid = BlockGrid((1, 1, 8), block=(1, 1, 4), halo=1)
    >>> stitched = stitch_blocks(grid, lambda number, box: whole[box.slices()])
    >>> stitched.count, stitched.n_joined
    (3, 1)
"""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamella.core.errors import InputError
from lamella.core.progress import Progress, ProgressSink, SilentSink
from lamella.instances.components import id_dtype
from lamella.volume.box import Box

__all__ = ["MIN_SHARE", "BlockGrid", "Stitched", "stitch_blocks"]

MIN_SHARE = 0.5
"""Least share of the smaller of two objects, in the band, that must lie in the other."""

ReadBlock = Callable[[int, Box], NDArray[Any]]
"""Labels that the block of a number gave in a box, (z, y, x), which lies in its read box."""


@dataclass(frozen=True, slots=True)
class BlockGrid:
    """A regular cut of a volume into blocks with halo.

    Attributes:
        shape: of the volume, (z, y, x) voxels.
        block: edge of a block, voxels; one number, or one an axis. The last of a row are smaller.
        halo: voxels that a block sees beyond each of its faces.

    Raises:
        InputError: for an empty block, or a halo that is none or wider than a block.
    """

    shape: tuple[int, int, int]
    block: int | tuple[int, int, int]
    halo: int

    def __post_init__(self) -> None:
        if not 1 <= self.halo <= min(self.extent):
            raise InputError(
                f"a halo of {self.halo} voxels does not fit blocks of"
                f" {' x '.join(map(str, self.extent))}",
                hint="make it 1 or more, and no wider than a block",
            )

    @property
    def extent(self) -> tuple[int, int, int]:
        """Of a block that is not the last of its row, (z, y, x) voxels."""
        z, y, x = (self.block,) * 3 if isinstance(self.block, int) else self.block
        return z, y, x

    @property
    def counts(self) -> tuple[int, int, int]:
        """Blocks along each axis."""
        z, y, x = (math.ceil(n / b) for n, b in zip(self.shape, self.extent, strict=True))
        return z, y, x

    @property
    def boxes(self) -> tuple[Box, ...]:
        """What each block writes, z slowest; they partition the volume."""
        return tuple(self._box(index) for index in itertools.product(*map(range, self.counts)))

    def read_box(self, box: Box) -> Box:
        """What a block sees: what it writes and the halo, cut at the border of the volume."""
        return box.grow(self.halo).clamp(self.shape)

    def bands(self) -> Iterator[tuple[int, int, Box]]:
        """Pairs of neighbours (faces, edges, corners) and the band that both are compared in."""
        width = max(1, self.halo // 2)
        steps = [step for step in itertools.product((-1, 0, 1), repeat=3) if step > (0, 0, 0)]
        for index in itertools.product(*map(range, self.counts)):
            for step in steps:
                other = tuple(a + b for a, b in zip(index, step, strict=True))
                if any(not 0 <= k < n for k, n in zip(other, self.counts, strict=True)):
                    continue
                start, stop = list(self._box(index).start), list(self._box(index).stop)
                for axis, way in enumerate(step):
                    if way:
                        face = (index[axis] + (way > 0)) * self.extent[axis]
                        start[axis] = max(0, face - width)
                        stop[axis] = min(self.shape[axis], face + width)
                band = Box(tuple(start), tuple(stop))
                yield self._number(index), self._number(other), band

    def _box(self, index: tuple[int, ...]) -> Box:
        starts = tuple(k * b for k, b in zip(index, self.extent, strict=True))
        stops = (min(a + b, n) for a, b, n in zip(starts, self.extent, self.shape, strict=True))
        return Box(starts, tuple(stops))

    def _number(self, index: tuple[int, ...]) -> int:
        return int(np.ravel_multi_index(index, self.counts))


@dataclass(frozen=True, slots=True)
class Stitched:
    """Final ids of what the blocks found.

    Attributes:
        count: objects; ids are 1..count by first voxel in scan order.
        tables: final id by the id in a block, for every block; 0 for what lies in its halo only.
        n_joined: objects that lie in several blocks.
    """

    count: int
    tables: tuple[NDArray[Any], ...]
    n_joined: int


def stitch_blocks(
    grid: BlockGrid,
    read: ReadBlock,
    *,
    min_share: float = MIN_SHARE,
    sink: ProgressSink | None = None,
) -> Stitched:
    """Give the objects of all blocks their final ids.

    Blocks are looked at one by one; what stays in memory is some numbers an object.

    Args:
        grid: how the volume was cut.
        read: labels of blocks; 0 is background.
        min_share: two objects are one when at least this share of the smaller, counted in the
            band, lies in the other, and both have voxels in their own blocks.
        sink: for progress and cancellation.

    Raises:
        InputError: for a share outside 0..1.
        RunCancelledError: when the sink says so.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if not 0 < min_share <= 1:
        raise InputError(f"min_share is {min_share}, expected more than 0, at most 1")
    sink = sink or SilentSink()
    boxes, bands = grid.boxes, list(grid.bands())
    n_steps = len(boxes) + len(bands)
    firsts: list[NDArray[np.int64]] = []
    for done, box in enumerate(boxes):
        sink.check()
        sink.emit(Progress("stitch", done, n_steps, "faces"))
        firsts.append(_first_voxels(read(len(firsts), box), box, grid.shape))
    offsets = np.concatenate([[0], np.cumsum([len(first) for first in firsts])])
    first = np.concatenate(firsts) if firsts else np.zeros(0, np.int64)
    edges: list[NDArray[np.int64]] = [np.zeros((0, 2), np.int64)]
    for done, (a, b, band) in enumerate(bands, start=len(boxes)):
        sink.check()
        sink.emit(Progress("stitch", done, n_steps, "faces"))
        pairs = _same(read(a, band), read(b, band), min_share)
        # What a block saw in its halo alone is its neighbour's affair.
        pairs = pairs[(pairs < [len(firsts[a]), len(firsts[b])]).all(axis=1)] + offsets[[a, b]]
        edges.append(pairs[(first[pairs] >= 0).all(axis=1)])
    sink.emit(Progress("stitch", n_steps, n_steps, "faces"))
    joined = np.concatenate(edges)
    ones = np.ones(len(joined), np.uint8)
    graph = coo_array((ones, (joined[:, 0], joined[:, 1])), shape=(len(first), len(first)))
    _, group = connected_components(graph, directed=False)
    return _numbered(first, group, offsets)


# --- Private helpers ----------------------------------------------------------------------------


def _first_voxels(labels: NDArray[Any], box: Box, shape: tuple[int, int, int]) -> NDArray[np.int64]:
    """Flat index in the volume of the first voxel of ids 0..max; -1 where there is none."""
    first = np.full(int(labels.max(initial=0)) + 1, -1, np.int64)
    for z in range(len(labels) - 1, -1, -1):
        y, x = np.nonzero(labels[z])
        flat = ((box.start[0] + z) * shape[1] + box.start[1] + y) * shape[2] + box.start[2] + x
        # Of equal indices the last one stays: backwards, that is the first voxel.
        first[labels[z][y, x][::-1]] = flat[::-1]
    return first


def _same(a: NDArray[Any], b: NDArray[Any], min_share: float) -> NDArray[np.int64]:
    """Ids of ``a`` and of ``b`` that are one object, int64, (n, 2), ascending."""
    a, b = a.ravel().astype(np.int64), b.ravel().astype(np.int64)
    n_a, n_b = np.bincount(a), np.bincount(b)
    both = (a > 0) & (b > 0)
    keys, common = np.unique(a[both] * len(n_b) + b[both], return_counts=True)
    pairs = np.stack([keys // len(n_b), keys % len(n_b)], axis=1)
    smaller = np.minimum(n_a[pairs[:, 0]], n_b[pairs[:, 1]])
    return pairs[common >= min_share * smaller]


def _numbered(
    first: NDArray[np.int64], group: NDArray[Any], offsets: NDArray[np.int64]
) -> Stitched:
    """Number groups by their first voxel; ids without voxels in their own block become 0."""
    is_there = first >= 0
    n_groups = int(group.max(initial=-1)) + 1
    earliest = np.full(n_groups, np.iinfo(np.int64).max)
    np.minimum.at(earliest, group[is_there], first[is_there])
    order = np.argsort(earliest, kind="stable")
    count = int((earliest < np.iinfo(np.int64).max).sum())
    number = np.zeros(n_groups, id_dtype(count))
    number[order[:count]] = np.arange(1, count + 1)
    final = np.where(is_there, number[group], number.dtype.type(0))
    pieces = np.bincount(group[is_there], minlength=n_groups)
    tables = tuple(final[a:b] for a, b in itertools.pairwise(offsets.tolist()))
    return Stitched(count, tables, int((pieces > 1).sum()))
