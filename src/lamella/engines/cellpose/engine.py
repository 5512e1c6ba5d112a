"""Cellpose on any volume: slice by slice, or by the flows of all three planes.

The host reads and normalises slices, one at a time, and hands them to the worker in Cellpose's own
environment; labels come back, get ids that are unique in the whole volume, and are written and
named in the journal before the next. Objects of slices are linked by the workflow
(``is_per_slice``), not by Cellpose's ``stitch3D``.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

from lamella.core.errors import DeviceMemoryError, InputError
from lamella.engines.cellpose.image import Image, open_image
from lamella.engines.cellpose.session import Session, WorkerFacts
from lamella.engines.cellpose.settings import Settings, resolve
from lamella.engines.cellpose.target import Target, open_target
from lamella.engines.engine import ConfidenceMaps, EngineResult
from lamella.engines.tile_events import announce_whole
from lamella.models.foreign import ForeignModel
from lamella.volume.volume import Note
from lamella.wire.event import LogEvent, WarningEvent

if TYPE_CHECKING:
    from lamella.engines.engine import EngineDescriptor, EngineJob
    from lamella.volume.labels import Labels
    from lamella.wire.event import EventSink

__all__ = ["CellposeEngine"]

MEASURES = ("probability", "flow_error")


class CellposeEngine:
    """Runs Cellpose 3 or 4, each in its own environment."""

    def __init__(self, descriptor: EngineDescriptor) -> None:
        self._descriptor = descriptor

    @property
    def descriptor(self) -> EngineDescriptor:
        """What this engine can do."""
        return self._descriptor

    def segment(self, job: EngineJob, sink: EventSink) -> EngineResult:
        """Segment a volume; see :class:`lamella.engines.engine.Engine`.

        Raises:
            InputError: options, channels or intensities that cannot be used.
            AxesError: channels that nobody chose.
            UnknownModelError: weights that are not here.
            ModelError: weights that are damaged, of another version, or hold code.
            MissingDependencyError: the engine's environment is not ready.
            RunCancelledError: the caller cancelled; finished slices are kept.
            EngineError: Cellpose failed, or its process died; finished slices are kept.
            StorageError: labels cannot be written.
        """
        if not isinstance(job.model, ForeignModel):
            raise InputError(
                f"the engine {self._descriptor.id!r} needs a model of Cellpose",
                hint=f"write --model {self._descriptor.id}:NAME or {self._descriptor.id}:FILE",
            )
        sink.check()
        settings = resolve(self._descriptor, job.volume, job.request)
        return _Run(job, job.model, settings, sink).segment()


class _Run:
    """One job from beginning to end."""

    def __init__(
        self, job: EngineJob, model: ForeignModel, settings: Settings, sink: EventSink
    ) -> None:
        self._job = job
        self._model = model
        self._settings = settings
        self._sink = sink
        self._notes: list[Note] = []
        self._facts = WorkerFacts()

    def segment(self) -> EngineResult:
        settings = self._settings
        session = Session.open(self._job, self._model, settings, self._sink)
        self._sink.emit(LogEvent(message=f"{settings.strategy}: {settings.reason}"))
        image = open_image(self._job.volume, settings, self._sink)
        target = open_target(self._job, image, session.identity, self._sink)
        try:
            self._run(session, image, target)
        except DeviceMemoryError as error:
            self._again(session.smaller(error), image, target)
        labels = self._finish(target)
        return EngineResult(
            labels=labels,
            tiles_done=target.n_steps,
            tiles_planned=target.n_steps,
            device=self._facts.device,
            runtime=settings.engine,
            precision=self._facts.precision,
            options_resolved=self._resolved(),
            warnings=tuple(self._notes),
            confidence=ConfidenceMaps(MEASURES, is_calibrated=False)
            if settings.has_confidence
            else None,
            is_per_slice=settings.strategy != "ortho" and image.shape[0] > 1,
        )

    def _run(self, session: Session, image: Image, target: Target) -> None:
        has_preview = self._job.request.preview and not target.has_begun
        with target:
            self._facts = session.run(image, target, has_preview=has_preview)

    def _again(self, session: Session, image: Image, target: Target) -> None:
        """Once more with fewer tiles at a time, and it is said."""
        self._warn(
            Note(
                "smaller_batch",
                f"the device had too little memory for {self._settings.options['batch']} tiles at a"
                f" time; going on with {session.settings.options['batch']}",
            )
        )
        self._settings = session.settings
        self._run(session, image, target)

    def _finish(self, target: Target) -> Labels:
        if target.is_empty:
            self._warn(Note("no_objects", "nothing was found: every voxel is background"))
        labels = target.finish(self._sink)
        shutil.rmtree(target.state, ignore_errors=True)
        announce_whole(self._sink, target.path.name, self._job.volume.spatial_shape)
        return labels

    def _resolved(self) -> dict[str, Any]:
        options = dict(self._settings.as_options())
        options["diameter"] = self._facts.diameter or options["diameter"]
        return options

    def _warn(self, *notes: Note) -> None:
        for note in notes:
            self._notes.append(note)
            self._sink.emit(WarningEvent(code=note.code, message=note.message))
