"""Where a bundle's labels go, what of them an equal job left, and how layers get there."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from lamella.engines.engine import CONFIDENCE_NAME
from lamella.engines.leftovers import remove_left, reopen_labels, say_what_changed
from lamella.inference.journal import JOURNAL_NAME, Journal, JournalState, digest, tile_text
from lamella.inference.layers import GridMap, LabelLayers, ProbabilityLayers
from lamella.inference.operator import Operator
from lamella.inference.outlet import OutputGrid
from lamella.inference.plan import Plan, chunk_extent, cut_columns, make_plan
from lamella.io.label_store import LabelStore, create_labels
from lamella.volume.box import Box

if TYPE_CHECKING:
    from lamella.engines.engine import EngineJob
    from lamella.engines.monai.grid import Layout
    from lamella.engines.monai.opening import Opened
    from lamella.engines.monai.settings import Settings
    from lamella.engines.monai.source import Prepared
    from lamella.inference.decode import Decoder
    from lamella.volume.labels import LabelClass
    from lamella.wire.event import EventSink

__all__ = [
    "SURE",
    "Target",
    "TargetWish",
    "open_target",
    "output_grid",
]

SURE = {"probability": 255, "margin": 255}
"""Value of maps where a bundle's crop says that there is nothing; 0 for the others."""
# Settings that change nothing in the labels beyond what the plan and the runtime already say.
_FREE = ("band_mb", "check", "preview", "threads")


@dataclass(frozen=True, slots=True)
class TargetWish:
    """What a target is made for.

    Attributes:
        job: volume and run folder.
        name: of the labels in the run folder.
        identity: SHA-256 of the bundle, and what was made of its documents.
        settings: how it is run.
        prepared: the source.
        opened: the network.
        decoder: logits to labels.
        classes: of the labels.
        grid: back to the input's grid; None where it is the network's.
    """

    job: EngineJob
    name: str
    identity: str
    settings: Settings
    prepared: Prepared
    opened: Opened
    decoder: Decoder
    classes: tuple[LabelClass, ...]
    grid: OutputGrid | None


@dataclass(frozen=True, slots=True)
class Target:
    """Where labels go, and what of them is done.

    Attributes:
        store: the labels.
        layers: the same as the loop writes them.
        maps: confidence beside them, or None.
        plan: tiles, its columns cut along the store's files.
        grid: from label layers to network layers, to resume by.
        fingerprint: everything the labels depend on, by part.
        done: what an earlier, equal job finished.
    """

    store: LabelStore
    layers: LabelLayers
    maps: ProbabilityLayers | None
    plan: Plan
    grid: GridMap
    fingerprint: dict[str, str]
    done: JournalState


def open_target(wish: TargetWish, sink: EventSink) -> Target:
    """Go on with what an equal job left, or begin anew (and say what changed).

    Args:
        wish: what is run.
        sink: hears why a job begins anew.

    Raises:
        StorageError: when the run folder cannot be written.
    """
    job = wish.job
    path, journal = job.run_dir / wish.name, job.run_dir / JOURNAL_NAME
    if job.resume:
        state = Journal.read(journal)
        store = reopen_labels(path) if state.fingerprint else None
        has_maps = not wish.settings.measures or (job.run_dir / CONFIDENCE_NAME).exists()
        if store is not None and has_maps:
            target = _place(store, wish, state)
            changed = state.differences(target.fingerprint)
            if not changed:
                return target
            say_what_changed(sink, changed)
    remove_left(path, job.run_dir / CONFIDENCE_NAME)
    shape, settings = wish.prepared.shape, wish.settings
    stride = max(1, int(settings.tile[0] * (1 - settings.overlap_fraction)))
    chunks = chunk_extent(shape, round(stride * shape[0] / wish.prepared.source.shape[0]))
    n = len(job.volume.spatial_shape)
    store = create_labels(
        path,
        like=job.volume,
        dtype=wish.decoder.label_dtype,
        classes=wish.classes,
        chunks=chunks[3 - n :],
    )
    target = _place(store, wish, JournalState())
    Journal.start(journal, target.fingerprint).close()
    return replace(target, done=Journal.read(journal))


def output_grid(
    shape: tuple[int, int, int], layout: Layout, *, is_nearest: bool
) -> OutputGrid | None:
    """From the network's grid back to the input's; None where both are the same.

    Args:
        shape: of the input.
        layout: of the network's grid.
        is_nearest: by the nearest voxel instead of linear interpolation.
    """
    if layout.is_identity:
        return None
    start: list[int] = []
    stop: list[int] = []
    along: list[Operator | None] = []
    for n, line in zip(shape, layout.lines, strict=True):
        first, last = (0, n) if line.crop is None else (line.crop[0], min(n, line.crop[1]))
        start.append(first)
        stop.append(last)
        at = line.of_input(np.arange(first, last, dtype=np.float64))
        is_same = len(at) == line.n and bool(np.all(at == np.arange(line.n)))
        along.append(None if is_same else Operator.at(line.n, at, is_nearest=is_nearest))
    return OutputGrid(
        shape, Box(tuple(start), tuple(stop)), layout.shape, (along[0], along[1], along[2])
    )


def _place(store: LabelStore, wish: TargetWish, state: JournalState) -> Target:
    layers = LabelLayers(store)
    job, settings = wish.job, wish.settings
    maps = None
    if settings.measures:
        maps = ProbabilityLayers(
            job.run_dir / CONFIDENCE_NAME,
            shape=job.volume.spatial_shape,
            n_maps=len(settings.measures),
            unit=layers.unit,
            restart=not state.layers,
        )
    plan = _plan(wish, layers.unit)
    runtime = wish.opened.runtime
    options = sorted((k, v) for k, v in settings.as_options().items() if k not in _FREE)
    fingerprint = {
        "input": wish.prepared.sha256,
        "model": wish.identity,
        "tile": tile_text(settings.tile),
        "plan": digest((plan, wish.prepared.layout, layers.unit)),
        "options": digest(options),
        "runtime": f"{runtime.name} {wish.opened.version} {runtime.device} {runtime.precision}",
    }
    shape = wish.prepared.shape
    grid = GridMap.make(shape, shape) if wish.grid is None else wish.grid.grid_map()
    return Target(store, layers, maps, plan, grid, fingerprint, state)


def _plan(wish: TargetWish, unit: tuple[int, int, int]) -> Plan:
    settings, shape, grid = wish.settings, wish.prepared.shape, wish.grid
    network = wish.prepared.source.shape
    n_values = wish.opened.runtime.n_outputs + wish.prepared.source.n_channels
    # Accumulators and the slabs under them, per (y, x) voxel of the labels.
    ratio = network[1] * network[2] / (shape[1] * shape[2])

    def region(output: Box) -> Box | None:
        if grid is None:
            return output
        # What lies outside of the bundle's crop altogether is background, and stays unwritten.
        return None if grid.inside(output).is_empty else grid.region(output)

    return make_plan(
        network,
        tile=settings.tile,
        overlap_fraction=settings.overlap_fraction,
        columns=cut_columns(
            Box((0, 0), shape[1:]),
            unit[1:],
            4 * settings.tile[0] * n_values * ratio,
            settings.band_bytes,
            region=region,
        ),
        from_end=tuple(sorted(wish.prepared.layout.flips)),
    )
