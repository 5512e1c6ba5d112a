r"""One pass of a network over a crop and what surrounds it, on to the crop's own voxels.

::

    raw on the network's voxels, with context   ──tiles──▶  mean logits, layer by layer
        ──▶ probabilities  ──resampled by position──▶  every class by itself, chunk by chunk to disk

The tiles are those of :mod:`lamella.inference.execute`, the way to the crop's voxels that of
:mod:`lamella.inference.outlet`; memory is that of a band, whatever the size of the crop.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lamella.core.memory import available_bytes
from lamella.core.progress import Progress
from lamella.inference.confidence import sigmoid, softmax, to_uint8
from lamella.inference.decode import Argmax
from lamella.inference.execute import Execution, execute
from lamella.inference.instance_maps import decoder_options, linear_channels
from lamella.inference.operator import Operator
from lamella.inference.outlet import OutputGrid, ResamplingOutlet, iter_row_blocks, mixed
from lamella.inference.plan import Column, column_extent, make_plan
from lamella.training.cellmap.regrid import share_taps
from lamella.training.cellmap.written import CHUNK
from lamella.volume.box import Box

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import ThreadPoolExecutor

    from numpy.typing import NDArray

    from lamella.core.progress import ProgressSink
    from lamella.inference.normalise import Normaliser
    from lamella.inference.outlet import Plane
    from lamella.inference.plan import Plan
    from lamella.inference.runtime import Runtime
    from lamella.training.cellmap.grid import Grid
    from lamella.training.cellmap.view import CropView
    from lamella.volume.source import LazyArray
    from lamella.wire.card import ModelCard

__all__ = [
    "CropPass",
    "Planes",
    "RawSlabs",
    "TileProgress",
    "class_planes",
    "context_of",
    "map_planes",
    "plan_pass",
]

_BAND_BYTES = (1 << 28, 1 << 33)
"""Least and most memory for sums of logits and what waits to be written."""
_BAND_SHARE = 0.25
"""Share of free memory that is taken for it, between these."""


class RawSlabs:
    """Raw data of a crop's reach on the network's voxels, as a source of tiles.

    Args:
        view: of the crop.
        array: voxels of the view's raw level.
        normaliser: None leaves intensities as they are.
    """

    n_channels = 1

    def __init__(
        self, view: CropView, array: LazyArray, normaliser: Normaliser | None = None
    ) -> None:
        z, y, x = view.reach.shape
        self.shape: tuple[int, int, int] = (z, y, x)
        self._view = view
        self._array = array
        self._normaliser = normaliser

    def read(self, box: Box) -> NDArray[np.float32]:
        """Read a box, (c, z, y, x)."""
        raw, _ = self._view.read(self._array, box.shift(self._view.reach.start))
        slab = raw[None]
        return slab if self._normaliser is None else self._normaliser.apply(slab, 0)


class TileProgress:
    """Counts the tiles of several passes as one piece of work.

    Args:
        sink: progress and cancellation.
        total: tiles of all passes.
    """

    def __init__(self, sink: ProgressSink, total: int) -> None:
        self._sink = sink
        self._total = total
        self._before = 0

    def check(self) -> None:
        """Raise to stop."""
        self._sink.check()

    def tiles(self, done: int, total: int, eta_s: float | None) -> None:
        """So many tiles of this pass are done."""
        del eta_s  # of this pass alone; who draws knows the pace of all
        self._sink.emit(Progress("predicting", self._before + done, self._total, "tiles"))
        if done == total:
            self._before += total

    def finished(self, box: Box) -> None:
        """Nothing is shown before a crop is whole."""


@dataclass(frozen=True, slots=True)
class CropPass:
    """A pass that was planned.

    Attributes:
        view: of the crop.
        grid: from the network's voxels to those that are written.
        plan: of the tiles.
    """

    view: CropView
    grid: OutputGrid
    plan: Plan

    def run(
        self,
        source: RawSlabs,
        runtime: Runtime,
        activate: Callable[[NDArray[np.float32]], NDArray[np.float32]],
        planes: Planes,
        progress: TileProgress,
        *,
        n_threads: int = 2,
    ) -> None:
        """Run all tiles.

        Args:
            source: of the view.
            runtime: opened for batches of the plan's tile.
            activate: logits of a layer to what is interpolated.
            planes: decide and write.
            progress: hears of tiles, and may stop the pass by raising.
            n_threads: for resampling and writing beside the network.

        Raises:
            RunCancelledError: from the listener.
            EngineError: the network failed.
            StorageError: nothing can be written.
        """

        def outlet(number: int, first_layer: int) -> ResamplingOutlet:
            output = self.plan.columns[number].output
            return ResamplingOutlet(
                self.grid,
                output,
                first_layer=first_layer,
                sink=planes.column(output),
                n_threads=n_threads,
                activate=activate,
            )

        execute(
            Execution(
                plan=self.plan,
                source=source,
                runtime=runtime,
                decoder=Argmax(runtime.n_outputs),
                grid=self.grid.grid_map(),
                labels=None,
                outlet=outlet,
            ),
            progress,
        )


def plan_pass(
    view: CropView,
    wanted: Grid,
    *,
    tile: tuple[int, int, int],
    overlap_fraction: float,
    n_values: int,
    band_bytes: int | None = None,
) -> CropPass:
    """Plan the tiles over a crop's reach.

    Args:
        view: of the crop.
        wanted: voxels that are written.
        tile: of the network, (z, y, x) voxels.
        overlap_fraction: share of a tile in common with its neighbour.
        n_values: channels of input and output together.
        band_bytes: memory that sums of logits and layers that wait to be written may take; None =
            a quarter of what is free. Less means narrower columns, whose seams are run twice.
    """
    reach = view.grid_of(view.reach)
    along = [_operator(axis, reach, wanted) for axis in range(3)]
    z, y, x = reach.shape
    grid = OutputGrid(
        wanted.shape, Box.from_shape(wanted.shape), (z, y, x), (along[0], along[1], along[2])
    )
    height, width = column_extent(
        (wanted.shape[1], wanted.shape[2]),
        (min(CHUNK, wanted.shape[1]), min(CHUNK, wanted.shape[2])),
        n_values * (4 * tile[0] * (y * x) / (wanted.shape[1] * wanted.shape[2]) + CHUNK + 12),
        _band_bytes() if band_bytes is None else band_bytes,
    )
    outputs = [
        Box((a, b), (min(a + height, wanted.shape[1]), min(b + width, wanted.shape[2])))
        for a in range(0, wanted.shape[1], height)
        for b in range(0, wanted.shape[2], width)
    ]
    plan = make_plan(
        reach.shape,
        tile=tile,
        overlap_fraction=overlap_fraction,
        columns=tuple(Column(grid.region(output), output) for output in outputs),
    )
    return CropPass(view, grid, plan)


def _band_bytes() -> int:
    least, most = _BAND_BYTES
    free = available_bytes()
    return most if free is None else int(min(most, max(least, free * _BAND_SHARE)))


def _operator(axis: int, source: Grid, target: Grid) -> Operator | None:
    taps = share_taps(axis, source, target)
    n_out, n_in = target.shape[axis], source.shape[axis]
    if taps.weights is None:
        if n_out == n_in:
            return None
        dense = np.zeros((n_out, n_in))
        dense[np.arange(n_out), np.arange(taps.start, taps.stop)] = 1.0
        return Operator(dense)
    dense = np.zeros((n_out, n_in))
    dense[:, taps.start : taps.stop] = taps.weights
    return Operator(dense)


class Planes:
    """Writes layers of several arrays at once, in whole chunks.

    Args:
        arrays: uint8, each (z, y, x), of chunks 128 voxels deep (or in memory).
        decide: probabilities (k, y, x) to uint8, one (y, x) an array.
    """

    def __init__(
        self,
        arrays: Sequence[Any],
        decide: Callable[[NDArray[np.float32]], NDArray[np.uint8]],
    ) -> None:
        self.arrays = tuple(arrays)
        self.decide = decide

    def column(self, output: Box) -> _ColumnPlanes:
        """A sink for one column."""
        return _ColumnPlanes(self, output)


class _ColumnPlanes:
    """Gathers the layers of one column until a chunk is full."""

    def __init__(self, planes: Planes, output: Box) -> None:
        self._planes = planes
        self._output = output
        self._n_layers = planes.arrays[0].shape[0]
        self._depth = min(CHUNK, self._n_layers)
        self._values = np.zeros((len(planes.arrays), self._depth, *output.shape), np.uint8)

    def take(self, layer: int, plane: Plane, pool: ThreadPoolExecutor) -> None:
        """Decide a layer."""
        layers, taps = plane
        here = self._values[:, layer % self._depth]

        def work(rows: slice) -> None:
            here[:, rows] = self._planes.decide(mixed(layers, taps, rows))

        n_outputs, height, width = layers[0].shape
        list(pool.map(work, iter_row_blocks(n_outputs, height, width)))
        if (layer + 1) % self._depth == 0 or layer + 1 == self._n_layers:
            self._flush(layer // self._depth * self._depth, layer + 1)

    def close(self) -> None:
        """All layers came: everything is written."""

    def take_finished(self) -> list[Box]:
        """Nothing is told before a crop is whole."""
        return []

    def _flush(self, start: int, stop: int) -> None:
        (y0, x0), (y1, x1) = self._output.start, self._output.stop
        for array, values in zip(self._planes.arrays, self._values, strict=True):
            array[start:stop, y0:y1, x0:x1] = values[: stop - start]


def class_planes(card: ModelCard, arrays: dict[str, Any]) -> tuple[Any, Planes]:
    """How logits become classes, each by itself.

    Args:
        card: of the model; its classes are sigmoid or softmax outputs.
        arrays: where to write, by name of the class.

    Returns:
        The activation, and the planes.
    """
    values = {known.name: known.value for known in card.classes}
    if card.decoder.kind == "argmax":
        chosen = [values[name] for name in arrays]

        def pick(shares: NDArray[np.float32]) -> NDArray[np.uint8]:
            best = shares.argmax(axis=0)
            return np.stack([best == value for value in chosen]).astype(np.uint8)

        return softmax, Planes(list(arrays.values()), pick)
    threshold = np.float32(float(str(card.decoder.parameters.get("threshold", 0.5))))
    channels = [values[name] - 1 for name in arrays]

    def cut(shares: NDArray[np.float32]) -> NDArray[np.uint8]:
        return (shares[channels] > threshold).astype(np.uint8)

    return sigmoid, Planes(list(arrays.values()), cut)


def map_planes(
    card: ModelCard, arrays: Sequence[Any], *, is_mask: bool = False
) -> tuple[Any, Planes]:
    """How logits become the maps that objects are made of, 255 = 1.0.

    Args:
        card: of a model of single objects.
        arrays: one for each output; of the foreground alone for a mask.
        is_mask: write where the foreground is, 0 and 1, instead of maps.

    Returns:
        The activation, and the planes.
    """
    linear = linear_channels(card)

    def activate(logits: NDArray[np.float32]) -> NDArray[np.float32]:
        shares = sigmoid(logits)
        for channel in linear:
            shares[channel] = logits[channel]
        return shares

    if not is_mask:
        return activate, Planes(arrays, to_uint8)
    options = decoder_options(card.decoder)
    threshold = np.float32(options.foreground_threshold)
    return activate, Planes(arrays, lambda shares: (shares[:1] > threshold).astype(np.uint8))


def context_of(
    wanted: Grid,
    spacing: tuple[float, float, float],
    tile: tuple[int, int, int],
    overlap_fraction: float,
) -> tuple[float, float, float]:
    """How far around a crop raw data are read, nm, (z, y, x).

    Half the overlap of tiles, so that no voxel is taken from a tile's border, and at least as much
    as fills a tile: real data are better than padding.
    """
    margins = []
    for axis in range(3):
        n = (wanted.high[axis] - wanted.low[axis]) / spacing[axis]
        halo = math.ceil(tile[axis] * overlap_fraction / 2)
        margins.append(max(halo, math.ceil((tile[axis] - n) / 2)) * spacing[axis])
    return margins[0], margins[1], margins[2]
