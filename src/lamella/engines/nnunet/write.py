"""Where resampled layers end: labels and maps in the run folder, or probabilities for an ensemble.

Everything is written in whole storage units, each once, flushed to disk and only then recorded in
the journal, as in :mod:`lamella.inference.layers`; but in the order of the axes of the plans, and
with what nnU-Net cut away put back around it.
"""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamella.engines.nnunet.decode import Shares
from lamella.engines.nnunet.export import OutputGrid, Plane, iter_row_blocks
from lamella.inference.decode import Decoder
from lamella.inference.journal import Journal
from lamella.inference.layers import LayerStore
from lamella.io.format import storage_errors
from lamella.volume.box import Box

__all__ = ["LabelSink", "Member", "MemberSink", "Place", "TransposedStore", "write_outside"]


class TransposedStore:
    """A store whose axes come in another order.

    Args:
        inner: the store, its axes those of the input.
        transpose: axis of ``inner`` that is axis i here.
    """

    def __init__(self, inner: LayerStore, transpose: tuple[int, int, int]) -> None:
        self._inner = inner
        self._back = tuple(transpose.index(axis) for axis in range(3))
        z, y, x = (inner.unit[axis] for axis in transpose)
        self.unit: tuple[int, int, int] = (z, y, x)

    def write(self, box: Box, values: NDArray[Any]) -> None:
        """Write values (z, y, x), or (p, z, y, x), of a box."""
        back = self._back
        lead = values.ndim - 3
        order = (*range(lead), *(lead + axis for axis in back))
        self._inner.write(turned(box, back), np.ascontiguousarray(values.transpose(order)))

    def sync(self) -> None:
        """Make durable what was written."""
        self._inner.sync()


def turned(box: Box, order: tuple[int, ...]) -> Box:
    """A box with its axes in another order."""
    return Box(tuple(box.start[axis] for axis in order), tuple(box.stop[axis] for axis in order))


@dataclass(frozen=True, slots=True)
class Member:
    """Probabilities of one model of an ensemble, on disk.

    Attributes:
        array: float16, memory-mapped, (z, k, y, x) of the input.
        transpose: axes of the plans of the model that is run now.
    """

    array: Any
    transpose: tuple[int, int, int]

    @staticmethod
    def create(path: Path, n_outputs: int, shape: tuple[int, int, int]) -> Any:
        """Make the array of a member; what is never written takes no room on most disks."""
        with storage_errors(path):
            return np.lib.format.open_memmap(
                path, mode="w+", dtype=np.float16, shape=(shape[0], n_outputs, *shape[1:])
            )

    @staticmethod
    def reopen(path: Path) -> Any:
        """Open the array of a member that an earlier process wrote, wholly or in part."""
        with storage_errors(path):
            return np.lib.format.open_memmap(path, mode="r+")

    def rows(self, layer: int, rows: slice, columns: slice) -> NDArray[np.float16]:
        """Part of a layer across the band axis, (k, y, x) in the order of the plans."""
        return np.asarray(self._view()[:, layer, rows, columns])

    def _view(self) -> Any:
        """The array as (k, z, y, x) in the order of the plans."""
        order = (0, 2, 3)
        return self.array.transpose(1, *(order[axis] for axis in self.transpose))

    def write(self, layer: int, rows: slice, columns: slice, values: NDArray[Any]) -> None:
        """Write part of a layer."""
        self._view()[:, layer, rows, columns] = values


@dataclass(frozen=True, slots=True)
class Place:
    """Where in the input a column's layers go.

    Attributes:
        grid: from the network's grid.
        output: (y, x) box that the column writes, in the order of the plans.
        first_layer: layers of the input before this one are done.
        journal: journal and number of the column in it.
    """

    grid: OutputGrid
    output: Box
    first_layer: int
    journal: tuple[Journal, int]

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
        shares: how probabilities of ensembles are taken, with the members before this one.
        background: value of every map where the image was cut away.
    """

    def __init__(
        self,
        place: Place,
        decoder: Decoder,
        stores: tuple[LayerStore, LayerStore | None],
        *,
        shares: tuple[Shares, list[Member]] | None = None,
        background: tuple[int, ...] = (),
    ) -> None:
        self._place = place
        self._decoder = decoder
        self._stores = stores
        self._shares = shares
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
            total = _mixed(planes, taps, rows)
            if self._shares is not None:
                total = self._averaged(total, at, rows)
            weight = np.ones(total.shape[1:], np.float32) if decoder.needs_weight else None
            decoder.decode(total, weight, labels[rows], maps[:, rows])

        n_outputs, height, width = planes[0].shape
        list(pool.map(work, iter_row_blocks(n_outputs, height, width)))
        self._pass_to(at + 1)

    def close(self) -> None:
        """Write what is left, and what lies behind the crop."""
        self._pass_to(self._place.grid.shape[0])

    def take_finished(self) -> list[Box]:
        """Boxes, in the order of the plans, that became durable since the last call."""
        finished, self._finished = self._finished, []
        return finished

    def _averaged(self, total: NDArray[np.float32], layer: int, rows: slice) -> NDArray[np.float32]:
        assert self._shares is not None, "asked for only in ensembles"
        shares, members = self._shares
        (y0, x0), (_, x1) = self._in_input.start, self._in_input.stop
        there = (slice(y0 + rows.start, y0 + rows.start + total.shape[1]), slice(x0, x1))
        return shares.mean_logits(total, [member.rows(layer, *there) for member in members])

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
        journal, column = self._place.journal
        journal.add(column, self._next)
        self._finished.append(box)
        self._labels[...] = 0
        self._maps[...] = self._background


class MemberSink:
    """Writes the probabilities of one member of an ensemble.

    Args:
        place: where they go.
        member: receives them.
        shares: how they are taken.
        depth: layers after which they are made durable.
    """

    def __init__(self, place: Place, member: Member, shares: Shares, *, depth: int) -> None:
        self._place = place
        self._member = member
        self._shares = shares
        self._depth = depth
        part = place.grid.inside(place.output).shift(place.grid.crop.start[1:])
        self._y0 = part.start[0]
        self._columns = slice(part.start[1], part.stop[1])

    def take(self, layer: int, plane: Plane, pool: ThreadPoolExecutor) -> None:
        """Write a layer of the crop."""
        at = layer + self._place.grid.crop.start[0]
        planes, taps = plane

        def work(rows: slice) -> None:
            share = self._shares.of(_mixed(planes, taps, rows))
            there = slice(self._y0 + rows.start, self._y0 + rows.start + share.shape[1])
            self._member.write(at, there, self._columns, share)

        list(pool.map(work, iter_row_blocks(*planes[0].shape)))
        if (at + 1) % self._depth == 0:
            self._flush(at + 1)

    def close(self) -> None:
        """Make everything durable."""
        self._flush(self._place.grid.shape[0])

    def take_finished(self) -> list[Box]:
        """Nothing that anybody could look at."""
        return []

    def _flush(self, layer: int) -> None:
        self._member.array.flush()
        journal, column = self._place.journal
        journal.add(column, layer)


def write_outside(store: LayerStore, shape: tuple[int, ...], inside: Box, values: Any) -> None:
    """Fill the storage units that no column wrote.

    Args:
        store: of maps.
        shape: extent of the input, in the order of the plans.
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


def _mixed(planes: Any, taps: NDArray[np.float32], rows: slice) -> NDArray[np.float32]:
    """Weighted sum of the same rows of several layers."""
    if len(planes) == 1 and taps[0] == 1.0:
        return planes[0][:, rows]
    total = planes[0][:, rows] * taps[0]
    work = np.empty_like(total)
    for tap, plane in zip(taps[1:], planes[1:], strict=True):
        np.multiply(plane[:, rows], tap, out=work)
        total += work
    return total
