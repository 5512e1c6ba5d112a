"""The loop: tiles are read ahead, run, blended, decoded and written behind.

Three threads and two short queues::

    reader  ──tiles──▶  caller: network → band  ──layers──▶  writer
    (slabs, normalise)  (the only one that talks to the sink) (grid, disk, journal)

The caller submits tile i + 1 before it blends tile i, so a pipelined runtime never waits. Every
order that matters for the bits of the result is fixed by the plan alone.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lamella.inference.band import Band, gaussian_weights
from lamella.inference.decode import Decoder
from lamella.inference.journal import Journal, JournalState
from lamella.inference.layers import GridMap, LayerStore, LayerWriter
from lamella.inference.plan import Column, Plan, Row
from lamella.inference.runtime import Runtime, as_pipelined
from lamella.inference.slab import Slabs, Window
from lamella.volume.box import Box
from lamella.volume.grid import Tile

__all__ = [
    "Execution",
    "Listener",
    "LogitOutlet",
    "TileCount",
    "count_tiles",
    "execute",
    "execute_block",
]

READ_AHEAD = 2
# Means of finished layers are handed on in pieces of about this size.
OUTLET_BYTES = 32 << 20


class Listener(Protocol):
    """What the loop tells, always from the thread that called :func:`execute`."""

    def check(self) -> None:
        """Raise to stop; called between tiles."""
        ...

    def tiles(self, done: int, total: int, eta_s: float | None) -> None:
        """So many tiles are done."""
        ...

    def finished(self, box: Box) -> None:
        """The labels of a box, (z, y, x) of the input, are on disk."""
        ...


class LogitOutlet(Protocol):
    """Takes mean logits of finished layers where these are more than decoded; a context manager.

    Contract:
        * leaving the context waits until everything is written, or, after an error, stops;
        * layers come once each in the order of z; those before the first one that an unfinished
          label layer needs are meaningless after a resumption, and are to be passed over.
    """

    def put(self, logits: NDArray[np.float32], start: int, /) -> None:
        """Take layers, (k, z, y, x), the first at ``start`` on the network's grid."""
        ...

    def take_finished(self) -> list[Box]:
        """Boxes of labels that became durable since the last call."""
        ...

    def __enter__(self) -> LogitOutlet: ...

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None: ...


@dataclass(frozen=True, slots=True)
class TileCount:
    """Tiles finished, those of an earlier run included, and tiles planned."""

    done: int
    planned: int


@dataclass(frozen=True, slots=True)
class Execution:
    """Everything the loop needs.

    Attributes:
        plan: positions of the tiles on the network's grid.
        source: normalised intensities on the network's grid.
        runtime: opened for batches of the plan's tile.
        decoder: turns logits into labels.
        grid: between the network's grid and the labels'.
        labels: receives labels; None drops them.
        probabilities: receives what the decoder leaves beside labels; None drops it.
        journal: records finished layers; None for a run that cannot be resumed.
        done: what an earlier run has finished.
        weights: of a tile's voxels, float32; a Gaussian (or none, for ``crop``) unless given.
        outlet: opens, for the number of a column and its first unfinished label layer, what takes
            mean logits in place of ``labels`` and ``probabilities``.
    """

    plan: Plan
    source: Slabs
    runtime: Runtime
    decoder: Decoder
    grid: GridMap
    labels: LayerStore | None
    probabilities: LayerStore | None = None
    journal: Journal | None = None
    done: JournalState = field(default_factory=JournalState)
    weights: NDArray[np.float32] | None = None
    outlet: Callable[[int, int], LogitOutlet] | None = None


def execute(execution: Execution, listener: Listener) -> TileCount:
    """Run all tiles that are not done.

    Args:
        execution: what to run.
        listener: hears of tiles and finished boxes, and may stop the run.

    Returns:
        Tiles done and planned; equal unless the listener stopped the run by raising.

    Raises:
        RunCancelledError: from ``listener.check``; what is finished stays.
        EngineError: when the network fails.
        StorageError: when labels cannot be written.
    """
    plan = execution.plan
    weights = _weights(execution)
    counter = _Counter(plan.n_tiles, listener)
    for number, column in enumerate(plan.columns):
        first_layer = execution.done.finished(number)
        first_row = _first_row(execution, first_layer)
        counter.skip(first_row * plan.n_tiles_per_row(column))
        if first_row < len(plan.rows):
            rows = plan.rows[first_row:]
            _run_column(execution, number, rows, weights, counter)
    return TileCount(counter.done, plan.n_tiles)


def execute_block(execution: Execution, block: Box, listener: Listener) -> TileCount:
    """Run the tiles that reach a block, and write the labels of this block only.

    Every voxel of it receives the tiles that it receives in :func:`execute`, in the same order: the
    labels are the same, bit for bit, however the volume is cut.

    Args:
        execution: what to run; columns, journal, ``done`` and ``outlet`` are passed over.
        block: of the labels, (z, y, x), made of whole storage units.
        listener: hears of tiles and finished boxes, and may stop the run.

    Raises:
        RunCancelledError: from ``listener.check``.
        EngineError: when the network fails.
        StorageError: when labels cannot be written.
    """
    part = _part(execution, block)
    rows = _rows_of(part, block)
    count = len(rows) * part.plan.n_tiles_per_row(part.plan.columns[0])
    counter = _Counter(count, listener)
    stop = block.stop[0]
    _run_column(part, 0, rows, _weights(part), counter, stop_layer=stop)
    return TileCount(counter.done, count)


def count_tiles(execution: Execution, block: Box) -> int:
    """How many tiles :func:`execute_block` runs."""
    part = _part(execution, block)
    return len(_rows_of(part, block)) * part.plan.n_tiles_per_row(part.plan.columns[0])


def _part(execution: Execution, block: Box) -> Execution:
    """The column of a block, begun where the block begins."""
    output = Box(block.start[1:], block.stop[1:])
    column = Column(execution.grid.region(output), output)
    return replace(
        execution,
        plan=replace(execution.plan, columns=(column,)),
        journal=None,
        done=JournalState(layers={0: block.start[0]}),
        outlet=None,
    )


def _rows_of(part: Execution, block: Box) -> tuple[Row, ...]:
    """Rows from the first that reaches the block to the one after which its last layer is final."""
    rows = part.plan.rows
    last = part.grid.network_position(0, block.stop[0] - 1)
    stop = next(i for i, row in enumerate(rows, 1) if row.leave[1] > last)
    return rows[_first_row(part, block.start[0]) : stop]


def _weights(execution: Execution) -> NDArray[np.float32]:
    if execution.weights is not None:
        return execution.weights
    tile = execution.plan.tile
    is_gaussian = execution.plan.blend == "gaussian"
    return gaussian_weights(tile) if is_gaussian else np.ones(tile, np.float32)


def _first_row(execution: Execution, first_layer: int) -> int:
    """The first row whose tiles reach a layer that is not finished."""
    plan, grid = execution.plan, execution.grid
    rows = plan.rows
    if first_layer >= grid.shape[0]:
        return len(rows)
    z = grid.network_position(0, first_layer)
    for i, row in enumerate(rows):
        reach = row.span.write[1] if plan.blend == "crop" else row.span.read[1]
        if reach > z:
            return i
    return len(rows)


class _Counter:
    """Counts tiles and guesses the time that is left from this session's pace."""

    def __init__(self, planned: int, listener: Listener) -> None:
        self.done = 0
        self.listener = listener
        self._planned = planned
        self._here = 0
        self._began = time.monotonic()

    def skip(self, n: int) -> None:
        self.done += n

    def add(self, n: int) -> None:
        self.done += n
        self._here += n
        pace = (time.monotonic() - self._began) / max(1, self._here)
        self.listener.tiles(self.done, self._planned, pace * (self._planned - self.done))


@dataclass(frozen=True, slots=True)
class _Planned:
    """A tile of a batch; ``row`` is set on the last tile of a row, which then leaves the band."""

    tile: Tile
    row: Row | None


@dataclass(frozen=True, slots=True)
class _Batch:
    data: NDArray[np.float32]
    tiles: tuple[_Planned, ...]


def _run_column(
    execution: Execution,
    number: int,
    rows: tuple[Row, ...],
    weights: NDArray[np.float32],
    counter: _Counter,
    *,
    stop_layer: int | None = None,
) -> None:
    plan, listener = execution.plan, counter.listener
    column = plan.columns[number]
    runtime = as_pipelined(execution.runtime)
    band = Band(
        execution.decoder,
        depth=plan.tile[0],
        region=column.region,
        n_layers=plan.shape[0],
        has_means=execution.outlet is not None,
    )
    exit_ = _open_exit(execution, number, stop_layer)
    pending: deque[tuple[_Batch, Callable[[], NDArray[np.float32]]]] = deque()
    reader = _Reader(execution, column, rows, runtime.n_in_flight)

    def blend_oldest() -> None:
        batch, fetch = pending.popleft()
        logits = fetch()
        logits = logits.reshape(logits.shape[0], logits.shape[1], *plan.tile)
        for planned, tile_logits in zip(batch.tiles, logits, strict=False):
            tile = planned.tile
            write = tile.write if plan.blend == "crop" else None
            band.add(tile_logits, weights, tile.read, write)
            if planned.row is not None:
                _leave(band, exit_, planned.row)
        reader.give_back(batch.data)
        counter.add(len(batch.tiles))
        for box in exit_.take_finished():
            listener.finished(box)

    with exit_, reader:
        for batch in reader:
            listener.check()
            pending.append((batch, runtime.submit(batch.data.reshape(runtime.batch_shape))))
            if len(pending) >= runtime.n_in_flight:
                blend_oldest()
        while pending:
            blend_oldest()
    for box in exit_.take_finished():
        listener.finished(box)


def _open_exit(
    execution: Execution, number: int, stop_layer: int | None = None
) -> LayerWriter | LogitOutlet:
    """What takes the layers that leave the band of a column."""
    first_layer = execution.done.finished(number)
    if execution.outlet is not None:
        return execution.outlet(number, first_layer)
    return LayerWriter(
        (execution.labels, execution.probabilities),
        column=execution.plan.columns[number],
        grid=execution.grid,
        first_layer=first_layer,
        stop_layer=stop_layer,
        journal=None if execution.journal is None else (execution.journal, number),
    )


def _leave(band: Band, exit_: LayerWriter | LogitOutlet, row: Row) -> None:
    """Hand on what is final after a row."""
    start, stop = row.leave
    if isinstance(exit_, LayerWriter):
        exit_.put(band.leave(start, stop), start)
        return
    step = max(1, OUTLET_BYTES // max(1, band.layer_bytes))
    for first in range(start, stop, step):
        last = min(stop, first + step)
        exit_.put(band.leave_means(first, last), first)


class _Reader:
    """Cuts normalised tiles out of the source, in its own thread; iterable and a context manager.

    Buffers go round: a batch's memory is used again once :meth:`give_back` says so.
    """

    def __init__(
        self, execution: Execution, column: Column, rows: tuple[Row, ...], n_in_flight: int
    ) -> None:
        self._execution = execution
        self._column = column
        self._rows = rows
        self._n = execution.runtime.batch_shape[0]
        shape = (self._n, execution.source.n_channels, *execution.plan.tile)
        self._free: queue.Queue[NDArray[np.float32]] = queue.Queue()
        for _ in range(READ_AHEAD + n_in_flight + 1):
            self._free.put(np.zeros(shape, np.float32))
        self._ready: queue.Queue[_Batch | BaseException | None] = queue.Queue(READ_AHEAD)
        self._is_stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lamella-reader", daemon=True)

    def __enter__(self) -> _Reader:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_stopped.set()
        # The thread may wait for a buffer or for room in the queue: give it both until it ends.
        while self._thread.is_alive():
            self._free.put(np.zeros(0, np.float32))
            try:
                self._ready.get(timeout=0.01)
            except queue.Empty:
                continue

    def __iter__(self) -> Iterator[_Batch]:
        while (batch := self._ready.get()) is not None:
            if isinstance(batch, BaseException):
                raise batch
            yield batch

    def give_back(self, data: NDArray[np.float32]) -> None:
        """The caller is done with a batch's memory."""
        self._free.put(data)

    def _run(self) -> None:
        try:
            for batch in self._batches():
                self._ready.put(batch)
                if self._is_stopped.is_set():
                    return
            self._ready.put(None)
        except BaseException as error:  # noqa: BLE001 - handed to the caller
            self._ready.put(error)

    def _batches(self) -> Iterator[_Batch]:
        plan = self._execution.plan
        window = Window(self._execution.source, region=self._reach(), depth=plan.tile[0])
        tiles: list[_Planned] = []
        data = self._free.get()
        for row in self._rows:
            window.advance(*row.span.read)
            of_row = plan.tiles(self._column, row)
            for i, tile in enumerate(of_row):
                if self._is_stopped.is_set():
                    return
                window.copy_tile(tile.read, data[len(tiles)])
                tiles.append(_Planned(tile, row if i == len(of_row) - 1 else None))
                if len(tiles) == self._n:
                    yield _Batch(data, tuple(tiles))
                    tiles, data = [], self._free.get()
        if tiles:
            data[len(tiles) :] = 0
            yield _Batch(data, tuple(tiles))

    def _reach(self) -> Box:
        """The (y, x) box that the tiles of the column read, within the source."""
        plan = self._execution.plan
        reads = [tile.read for tile in plan.tiles(self._column, plan.rows[0])]
        start = tuple(max(0, min(read.start[axis] for read in reads)) for axis in (1, 2))
        stop = tuple(
            min(plan.shape[axis], max(read.stop[axis] for read in reads)) for axis in (1, 2)
        )
        return Box(start, stop)
