"""Own model folders on any volume: card → source → plan → preview → tiles → labels.

An interrupted job goes on: finished layers are in ``labels.ome.zarr`` and named in
``journal.jsonl``, keyed by everything the labels depend on. If anything of that changed, the job
starts anew and says what changed.
"""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lamella.core.errors import InputError, UnreadableFileError
from lamella.engines.engine import LABELS_NAME, PREVIEW_NAME, EngineResult
from lamella.engines.lamella.descriptor import LAMELLA
from lamella.engines.lamella.objects import decode_instances, watershed_options
from lamella.engines.lamella.opening import Opened, open_runtime
from lamella.engines.lamella.settings import Settings, check_axes, resolve
from lamella.engines.lamella.source import Prepared, prepare
from lamella.inference.decode import Argmax, Decoder, Foreground, Threshold
from lamella.inference.execute import Execution, TileCount, execute
from lamella.inference.journal import Journal, JournalState
from lamella.inference.layers import GridMap, LabelLayers, ProbabilityLayers
from lamella.inference.plan import Column, Plan, column_extent, make_plan
from lamella.inference.preview import coarse_source, plan_preview
from lamella.io.label_store import LabelStore, create_labels
from lamella.volume.box import Box
from lamella.volume.labels import LabelClass
from lamella.volume.volume import Note, Volume
from lamella.wire.event import LogEvent, PreviewEvent, ProgressEvent, WarningEvent

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from lamella.core.progress import Progress
    from lamella.engines.engine import EngineDescriptor, EngineJob
    from lamella.models.folder import ModelFolder
    from lamella.volume.labels import Labels
    from lamella.wire.card import ModelCard
    from lamella.wire.event import EventSink

__all__ = ["LamellaEngine", "build_engine"]

JOURNAL_NAME = "journal.jsonl"
FOREGROUND_NAME = "foreground.ome.zarr"
PROBABILITIES_NAME = "probabilities.zarr"
# Options that change nothing in the labels beyond what the plan and the runtime already say.
FREE = ("band_mb", "check", "preview")
CHUNK_VOXELS = 1 << 18
MAX_CHUNK_DEPTH = 64
MIN_CHUNK_DEPTH = 16


def build_engine() -> LamellaEngine:
    """Return the engine; the name every engine's module offers."""
    return LamellaEngine()


class LamellaEngine:
    """Runs own model folders: 3-D networks, and 2-D ones over the slices of a volume."""

    @property
    def descriptor(self) -> EngineDescriptor:
        """What this engine can do."""
        return LAMELLA

    def segment(self, job: EngineJob, sink: EventSink) -> EngineResult:
        """Segment a volume; see :class:`lamella.engines.engine.Engine`.

        Raises:
            InputError: options, tile or intensities that cannot be used.
            AxesError: a volume that does not fit the model.
            ModelError: a model folder that cannot be run.
            RunCancelledError: the caller cancelled; finished layers are kept.
            EngineError: the network failed.
            StorageError: labels cannot be written.
        """
        if job.model is None:
            raise InputError(
                "the engine 'lamella' needs a model", hint="list them with `lamella models list`"
            )
        return _Run(job, job.model, sink).segment()


@dataclass(frozen=True, slots=True)
class _Target:
    """Where the labels of the tiles go, and what of them is done."""

    store: LabelStore
    layers: LabelLayers
    plan: Plan
    grid: GridMap
    fingerprint: dict[str, str]
    done: JournalState


class _Run:
    """One job from beginning to end."""

    def __init__(self, job: EngineJob, model: ModelFolder, sink: EventSink) -> None:
        self._job = job
        self._model = model
        self._sink = sink
        self._card: ModelCard = model.card
        check_axes(job.volume, self._card)
        self._settings: Settings = resolve(job.request, self._card)
        self._notes: list[Note] = []

    def segment(self) -> EngineResult:
        self._sink.check()
        prepared = prepare(self._job.volume, self._card, self._settings, self._sink)
        self._warn(*prepared.notes)
        opened = self._open(prepared)
        self._warn(*opened.notes)
        target = self._target(prepared, opened)
        if self._settings.has_preview and not target.done.layers:
            self._show_preview(prepared, opened)
        count = self._run_tiles(prepared, opened, target)
        labels = self._finish(target, count)
        options = self._settings.as_options()
        options["runtime_check"] = opened.check
        options["columns"] = len(target.plan.columns)
        options["network_shape"] = list(target.plan.shape)
        return EngineResult(
            labels=labels,
            tiles_done=count.done,
            tiles_planned=count.planned,
            device=opened.runtime.device,
            runtime=opened.runtime.name,
            precision=opened.runtime.precision,
            options_resolved=options,
            warnings=tuple(self._notes),
        )

    def _warn(self, *notes: Note) -> None:
        for note in notes:
            self._notes.append(note)
            self._sink.emit(WarningEvent(code=note.code, message=note.message))

    # -- the network

    def _open(self, prepared: Prepared) -> Opened:
        tile, batch = self._settings.tile, self._settings.batch
        spatial = tile if self._card.axes == "zyx" else tile[1:]
        batch_shape = (batch, self._card.n_channels, *spatial)

        def sample() -> NDArray[np.float32]:
            # The middle of the volume: corners are often empty.
            shape = prepared.source.shape
            start = [max(0, (n - t) // 2) for n, t in zip(shape, tile, strict=True)]
            stop = [min(n, s + t) for n, s, t in zip(shape, start, tile, strict=True)]
            data = prepared.source.read(Box(tuple(start), tuple(stop)))
            padded = np.zeros((batch, self._card.n_channels, *tile), np.float32)
            _, z, y, x = data.shape
            padded[:, :, :z, :y, :x] = data
            return padded.reshape(batch_shape)

        return open_runtime(self._model, self._settings, batch_shape, sample)

    def _decoder(self, *, is_preview: bool = False) -> Decoder:
        card, doc = self._card, self._card.decoder
        has_confidence = self._settings.has_confidence and not is_preview
        temperature = card.calibration.temperature if card.calibration else 1.0
        if doc.kind == "argmax":
            return Argmax(card.n_outputs, confidence=has_confidence, temperature=temperature)
        if doc.kind == "threshold":
            return Threshold(
                card.n_outputs,
                threshold=float(str(doc.parameters.get("threshold", 0.5))),
                confidence=has_confidence,
                temperature=temperature,
            )
        linear = (1,) if doc.kind == "distance_watershed" else ()
        threshold = watershed_options(doc).foreground_threshold
        return Foreground(card.n_outputs, threshold=threshold, linear=linear)

    # -- labels on disk, and what an earlier job left of them

    def _target(self, prepared: Prepared, opened: Opened) -> _Target:
        name = FOREGROUND_NAME if self._settings.makes_instances else LABELS_NAME
        path, journal = self._job.run_dir / name, self._job.run_dir / JOURNAL_NAME
        if self._job.resume:
            state = Journal.read(journal)
            store = _reopen(path) if state.fingerprint else None
            if store is not None:
                target = self._place(store, prepared, opened, state)
                changed = state.differences(target.fingerprint)
                if not changed:
                    return target
                self._sink.emit(
                    LogEvent(message=f"starting anew: {', '.join(changed)} changed since the stop")
                )
        _remove(path)
        _remove(self._job.run_dir / PROBABILITIES_NAME)
        volume = self._job.volume
        store = create_labels(
            path,
            like=volume,
            dtype=self._decoder().label_dtype,
            classes=self._classes(),
            chunks=self._chunks(prepared.shape)[3 - len(volume.spatial_shape) :],
        )
        target = self._place(store, prepared, opened, JournalState())
        Journal.start(journal, target.fingerprint).close()
        return replace(target, done=Journal.read(journal))

    def _place(
        self, store: LabelStore, prepared: Prepared, opened: Opened, state: JournalState
    ) -> _Target:
        layers = LabelLayers(store)
        grid = GridMap.make(prepared.shape, prepared.source.shape)
        plan = self._plan(prepared, layers.unit, grid, opened.runtime.n_outputs)
        fingerprint = {
            "input": prepared.sha256,
            "model": _digest((self._card.model_dump_json(), sorted(self._card.files.items()))),
            "plan": _digest((plan, grid.shape, layers.unit)),
            "options": _digest(
                sorted((k, v) for k, v in self._settings.as_options().items() if k not in FREE)
            ),
            "runtime": " ".join(
                (
                    opened.runtime.name,
                    opened.version,
                    opened.runtime.device,
                    opened.runtime.precision,
                )
            ),
        }
        return _Target(store, layers, plan, grid, fingerprint, state)

    def _plan(
        self,
        prepared: Prepared,
        unit: tuple[int, int, int],
        grid: GridMap,
        n_outputs: int,
    ) -> Plan:
        settings = self._settings
        shape, network = prepared.shape, prepared.source.shape
        # Accumulators and the slabs under them, per (y, x) voxel of the labels.
        depth = 4 * settings.tile[0] * (n_outputs + self._card.n_channels)
        ratio = network[1] * network[2] / (shape[1] * shape[2])
        height, width = column_extent(
            (shape[1], shape[2]), (unit[1], unit[2]), depth * ratio, settings.band_bytes
        )
        outputs = [
            Box((y, x), (min(y + height, shape[1]), min(x + width, shape[2])))
            for y in range(0, shape[1], height)
            for x in range(0, shape[2], width)
        ]
        return make_plan(
            network,
            tile=settings.tile,
            overlap_fraction=settings.overlap_fraction,
            blend=settings.blend,
            columns=tuple(Column(grid.region(output), output) for output in outputs),
        )

    def _chunks(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """Chunks as deep as a row moves the band, so that layers wait for no later row."""
        tile = self._settings.tile[0]
        stride = max(1, int(tile * (1 - self._settings.overlap_fraction)))
        depth = min(shape[0], max(MIN_CHUNK_DEPTH, min(MAX_CHUNK_DEPTH, stride)))
        edge = 2 ** -(-int(np.log2(CHUNK_VOXELS / depth)) // 2)
        return depth, min(shape[1], edge), min(shape[2], edge)

    def _classes(self) -> tuple[LabelClass, ...]:
        return tuple(
            LabelClass(known.value, known.name, known.color)
            for known in self._card.classes
            if known.value != 0
        )

    # -- passes over the volume

    def _run_tiles(self, prepared: Prepared, opened: Opened, target: _Target) -> TileCount:
        decoder = self._decoder()
        probabilities = None
        if decoder.n_probabilities:
            probabilities = ProbabilityLayers(
                self._job.run_dir / PROBABILITIES_NAME,
                shape=self._job.volume.spatial_shape,
                n_maps=decoder.n_probabilities,
                unit=target.layers.unit,
                restart=not target.done.layers,
            )
        listener = _Listener(self._sink, self._job.volume, target, self._settings)
        with Journal.go_on(self._job.run_dir / JOURNAL_NAME, target.done) as journal:
            return execute(
                Execution(
                    plan=target.plan,
                    source=prepared.source,
                    runtime=opened.runtime,
                    decoder=decoder,
                    grid=target.grid,
                    labels=target.layers,
                    probabilities=probabilities,
                    journal=journal,
                    done=target.done,
                ),
                listener,
            )

    def _show_preview(self, prepared: Prepared, opened: Opened) -> None:
        settings, volume = self._settings, self._job.volume
        planned = make_plan(
            prepared.source.shape, tile=settings.tile, overlap_fraction=settings.overlap_fraction
        )
        coarse = plan_preview(prepared.source.shape, tile=settings.tile, n_planned=planned.n_tiles)
        path = self._job.run_dir / PREVIEW_NAME
        _remove(path)
        n = len(volume.spatial_shape)
        shape = coarse.plan.shape[3 - n :]
        factors = tuple(
            fine * factor / network
            for fine, factor, network in zip(
                volume.spatial_shape,
                coarse.factors[3 - n :],
                prepared.source.shape[3 - n :],
                strict=True,
            )
        )
        like = Volume(
            data=np.broadcast_to(np.zeros((), np.uint8), shape),
            axes=volume.axes.without("t", "c"),
            affine=volume.affine.downsampled(factors),
            unit=volume.unit,
        )
        decoder = self._decoder(is_preview=True)
        store = create_labels(path, like=like, dtype=decoder.label_dtype, classes=self._classes())
        source = coarse_source(
            prepared.source,
            coarse.factors,
            is_2d=self._card.axes == "yx",
            levels=prepared.levels,
        )
        execute(
            Execution(
                plan=coarse.plan,
                source=source,
                runtime=opened.runtime,
                decoder=decoder,
                grid=GridMap.make(coarse.plan.shape, coarse.plan.shape),
                labels=LabelLayers(store),
            ),
            _Listener(self._sink, None, None, settings),
        )
        store.finish(_Quiet(self._sink))
        self._announce_whole(PREVIEW_NAME, factors, is_final=False)

    def _announce_whole(self, name: str, factors: tuple[float, ...], *, is_final: bool) -> None:
        shape = self._job.volume.spatial_shape
        self._sink.emit(
            PreviewEvent(
                path=name,
                factors=factors,
                box_start=(0,) * len(shape),
                box_stop=shape,
                is_final=is_final,
            )
        )

    # -- the end

    def _finish(self, target: _Target, count: TileCount) -> Labels:
        assert count.done == count.planned, "execute returns only after the last tile"
        if not self._settings.makes_instances:
            if target.store.array.nchunks_initialized == 0:
                self._warn(_nothing_found())
            return target.store.finish(_Quiet(self._sink))
        return self._make_instances(target)

    def _make_instances(self, target: _Target) -> Labels:
        import zarr

        volume, path = self._job.volume, self._job.run_dir / LABELS_NAME
        _remove(path)
        store = create_labels(
            path,
            like=volume,
            dtype=np.uint32,
            classes=self._classes(),
            is_instance=True,
            chunks=target.store.chunks,
        )
        is_2d = self._card.axes == "yx"
        n_objects = decode_instances(
            zarr.open_array(str(self._job.run_dir / PROBABILITIES_NAME), mode="r"),
            LabelLayers(store),
            self._card.decoder,
            spacing=volume.spacing.values,
            is_2d=is_2d,
            sink=self._sink,
        )
        if n_objects == 0:
            self._warn(_nothing_found())
        elif is_2d and "z" in volume.axes and volume.spatial_shape[0] > 1:
            self._warn(
                Note(
                    "instances_per_slice",
                    "the model is 2-D: objects have an id of their own in every slice",
                )
            )
        if not target.store.is_finished:
            target.store.finish(_Quiet(self._sink))
        labels = store.finish(_Quiet(self._sink))
        self._announce_whole(LABELS_NAME, (1.0,) * len(volume.spatial_shape), is_final=True)
        return labels


class _Listener:
    """Turns what the loop tells into events; silent about boxes and tiles of a preview."""

    def __init__(
        self,
        sink: EventSink,
        volume: Volume | None,
        target: _Target | None,
        settings: Settings,
    ) -> None:
        self._sink = sink
        self._volume = volume
        self._target = target
        self._is_final = not settings.makes_instances
        if target is not None and target.done.layers:
            done = sum(target.done.layers.values())
            total = target.grid.shape[0] * len(target.plan.columns)
            sink.emit(LogEvent(message=f"going on: {done} of {total} layers are on disk already"))

    def check(self) -> None:
        self._sink.check()

    def tiles(self, done: int, total: int, eta_s: float | None) -> None:
        stage = "preview" if self._target is None else "tiles"
        self._sink.emit(
            ProgressEvent(stage=stage, done=done, total=total, unit="tiles", eta_s=eta_s)
        )

    def finished(self, box: Box) -> None:
        # Foreground that is still to be split into objects is no result, and too fine for a preview.
        if self._volume is None or self._target is None or not self._is_final:
            return
        n = len(self._volume.spatial_shape)
        self._sink.emit(
            PreviewEvent(
                path=self._target.store.path.name,
                factors=(1.0,) * n,
                box_start=box.start[3 - n :],
                box_stop=box.stop[3 - n :],
                is_final=True,
            )
        )


class _Quiet:
    """Lets the label store ask for cancellation and report its steps as events."""

    def __init__(self, sink: EventSink) -> None:
        self._sink = sink

    def emit(self, progress: Progress, /) -> None:
        self._sink.emit(
            ProgressEvent(
                stage=progress.stage, done=progress.done, total=progress.total, unit=progress.unit
            )
        )

    def check(self) -> None:
        self._sink.check()


def _nothing_found() -> Note:
    return Note("no_objects", "nothing was found: every voxel is background")


def _reopen(path: Path) -> LabelStore | None:
    try:
        return LabelStore.reopen(path) if path.exists() else None
    except UnreadableFileError:
        return None


def _remove(path: Path) -> None:
    if path.exists():
        shutil.rmtree(path)


def _digest(value: Any) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()
