"""Where the labels of the tiles go: a new store, or the one an equal job left unfinished."""

from __future__ import annotations

import hashlib
import math
import shutil
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lamella.core.errors import UnreadableFileError
from lamella.engines.engine import CONFIDENCE_NAME, LABELS_NAME
from lamella.inference.journal import Journal, JournalState
from lamella.inference.layers import GridMap, LabelLayers
from lamella.inference.plan import Plan, cut_columns, make_plan
from lamella.io.label_store import LabelStore, create_labels
from lamella.volume.box import Box
from lamella.wire.event import LogEvent

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from lamella.engines.engine import EngineJob
    from lamella.engines.lamella.opening import Opened
    from lamella.engines.lamella.settings import Settings
    from lamella.engines.lamella.source import Prepared
    from lamella.models.folder import ModelFolder
    from lamella.volume.labels import LabelClass
    from lamella.wire.event import EventSink

__all__ = [
    "FOREGROUND_NAME",
    "JOURNAL_NAME",
    "PROBABILITIES_NAME",
    "Target",
    "TargetWish",
    "chunk_extent",
    "open_target",
    "remove_folder",
    "was_left_at",
]

JOURNAL_NAME = "journal.jsonl"
FOREGROUND_NAME = "foreground.ome.zarr"
PROBABILITIES_NAME = "probabilities.zarr"
# Options that change nothing in the labels beyond what the plan and the runtime already say.
FREE_OPTIONS = ("band_mb", "check", "preview")
CHUNK_VOXELS = 1 << 18
MAX_CHUNK_DEPTH = 64
MIN_CHUNK_DEPTH = 16


@dataclass(frozen=True, slots=True)
class Target:
    """Where the labels of the tiles go, and what of them is done.

    Attributes:
        store: the labels.
        layers: the same as the loop writes them.
        plan: tiles of the run, its columns cut along the store's files.
        grid: between the network's grid and the labels'.
        fingerprint: everything the labels depend on, by part.
        done: what an earlier, equal job finished.
    """

    store: LabelStore
    layers: LabelLayers
    plan: Plan
    grid: GridMap
    fingerprint: dict[str, str]
    done: JournalState


@dataclass(frozen=True, slots=True)
class TargetWish:
    """What a target is made for; ``maps``: the arrays that are written beside the labels."""

    job: EngineJob
    model: ModelFolder
    settings: Settings
    prepared: Prepared
    opened: Opened
    label_dtype: np.dtype[np.unsignedinteger]
    classes: tuple[LabelClass, ...]
    maps: tuple[str, ...]


def open_target(wish: TargetWish, sink: EventSink) -> Target:
    """Go on with what an equal job left, or begin anew (and say what changed).

    Args:
        wish: what is run.
        sink: hears why a job begins anew.

    Raises:
        StorageError: when the run folder cannot be written.
    """
    job = wish.job
    name = FOREGROUND_NAME if wish.settings.makes_instances else LABELS_NAME
    path, journal = job.run_dir / name, job.run_dir / JOURNAL_NAME
    if job.resume:
        state = Journal.read(journal)
        store = _reopen(path) if state.fingerprint else None
        has_maps = all((job.run_dir / one).exists() for one in wish.maps)
        if store is not None and has_maps:
            target = _place(store, wish, state)
            changed = state.differences(target.fingerprint)
            if not changed:
                return target
            sink.emit(
                LogEvent(message=f"starting anew: {', '.join(changed)} changed since the stop")
            )
    remove_folder(path)
    for left in (PROBABILITIES_NAME, CONFIDENCE_NAME):
        remove_folder(job.run_dir / left)
    volume = job.volume
    chunks = chunk_extent(wish.prepared.shape, wish.settings)
    store = create_labels(
        path,
        like=volume,
        dtype=wish.label_dtype,
        classes=wish.classes,
        chunks=chunks[3 - len(volume.spatial_shape) :],
    )
    target = _place(store, wish, JournalState())
    Journal.start(journal, target.fingerprint).close()
    return replace(target, done=Journal.read(journal))


def chunk_extent(shape: tuple[int, int, int], settings: Settings) -> tuple[int, int, int]:
    """Chunks as deep as a row moves the band, so that layers wait for no later row.

    Args:
        shape: extent of the labels, (z, y, x).
        settings: tile and overlap.
    """
    tile = settings.tile[0]
    stride = max(1, int(tile * (1 - settings.overlap_fraction)))
    depth = min(shape[0], max(MIN_CHUNK_DEPTH, min(MAX_CHUNK_DEPTH, stride)))
    edge = 2 ** math.ceil(math.log2(CHUNK_VOXELS / depth) / 2)
    return depth, min(shape[1], edge), min(shape[2], edge)


def remove_folder(path: Path) -> None:
    """Remove a folder of a run, if it is there."""
    if path.exists():
        shutil.rmtree(path)


def _place(store: LabelStore, wish: TargetWish, state: JournalState) -> Target:
    layers = LabelLayers(store)
    grid = GridMap.make(wish.prepared.shape, wish.prepared.source.shape)
    plan = _plan(wish, layers.unit, grid)
    runtime = wish.opened.runtime
    options = sorted((k, v) for k, v in wish.settings.as_options().items() if k not in FREE_OPTIONS)
    fingerprint = {
        "input": wish.prepared.sha256,
        "model": wish.model.sha256,
        "tile": _text(wish.settings.tile),
        "plan": _digest((plan, grid.shape, layers.unit)),
        "options": _digest(options),
        "runtime": f"{runtime.name} {wish.opened.version} {runtime.device} {runtime.precision}",
    }
    return Target(store, layers, plan, grid, fingerprint, state)


def was_left_at(run_dir: Path, tile: tuple[int, int, int]) -> bool:
    """Whether the unfinished job of a run folder ran with tiles of this extent."""
    return Journal.read(run_dir / JOURNAL_NAME).fingerprint.get("tile") == _text(tile)


def _text(tile: tuple[int, int, int]) -> str:
    return ",".join(map(str, tile))


def _plan(wish: TargetWish, unit: tuple[int, int, int], grid: GridMap) -> Plan:
    settings, shape, network = wish.settings, wish.prepared.shape, wish.prepared.source.shape
    # Accumulators and the slabs under them, per (y, x) voxel of the labels.
    n_values = wish.opened.runtime.n_outputs + wish.model.card.n_channels
    ratio = network[1] * network[2] / (shape[1] * shape[2])
    return make_plan(
        network,
        tile=settings.tile,
        overlap_fraction=settings.overlap_fraction,
        blend=settings.blend,
        columns=cut_columns(
            Box((0, 0), shape[1:]),
            unit[1:],
            4 * settings.tile[0] * n_values * ratio,
            settings.band_bytes,
            region=grid.region,
        ),
    )


def _reopen(path: Path) -> LabelStore | None:
    try:
        return LabelStore.reopen(path) if path.exists() else None
    except UnreadableFileError:
        return None


def _digest(value: Any) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()
