"""The one path from a request to a run folder.

::

    prepare ─▶ lock ─▶ what is there? ─▶ engine ─▶ objects ─▶ measure ─▶ report ─▶ export
    (checks)           resume, fresh      labels on disk and in engine.json from here on

The same request on a folder with unfinished work goes on where it stopped; a finished one is left
as it is; another request is refused. Only a run with every planned tile done is called finished.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lamella.core.errors import LamellaError, OutputExistsError, RunCancelledError, RunError
from lamella.core.places import Places
from lamella.core.progress import SilentSink
from lamella.engines.engine import EngineJob
from lamella.engines.registry import load_engine
from lamella.io.format import SaveOptions, find_writer, save_volume
from lamella.volume.volume import Volume
from lamella.wire.event import (
    EventSink,
    FailedEvent,
    FinishedEvent,
    LogEvent,
    PreviewEvent,
    StartedEvent,
)
from lamella.wire.manifest import LabelsFact, RunManifest
from lamella.wire.problem import Problem
from lamella.wire.request import SegmentRequest
from lamella.workflows.engine_result import EngineRecord, read_record, write_record
from lamella.workflows.fingerprint import voxel_sha256
from lamella.workflows.linking import linking_notes
from lamella.workflows.objects import ObjectSet, make_objects, restore_engine_labels
from lamella.workflows.prepare import Prepared, check_disk, prepare
from lamella.workflows.recorder import Recorder
from lamella.workflows.run import Run, origin_of
from lamella.workflows.run_folder import RunFolder
from lamella.workflows.versions import package_versions

if TYPE_CHECKING:
    from lamella.measurement import ObjectTable
    from lamella.workflows.blocks import BlockOptions

__all__ = ["RunOptions", "check_export", "segment"]

T = TypeVar("T")
# What the user did on purpose is worth a line, not a warning.
_NO_WARNINGS = ("spacing_given",)


@dataclass(frozen=True, slots=True)
class RunOptions:
    """Where a run goes and what may be replaced.

    Attributes:
        run_dir: the run folder, made when it is not there.
        fresh: start anew, whatever an earlier run left in the folder.
        export: also write the labels here, in the format of its suffix.
        overwrite: replace ``export`` where it is there, and run a finished run again.
        places: where models and environments lie; the user's own unless given.
        is_trusted: code and pickles that come with a model may be run.
        blocks: cut the volume into blocks that several processes segment; None = in one piece.
    """

    run_dir: Path
    fresh: bool = False
    export: Path | None = None
    overwrite: bool = False
    places: Places | None = None
    is_trusted: bool = False
    blocks: "BlockOptions | None" = None


def segment(
    request: SegmentRequest,
    options: RunOptions,
    *,
    volume: Volume | None = None,
    sink: EventSink | None = None,
) -> Run:
    """Segment one input.

    Args:
        request: what to do; the same request gives the same labels.
        options: where to, and what may be replaced.
        volume: the input itself, where ``request.input`` names none that can be opened.
        sink: events and cancellation.

    Returns:
        The finished run.

    Raises:
        InputError: and its kin, for whatever is wrong with input, model or options; nothing is
            left behind then.
        RunError: when the folder holds another run, or one in progress.
        RunCancelledError: when the sink says so; finished work is kept.
    """
    listener = sink or SilentSink()
    folder = RunFolder(options.run_dir)
    folder.check_ours()
    check_export(options.export, request, overwrite=options.overwrite)
    prepared = prepare(request, volume, listener, places=options.places)
    check_disk(prepared.volume, folder.path)
    _check_blocks(prepared, options)
    _check_restoration(prepared, options)
    was_there = folder.path.exists()
    try:
        with folder.locked():
            found = _what_is_there(folder, prepared, options)
            if found.finished is not None:
                return _export_finished(folder, found.finished, options)
            return _Session(folder, prepared, options, listener, found).run()
    finally:
        if not was_there:
            folder.remove_if_empty()


# --- What an earlier run left -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Found:
    """A finished run, or an unfinished one to go on with (``earlier``), or neither."""

    finished: RunManifest | None = None
    earlier: RunManifest | None = None


def _what_is_there(folder: RunFolder, prepared: Prepared, options: RunOptions) -> _Found:
    manifest = folder.read_manifest()
    if manifest is None or options.fresh:
        folder.clear()
        return _Found()
    changed = _differences(manifest, prepared)
    is_finished = manifest.status == "finished"
    if changed and not is_finished and not folder.has_work:
        # A run that failed before its first tile stands in nobody's way.
        folder.clear()
        return _Found()
    if changed:
        raise RunError(
            f"{folder.path} holds {'a finished' if is_finished else 'an unfinished'} run with"
            f" another {' and '.join(changed)}",
            hint="use --fresh to replace it, or --run-dir for another folder",
            details={"changed": changed},
        )
    if is_finished and not options.overwrite:
        return _Found(finished=manifest)
    if is_finished:
        folder.clear()
        return _Found()
    return _Found(earlier=manifest)


def _differences(manifest: RunManifest, prepared: Prepared) -> list[str]:
    """What differs between an earlier run and this request, in words; paths do not count."""
    old, new = manifest.request, prepared.request
    changed = []
    if manifest.input.sha256 != prepared.input_fact.sha256:
        changed.append("input")
    if (manifest.model.id, manifest.model.sha256) != (
        prepared.model_fact.id,
        prepared.model_fact.sha256,
    ):
        changed.append("model")
    neutral = {"path": ""}
    old_input = old.input.model_copy(update=neutral)
    new_input = new.input.model_copy(update=neutral)
    if old_input != new_input:
        changed.append("choice of input (channel, spacing, ...)")
    same = {"input": new_input, "model": ""}
    if old.model_copy(update=same) != new.model_copy(update=same):
        names = [
            name
            for name in type(new).model_fields
            if name not in ("input", "model") and getattr(old, name) != getattr(new, name)
        ]
        changed.append(f"value of {', '.join(names)}")
    return changed


def check_export(export: Path | None, request: SegmentRequest, *, overwrite: bool) -> None:
    """Say now, not after an hour, that the output cannot be written.

    Raises:
        OutputExistsError: when it is there and may not be replaced.
        InputError: and its kin, when its format cannot hold labels of this input.
    """
    if export is None:
        return
    writer = find_writer(export)
    writer.load()
    if writer.id.startswith("dicom-seg"):
        from lamella.io.dicom_source import check_source

        named = request.input.path
        check_source(None if named.startswith("memory:") else Path(named), export)
    if export.exists() and not overwrite:
        raise OutputExistsError(f"{export} is already there", hint="use --overwrite to replace it")


def _check_blocks(prepared: Prepared, options: RunOptions) -> None:
    """Refuse what cannot be cut, unless a run in one piece is as good."""
    if options.blocks is None or options.blocks.min_voxels is not None:
        return
    from lamella.workflows.blocks import check_cut

    places = options.places or Places.of_user()
    engine = load_engine(prepared.engine.id, places)
    job = EngineJob(
        volume=prepared.volume,
        request=prepared.request,
        model=prepared.model,
        run_dir=options.run_dir,
    )
    check_cut(engine, job)


def _check_restoration(prepared: Prepared, options: RunOptions) -> None:
    """Refuse a restoration that cannot be done here; it is never skipped."""
    if prepared.request.restore is None:
        return
    from lamella.workflows.restore import check_restoration

    places = options.places or Places.of_user()
    check_restoration(prepared.request, prepared.volume, options.run_dir, places)


def _export_finished(folder: RunFolder, manifest: RunManifest, options: RunOptions) -> Run:
    """Nothing to do but, perhaps, to write the labels once more."""
    run = Run(folder.path, manifest, was_finished=True)
    if options.export is None:
        return run
    save_volume(run.labels, options.export, SaveOptions(overwrite=options.overwrite))
    manifest = _with_output(manifest, "export", str(options.export.absolute()))
    folder.write_manifest(manifest)
    return Run(folder.path, manifest, was_finished=True)


# --- A run from beginning to end ----------------------------------------------------------------


@dataclass
class _Session:
    """One process's work on a run; ``manifest`` is what is known so far."""

    folder: RunFolder
    prepared: Prepared
    options: RunOptions
    listener: EventSink
    found: _Found
    timings: dict[str, float] = field(default_factory=dict[str, float])

    def run(self) -> Run:
        earlier, export = self.found.earlier, self.options.export
        self.began = time.monotonic()
        self.manifest = RunManifest(
            status="running",
            request=self.prepared.request,
            input=self.prepared.input_fact,
            model=self.prepared.model_fact,
            versions=package_versions(),
            started=_now() if earlier is None else earlier.started,
            elapsed_s=0.0 if earlier is None else earlier.elapsed_s,
            timings_s={} if earlier is None else earlier.timings_s,
            outputs={} if export is None else {"export": str(export.absolute())},
        )
        self.before_s = self.manifest.elapsed_s
        self.timings = dict(self.manifest.timings_s)
        self.folder.write_manifest(self.manifest)
        with Recorder(self.folder.events, self.listener) as recorder:
            self.recorder = recorder
            try:
                return self._work()
            except BaseException as error:
                self._give_up(error)
                raise

    def _work(self) -> Run:
        self._announce()
        for note in self.prepared.volume.notes:
            if note.code in _NO_WARNINGS:
                self.recorder.emit(LogEvent(message=note.message))
            else:
                self.recorder.warn(note.code, note.message)
        self.seen = self.prepared.volume
        if self.prepared.request.restore is not None:
            self.seen = self._timed("restore", self._restored)
        record = self._timed("engine", self._engine)
        objects = self._timed("objects", lambda: self._objects(record))
        table = self._timed("measure", lambda: self._measure(objects, record))
        self._conclude(record, objects)
        self._timed("report", lambda: self._report(objects, table))
        self._export(objects)
        self._update(
            status="finished",
            finished=_now(),
            warnings=tuple(self.recorder.warnings),
            elapsed_s=self._elapsed(),
            timings_s=self._rounded(),
        )
        self.folder.write_manifest(self.manifest)
        self.recorder.emit(
            FinishedEvent(
                n_objects=objects.n_objects,
                elapsed_s=self.manifest.elapsed_s,
                summary={"labels": str(self.folder.labels), "report": str(self.folder.report)},
            )
        )
        return Run(self.folder.path, self.manifest)

    def _announce(self) -> None:
        earlier = self.found.earlier
        self.recorder.emit(
            StartedEvent(
                run=str(self.folder.path),
                model=self.prepared.request.model,
                shape=self.prepared.volume.spatial_shape,
            )
        )
        if earlier is not None:
            self.recorder.emit(
                LogEvent(
                    message=f"going on with the run of {earlier.started} in {self.folder.path}"
                )
            )

    # -- phases

    def _restored(self) -> Volume:
        """What the engine sees; measurements and the report keep to the image as it came."""
        from lamella.workflows.restore import restore_for_run

        places = self.options.places or Places.of_user()
        volume, record = restore_for_run(
            self.folder, self.prepared.request, self.prepared.volume, self.recorder, places
        )
        self._update(restoration=record)
        self.folder.write_manifest(self.manifest)
        return volume

    def _engine(self) -> EngineRecord:
        """Labels of the engine, on disk; those of an earlier process where it had finished."""
        known = read_record(self.folder) if self.found.earlier is not None else None
        restore_engine_labels(self.folder)
        if known is not None:
            self.recorder.emit(LogEvent(message="all tiles are on disk already"))
            for note in known.warnings:
                self.recorder.warn(note.code, note.message)
            return known
        self.folder.engine_result.unlink(missing_ok=True)
        places = self.options.places or Places.of_user()
        watch = _PreviewWatch(self.recorder, self.began)
        job = EngineJob(
            volume=self.seen,
            request=self.prepared.request,
            model=self.prepared.model,
            run_dir=self.folder.path,
            resume=self.found.earlier is not None,
            places=places,
            is_trusted=self.options.is_trusted,
        )
        engine = load_engine(self.prepared.engine.id, places)
        blocks = self.options.blocks
        if blocks is None and job.resume and (self.folder.path / "blocks.jsonl").exists():
            from lamella.workflows.blocks import left_in_blocks

            blocks = left_in_blocks(self.folder.path)
        if blocks is None:
            result = engine.segment(job, watch)
        else:
            from lamella.workflows.blocks import segment_blocks

            result = segment_blocks(engine, job, blocks, watch)
        if watch.preview_s is not None:
            self.timings.setdefault("preview", watch.preview_s)
        if result.tiles_done < result.tiles_planned:
            raise RunError(
                f"only {result.tiles_done} of {result.tiles_planned} tiles were done",
                hint="run the same request again to go on",
            )
        for note in result.warnings:
            self.recorder.warn(note.code, note.message)
        return write_record(self.folder, result)

    def _objects(self, record: EngineRecord) -> ObjectSet:
        self._update(
            runtime=record.runtime,
            tiles_done=record.tiles_done,
            tiles_planned=record.tiles_planned,
            options_resolved=record.options_resolved,
        )
        self.folder.write_manifest(self.manifest)
        objects = make_objects(
            self.folder,
            self.prepared.request,
            record.open_labels(self.folder),
            self.recorder,
            columns=record.open_columns(self.folder),
            is_per_slice=record.is_per_slice,
        )
        if objects.linking is not None:
            strategy = {"strategy": "hybrid", "linking": dict(objects.linking)}
            self._update(options_resolved={**record.options_resolved, **strategy})
            for note in linking_notes(objects.linking):
                self.recorder.warn(note.code, note.message)
        return objects

    def _measure(self, objects: ObjectSet, record: EngineRecord) -> "ObjectTable":
        from lamella.workflows.confidence import add_confidence, confidence_fact
        from lamella.workflows.measure import measure_objects_of

        table = measure_objects_of(objects, self.prepared.volume, self.recorder)
        if record.confidence is not None:
            labels = objects.labels if objects.ids is None else objects.ids
            sure = record.confidence
            table = add_confidence(table, labels, self.folder.path, sure, self.recorder)
            self._update(confidence=confidence_fact(table, sure))
        elif self.prepared.request.confidence:
            engine = self.prepared.engine.id
            message = f"the engine {engine!r} cannot tell how sure it is of these labels"
            self.recorder.warn("no_confidence", message)
        table.write_csv(self.folder.objects, overwrite=True)
        return table

    def _conclude(self, record: EngineRecord, objects: ObjectSet) -> None:
        """Everything the manifest says of the result."""
        if objects.n_objects == 0:
            self.recorder.warn("no_objects", "nothing was found: every voxel is background")
        self._update(
            labels=LabelsFact(
                path=self.folder.labels.name,
                sha256=voxel_sha256(objects.labels.data, self.recorder),
                dtype=str(objects.labels.dtype),
                shape=objects.labels.spatial_shape,
                is_instance=objects.labels.is_instance,
                max_id=objects.max_id,
                n_objects=objects.n_objects,
                n_foreground_voxels=objects.n_foreground,
            ),
            outputs={**self.manifest.outputs, **self._outputs()},
            warnings=tuple(self.recorder.warnings),
            elapsed_s=self._elapsed(),
            timings_s=self._rounded(),
        )

    def _outputs(self) -> dict[str, str]:
        paths = {
            "objects": self.folder.objects,
            "object_labels": self.folder.object_labels,
            "engine_labels": self.folder.engine_labels,
            "preview": self.folder.preview,
            "confidence": self.folder.confidence,
            "statistics": self.folder.statistics,
            "events": self.folder.events,
        }
        return {name: path.name for name, path in paths.items() if path.exists()} | {
            "report": self.folder.report.name,
            "report_json": "report.json",
        }

    def _report(self, objects: ObjectSet, table: "ObjectTable") -> None:
        from lamella.workflows.report import write_run_report

        write_run_report(self.folder, self.prepared.volume, objects, table, self.manifest)

    def _export(self, objects: ObjectSet) -> None:
        if self.options.export is None:
            return
        labels = objects.labels
        save_volume(
            replace(labels, metadata={**labels.metadata, **origin_of(self.manifest)}),
            self.options.export,
            SaveOptions(overwrite=self.options.overwrite, sink=self.recorder),
        )
        self.manifest = _with_output(self.manifest, "export", str(self.options.export.absolute()))

    # -- bookkeeping

    def _timed(self, phase: str, work: Callable[[], T]) -> T:
        began = time.monotonic()
        result = work()
        self.timings[phase] = self.timings.get(phase, 0.0) + time.monotonic() - began
        return result

    def _elapsed(self) -> float:
        return round(self.before_s + time.monotonic() - self.began, 3)

    def _rounded(self) -> dict[str, float]:
        return {name: round(value, 3) for name, value in self.timings.items()}

    def _update(self, **fields: object) -> None:
        self.manifest = self.manifest.model_copy(update=fields)

    def _give_up(self, error: BaseException) -> None:
        """Write down how it ended; take away what a run that did nothing would leave."""
        is_cancelled = isinstance(error, RunCancelledError | KeyboardInterrupt)
        problem = Problem.from_error(RunCancelledError("stopped") if is_cancelled else error)
        self.recorder.emit(FailedEvent(problem=problem))
        self.recorder.close()
        if isinstance(error, LamellaError) and not is_cancelled and not self.folder.has_work:
            self.folder.clear()
            return
        self._update(
            status="cancelled" if is_cancelled else "failed",
            problem=problem,
            warnings=tuple(self.recorder.warnings),
            elapsed_s=self._elapsed(),
            timings_s=self._rounded(),
        )
        self.folder.write_manifest(self.manifest)


class _PreviewWatch:
    """Passes events on and notes when the first labels of the whole volume could be seen."""

    def __init__(self, recorder: Recorder, began: float) -> None:
        self._recorder = recorder
        self._began = began
        self.preview_s: float | None = None

    def emit(self, event: Any, /) -> None:
        """Pass an event on."""
        is_preview = isinstance(event, PreviewEvent) and not event.is_final
        if is_preview and self.preview_s is None:
            self.preview_s = time.monotonic() - self._began
        self._recorder.emit(event)

    def check(self) -> None:
        """Raise if the run should stop."""
        self._recorder.check()


def _with_output(manifest: RunManifest, name: str, path: str) -> RunManifest:
    return manifest.model_copy(update={"outputs": {**manifest.outputs, name: path}})


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
