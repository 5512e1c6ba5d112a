"""Which objects of a slice lie over which objects of the slices after it: a sparse graph.

The nodes are *sections* (one object of one slice, whatever its label), the edges overlaps of
sections one, two, ... slices apart. The graph is built slab by slab in one pass over the labels
and is all that stays in memory: about 110 bytes a section, nothing a voxel.

Slices without any object say nothing of the objects around them. They are left out of the count:
*rank* numbers the slices that hold objects, and distances are distances of ranks. Only a run of
empty slices longer than what may be bridged parts the volume in two.

Examples:
    >>> labels = np.zeros((3, 1, 4), np.uint8)
    >>> labels[0, 0, :3], labels[1, 0, 1:], labels[2, 0, 2:] = 7, 4, 9
    >>> graph = build_overlap_graph(labels)
    >>> graph.n_sections, graph.edges.tolist()
    (3, [[0, 1, 1, 2], [0, 2, 2, 1], [1, 2, 1, 2]])
"""

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamella.core.errors import InputError
from lamella.core.progress import Progress, ProgressSink, SilentSink
from lamella.volume.source import LazyArray

__all__ = ["OverlapGraph", "as_unsigned", "build_overlap_graph", "n_workers", "slab_extents"]

_SLAB_VOXELS = 2**22


@dataclass(frozen=True, slots=True)
class OverlapGraph:
    """Sections and their overlaps.

    Attributes:
        offset: int64, (z + 1,); sections of slice z are ``offset[z]`` to ``offset[z + 1]``, by
            first voxel in scan order.
        rank: int64, (n,); number of the section's slice among those that hold objects, with a
            jump where too many empty ones lie between.
        label: uint64, (n,); value of the section in its slice.
        area: int64, (n,); voxels.
        centroid: float64, (n, 2); (y, x) in voxels.
        first: int64, (n,); flat (y, x) index of the first voxel.
        edges: int64, (m, 4); earlier section, later section, distance in ranks, common voxels;
            ascending.
    """

    offset: NDArray[np.int64]
    rank: NDArray[np.int64]
    label: NDArray[np.uint64]
    area: NDArray[np.int64]
    centroid: NDArray[np.float64]
    first: NDArray[np.int64]
    edges: NDArray[np.int64]

    @property
    def n_sections(self) -> int:
        """How many sections there are."""
        return len(self.area)

    @property
    def slice_of(self) -> NDArray[np.int64]:
        """int64, (n,); slice of every section."""
        return np.repeat(np.arange(len(self.offset) - 1), np.diff(self.offset))

    def has_sections(self, rank: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether there are sections at some ranks, int64, any shape.

        There are none before the first, behind the last, and where empty slices part the volume.

        Args:
            rank: from one before the first to one behind the last.
        """
        is_known = np.zeros(int(self.rank.max(initial=-1)) + 3, bool)
        is_known[self.rank + 1] = True
        return is_known[rank + 1]


def build_overlap_graph(
    labels: LazyArray,
    *,
    max_distance_z: int = 2,
    min_share: float = 0.0,
    slab_depth: int | None = None,
    sink: ProgressSink | None = None,
) -> OverlapGraph:
    """Find the sections and their overlaps in one pass.

    Args:
        labels: integers, 0 or more, (z, y, x); a label is one object within its slice.
        max_distance_z: longest distance in ranks that gets edges, 1 or more.
        min_share: overlaps below this share of the smaller section are left out.
        slab_depth: slices to read at once; default about 4 Mi voxels. Changes nothing else.
        sink: for progress and cancellation.

    Raises:
        InputError: for labels that are no integers, negative, or not (z, y, x).
        RunCancelledError: when the sink says so.
    """
    from lamella.instances.section_scan import overlap_sections, scan_plane

    _check(labels, max_distance_z)
    sink = sink or SilentSink()
    tables = _Tables(labels.shape[0])
    recent: deque[_Scan] = deque(maxlen=max_distance_z)
    rank, n_empty = -1, 0
    with ThreadPoolExecutor(n_workers()) as pool:
        for start, stop in slab_extents(labels.shape, slab_depth):
            sink.check()
            slab = as_unsigned(labels[start:stop])
            scans: list[_Scan] = []
            for z, found in zip(range(start, stop), pool.map(scan_plane, slab), strict=True):
                row, runs, values, moments, first = found
                if len(values) == 0:
                    n_empty += 1
                    continue
                is_far = n_empty >= max_distance_z
                rank += max_distance_z + 1 if is_far else 1
                n_empty = 0
                scans.append(_Scan(rank, tables.n, row, runs, moments[:, 0]))
                tables.add(z, rank, values, moments, first)
            del slab  # before the next one is read
            pairs = list(_pairs(recent, scans, max_distance_z))
            tasks = [
                pool.submit(
                    overlap_sections, a.row, a.runs, a.area, b.row, b.runs, b.area, min_share
                )
                for a, b in pairs
            ]
            for (a, b), task in zip(pairs, tasks, strict=True):
                tables.connect(a, b, task.result())
            sink.emit(Progress("overlaps", stop, labels.shape[0], "slices"))
    return tables.finish()


def n_workers() -> int:
    """Threads for passes over slices; they wait for memory from four on."""
    return min(4, os.cpu_count() or 1)


def slab_extents(shape: tuple[int, ...], depth: int | None = None) -> Iterator[tuple[int, int]]:
    """First and last + 1 slice of slabs that cover a volume."""
    if depth is None:
        depth = max(1, _SLAB_VOXELS // max(1, shape[1] * shape[2]))
    for start in range(0, shape[0], depth):
        yield start, min(start + depth, shape[0])


def as_unsigned(slab: Any) -> NDArray[Any]:
    """Labels as the compiled passes take them: C-contiguous, unsigned, writable view or copy.

    Raises:
        InputError: for negative labels.
    """
    array = np.ascontiguousarray(slab)
    if array.dtype.kind == "i" and array.size and int(array.min()) < 0:
        raise InputError(
            f"labels go down to {int(array.min())}; they must be 0 (background) or more",
            hint="replace negative values by 0 first",
        )
    if not array.flags.writeable:
        array = array.copy()
    return array.view(np.dtype(f"u{array.dtype.itemsize}"))


# --- Private helpers ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Scan:
    """What later slices need of a slice."""

    rank: int
    offset: int
    row: NDArray[np.int64]
    runs: NDArray[np.int32]
    area: NDArray[np.float64]


def _pairs(
    recent: deque[_Scan], scans: Iterable[_Scan], max_distance_z: int
) -> Iterator[tuple[_Scan, _Scan]]:
    """Slices near enough to each other; ``recent`` moves on."""
    for scan in scans:
        for before in recent:
            if scan.rank - before.rank <= max_distance_z:
                yield before, scan
        recent.append(scan)


class _Tables:
    """The graph while it grows."""

    def __init__(self, n_slices: int) -> None:
        self.n = 0
        self._counts = np.zeros(n_slices + 1, np.int64)
        self._rank: list[NDArray[Any]] = []
        self._label: list[NDArray[Any]] = []
        self._moments: list[NDArray[Any]] = []
        self._first: list[NDArray[Any]] = []
        self._edges: list[NDArray[Any]] = []

    def add(
        self,
        z: int,
        rank: int,
        labels: NDArray[np.uint64],
        moments: NDArray[np.float64],
        first: NDArray[np.int64],
    ) -> None:
        """Sections of a slice."""
        self.n += len(labels)
        self._counts[z + 1] = len(labels)
        self._rank.append(np.full(len(labels), rank))
        self._label.append(labels)
        self._moments.append(moments)
        self._first.append(first)

    def connect(self, a: _Scan, b: _Scan, found: NDArray[np.int64]) -> None:
        """Overlaps of two slices, in no order."""
        edges = np.empty((len(found), 4), np.int64)
        edges[:, 0] = found[:, 0] + a.offset
        edges[:, 1] = found[:, 1] + b.offset
        edges[:, 2] = b.rank - a.rank
        edges[:, 3] = found[:, 2]
        self._edges.append(edges)

    def finish(self) -> OverlapGraph:
        """The whole graph."""
        moments = _joined(self._moments, np.zeros((0, 3)))
        edges = _joined(self._edges, np.zeros((0, 4), np.int64))
        order = np.argsort(edges[:, 0] * max(1, self.n) + edges[:, 1])
        return OverlapGraph(
            offset=np.cumsum(self._counts),
            rank=_joined(self._rank, np.zeros(0, np.int64)),
            label=_joined(self._label, np.zeros(0, np.uint64)),
            area=moments[:, 0].astype(np.int64),
            centroid=moments[:, 1:] / moments[:, :1],
            first=_joined(self._first, np.zeros(0, np.int64)),
            edges=edges[order],
        )


def _joined(parts: list[NDArray[Any]], empty: NDArray[Any]) -> NDArray[Any]:
    return np.concatenate(parts) if parts else empty


def _check(labels: LazyArray, max_distance_z: int) -> None:
    if labels.dtype.kind not in "uib":
        raise InputError(
            f"labels have dtype {labels.dtype}, expected integers",
            hint="threshold probabilities and number the objects of every slice first",
        )
    if labels.ndim != 3:
        raise InputError(
            f"labels have {labels.ndim} axes, expected (z, y, x)",
            hint="linking joins the objects of slices; an image has only one",
        )
    if max_distance_z < 1:
        raise InputError(f"max_distance_z is {max_distance_z}, expected 1 or more")
