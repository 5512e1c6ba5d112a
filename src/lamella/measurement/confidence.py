"""How sure an engine was of each object: means of its confidence maps, in one pass and flat memory.

Examples:
    >>> labels = np.array([[[0, 7, 7, 9]]], np.uint16)
    >>> maps = np.array([0, 255, 51, 102], np.uint8).reshape(1, 1, 1, 4)
    >>> mean_by_object(labels, maps, np.array([7, 9], np.uint16)).tolist()
    [[0.6], [0.4]]
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamella.core.errors import GeometryError, InputError
from lamella.core.progress import Progress, ProgressSink, SilentSink
from lamella.volume.source import LazyArray

__all__ = ["mean_by_class", "mean_by_object"]

_BLOCK_BYTES = 64 * 2**20
"""Maps held at once; a chunk is decoded once where a row of chunks is no larger."""


def mean_by_object(
    labels: LazyArray,
    maps: LazyArray,
    ids: NDArray[Any],
    *,
    voxels: NDArray[np.int64] | None = None,
    sink: ProgressSink | None = None,
) -> NDArray[np.float64]:
    """Mean of every map over every object.

    Args:
        labels: unsigned or non-negative integers, (z, y, x) or (y, x); 0 is background.
        maps: uint8, 255 = 1.0, (m, [z,] y, x).
        ids: the objects wanted, without repetition.
        voxels: how many voxels each has, where that is known; counted otherwise.
        sink: progress and cancellation.

    Returns:
        Float64, (n objects, m); nan for ids that do not occur.

    Raises:
        InputError: for maps that are not uint8.
        GeometryError: when the shapes do not fit.
        RunCancelledError: when the sink says so.
    """
    from lamella.measurement.runs import add_map_runs, enter_ids

    _check(labels, maps)
    listener = sink or SilentSink()
    bits = np.dtype(f"u{np.dtype(labels.dtype).itemsize}")
    keys = ids.astype(bits)
    n_slots = 2 << max(1, len(keys)).bit_length()
    slots = np.full(n_slots, -1, np.int64)
    shift = np.uint64(64 - (n_slots.bit_length() - 1))
    enter_ids(keys, len(keys), slots, shift)
    # Where sizes are not known, a map of ones counts them.
    n_maps = int(maps.shape[0])
    sums = np.zeros((len(keys), n_maps + (voxels is None)), np.int64)
    extents = list(_blocks(maps))
    for done, block in enumerate(extents):
        listener.check()
        slab = _as_volume(np.asarray(labels[block]))
        values = np.asarray(maps[(slice(None), *block)]).reshape(n_maps, *slab.shape)
        if voxels is None:
            values = np.concatenate([values, np.ones((1, *slab.shape), np.uint8)])
        add_map_runs(
            np.ascontiguousarray(slab).view(bits),
            np.ascontiguousarray(values),
            (keys, slots, shift),
            sums,
        )
        listener.emit(Progress("confidence", done + 1, len(extents), "blocks"))
    counts = sums[:, -1] if voxels is None else voxels
    with np.errstate(invalid="ignore", divide="ignore"):
        means = sums[:, :n_maps] / (255.0 * counts[:, None])
    return np.where(counts[:, None] > 0, means, np.nan)


def mean_by_class(
    values: NDArray[np.float64], voxels: NDArray[np.int64], classes: NDArray[np.int64]
) -> dict[int, float]:
    """Mean over the voxels of every class, from the means of its objects.

    Args:
        values: mean of each object, nan where unknown.
        voxels: voxels of each object.
        classes: class of each object.

    Examples:
        >>> mean_by_class(np.array([0.5, 1.0]), np.array([3, 1]), np.array([2, 2]))
        {2: 0.625}
    """
    found: dict[int, float] = {}
    for value in np.unique(classes):
        own = (classes == value) & np.isfinite(values)
        total = int(voxels[own].sum())
        if total:
            found[int(value)] = float((values[own] * voxels[own]).sum() / total)
    return found


def _check(labels: LazyArray, maps: LazyArray) -> None:
    if np.dtype(maps.dtype) != np.uint8:
        raise InputError(
            f"confidence maps have dtype {maps.dtype}, expected uint8 with 255 = 1.0",
            hint="round(255 * value) in the engine that leaves them",
        )
    if tuple(maps.shape[1:]) != tuple(labels.shape):
        raise GeometryError(
            f"labels have shape {tuple(labels.shape)}, confidence maps {tuple(maps.shape)}:"
            " expected one map a measure, each on the grid of the labels"
        )


def _blocks(maps: LazyArray) -> Iterator[tuple[slice, ...]]:
    """Blocks of whole chunks, as wide in x as the maps are: runs are cut nowhere else."""
    *depth, height, width = (int(n) for n in maps.shape[1:])
    chunks = tuple(getattr(maps, "chunks", (0,) * (1 + len(depth)) + (64, 0)))[1:]
    rows = max(1, _BLOCK_BYTES // max(1, int(maps.shape[0]) * width))
    unit_z = max(1, chunks[0]) if depth else 1
    step_y = _multiple(chunks[-2], rows // unit_z, height)
    for z in _starts(depth, unit_z if step_y < height else _multiple(unit_z, rows // height)):
        for y in range(0, height, step_y):
            yield (*z, slice(y, min(y + step_y, height)), slice(0, width))


def _starts(depth: list[int], step: int) -> Iterator[tuple[slice, ...]]:
    """Extents along z; none for an image."""
    if not depth:
        yield ()
        return
    for z in range(0, depth[0], step):
        yield (slice(z, min(z + step, depth[0])),)


def _multiple(unit: int, wanted: int, limit: int | None = None) -> int:
    """The largest multiple of a chunk's extent that is no more than wanted, at least one."""
    unit = max(1, unit)
    found = unit * max(1, wanted // unit)
    return found if limit is None else max(1, min(found, limit))


def _as_volume(block: NDArray[Any]) -> NDArray[Any]:
    return block[None] if block.ndim == 2 else block
