"""Coarse labels of the whole input, from the network on a coarsened grid, before the first tile."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lamella.engines.coarse import create_preview
from lamella.engines.engine import PREVIEW_NAME
from lamella.engines.nnunet.decode import decoder_of
from lamella.engines.nnunet.stage import Stage, classes_of
from lamella.engines.nnunet.weights import tile_weights
from lamella.engines.tile_events import QuietSink, announce_whole
from lamella.inference.execute import Execution, execute
from lamella.inference.layers import GridMap
from lamella.inference.preview import coarse_source, plan_preview
from lamella.volume.box import Box
from lamella.volume.volume import Volume
from lamella.wire.event import ProgressEvent

if TYPE_CHECKING:
    from pathlib import Path

    from lamella.engines.nnunet.classes import ClassRule
    from lamella.engines.nnunet.layout import Layout
    from lamella.wire.event import EventSink

__all__ = ["show_preview"]


def show_preview(
    stage: Stage, rule: ClassRule, volume: Volume, run_dir: Path, sink: EventSink
) -> None:
    """Run a stage coarsely and announce what it gives.

    Args:
        stage: opened; the first one of the job.
        rule: its classes.
        volume: the input.
        run_dir: receives ``preview.ome.zarr``.
        sink: progress, cancellation and the announcement.
    """
    source, tile = stage.source, stage.tile
    coarse = plan_preview(source.shape, tile=tile, n_planned=stage.make_plan().n_tiles)
    decoder = decoder_of(rule, (), has_spread=stage.opened.has_spread)
    held = _Held(coarse.plan.shape, decoder.label_dtype)
    execute(
        Execution(
            plan=coarse.plan,
            source=coarse_source(source, coarse.factors, is_2d=tile[0] == 1),
            runtime=stage.opened.runtime,
            decoder=decoder,
            grid=GridMap.make(coarse.plan.shape, coarse.plan.shape),
            labels=held,
            weights=tile_weights(tile),
        ),
        _Listener(sink),
    )
    labels, factors = _on_input(held.labels, stage.layout)
    n = len(volume.spatial_shape)
    labels, factors = labels.reshape(labels.shape[3 - n :]), factors[3 - n :]
    store = create_preview(
        run_dir, volume, labels.shape, factors, dtype=labels.dtype, classes=classes_of(rule)
    )
    store.write(Box.from_shape(labels.shape), labels)
    store.finish(QuietSink(sink))
    announce_whole(sink, PREVIEW_NAME, volume.spatial_shape, factors)


class _Held:
    """Coarse labels in memory: no more of them than the tiles of a preview hold."""

    def __init__(self, shape: tuple[int, int, int], dtype: Any) -> None:
        self.labels = np.zeros(shape, dtype)
        self.unit = (1, shape[1], shape[2])

    def write(self, box: Box, values: NDArray[Any]) -> None:
        """Keep a box."""
        self.labels[box.slices()] = values

    def sync(self) -> None:
        """Nothing to make durable."""


class _Listener:
    def __init__(self, sink: EventSink) -> None:
        self._sink = sink

    def check(self) -> None:
        self._sink.check()

    def tiles(self, done: int, total: int, eta_s: float | None) -> None:
        self._sink.emit(
            ProgressEvent(stage="preview", done=done, total=total, unit="tiles", eta_s=eta_s)
        )

    def finished(self, box: Box) -> None:
        """Boxes of a preview are announced together."""


def _on_input(coarse: NDArray[Any], layout: Layout) -> tuple[NDArray[Any], tuple[float, ...]]:
    """Coarse labels of the crop as coarse labels of the input, axes in the order of the input.

    Returns:
        The labels, and voxels of the input per voxel of them.
    """
    result, factors = coarse, [1.0, 1.0, 1.0]
    for axis in range(3):
        length, start = layout.shape[axis], layout.crop.start[axis]
        inside = layout.crop.shape[axis]
        n = max(1, round(length * coarse.shape[axis] / inside))
        factors[axis] = length / n
        middle = (np.arange(n) + 0.5) * length / n
        index = np.floor((middle - start) / inside * coarse.shape[axis]).astype(np.int64)
        is_outside = (index < 0) | (index >= coarse.shape[axis])
        result = np.take(result, np.clip(index, 0, coarse.shape[axis] - 1), axis=axis)
        result[(slice(None),) * axis + (is_outside,)] = 0
    back = tuple(layout.transpose.index(axis) for axis in range(3))
    return (
        np.ascontiguousarray(result.transpose(back)),
        tuple(factors[axis] for axis in back),
    )
