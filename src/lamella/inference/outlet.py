r"""Mean logits of finished layers to labels on the input's grid, band by band.

Where a network works on another grid than the input's and its logits (or probabilities) have to be
interpolated before they are decided upon, they never exist as a whole: every layer that leaves the
tile loop is resampled in plane at once and kept only until the last label layer that it has a part
in is written. Two layers, not two volumes::

    network layers   z-1      z        leave the band, resampled in y and x
                       \\     /  \\
    label layers      i   i+1  i+2      mixed along z, decoded, gathered, written

It all happens in a thread of its own while the network runs. Work goes block of rows by block of
rows through the CPU's cache, on as many threads as there are cores. Labels are written in whole
storage units, each once, flushed to disk and only then recorded in the journal, as in
:mod:`lamella.inference.layers`.
"""

from __future__ import annotations

import itertools
import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lamella.inference.decode import Decoder
from lamella.inference.journal import Journal
from lamella.inference.layers import GridMap, LayerStore
from lamella.inference.operator import Operator
from lamella.volume.box import Box

__all__ = [
    "Adjust",
    "LabelSink",
    "OutputGrid",
    "Place",
    "Plane",
    "PlaneSink",
    "ResamplingOutlet",
    "iter_row_blocks",
    "mixed",
    "write_outside",
]

QUEUE_LENGTH = 1
# Elements of float32 that a thread works on at once: they stay in its cache.
_BLOCK_ELEMENTS = 1 << 17


@dataclass(frozen=True, slots=True)
class OutputGrid:
    """From the grid of the network to that of the input, axes in the same order.

    Attributes:
        shape: extent of the input.
        crop: the part that was run.
        network_shape: extent of that part on the grid of the network.
        along: per axis, the operator from the network's grid to the crop; None where they agree.
    """

    shape: tuple[int, int, int]
    crop: Box
    network_shape: tuple[int, int, int]
    along: tuple[Operator | None, Operator | None, Operator | None]

    def sources(self, axis: int, start: int, stop: int) -> tuple[int, int]:
        """Network voxels that give crop voxels ``start`` to ``stop`` of an axis."""
        operator = self.along[axis]
        return (start, stop) if operator is None else operator.block_sources(start, stop)

    def layer_sources(self, layer: int) -> tuple[int, int]:
        """Network layers that give a layer of the crop."""
        operator = self.along[0]
        if operator is None:
            return layer, layer + 1
        return int(operator.start[layer]), int(operator.stop[layer])

    def inside(self, output: Box) -> Box:
        """The part of a (y, x) box of the input that lies in the crop, in voxels of the crop."""
        crop = Box(self.crop.start[1:], self.crop.stop[1:])
        return output.intersect(crop).relative_to(crop)

    def region(self, output: Box) -> Box:
        """What a (y, x) box of the input needs of the network's grid."""
        part = self.inside(output)
        ends = [self.sources(1 + i, part.start[i], part.stop[i]) for i in range(2)]
        return Box(tuple(a for a, _ in ends), tuple(b for _, b in ends))

    def grid_map(self) -> GridMap:
        """For every layer of the input the first network layer it needs, to resume by."""
        first = [self.layer_sources(layer)[0] for layer in range(self.crop.shape[0])]
        before = [0] * self.crop.start[0]
        after = [self.network_shape[0] - 1] * (self.shape[0] - self.crop.stop[0])
        return GridMap((np.array(before + first + after, np.int64), None, None), self.shape)


Adjust = Callable[[NDArray[np.float32], int, slice, slice], NDArray[np.float32]]
"""Values (k, y, x), the layer, rows and columns of the input they are of → new values."""

Plane = tuple[Sequence[NDArray[np.float32]], NDArray[np.float32]]
"""Layers (k, y, x) and the weights with which their sum is one layer of the crop."""


class PlaneSink(Protocol):
    """Takes logits of one layer of the crop after another."""

    def take(self, layer: int, plane: Plane, pool: ThreadPoolExecutor, /) -> None:
        """Take a layer, numbered within the crop."""
        ...

    def close(self) -> None:
        """Write what is left; called once the last layer was taken."""
        ...

    def take_finished(self) -> list[Box]:
        """Boxes that became durable since the last call."""
        ...


class ResamplingOutlet:
    """Resamples the layers of one column in a thread of its own; a context manager.

    Args:
        grid: between network and input.
        output: (y, x) box of the input that the column writes.
        first_layer: layers of the crop before this one are done already.
        sink: takes the resampled layers.
        n_threads: for the blocks of rows.
        activate: turns a layer's logits (k, y, x) into what is interpolated; None = as they are.
    """

    def __init__(
        self,
        grid: OutputGrid,
        output: Box,
        *,
        first_layer: int,
        sink: PlaneSink,
        n_threads: int,
        activate: Callable[[NDArray[np.float32]], NDArray[np.float32]] | None = None,
    ) -> None:
        self._grid = grid
        self._part = grid.inside(output)
        self._region = grid.region(output)
        self._next = first_layer
        self._sink = sink
        self._activate = activate
        # Where layers become fewer, mixing them first leaves fewer to resample.
        self._mixes_first = grid.crop.shape[0] < grid.network_shape[0]
        self._held: deque[tuple[int, NDArray[np.float32]]] = deque()
        self._jobs: queue.Queue[tuple[NDArray[np.float32], int] | None] = queue.Queue(QUEUE_LENGTH)
        self._error: BaseException | None = None
        self._is_abandoned = threading.Event()
        self._finished: deque[Box] = deque()
        self._pool = ThreadPoolExecutor(n_threads, thread_name_prefix="lamella-export")
        self._thread = threading.Thread(target=self._run, name="lamella-outlet", daemon=True)
        self._thread.start()

    def put(self, logits: NDArray[np.float32], start: int) -> None:
        """Take layers (k, z, y, x) of the network's grid; waits while one job is behind.

        Raises:
            StorageError: when an earlier job failed.
        """
        self._raise_error()
        self._jobs.put((logits, start))

    def take_finished(self) -> list[Box]:
        """Boxes of labels that became durable since the last call."""
        boxes: list[Box] = []
        while self._finished:
            boxes.append(self._finished.popleft())
        return boxes

    def __enter__(self) -> ResamplingOutlet:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._is_abandoned.set()
        self._jobs.put(None)
        self._thread.join()
        self._pool.shutdown()
        if kind is None:
            self._raise_error()

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            self._guarded(job)
        if self._error is None and not self._is_abandoned.is_set():
            self._guarded(None)

    def _guarded(self, job: tuple[NDArray[np.float32], int] | None) -> None:
        if self._error is not None or self._is_abandoned.is_set():
            return  # keep emptying, so that ``put`` never waits for a dead thread
        try:
            if job is None:
                self._sink.close()
            else:
                self._take(*job)
            self._finished.extend(self._sink.take_finished())
        except BaseException as error:  # noqa: BLE001 - handed to the caller
            self._error = error

    def _take(self, logits: NDArray[np.float32], start: int) -> None:
        n_layers = self._grid.crop.shape[0]
        for z in range(start, start + logits.shape[1]):
            if self._next >= n_layers:
                return
            if z < self._grid.layer_sources(self._next)[0]:
                continue
            layer = logits[:, z - start]
            if self._activate is not None:
                layer = self._activate(layer)
            self._held.append((z, layer if self._mixes_first else self._in_plane(layer)))
            while self._next < n_layers and self._grid.layer_sources(self._next)[1] <= z + 1:
                self._emit(self._next)
                self._next += 1
                self._forget()

    def _forget(self) -> None:
        if self._next >= self._grid.crop.shape[0]:
            self._held.clear()
            return
        needed = self._grid.layer_sources(self._next)[0]
        while self._held and self._held[0][0] < needed:
            self._held.popleft()

    def _emit(self, layer: int) -> None:
        first, last = self._grid.layer_sources(layer)
        planes = [held for z, held in self._held if first <= z < last]
        operator = self._grid.along[0]
        taps = np.ones(1, np.float32) if operator is None else operator.taps[layer, : last - first]
        if self._mixes_first:
            mixed = planes[0] * taps[0]
            for tap, plane in zip(taps[1:], planes[1:], strict=True):
                mixed += plane * tap
            planes, taps = [self._in_plane(mixed)], np.ones(1, np.float32)
        self._sink.take(layer, (planes, taps), self._pool)

    def _in_plane(self, layer: NDArray[np.float32]) -> NDArray[np.float32]:
        """A layer (k, y, x) of the column's region on the crop's grid."""
        _, along_y, along_x = self._grid.along
        (y0, x0), (y1, x1) = self._part.start, self._part.stop
        offset_y, offset_x = self._region.start

        def resample(channel: NDArray[np.float32]) -> NDArray[np.float32]:
            if along_y is not None:
                channel = along_y.part(channel, axis=0, start=y0, stop=y1, offset=offset_y)
            if along_x is not None:
                channel = along_x.part(channel, axis=1, start=x0, stop=x1, offset=offset_x)
            return channel

        if along_y is None and along_x is None:
            return layer
        result = np.empty((len(layer), y1 - y0, x1 - x0), np.float32)

        def work(channel: int) -> None:
            result[channel] = resample(layer[channel])

        list(self._pool.map(work, range(len(layer))))
        return result


@dataclass(frozen=True, slots=True)
class Place:
    """Where in the input a column's layers go.

    Attributes:
        grid: from the network's grid.
        output: (y, x) box that the column writes, in the order of the plans.
        first_layer: layers of the input before this one are done.
        journal: journal and number of the column in it; None for what cannot be resumed.
    """

    grid: OutputGrid
    output: Box
    first_layer: int
    journal: tuple[Journal, int] | None = None

    @property
    def first_crop_layer(self) -> int:
        """The first layer of the crop that is not done."""
        return max(0, self.first_layer - self.grid.crop.start[0])


class LabelSink:
    """Decodes layers and writes labels and maps of one column.

    Args:
        place: where they go.
        decoder: logits to labels.
        stores: of labels and of maps (None = dropped), axes in the order of the plans.
        adjust: changes logits just before they are decoded, given their layer, rows and columns in
            the input.
        background: value of every map where the image was cut away.
    """

    def __init__(
        self,
        place: Place,
        decoder: Decoder,
        stores: tuple[LayerStore, LayerStore | None],
        *,
        adjust: Adjust | None = None,
        background: tuple[int, ...] = (),
    ) -> None:
        self._place = place
        self._decoder = decoder
        self._stores = stores
        self._adjust = adjust
        self._background = np.array(background, np.uint8).reshape(-1, 1, 1, 1)
        self._depth = stores[0].unit[0]
        self._next = place.first_layer
        self._finished: list[Box] = []
        part = place.grid.inside(place.output)
        shift = place.grid.crop.start[1:]
        #: (y, x) of the crop that lies in the column, in the column's own voxels.
        self._at = part.shift(shift).relative_to(place.output).slices()
        #: The same in voxels of the input.
        self._in_input = part.shift(shift)
        height, width = place.output.shape
        self._labels = np.zeros((self._depth, height, width), decoder.label_dtype)
        self._maps = np.empty((decoder.n_probabilities, *self._labels.shape), np.uint8)
        self._maps[...] = self._background

    def take(self, layer: int, plane: Plane, pool: ThreadPoolExecutor) -> None:
        """Decode a layer of the crop."""
        at = layer + self._place.grid.crop.start[0]
        self._pass_to(at)
        planes, taps = plane
        decoder = self._decoder
        here = (at % self._depth, *self._at)
        labels, maps = self._labels[here], self._maps[(slice(None), *here)]

        def work(rows: slice) -> None:
            total = mixed(planes, taps, rows)
            if self._adjust is not None:
                (y0, x0), (_, x1) = self._in_input.start, self._in_input.stop
                there = slice(y0 + rows.start, y0 + rows.start + total.shape[1])
                total = self._adjust(total, at, there, slice(x0, x1))
            weight = np.ones(total.shape[1:], np.float32) if decoder.needs_weight else None
            decoder.decode(total, weight, labels[rows], maps[:, rows])

        n_outputs, height, width = planes[0].shape
        list(pool.map(work, iter_row_blocks(n_outputs, height, width)))
        self._pass_to(at + 1)

    def close(self) -> None:
        """Write what is left, and what lies behind the crop."""
        self._pass_to(self._place.grid.shape[0])

    def take_finished(self) -> list[Box]:
        """Boxes that became durable since the last call."""
        finished, self._finished = self._finished, []
        return finished

    def _pass_to(self, layer: int) -> None:
        """Everything before a layer is decoded, or outside of the crop."""
        while self._next < layer:
            start = self._next // self._depth * self._depth
            self._next = min(layer, start + self._depth)
            if self._next % self._depth == 0 or self._next == self._place.grid.shape[0]:
                self._flush(start)

    def _flush(self, start: int) -> None:
        output = self._place.output
        box = Box((start, *output.start), (self._next, *output.stop))
        n = self._next - start
        labels, maps = self._stores
        labels.write(box, self._labels[:n])
        labels.sync()
        if maps is not None:
            maps.write(box, self._maps[:, :n])
            maps.sync()
        if self._place.journal is not None:
            journal, column = self._place.journal
            journal.add(column, self._next)
        self._finished.append(box)
        self._labels[...] = 0
        self._maps[...] = self._background


def write_outside(store: LayerStore, shape: tuple[int, ...], inside: Box, values: Any) -> None:
    """Fill the storage units that no column wrote.

    Args:
        store: of maps.
        shape: extent of the input.
        inside: (y, x) box that the columns cover.
        values: one of each map, uint8.
    """
    unit = store.unit
    starts = [range(0, n, u) for n, u in zip(shape, unit, strict=True)]
    for start in itertools.product(*starts):
        if not Box(start[1:], tuple(a + 1 for a in start[1:])).intersect(inside).is_empty:
            continue
        stop = tuple(min(n, a + u) for n, a, u in zip(shape, start, unit, strict=True))
        box = Box(start, stop)
        full = np.empty((len(values), *box.shape), np.uint8)
        full[...] = np.asarray(values, np.uint8).reshape(-1, 1, 1, 1)
        store.write(box, full)
    store.sync()


def mixed(planes: Any, taps: NDArray[np.float32], rows: slice) -> NDArray[np.float32]:
    """Weighted sum of the same rows of several layers.

    Args:
        planes: layers, float32, (k, y, x) each.
        taps: weight of each.
        rows: which rows.
    """
    if len(planes) == 1 and taps[0] == 1.0:
        return planes[0][:, rows]
    total = planes[0][:, rows] * taps[0]
    work = np.empty_like(total)
    for tap, plane in zip(taps[1:], planes[1:], strict=True):
        np.multiply(plane[:, rows], tap, out=work)
        total += work
    return total


def iter_row_blocks(n_outputs: int, height: int, width: int) -> list[slice]:
    """Rows of a layer in blocks that stay in the cache."""
    step = max(1, _BLOCK_ELEMENTS // max(1, n_outputs * width))
    edges = [*range(0, height, step), height]
    return [slice(a, b) for a, b in itertools.pairwise(edges)]
