"""Where the labels of the tiles go: a new store, or the one an equal job left unfinished."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lamella.engines.engine import CONFIDENCE_NAME, LABELS_NAME
from lamella.engines.leftovers import remove_left, reopen_labels, say_what_changed
from lamella.inference.journal import JOURNAL_NAME, Journal, JournalState, digest, tile_text
from lamella.inference.layers import GridMap, LabelLayers
from lamella.inference.plan import Plan, chunk_extent, cut_columns, make_plan
from lamella.io.label_store import LabelStore, create_labels
from lamella.volume.box import Box

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
    "PROBABILITIES_NAME",
    "Target",
    "TargetWish",
    "join_target",
    "open_target",
]

FOREGROUND_NAME = "foreground.ome.zarr"
PROBABILITIES_NAME = "probabilities.zarr"
# Options that change nothing in the labels beyond what the plan and the runtime already say.
FREE_OPTIONS = ("band_mb", "check", "preview", "object_block", "object_halo")


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
    path, journal = _labels_path(wish), job.run_dir / JOURNAL_NAME
    if job.resume:
        state = Journal.read(journal)
        store = reopen_labels(path) if state.fingerprint else None
        has_maps = all((job.run_dir / one).exists() for one in wish.maps)
        if store is not None and has_maps:
            target = _place(store, wish, state)
            changed = state.differences(target.fingerprint)
            if not changed:
                return target
            say_what_changed(sink, changed)
    remove_left(path, job.run_dir / PROBABILITIES_NAME, job.run_dir / CONFIDENCE_NAME)
    volume = job.volume
    settings = wish.settings
    stride = max(1, int(settings.tile[0] * (1 - settings.overlap_fraction)))
    chunks = chunk_extent(wish.prepared.shape, stride)
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


def join_target(wish: TargetWish) -> Target:
    """The labels that another process has begun and that several write to.

    Raises:
        MissingPathError: when they are not there.
        UnreadableFileError: when they are finished, or no labels.
    """
    store = LabelStore.reopen(_labels_path(wish), is_shared=True)
    return _place(store, wish, JournalState())


def _labels_path(wish: TargetWish) -> Path:
    name = FOREGROUND_NAME if wish.settings.makes_instances else LABELS_NAME
    return wish.job.run_dir / name


def _place(store: LabelStore, wish: TargetWish, state: JournalState) -> Target:
    layers = LabelLayers(store)
    grid = GridMap.make(wish.prepared.shape, wish.prepared.source.shape)
    plan = _plan(wish, layers.unit, grid)
    runtime = wish.opened.runtime
    options = sorted((k, v) for k, v in wish.settings.as_options().items() if k not in FREE_OPTIONS)
    fingerprint = {
        "input": wish.prepared.sha256,
        "model": wish.model.sha256,
        "tile": tile_text(wish.settings.tile),
        "plan": digest((plan, grid.shape, layers.unit)),
        "options": digest(options),
        "runtime": f"{runtime.name} {wish.opened.version} {runtime.device} {runtime.precision}",
    }
    return Target(store, layers, plan, grid, fingerprint, state)


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
