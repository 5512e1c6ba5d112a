"""Where Cellpose's labels go, and what of them an equal job finished before.

Chunks are one slice deep, so that a slice is on disk for good before the journal names it. For
ortho runs the journal counts the planes whose flows are in the state folder, one column an axis.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from lamella.core.errors import EngineError
from lamella.engines.engine import CONFIDENCE_NAME, LABELS_NAME, PREVIEW_NAME
from lamella.engines.leftovers import reopen_labels, say_what_changed
from lamella.engines.tile_events import CheckOnly
from lamella.inference.journal import JOURNAL_NAME, Journal, JournalState, digest
from lamella.io.label_store import create_labels
from lamella.volume.box import Box
from lamella.volume.labels import LabelClass

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from numpy.typing import NDArray

    from lamella.engines.cellpose.image import Image
    from lamella.engines.engine import EngineJob
    from lamella.io.label_store import LabelStore
    from lamella.volume.labels import Labels
    from lamella.wire.event import EventSink

__all__ = ["STATE_NAME", "Target", "open_target"]

STATE_NAME = "cellpose"
OBJECT_CLASS = LabelClass(1, "object")
_EDGE = 512
_MAX_ID = int(np.iinfo(np.uint32).max)


@dataclass(slots=True)
class Target:
    """The labels of a run while they are written; a context manager around its journal.

    Attributes:
        path: of the labels.
        store: the labels.
        shape: slices, rows, columns.
        state: folder for what is exchanged with the worker, and flows of an ortho run.
        maps: confidence, uint8, (m, [z,] y, x); None unless asked for.
        done: what an earlier, equal job finished.
        n_steps: slices, or planes of all three axes.
        last_id: largest id written so far.
    """

    path: Path
    store: LabelStore
    shape: tuple[int, int, int]
    state: Path
    maps: Any
    done: JournalState
    n_steps: int
    last_id: int = 0
    _journal: Journal | None = field(default=None, init=False)

    @property
    def journal_path(self) -> Path:
        """The journal of the run."""
        return self.path.parent / JOURNAL_NAME

    @property
    def has_begun(self) -> bool:
        """Whether anything of the run is done."""
        return any(self.done.layers.values())

    @property
    def is_empty(self) -> bool:
        """Whether nothing was found."""
        return self.last_id == 0

    def __enter__(self) -> Self:
        self.done = Journal.read(self.journal_path)
        self._journal = Journal.go_on(self.journal_path, self.done)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._journal is not None
        self._journal.close()

    def record(self, column: int, layers: int) -> None:
        """Name finished work in the journal."""
        assert self._journal is not None
        self._journal.add(column, layers)

    def write_slice(
        self, z: int, labels: NDArray[np.uint32], maps: NDArray[np.uint8] | None
    ) -> None:
        """Write a slice whose ids begin at 1; in the store they go on from the last slice's.

        Args:
            z: index of the slice.
            labels: uint32, (y, x).
            maps: uint8, (m, y, x), where confidence was asked for.

        Raises:
            EngineError: more than 2³² - 1 objects, or labels of another shape.
        """
        n_objects = self._check(labels)
        offset = np.uint32(self.last_id)
        self._write(z, np.where(labels > 0, labels + offset, 0).astype(np.uint32), maps)
        self.last_id += n_objects
        self.store.sync()
        self.record(0, z + 1)

    def write_volume(self, labels: NDArray[np.uint32], maps: NDArray[np.uint8] | None) -> None:
        """Write all slices of labels that are unique in the volume."""
        for z in range(self.shape[0]):
            plane = np.asarray(labels[z])
            self.last_id = max(self.last_id, int(plane.max(initial=0)))
            self._write(z, plane, None if maps is None else np.asarray(maps[:, z]))
        self.store.sync()

    def finish(self, sink: EventSink) -> Labels:
        """Make the labels a readable image."""
        return self.store.finish(CheckOnly(sink))

    def _check(self, labels: NDArray[np.uint32]) -> int:
        if labels.shape != self.shape[1:]:
            raise EngineError(
                f"Cellpose returned labels of shape {labels.shape} for a slice of {self.shape[1:]}"
            )
        n_objects = int(labels.max(initial=0))
        if self.last_id + n_objects > _MAX_ID:
            raise EngineError(
                f"more than {_MAX_ID} objects in the slices so far",
                hint="segment parts of the volume one by one",
            )
        return n_objects

    def _write(self, z: int, labels: NDArray[Any], maps: NDArray[np.uint8] | None) -> None:
        is_flat = len(self.store.shape) == 2
        box = Box((0, 0), self.shape[1:]) if is_flat else Box((z, 0, 0), (z + 1, *self.shape[1:]))
        self.store.write(box, labels if is_flat else labels[None])
        if self.maps is not None and maps is not None:
            if is_flat:
                self.maps[:] = maps
            else:
                self.maps[:, z] = maps


def open_target(
    job: EngineJob, image: Image, identity: Mapping[str, str], sink: EventSink
) -> Target:
    """Go on with what an equal job left, or begin anew (and say what changed).

    Args:
        job: what is run.
        image: its input.
        identity: what else the labels depend on, by part.
        sink: hears why a job begins anew.
    """
    settings = image.settings
    options = sorted((k, v) for k, v in settings.as_options().items() if k != "batch")
    fingerprint = {
        **identity,
        "input": image.sha256,
        "options": digest(options),
        "confidence": str(settings.has_confidence),
    }
    path = job.run_dir / LABELS_NAME
    state = job.run_dir / STATE_NAME
    is_ortho = settings.strategy == "ortho"
    n_steps = image.shape[0]
    if job.resume:
        found = Journal.read(job.run_dir / JOURNAL_NAME)
        store = reopen_labels(path) if found.fingerprint else None
        maps = _open_maps(job, settings.has_confidence) if store is not None else None
        if store is not None and not (settings.has_confidence and maps is None):
            changed = found.differences(fingerprint)
            if not changed:
                state.mkdir(exist_ok=True)
                target = Target(path, store, image.shape, state, maps, found, n_steps)
                target.last_id = 0 if is_ortho else _last_id(store, image, found.finished(0))
                return target
            say_what_changed(sink, changed)
    for left in (LABELS_NAME, CONFIDENCE_NAME, PREVIEW_NAME, STATE_NAME):
        shutil.rmtree(job.run_dir / left, ignore_errors=True)
    n_rows, n_columns = image.shape[1:]
    chunks = (1, min(n_rows, _EDGE), min(n_columns, _EDGE))
    spatial = len(job.volume.spatial_shape)
    store = create_labels(
        path,
        like=job.volume,
        dtype=np.uint32,
        classes=(OBJECT_CLASS,),
        is_instance=True,
        chunks=chunks[3 - spatial :],
    )
    maps = _create_maps(job, chunks[3 - spatial :]) if settings.has_confidence else None
    state.mkdir()
    Journal.start(job.run_dir / JOURNAL_NAME, fingerprint).close()
    found = Journal.read(job.run_dir / JOURNAL_NAME)
    return Target(path, store, image.shape, state, maps, found, n_steps)


def _last_id(store: LabelStore, image: Image, n_done: int) -> int:
    """The largest id of the finished slices; they rise with z."""
    if len(store.shape) == 2:
        return int(store.read(Box.from_shape(store.shape)).max(initial=0)) if n_done else 0
    for z in range(n_done - 1, -1, -1):
        largest = int(store.read(Box((z, 0, 0), (z + 1, *image.shape[1:]))).max(initial=0))
        if largest:
            return largest
    return 0


def _create_maps(job: EngineJob, chunks: tuple[int, ...]) -> Any:
    import zarr

    return zarr.create_array(
        str(job.run_dir / CONFIDENCE_NAME),
        shape=(2, *job.volume.spatial_shape),
        chunks=(2, *chunks),
        dtype="uint8",
    )


def _open_maps(job: EngineJob, is_wanted: bool) -> Any:
    import zarr

    path = job.run_dir / CONFIDENCE_NAME
    return zarr.open_array(str(path), mode="r+") if is_wanted and path.exists() else None
