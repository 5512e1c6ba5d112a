"""Finished layers on their way to disk: brought to the input's grid, gathered, written, recorded.

Storage is written in whole units (chunks, or shards) and each unit exactly once, so layers are
gathered until a unit is full; only then are they written, flushed to disk and recorded in the
journal. All of this happens in a thread of its own while the network runs.

Examples:
    >>> grid = GridMap.make((4, 2, 2), (8, 2, 2))
    >>> grid.layers_of(0, 4), grid.is_identity
    ((0, 2), False)
"""

from __future__ import annotations

import itertools
import os
import queue
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lamella.inference.band import Layers
from lamella.inference.journal import Journal
from lamella.inference.plan import Column
from lamella.inference.resample import nearest_index
from lamella.io.format import storage_errors
from lamella.io.label_store import LabelStore
from lamella.volume.box import Box

__all__ = [
    "GridMap",
    "LabelLayers",
    "LayerStore",
    "LayerWriter",
    "ProbabilityLayers",
    "SplitLayers",
]


class LayerStore(Protocol):
    """Where finished layers go.

    Contract:
        * ``write`` is called once for every box, and boxes are whole storage units (cut at the
          border of the array);
        * once ``sync`` has returned, everything written before survives a crash.
    """

    @property
    def unit(self) -> tuple[int, int, int]:
        """What must be written at once, (z, y, x) voxels."""
        ...

    def write(self, box: Box, values: NDArray[Any]) -> None:
        """Write labels (z, y, x), or probabilities (p, z, y, x), of a box."""
        ...

    def sync(self) -> None:
        """Make durable what was written."""
        ...


class LabelLayers:
    """The labels of a run as a store.

    Args:
        store: OME-Zarr labels with the axes (z) y x.
    """

    def __init__(self, store: LabelStore) -> None:
        self._store = store
        self._n_spatial = len(store.shape)
        self.unit = _as_3d(store.unit)

    def write(self, box: Box, values: NDArray[Any]) -> None:
        """Write a box."""
        if self._n_spatial == 3:
            self._store.write(box, values)
        else:
            self._store.write(Box(box.start[1:], box.stop[1:]), values[0])

    def sync(self) -> None:
        """Make durable what was written."""
        self._store.sync()


class ProbabilityLayers:
    """Probability maps of a run: a plain zarr array with the axes p (z) y x, 255 = 1.0.

    Args:
        path: folder of the array; made unless it exists.
        shape: spatial shape, (z, y, x) or (y, x).
        n_maps: number of maps.
        unit: chunk of the labels beside it, (z, y, x); the maps use the same.
        restart: begin anew.
    """

    def __init__(
        self,
        path: Path,
        *,
        shape: tuple[int, ...],
        n_maps: int,
        unit: tuple[int, int, int],
        restart: bool,
    ) -> None:
        import shutil

        import zarr

        self._path = path
        self._n_spatial = len(shape)
        self.unit = unit
        with storage_errors(path):
            if restart and path.exists():
                shutil.rmtree(path)
            if path.exists():
                self.array = zarr.open_array(str(path), mode="r+")
            else:
                self.array = zarr.create_array(
                    str(path),
                    shape=(n_maps, *shape),
                    chunks=(n_maps, *unit[3 - len(shape) :]),
                    dtype=np.uint8,
                    fill_value=0,
                    dimension_names=("c", *("z", "y", "x")[3 - len(shape) :]),
                )
        self._written: list[Box] = []

    def write(self, box: Box, values: NDArray[Any]) -> None:
        """Write a box of all maps."""
        slices = box.slices()[3 - self._n_spatial :]
        with storage_errors(self._path):
            self.array[(slice(None), *slices)] = values if self._n_spatial == 3 else values[:, 0]
        self._written.append(box)

    def sync(self) -> None:
        """Make durable what was written."""
        with storage_errors(self._path):
            for box in self._written:
                chunks = [
                    range(a // u, -(-b // u))
                    for a, b, u in zip(box.start, box.stop, self.unit, strict=True)
                ][3 - self._n_spatial :]
                for index in itertools.product(*chunks):
                    _sync(self._path.joinpath("c", "0", *map(str, index)))
                _sync(self._path)
        self._written.clear()


class SplitLayers:
    """Several stores that share the maps of one decoder, each with its part of them.

    Args:
        parts: a store, and the maps that go there; the stores have the same unit.
    """

    def __init__(self, parts: Sequence[tuple[LayerStore, slice]]) -> None:
        self._parts = tuple(parts)
        self.unit = self._parts[0][0].unit

    def write(self, box: Box, values: NDArray[Any]) -> None:
        """Write a box of all maps."""
        for store, maps in self._parts:
            store.write(box, values[maps])

    def sync(self) -> None:
        """Make durable what was written."""
        for store, _ in self._parts:
            store.sync()


def _as_3d(unit: tuple[int, ...]) -> tuple[int, int, int]:
    z, y, x = (1,) * (3 - len(unit)) + tuple(unit)
    return z, y, x


def _sync(path: Path) -> None:
    """Flush a file and the folder that names it; chunks of nothing but zeros have no file."""
    if not path.exists():
        return
    for item in (path, path.parent):
        if item.is_dir() and os.name != "posix":
            continue  # Windows cannot open folders, and makes their entries durable itself
        handle = os.open(item, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@dataclass(frozen=True, slots=True)
class GridMap:
    """From the input's grid, where labels are wanted, to the network's grid, where they arise.

    Attributes:
        index: per axis the nearest voxel of the network's grid for each voxel of the input's;
            None where the axes are the same.
        shape: extent of the input's grid, (z, y, x).
    """

    index: tuple[NDArray[np.int64] | None, ...]
    shape: tuple[int, int, int]

    @classmethod
    def make(cls, shape: tuple[int, int, int], network_shape: tuple[int, int, int]) -> GridMap:
        """The map between two grids over the same extent."""
        index = tuple(
            None if a == b else nearest_index(a, b)
            for a, b in zip(shape, network_shape, strict=True)
        )
        return cls(index, shape)

    @property
    def is_identity(self) -> bool:
        """Whether both grids are the same."""
        return all(axis is None for axis in self.index)

    def network_position(self, axis: int, at: int) -> int:
        """Voxel of the network's grid that gives voxel ``at`` of the input's."""
        index = self.index[axis]
        return at if index is None else int(index[at])

    def region(self, output: Box) -> Box:
        """What a (y, x) box of the input's grid needs of the network's."""
        start = tuple(self.network_position(i + 1, a) for i, a in enumerate(output.start))
        stop = tuple(self.network_position(i + 1, b - 1) + 1 for i, b in enumerate(output.stop))
        return Box(start, stop)

    def layers_of(self, start: int, stop: int) -> tuple[int, int]:
        """Layers of the input's grid that layers ``start`` to ``stop`` of the network's give."""
        index = self.index[0]
        if index is None:
            return start, stop
        first, last = np.searchsorted(index, (start, stop))
        return int(first), int(last)

    def pick(self, axis: int, start: int, stop: int, offset: int) -> NDArray[np.int64] | None:
        """Where voxels ``start`` to ``stop`` lie in an array that begins at ``offset``."""
        index = self.index[axis]
        return None if index is None else index[start:stop] - offset


@dataclass(frozen=True, slots=True)
class _Job:
    layers: Layers
    start: int
    """z of the first layer on the network's grid."""


class LayerWriter:
    """Writes the finished layers of one column in its own thread; a context manager.

    Leaving the context waits until everything is written, or, after an error of the caller's,
    stops after the job at hand. An error of the thread is raised by the next ``put`` or ``close``.

    Args:
        stores: of labels and of probabilities (None = dropped).
        column: what is written.
        grid: between the network's grid and the labels'.
        first_layer: layers before this one are on disk already and are dropped.
        stop_layer: layers from this one on are somebody else's and are dropped; a multiple of the
            stores' unit, or None for the end of the volume.
        journal: journal and number of the column in it; told of every unit once it is durable.
    """

    QUEUE_LENGTH = 2

    def __init__(
        self,
        stores: tuple[LayerStore | None, LayerStore | None],
        *,
        column: Column,
        grid: GridMap,
        first_layer: int = 0,
        stop_layer: int | None = None,
        journal: tuple[Journal, int] | None = None,
    ) -> None:
        self._stop = grid.shape[0] if stop_layer is None else stop_layer
        self._stores = stores
        self._column = column
        self._grid = grid
        self._journal = journal
        units = [store.unit[0] for store in stores if store is not None]
        self._depth = units[0] if units else 1
        self._next = first_layer
        self._buffers: list[NDArray[Any] | None] = [None, None]
        self._jobs: queue.Queue[_Job | None] = queue.Queue(self.QUEUE_LENGTH)
        self._error: BaseException | None = None
        self._is_abandoned = threading.Event()
        self._finished: deque[Box] = deque()
        self._thread = threading.Thread(target=self._run, name="lamella-writer", daemon=True)
        self._thread.start()

    def put(self, layers: Layers, start: int) -> None:
        """Hand over decoded layers; waits while the disk is two jobs behind.

        Raises:
            StorageError: when an earlier job failed.
        """
        self._raise_error()
        self._jobs.put(_Job(layers, start))

    def take_finished(self) -> list[Box]:
        """Boxes of labels that became durable since the last call."""
        boxes: list[Box] = []
        while self._finished:
            boxes.append(self._finished.popleft())
        return boxes

    def close(self) -> None:
        """Wait for everything to be written.

        Raises:
            StorageError: when a job failed.
        """
        self._jobs.put(None)
        self._thread.join()
        self._raise_error()

    def __enter__(self) -> LayerWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
            return
        self._is_abandoned.set()
        self._jobs.put(None)
        self._thread.join()

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            if self._error is not None or self._is_abandoned.is_set():
                continue  # keep emptying, so that ``put`` never waits for a dead thread
            try:
                self._take(job)
            except BaseException as error:  # noqa: BLE001 - handed to the caller
                self._error = error

    def _take(self, job: _Job) -> None:
        stop = job.start + job.layers.labels.shape[0]
        first, last = self._grid.layers_of(job.start, stop)
        output, region = self._column.output, self._column.region
        rows = self._grid.pick(1, output.start[0], output.stop[0], region.start[0])
        columns = self._grid.pick(2, output.start[1], output.stop[1], region.start[1])
        for layer in range(max(first, self._next), min(last, self._stop)):
            z = self._grid.network_position(0, layer) - job.start
            for which, values in enumerate((job.layers.labels, job.layers.probabilities)):
                if self._stores[which] is not None:
                    self._gather(which, values[..., z, :, :], layer, rows, columns)
            self._next = layer + 1
            if self._next % self._depth == 0 or self._next == self._stop:
                self._flush()

    def _gather(
        self,
        which: int,
        plane: NDArray[Any],
        layer: int,
        rows: NDArray[np.int64] | None,
        columns: NDArray[np.int64] | None,
    ) -> None:
        if rows is not None:
            plane = plane[..., rows, :]
        if columns is not None:
            plane = plane[..., columns]
        buffer = self._buffers[which]
        if buffer is None:
            shape = (*plane.shape[:-2], self._depth, *plane.shape[-2:])
            buffer = self._buffers[which] = np.empty(shape, plane.dtype)
        buffer[..., layer % self._depth, :, :] = plane

    def _flush(self) -> None:
        start = (self._next - 1) // self._depth * self._depth
        output = self._column.output
        box = Box((start, *output.start), (self._next, *output.stop))
        for store, buffer in zip(self._stores, self._buffers, strict=True):
            if store is not None:
                assert buffer is not None, "layers are gathered before they are flushed"
                store.write(box, buffer[..., : self._next - start, :, :])
        if self._journal is not None:
            for store in self._stores:
                if store is not None:
                    store.sync()
            journal, column = self._journal
            journal.add(column, self._next)
        self._finished.append(box)
