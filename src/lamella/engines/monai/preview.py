"""The coarse pass of a bundle: labels of the whole input before the first full-resolution tile."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from lamella.engines.coarse import create_preview
from lamella.engines.engine import PREVIEW_NAME
from lamella.engines.tile_events import QuietSink, TileEvents, announce_whole
from lamella.inference.execute import Execution, execute
from lamella.inference.layers import LabelLayers
from lamella.inference.operator import Operator
from lamella.inference.outlet import LabelSink, OutputGrid, Place, ResamplingOutlet
from lamella.inference.plan import Column, make_plan
from lamella.inference.preview import coarse_source, plan_preview
from lamella.volume.box import Box

if TYPE_CHECKING:
    from lamella.engines.engine import EngineJob
    from lamella.engines.monai.grid import Layout
    from lamella.engines.monai.settings import Settings
    from lamella.engines.monai.source import Prepared
    from lamella.inference.decode import Decoder
    from lamella.inference.runtime import Runtime
    from lamella.volume.labels import LabelClass
    from lamella.wire.event import EventSink

__all__ = ["CoarsePass", "show_preview"]


@dataclass(frozen=True, slots=True)
class CoarsePass:
    """What a preview is made of.

    Attributes:
        job: volume and run folder.
        prepared: the source.
        settings: tile and overlap.
        runtime: runs the network.
        decoder: logits to labels.
        weights: of a tile's voxels.
        classes: of the labels.
    """

    job: EngineJob
    prepared: Prepared
    settings: Settings
    runtime: Runtime
    decoder: Decoder
    weights: np.ndarray
    classes: tuple[LabelClass, ...]


def show_preview(coarse: CoarsePass, sink: EventSink) -> None:
    """Run the network on a coarse grid, write the labels and announce them.

    Args:
        coarse: what to run.
        sink: progress, cancellation, and the announcement.
    """
    job, prepared, settings = coarse.job, coarse.prepared, coarse.settings
    network, is_2d = prepared.source.shape, settings.tile[0] == 1
    planned = make_plan(network, tile=settings.tile, overlap_fraction=settings.overlap_fraction)
    wanted = plan_preview(network, tile=settings.tile, n_planned=planned.n_tiles)
    grid = _coarse_grid(prepared.shape, prepared.layout, wanted.factors, wanted.plan.shape)
    n = len(job.volume.spatial_shape)
    factors = tuple(fine / rough for fine, rough in zip(prepared.shape, grid.shape, strict=True))[
        3 - n :
    ]
    store = create_preview(
        job.run_dir,
        job.volume,
        grid.shape[3 - n :],
        factors,
        dtype=coarse.decoder.label_dtype,
        classes=coarse.classes,
    )
    layers = LabelLayers(store)
    whole = Box((0, 0), grid.shape[1:])
    plan = replace(wanted.plan, columns=(Column(grid.region(whole), whole),))

    def outlet(_: int, first_layer: int) -> ResamplingOutlet:
        place = Place(grid, whole, first_layer)
        sink_ = LabelSink(place, coarse.decoder, (layers, None))
        return ResamplingOutlet(
            grid, whole, first_layer=place.first_crop_layer, sink=sink_, n_threads=1
        )

    execute(
        Execution(
            plan=plan,
            source=coarse_source(prepared.source, wanted.factors, is_2d=is_2d),
            runtime=coarse.runtime,
            decoder=Weighted(coarse.decoder),
            grid=grid.grid_map(),
            labels=None,
            weights=coarse.weights,
            outlet=outlet,
        ),
        TileEvents(sink, stage="preview"),
    )
    store.finish(QuietSink(sink))
    announce_whole(sink, PREVIEW_NAME, job.volume.spatial_shape, factors)


class Weighted:
    """A decoder's band keeps the sums of weights, because its means are wanted."""

    needs_weight = True

    def __init__(self, inner: Decoder) -> None:
        self.n_outputs = inner.n_outputs
        self.n_probabilities = inner.n_probabilities
        self.label_dtype = inner.label_dtype
        self.decode = inner.decode


def _coarse_grid(
    shape: tuple[int, int, int],
    layout: Layout,
    factors: tuple[int, int, int],
    coarse_shape: tuple[int, int, int],
) -> OutputGrid:
    """From the coarse network grid to a coarse grid over the whole input, by the nearest voxel."""
    rough: list[int] = []
    start: list[int] = []
    stop: list[int] = []
    along: list[Operator] = []
    for n, line, factor, n_coarse in zip(shape, layout.lines, factors, coarse_shape, strict=True):
        n_rough = max(1, min(n, math.ceil(n / max(1.0, factor * line.scale))))
        centres = (np.arange(float(n_rough)) + 0.5) * (n / n_rough) - 0.5
        at = line.of_input(centres)
        covered = np.flatnonzero((at > -1.0) & (at < line.n))
        if line.crop is None or len(covered) == 0:
            covered = np.arange(n_rough)
        rough.append(n_rough)
        start.append(int(covered[0]))
        stop.append(int(covered[-1]) + 1)
        positions = (at[covered] + 0.5) / factor - 0.5
        along.append(Operator.at(n_coarse, positions, is_nearest=True))
    return OutputGrid(
        (rough[0], rough[1], rough[2]),
        Box(tuple(start), tuple(stop)),
        coarse_shape,
        (along[0], along[1], along[2]),
    )
