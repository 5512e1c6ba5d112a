"""Where a bundle's labels go, what of them an equal job left, and how layers get there."""

from __future__ import annotations

import hashlib
import math
import shutil
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lamella.core.errors import UnreadableFileError
from lamella.engines.engine import CONFIDENCE_NAME
from lamella.inference.journal import Journal, JournalState
from lamella.inference.layers import GridMap, LabelLayers, ProbabilityLayers
from lamella.inference.operator import Operator
from lamella.inference.outlet import OutputGrid
from lamella.inference.plan import Plan, cut_columns, make_plan
from lamella.io.label_store import LabelStore, create_labels
from lamella.volume.box import Box
from lamella.wire.event import LogEvent

if TYPE_CHECKING:
    from pathlib import Path

    from lamella.engines.engine import EngineJob
    from lamella.engines.monai.grid import Layout
    from lamella.engines.monai.opening import Opened
    from lamella.engines.monai.settings import Settings
    from lamella.engines.monai.source import Prepared
    from lamella.inference.decode import Decoder
    from lamella.volume.labels import LabelClass
    from lamella.wire.event import EventSink

__all__ = [
    "JOURNAL_NAME",
    "SURE",
    "Target",
    "TargetWish",
    "open_target",
    "output_grid",
    "remove_folder",
    "was_left_at",
]

JOURNAL_NAME = "journal.jsonl"
SURE = {"probability": 255, "margin": 255}
"""Value of maps where a bundle's crop says that there is nothing; 0 for the others."""
# Settings that change nothing in the labels beyond what the plan and the runtime already say.
_FREE = ("band_mb", "check", "preview", "threads")
_CHUNK_VOXELS = 1 << 18
_MAX_CHUNK_DEPTH = 64
_MIN_CHUNK_DEPTH = 16


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
        store = _reopen(path) if state.fingerprint else None
        has_maps = not wish.settings.measures or (job.run_dir / CONFIDENCE_NAME).exists()
        if store is not None and has_maps:
            target = _place(store, wish, state)
            changed = state.differences(target.fingerprint)
            if not changed:
                return target
            text = f"starting anew: {', '.join(changed)} changed since the stop"
            sink.emit(LogEvent(message=text))
    remove_folder(path)
    remove_folder(job.run_dir / CONFIDENCE_NAME)
    n = len(job.volume.spatial_shape)
    store = create_labels(
        path,
        like=job.volume,
        dtype=wish.decoder.label_dtype,
        classes=wish.classes,
        chunks=_chunk_extent(wish)[3 - n :],
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


def remove_folder(path: Path) -> None:
    """Remove a folder of a run, if it is there."""
    if path.exists():
        shutil.rmtree(path)


def was_left_at(run_dir: Path, tile: tuple[int, int, int]) -> bool:
    """Whether the unfinished job of a run folder ran with tiles of this extent."""
    return Journal.read(run_dir / JOURNAL_NAME).fingerprint.get("tile") == _text(tile)


def _text(tile: tuple[int, int, int]) -> str:
    return ",".join(map(str, tile))


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
        "tile": _text(settings.tile),
        "plan": _digest((plan, wish.prepared.layout, layers.unit)),
        "options": _digest(options),
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


def _chunk_extent(wish: TargetWish) -> tuple[int, int, int]:
    """Chunks as deep as a row moves the band, so that layers wait for no later row."""
    shape, settings = wish.prepared.shape, wish.settings
    stride = max(1, int(settings.tile[0] * (1 - settings.overlap_fraction)))
    layers = round(stride * shape[0] / wish.prepared.source.shape[0])
    depth = min(shape[0], max(_MIN_CHUNK_DEPTH, min(_MAX_CHUNK_DEPTH, layers)))
    edge = 2 ** math.ceil(math.log2(_CHUNK_VOXELS / depth) / 2)
    return depth, min(shape[1], edge), min(shape[2], edge)


def _reopen(path: Path) -> LabelStore | None:
    try:
        return LabelStore.reopen(path) if path.exists() else None
    except UnreadableFileError:
        return None


def _digest(value: Any) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()
