"""Own model folders on any volume: card → source → plan → preview → tiles → labels.

An interrupted job goes on: finished layers are in ``labels.ome.zarr`` and named in
``journal.jsonl``, keyed by everything the labels depend on. If anything of that changed, the job
starts anew and says what changed.
"""

from __future__ import annotations

import importlib
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

from lamella.core.errors import DeviceMemoryError, EngineError, InputError
from lamella.engines.coarse import create_preview
from lamella.engines.engine import (
    CONFIDENCE_NAME,
    LABELS_NAME,
    PREVIEW_NAME,
    ConfidenceMaps,
    EngineResult,
)
from lamella.engines.lamella.blocks import (
    LamellaBlocks,
    check_same,
    cut_blocks,
    identity_of,
    opened_once,
    runtime_text,
)
from lamella.engines.lamella.decoding import (
    ObjectBlocks,
    open_objects,
    plan_objects,
    scale_of,
)
from lamella.engines.lamella.descriptor import LAMELLA
from lamella.engines.lamella.look import look_from_document, look_to_document
from lamella.engines.lamella.objects import (
    check_outputs,
    decode_instances,
    decoder_options,
    linear_channels,
)
from lamella.engines.lamella.opening import Opened, open_runtime
from lamella.engines.lamella.settings import Settings, check_axes, resolve
from lamella.engines.lamella.source import Prepared, look_at, prepare, prepare_with
from lamella.engines.lamella.strategy import (
    check_decoder_memory,
    check_offsets,
    resolve_strategy,
)
from lamella.engines.lamella.target import (
    PROBABILITIES_NAME,
    Target,
    TargetWish,
    join_target,
    open_target,
)
from lamella.engines.leftovers import remove_left
from lamella.engines.tile_events import (
    QuietSink,
    TileEvents,
    announce_whole,
    say_what_is_kept,
)
from lamella.inference.decode import Argmax, Decoder, Foreground, Threshold
from lamella.inference.execute import (
    Execution,
    TileCount,
    count_tiles,
    execute,
    execute_block,
)
from lamella.inference.journal import JOURNAL_NAME, Journal, was_left_at
from lamella.inference.layers import GridMap, LabelLayers, ProbabilityLayers, SplitLayers
from lamella.inference.plan import make_plan, smaller_tile
from lamella.inference.preview import coarse_source, plan_preview
from lamella.inference.runtime import release_device_memory
from lamella.instances.components import id_dtype
from lamella.io.label_store import create_labels
from lamella.volume.box import Box
from lamella.volume.labels import LabelClass
from lamella.volume.volume import Note
from lamella.wire.event import LogEvent, WarningEvent

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from lamella.engines.engine import BlockCut, EngineDescriptor, EngineJob
    from lamella.models.folder import ModelFolder
    from lamella.volume.labels import Labels
    from lamella.wire.card import ModelCard
    from lamella.wire.event import EventSink

__all__ = ["LamellaEngine", "build_engine"]

LINKED = ("auto", "hybrid")
"""Requests whose per-slice objects the workflow links."""


def build_engine() -> LamellaEngine:
    """Return the engine; the name every engine's module offers."""
    return LamellaEngine()


class _Sure(TypedDict):
    """What every decoder wants to know about confidence."""

    measures: tuple[str, ...]
    temperature: float
    has_spread: bool


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
        model = _model_of(job)
        if resolve_strategy(job.request, model.card) == "ortho":
            from lamella.engines.lamella.ortho import segment_ortho

            check_axes(job.volume, model.card)
            return segment_ortho(
                job, model.card, sink, lambda part, events: _Run(part, model, events).segment()
            )
        return _Run(job, model, sink).segment()

    def check_blocks(self, job: EngineJob) -> None:
        """Refuse what cannot be cut; see :class:`lamella.engines.engine.BlockEngine`.

        Raises:
            InputError: for objects that are made of three planes of view.
        """
        if resolve_strategy(job.request, _model_of(job).card) == "ortho":
            raise InputError(
                "three planes of view (--instances ortho) cannot be cut into blocks",
                hint="run it without blocks, or choose another strategy",
            )

    def open_blocks(self, job: EngineJob, cut: BlockCut, sink: EventSink) -> LamellaBlocks:
        """Plan blocks; see :class:`lamella.engines.engine.BlockEngine`.

        Raises:
            InputError: as :meth:`segment`.
        """
        return _Run(job, _model_of(job), sink).open_blocks(cut)

    def run_block(
        self, job: EngineJob, document: Mapping[str, Any], box: Box, sink: EventSink
    ) -> None:
        """Segment one block; see :class:`lamella.engines.engine.BlockEngine`.

        Raises:
            EngineError: when the network fails, or is not the same here as where it was planned.
        """
        if "objects" in document:
            objects = ObjectBlocks.from_document(job.run_dir, document["objects"])
            objects.find(objects.number_of(box))
            return
        _Run(job, _model_of(job), sink).run_block(document, box)


def _model_of(job: EngineJob) -> ModelFolder:
    from lamella.models.folder import ModelFolder

    if not isinstance(job.model, ModelFolder):
        raise InputError(
            "the engine 'lamella' needs a Lamella model folder",
            hint="list them with `lamella models list`",
        )
    return job.model


class _Run:
    """One job from beginning to end."""

    def __init__(self, job: EngineJob, model: ModelFolder, sink: EventSink) -> None:
        self._job = job
        self._model = model
        self._sink = sink
        self._card: ModelCard = model.card
        check_axes(job.volume, self._card)
        check_outputs(self._card)
        check_decoder_memory(job.request, self._card, job.volume)
        self._settings: Settings = resolve(job.request, self._card)
        self._notes: list[Note] = []

    def segment(self) -> EngineResult:
        self._sink.check()
        _import_ahead()
        prepared = prepare(self._job.volume, self._card, self._settings, self._sink)
        self._warn(*prepared.notes)
        smaller = self._smaller()
        was_smaller = smaller is not None and was_left_at(self._job.run_dir, smaller.tile)
        if smaller is not None and was_smaller and self._job.resume:
            self._fall_back(smaller, "as before the stop")
            smaller = None
        try:
            return self._segment(prepared)
        except DeviceMemoryError as error:
            if smaller is None:
                raise
            reason = error.message
        # Outside of the handler: what it holds on to would fill the device's memory still.
        release_device_memory()
        self._fall_back(smaller, reason)
        return self._segment(prepared)

    def _smaller(self) -> Settings | None:
        """What a device with too little memory is given instead; None where there is no less."""
        card, settings = self._card, self._settings
        divisor = (1,) * (3 - len(card.axes)) + (card.divisor or (1,) * len(card.axes))
        tile = smaller_tile(settings.tile, divisor)
        return None if tile is None else replace(settings, tile=tile, batch=1)

    def _fall_back(self, smaller: Settings, reason: str) -> None:
        old, new = (" x ".join(map(str, s.tile)) for s in (self._settings, smaller))
        note = Note("smaller_tile", f"tiles of {new} are used instead of {old}: {reason}")
        self._sink.emit(LogEvent(message=note.message))
        self._warn(note)
        self._settings = smaller

    def _segment(self, prepared: Prepared) -> EngineResult:
        check_offsets(self._card, prepared.shape, prepared.source.shape)
        opened = self._open(prepared)
        self._warn(*opened.notes)
        target = self._target(prepared, opened)
        if self._settings.has_preview and not target.done.layers:
            self._show_preview(prepared, opened)
        count = self._run_tiles(prepared, opened, target)
        return self._result(opened, target, count)

    def _result(self, opened: Opened, target: Target, count: TileCount) -> EngineResult:
        labels = self._finish(target, count)
        options = self._settings.as_options()
        options["runtime_check"] = opened.check
        options["columns"] = len(target.plan.columns)
        objects = self._object_blocks(target)
        options["object_block"] = None if objects is None else list(objects.grid.extent)
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
            confidence=self._confidence(),
            is_per_slice=self._settings.strategy == "slices",
        )

    # -- in blocks

    def open_blocks(self, cut: BlockCut) -> LamellaBlocks:
        self._sink.check()
        _import_ahead()
        look = look_at(self._job.volume, self._card, self._sink)
        prepared = prepare_with(self._job.volume, self._card, self._settings, look)
        self._warn(*prepared.notes)
        check_offsets(self._card, prepared.shape, prepared.source.shape)
        opened = self._open(prepared)
        self._warn(*opened.notes)
        target = self._target(prepared, opened)
        if self._settings.has_preview and not (self._job.run_dir / PREVIEW_NAME).exists():
            self._show_preview(prepared, opened)
        # What an earlier process left of these blocks stays.
        execution = self._execution(prepared, opened, target, is_shared=True)
        boxes = cut_blocks(target, cut, self._settings.tile)
        counts = tuple(count_tiles(execution, box) for box in boxes)
        n_tiles = sum(counts)
        objects = self._object_blocks(target)

        def finish() -> EngineResult:
            return self._result(opened, target, TileCount(n_tiles, n_tiles))

        return LamellaBlocks(
            document={
                "identity": identity_of(target),
                "look": look_to_document(look),
                "model": self._model.sha256,
                "runtime": runtime_text(opened),
            },
            boxes=boxes,
            counts=counts,
            labels=None if self._settings.makes_instances else target.store.path.name,
            finish=finish,
            then=None if objects is None else lambda: plan_objects(objects, finish),
        )

    def run_block(self, document: Mapping[str, Any], box: Box) -> None:
        if self._model.sha256 != document["model"]:
            raise EngineError(
                f"the model {self._card.id!r} of this worker is another one",
                hint="let all workers see the same folder of models",
            )
        look = look_from_document(document["look"])
        prepared = prepare_with(self._job.volume, self._card, self._settings, look)
        opened = opened_once(document["identity"], lambda: self._open(prepared))
        check_same(document, opened)
        target = join_target(self._wish(prepared, opened))
        execution = self._execution(prepared, opened, target, is_shared=True)
        execute_block(execution, box, TileEvents(self._sink))
        for store in (target.layers, execution.probabilities):
            if store is not None:
                store.sync()

    def _warn(self, *notes: Note) -> None:
        for note in notes:
            self._notes.append(note)
            self._sink.emit(WarningEvent(code=note.code, message=note.message))

    # -- the network

    def _open(self, prepared: Prepared) -> Opened:
        tile = self._settings.tile
        planned = make_plan(
            prepared.source.shape, tile=tile, overlap_fraction=self._settings.overlap_fraction
        )
        batch = min(self._settings.batch, planned.n_tiles)
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
        sure: _Sure = {
            "measures": () if is_preview else self._settings.measures,
            "temperature": card.calibration.temperature if card.calibration else 1.0,
            "has_spread": self._settings.has_spread,
        }
        if doc.kind == "argmax":
            return Argmax(card.n_outputs, **sure)
        if doc.kind == "threshold":
            threshold = float(str(doc.parameters.get("threshold", 0.5)))
            return Threshold(card.n_outputs, threshold=threshold, **sure)
        return Foreground(
            card.n_outputs,
            threshold=decoder_options(doc).foreground_threshold,
            linear=linear_channels(card),
            has_boundary=doc.kind == "boundary_watershed",
            **sure,
        )

    def _target(self, prepared: Prepared, opened: Opened) -> Target:
        return open_target(self._wish(prepared, opened), self._sink)

    def _wish(self, prepared: Prepared, opened: Opened) -> TargetWish:
        decoder = self._decoder()
        return TargetWish(
            job=self._job,
            model=self._model,
            settings=self._settings,
            prepared=prepared,
            opened=opened,
            label_dtype=decoder.label_dtype,
            classes=self._classes(),
            maps=tuple(name for name, _ in self._map_parts(decoder)),
        )

    def _classes(self) -> tuple[LabelClass, ...]:
        return tuple(
            LabelClass(known.value, known.name, known.color)
            for known in self._card.classes
            if known.value != 0
        )

    # -- passes over the volume

    def _run_tiles(self, prepared: Prepared, opened: Opened, target: Target) -> TileCount:
        say_what_is_kept(
            self._sink, target.done, n_layers=target.grid.shape[0] * len(target.plan.columns)
        )
        # Foreground still to be split into objects is no result, and too fine for a preview.
        listener = TileEvents(
            self._sink,
            labels=None if self._settings.makes_instances else target.store.path.name,
            n_axes=len(self._job.volume.spatial_shape),
        )
        with Journal.go_on(self._job.run_dir / JOURNAL_NAME, target.done) as journal:
            execution = self._execution(prepared, opened, target)
            return execute(replace(execution, journal=journal, done=target.done), listener)

    def _execution(
        self, prepared: Prepared, opened: Opened, target: Target, *, is_shared: bool = False
    ) -> Execution:
        decoder = self._decoder()
        restart = not (is_shared or target.done.layers)
        return Execution(
            plan=target.plan,
            source=prepared.source,
            runtime=opened.runtime,
            decoder=decoder,
            grid=target.grid,
            labels=target.layers,
            probabilities=self._map_stores(decoder, target, restart=restart),
        )

    def _map_parts(self, decoder: Decoder) -> list[tuple[str, slice]]:
        """Arrays beside the labels, and which of the decoder's maps each holds."""
        settings, n_maps = self._settings, decoder.n_probabilities
        first = n_maps - len(settings.measures)
        parts: list[tuple[str, slice]] = []
        if settings.is_instance_model:
            parts.append((PROBABILITIES_NAME, slice(0, first)))
        elif settings.has_confidence:
            parts.append((PROBABILITIES_NAME, slice(0, 1)))
        if settings.leaves_confidence:
            parts.append((CONFIDENCE_NAME, slice(first, n_maps)))
        return parts

    def _map_stores(self, decoder: Decoder, target: Target, *, restart: bool) -> SplitLayers | None:
        stores = [
            (
                ProbabilityLayers(
                    self._job.run_dir / name,
                    shape=self._job.volume.spatial_shape,
                    n_maps=maps.stop - maps.start,
                    unit=target.layers.unit,
                    restart=restart,
                ),
                maps,
            )
            for name, maps in self._map_parts(decoder)
        ]
        return SplitLayers(stores) if stores else None

    def _confidence(self) -> ConfidenceMaps | None:
        if not self._settings.leaves_confidence:
            return None
        return ConfidenceMaps(
            measures=self._settings.measures, is_calibrated=self._card.calibration is not None
        )

    def _show_preview(self, prepared: Prepared, opened: Opened) -> None:
        settings, volume = self._settings, self._job.volume
        planned = make_plan(
            prepared.source.shape, tile=settings.tile, overlap_fraction=settings.overlap_fraction
        )
        coarse = plan_preview(prepared.source.shape, tile=settings.tile, n_planned=planned.n_tiles)
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
        decoder = self._decoder(is_preview=True)
        store = create_preview(
            self._job.run_dir,
            volume,
            shape,
            factors,
            dtype=decoder.label_dtype,
            classes=self._classes(),
        )
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
            TileEvents(self._sink, stage="preview"),
        )
        store.finish(QuietSink(self._sink))
        announce_whole(self._sink, PREVIEW_NAME, volume.spatial_shape, factors)

    # -- the end

    def _finish(self, target: Target, count: TileCount) -> Labels:
        assert count.done == count.planned, "execute returns only after the last tile"
        if not self._settings.makes_instances:
            if target.store.array.nchunks_initialized == 0:
                self._warn(_nothing_found())
            return target.store.finish(QuietSink(self._sink))
        return self._make_instances(target)

    def _make_instances(self, target: Target) -> Labels:
        import zarr

        volume, path = self._job.volume, self._job.run_dir / LABELS_NAME
        objects, stitched = self._object_blocks(target), None
        if objects is not None:
            objects.open()
            objects.find_missing(self._sink)
            stitched = objects.stitch(self._sink)
        remove_left(path)
        store = create_labels(
            path,
            like=volume,
            dtype=np.uint32 if stitched is None else id_dtype(stitched.count),
            classes=self._classes(),
            is_instance=True,
            chunks=target.store.chunks,
        )
        is_2d = self._card.axes == "yx"
        if objects is not None and stitched is not None:
            objects.write(stitched, LabelLayers(store), self._sink)
            n_objects = stitched.count
        else:
            n_objects = decode_instances(
                zarr.open_array(str(self._job.run_dir / PROBABILITIES_NAME), mode="r"),
                LabelLayers(store),
                self._card.decoder,
                spacing=volume.spacing.values,
                is_2d=is_2d,
                sink=self._sink,
                scale=scale_of(target),
            )
        if n_objects == 0:
            self._warn(_nothing_found())
        elif is_2d and self._has_slices() and self._job.request.instances not in LINKED:
            self._warn(
                Note(
                    "instances_per_slice",
                    "the model is 2-D: objects have an id of their own in every slice",
                )
            )
        if not target.store.is_finished:
            target.store.finish(QuietSink(self._sink))
        labels = store.finish(QuietSink(self._sink))
        announce_whole(self._sink, LABELS_NAME, volume.spatial_shape)
        if objects is not None:
            objects.remove()
        return labels

    def _object_blocks(self, target: Target) -> ObjectBlocks | None:
        return open_objects(self._job, self._card.decoder, self._settings, target)

    def _has_slices(self) -> bool:
        volume = self._job.volume
        return "z" in volume.axes and volume.spatial_shape[0] > 1


def _import_ahead() -> None:
    """Import zarr while voxels are looked at and the network is compiled.

    Neither holds the interpreter for long, and the preview comes a fifth of a second earlier.
    """
    threading.Thread(target=importlib.import_module, args=("zarr",), daemon=True).start()


def _nothing_found() -> Note:
    return Note("no_objects", "nothing was found: every voxel is background")
