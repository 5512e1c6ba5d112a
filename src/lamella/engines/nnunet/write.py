"""Where resampled layers end: labels and maps in the run folder, or probabilities for an ensemble.

Everything is written in whole storage units, each once, flushed to disk and only then recorded in
the journal, as in :mod:`lamella.inference.layers`; but in the order of the axes of the plans, and
with what nnU-Net cut away put back around it.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamella.engines.nnunet.decode import Shares
from lamella.inference.layers import LayerStore
from lamella.inference.outlet import Adjust, Place, Plane, iter_row_blocks, mixed
from lamella.io.format import storage_errors
from lamella.volume.box import Box

__all__ = ["Member", "MemberSink", "TransposedStore", "averaged"]


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


def averaged(shares: Shares, members: list[Member]) -> Adjust | None:
    """Puts the mean of all models of an ensemble in the place of the last one's logits.

    Args:
        shares: how probabilities are taken.
        members: the models before the last; None is returned where there are none.
    """
    if not members:
        return None

    def adjust(
        total: NDArray[np.float32], layer: int, rows: slice, columns: slice
    ) -> NDArray[np.float32]:
        return shares.mean_logits(total, [member.rows(layer, rows, columns) for member in members])

    return adjust


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
            share = self._shares.of(mixed(planes, taps, rows))
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
        assert self._place.journal is not None, "members of an ensemble are resumed one by one"
        journal, column = self._place.journal
        journal.add(column, layer)
