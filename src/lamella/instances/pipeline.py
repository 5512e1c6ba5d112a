"""Cleaning labels larger than memory: the steps of :mod:`lamella.instances.clean`, slab by slab.

Every step makes a lazy array of the one before; provisional ids of connected pieces lie in scratch
files. The result is, voxel for voxel, that of the functions in memory.

Examples:
    >>> import numpy as np, tempfile
    >>> labels = np.array([[1, 1, 0, 1], [1, 1, 0, 0]], np.uint8)
    >>> with tempfile.TemporaryDirectory() as scratch:
    ...     cleaned = clean_labels(labels, CleanOptions(min_size=2), scratch=scratch)
    ...     cleaned[:, :].tolist()
    [[1, 1, 0, 0], [1, 1, 0, 0]]
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamella.core.errors import InputError
from lamella.core.progress import Progress, ProgressSink, SilentSink
from lamella.instances.clean import count_voxels, fill_holes, neighbour_range
from lamella.instances.components import ObjectCount, id_dtype, label_components_blockwise
from lamella.volume.source import FunctionArray, LazyArray

__all__ = ["CleanOptions", "clean_labels"]

_SLAB_VOXELS = 2**24


@dataclass(frozen=True, slots=True)
class CleanOptions:
    """What to clean, in the order in which it is done.

    Attributes:
        fill_holes: fill background that one object encloses.
        per_slice: fill holes of every (y, x) slice on its own.
        max_hole: fill only holes of at most this many voxels; None = any.
        min_size: drop what has fewer voxels; 0 drops nothing.
        keep_largest: keep the largest connected piece of every label.
        are_objects: a label is one object, connected or not, so sizes are those of labels; else
            sizes are those of connected pieces.
        connectivity: of pieces; None = 26, 8 in 2-D.
        relabel: renumber labels 1..n in the order of their ids.
    """

    fill_holes: bool = False
    per_slice: bool = False
    max_hole: float | None = None
    min_size: float = 0
    keep_largest: bool = False
    are_objects: bool = False
    connectivity: int | None = None
    relabel: bool = False

    def __post_init__(self) -> None:
        for name in ("min_size", "max_hole"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise InputError(f"{name} is {value}, expected 0 or more")


def clean_labels(
    labels: LazyArray,
    options: CleanOptions,
    *,
    scratch: str | Path,
    sink: ProgressSink | None = None,
) -> LazyArray:
    """Clean labels lazily.

    Args:
        labels: integers, (z, y, x) or (y, x); 0 is background.
        options: what to clean.
        scratch: folder for provisional ids (4 bytes a voxel and step); must outlive the result.
        sink: for progress and cancellation.

    Returns:
        A lazy array of the same shape and dtype (uint32 or uint64 when relabelled).

    Raises:
        InputError: for labels that are not integers, or negative.
        RunCancelledError: when the sink says so.
    """
    sink = sink or SilentSink()
    folder = Path(scratch)
    result = labels
    if options.fill_holes:
        result = _filled(result, options, folder, sink)
    if options.keep_largest or (options.min_size > 1 and not options.are_objects):
        result = _without_pieces(result, options, folder, sink)
    if (options.min_size > 1 and options.are_objects) or options.relabel:
        result = _without_labels(result, options, sink)
    return result


def _filled(
    labels: LazyArray, options: CleanOptions, folder: Path, sink: ProgressSink
) -> LazyArray:
    """Holes filled; see :func:`lamella.instances.fill_holes`."""
    if options.per_slice and labels.ndim == 3:

        def read_planes(box: tuple[slice, ...]) -> NDArray[Any]:
            planes = np.asarray(labels[box[0]])
            return fill_holes(planes, max_size=options.max_hole, per_slice=True)[:, *box[1:]]

        return FunctionArray(labels.shape, labels.dtype, read_planes)

    background = FunctionArray(labels.shape, np.bool_, lambda box: np.asarray(labels[box]) == 0)
    pieces, found = _pieces(background, 4 if labels.ndim == 2 else 6, folder, sink)
    lowest, highest, is_open, sizes = _surroundings(labels, pieces, found.count, sink)
    is_hole = (lowest == highest) & (highest > 0) & ~is_open
    if options.max_hole is not None:
        is_hole &= sizes <= options.max_hole
    fill = np.where(is_hole, highest, 0).astype(labels.dtype)

    def read(box: tuple[slice, ...]) -> NDArray[Any]:
        values = np.asarray(labels[box])
        return np.where(values == 0, fill[np.asarray(pieces[box])], values)

    return FunctionArray(labels.shape, labels.dtype, read)


def _surroundings(
    labels: LazyArray, pieces: LazyArray, count: int, sink: ProgressSink
) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.bool_], NDArray[np.int64]]:
    """Per background piece: smallest and largest neighbour, open to the border or not, voxels."""
    top = 1 if labels.dtype == np.bool_ else np.iinfo(labels.dtype).max
    lowest = np.full(count + 1, top, labels.dtype)
    highest = np.zeros(count + 1, labels.dtype)
    is_open = np.zeros(count + 1, bool)
    is_open[0] = True
    sizes = np.zeros(count + 1, np.int64)
    last = labels.shape[0]
    for start, stop in _slabs(labels.shape):
        sink.check()
        # One plane more, so that neighbours across slabs are seen.
        reach = slice(start, min(stop + 1, last))
        values, ids = np.asarray(labels[reach]), np.asarray(pieces[reach])
        low, high = neighbour_range(values, ids, count)
        # Pieces without neighbours here are (0, 0) and say nothing.
        lowest = np.where(high > 0, np.minimum(lowest, low), lowest)
        highest = np.maximum(highest, high)
        own = ids[: stop - start]
        sizes += np.bincount(own.ravel(), minlength=count + 1)
        for axis in range(1, labels.ndim):
            for side in (0, -1):
                is_open[np.take(own, side, axis=axis).ravel()] = True
        if start == 0:
            is_open[own[0].ravel()] = True
        if stop == last:
            is_open[own[-1].ravel()] = True
        sink.emit(Progress("holes", stop, last, "slices"))
    return lowest, highest, is_open, sizes


def _without_pieces(
    labels: LazyArray, options: CleanOptions, folder: Path, sink: ProgressSink
) -> LazyArray:
    """Small pieces, and all but the largest piece of every label, taken out."""
    pieces, found = _pieces(labels, options.connectivity, folder, sink)
    sizes = np.zeros(found.count + 1, np.int64)
    for start, stop in _slabs(labels.shape):
        sink.check()
        sizes += np.bincount(np.asarray(pieces[start:stop]).ravel(), minlength=found.count + 1)
        sink.emit(Progress("counting", stop, labels.shape[0], "slices"))
    is_kept = np.ones(found.count + 1, bool)
    if not options.are_objects:
        is_kept = sizes >= options.min_size
    if options.keep_largest:
        is_kept &= _is_largest(sizes, found.classes)
    is_kept[0] = False

    def read(box: tuple[slice, ...]) -> NDArray[Any]:
        values = np.asarray(labels[box])
        return np.where(is_kept[np.asarray(pieces[box])], values, np.zeros((), values.dtype))

    return FunctionArray(labels.shape, labels.dtype, read)


def _without_labels(labels: LazyArray, options: CleanOptions, sink: ProgressSink) -> LazyArray:
    """Small labels taken out; the rest renumbered if asked for."""
    ids, counts = np.zeros(0, labels.dtype), np.zeros(0, np.int64)
    for start, stop in _slabs(labels.shape):
        sink.check()
        more_ids, more_counts = count_voxels(np.asarray(labels[start:stop]))
        ids, index = np.unique(np.concatenate([ids, more_ids]), return_inverse=True)
        total = np.zeros(len(ids), np.int64)
        np.add.at(total, index, np.concatenate([counts, more_counts]))
        counts = total
        sink.emit(Progress("counting", stop, labels.shape[0], "slices"))
    ids = ids[counts >= options.min_size]
    new = ids
    if options.relabel:
        new = np.arange(1, len(ids) + 1, dtype=id_dtype(len(ids)))

    def read(box: tuple[slice, ...]) -> NDArray[Any]:
        values = np.asarray(labels[box])
        if not len(ids):
            return np.zeros(values.shape, new.dtype)
        at = np.minimum(np.searchsorted(ids, values), len(ids) - 1)
        return np.where(ids[at] == values, new[at], np.zeros((), new.dtype))

    return FunctionArray(labels.shape, new.dtype, read)


def _pieces(
    labels: LazyArray, connectivity: int | None, folder: Path, sink: ProgressSink
) -> tuple[LazyArray, ObjectCount]:
    """Connected pieces, numbered in a scratch file."""
    created: list[NDArray[Any]] = []

    def create(dtype: np.dtype[Any]) -> NDArray[Any]:
        if 0 in labels.shape:
            created.append(np.zeros(labels.shape, dtype))
        else:
            # The file goes with the folder; a name of its own lets steps share the folder.
            with tempfile.NamedTemporaryFile(dir=folder, suffix=".ids", delete=False) as file:
                created.append(np.memmap(file.name, dtype, "w+", shape=tuple(labels.shape)))
        return created[0]

    plane = max(1, int(np.prod(labels.shape[1:], dtype=np.int64)))
    found = label_components_blockwise(
        labels,
        create,
        connectivity=connectivity,
        slab_depth=max(1, _SLAB_VOXELS // plane),
        sink=sink,
    )
    return created[0], found


def _is_largest(sizes: NDArray[np.int64], classes: NDArray[Any]) -> NDArray[np.bool_]:
    """The largest piece of every class; of equally large ones the first in scan order."""
    order = np.lexsort((np.arange(len(sizes)), -sizes, classes))
    order = order[order != 0]
    _, first = np.unique(classes[order], return_index=True)
    result = np.zeros(len(sizes), bool)
    result[order[first]] = True
    return result


def _slabs(shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    plane = max(1, int(np.prod(shape[1:], dtype=np.int64)))
    depth = max(1, _SLAB_VOXELS // plane)
    for start in range(0, shape[0], depth):
        yield start, min(start + depth, shape[0])
