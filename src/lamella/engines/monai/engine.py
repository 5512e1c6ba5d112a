"""MONAI bundles on any volume: documents → source → plan → preview → tiles → labels.

The labels are those that ``monai.bundle`` itself leaves for the same bundle and image, on the
image's own grid; but streaming: no array of the size of the volume is held. Nothing in the bundle
is executed unless the user trusts it; what a trusted bundle does beyond the steps known here is
done by MONAI itself (:mod:`lamella.engines.monai.trusted`).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lamella.core.errors import AxesError, DeviceMemoryError, InputError, ModelError
from lamella.engines.engine import LABELS_NAME, ConfidenceMaps, EngineResult
from lamella.engines.monai.classes import has_background, label_classes
from lamella.engines.monai.decode import build_decoder, shares
from lamella.engines.monai.descriptor import MONAI
from lamella.engines.monai.largest import keep_largest_pieces
from lamella.engines.monai.models import open_bundle
from lamella.engines.monai.opening import Opened, open_network, open_runtime
from lamella.engines.monai.output import read_output
from lamella.engines.monai.preview import CoarsePass, Weighted, show_preview
from lamella.engines.monai.reading import Reading, read_bundle
from lamella.engines.monai.settings import Settings, resolve
from lamella.engines.monai.source import Prepared, prepare
from lamella.engines.monai.target import (
    SURE,
    Target,
    TargetWish,
    open_target,
    output_grid,
)
from lamella.engines.options import resolve_options
from lamella.engines.tile_events import QuietSink, TileEvents, say_what_is_kept
from lamella.inference.band import gaussian_weights
from lamella.inference.execute import Execution, TileCount, execute
from lamella.inference.journal import JOURNAL_NAME, Journal, was_left_at
from lamella.inference.outlet import LabelSink, Place, ResamplingOutlet, write_outside
from lamella.inference.plan import smaller_tile
from lamella.inference.runtime import release_device_memory
from lamella.models.foreign import ForeignModel
from lamella.volume.box import Box
from lamella.volume.volume import Note
from lamella.wire.event import LogEvent, WarningEvent

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lamella.engines.engine import EngineDescriptor, EngineJob
    from lamella.engines.monai.output import Output
    from lamella.inference.decode import Decoder
    from lamella.inference.outlet import OutputGrid
    from lamella.volume.labels import LabelClass, Labels
    from lamella.wire.event import EventSink

__all__ = ["MonaiEngine", "build_engine"]

TILES_NAME = "tiles.ome.zarr"
"""Labels before the largest pieces are picked, for bundles that do so."""


def build_engine() -> MonaiEngine:
    """Return the engine; the name every engine's module offers."""
    return MonaiEngine()


class MonaiEngine:
    """Runs MONAI bundles."""

    @property
    def descriptor(self) -> EngineDescriptor:
        """What this engine can do."""
        return MONAI

    def segment(self, job: EngineJob, sink: EventSink) -> EngineResult:
        """Segment a volume; see :class:`lamella.engines.engine.Engine`.

        Raises:
            InputError: options, tile or intensities that cannot be used.
            AxesError: a volume that does not fit the bundle.
            ModelError: a bundle that is incomplete, damaged, or not understood without trust.
            RunCancelledError: the caller cancelled; finished layers are kept.
            EngineError: the network failed.
            StorageError: labels cannot be written.
        """
        if not isinstance(job.model, ForeignModel):
            raise InputError(
                "the engine 'monai' needs a MONAI bundle",
                hint="name it as monai:FOLDER or monai:FILE.zip",
            )
        sink.check()
        options = resolve_options(MONAI.id, MONAI.options, job.request.options)
        reading = read_bundle(open_bundle(job.model), is_trusted=job.is_trusted)
        _check_axes(job, reading)
        if reading.steps is None:
            from lamella.engines.monai.trusted import segment_whole

            return segment_whole(job, reading, sink)
        replaces = bool(options["replace_not_finite"])
        return _Run(job, reading, sink).segment(replaces_not_finite=replaces)


@dataclass(frozen=True, slots=True)
class _Ready:
    """Everything that is known before the first tile."""

    prepared: Prepared
    settings: Settings
    opened: Opened
    output: Output
    grid: OutputGrid | None
    classes: tuple[LabelClass, ...]
    drops_first: bool

    @property
    def tiles_name(self) -> str:
        """Name of the labels that the tiles leave."""
        return LABELS_NAME if self.output.keep_largest is None else TILES_NAME

    @property
    def weights(self) -> NDArray[np.float32]:
        """Of a tile's voxels."""
        settings = self.settings
        if not settings.is_gaussian:
            return np.ones(settings.tile, np.float32)
        return gaussian_weights(settings.tile, sigma_fraction=settings.sigma)

    def decoder(self, *, is_preview: bool = False) -> Decoder:
        """Logits (or what was interpolated) to labels."""
        return build_decoder(
            self.output,
            n=self.opened.n_outputs,
            drops_first=self.drops_first,
            is_resampled=self.grid is not None and not is_preview,
            measures=() if is_preview else self.settings.measures,
            has_spread=self.settings.has_spread,
        )


class _Run:
    """One job from beginning to end."""

    def __init__(self, job: EngineJob, reading: Reading, sink: EventSink) -> None:
        self._job = job
        self._reading = reading
        self._sink = sink
        self._notes: list[Note] = []

    def segment(self, *, replaces_not_finite: bool) -> EngineResult:
        job, reading = self._job, self._reading
        self._warn(*reading.notes)
        assert reading.steps is not None, "asked for only where they are understood"
        network = open_network(reading)
        prepared = prepare(
            job.volume,
            reading.steps,
            n_axes=reading.n_axes,
            replaces_not_finite=replaces_not_finite,
            sink=self._sink,
        )
        self._warn(*prepared.notes)
        divisor = reading.bundle.metadata.divisor
        settings = resolve(job.request, prepared.layout, reading.inferer, divisor)
        smaller = _smaller(settings)
        was_smaller = smaller is not None and was_left_at(job.run_dir, smaller.tile)
        if smaller is not None and was_smaller and job.resume:
            self._say_smaller(settings, smaller, "as before the stop")
            settings, smaller = smaller, None
        try:
            return self._segment(network, prepared, settings)
        except DeviceMemoryError as error:
            if smaller is None:
                raise
            reason = error.message
        # Outside of the handler: what it holds on to would fill the device's memory still.
        release_device_memory()
        self._say_smaller(settings, smaller, reason)
        return self._segment(network, prepared, smaller)

    def _segment(self, network: Any, prepared: Prepared, settings: Settings) -> EngineResult:
        ready = self._open(network, prepared, settings)
        target = self._target(ready)
        if settings.has_preview and not target.done.layers:
            coarse = CoarsePass(
                job=self._job,
                prepared=prepared,
                settings=settings,
                runtime=ready.opened.runtime,
                decoder=ready.decoder(is_preview=True),
                weights=ready.weights,
                classes=ready.classes,
            )
            show_preview(coarse, self._sink)
        count = self._run_tiles(ready, target)
        labels = self._finish(ready, target)
        runtime = ready.opened.runtime
        options = settings.as_options() | {
            "runtime_check": ready.opened.check,
            "columns": len(target.plan.columns),
            "network_shape": list(target.plan.shape),
            "activation": ready.output.activation,
            "interpolated": ready.output.resampled if ready.grid is not None else "nothing",
        }
        confidence = None
        if settings.measures:
            confidence = ConfidenceMaps(measures=settings.measures, is_calibrated=False)
        return EngineResult(
            labels=labels,
            tiles_done=count.done,
            tiles_planned=count.planned,
            device=runtime.device,
            runtime=runtime.name,
            precision=runtime.precision,
            options_resolved=options,
            warnings=tuple(self._notes),
            confidence=confidence,
        )

    def _warn(self, *notes: Note) -> None:
        for note in notes:
            self._notes.append(note)
            self._sink.emit(WarningEvent(code=note.code, message=note.message))

    def _say_smaller(self, settings: Settings, smaller: Settings, reason: str) -> None:
        old, new = (" x ".join(map(str, s.tile)) for s in (settings, smaller))
        note = Note("smaller_tile", f"tiles of {new} are used instead of {old}: {reason}")
        self._sink.emit(LogEvent(message=note.message))
        self._warn(note)

    # -- before the first tile

    def _open(self, network: Any, prepared: Prepared, settings: Settings) -> _Ready:
        reading = self._reading
        metadata, resolver = reading.bundle.metadata, reading.bundle.resolver
        is_resampled = not prepared.layout.is_identity
        early = read_output(resolver, n_outputs=reading.n_outputs or 2, is_resampled=is_resampled)
        opened = open_runtime(
            network,
            prepared.layout,
            settings,
            n_channels=reading.n_channels,
            sample=lambda: _sample(prepared, settings),
            is_sigmoid=early.threshold is not None,
        )
        self._warn(*opened.notes)
        if metadata.n_outputs is not None and opened.n_outputs != metadata.n_outputs:
            raise ModelError(
                f"the network gives {opened.n_outputs} channel(s), the bundle's metadata says"
                f" {metadata.n_outputs}",
                hint="its documents are of different versions: get the bundle again",
            )
        output = read_output(resolver, n_outputs=opened.n_outputs, is_resampled=is_resampled)
        self._warn(*(Note("assumed", sentence) for sentence in output.notes))
        is_argmax = output.threshold is None
        drops_first = not is_argmax and opened.n_outputs > 1 and has_background(metadata)
        if not is_argmax and opened.n_outputs - drops_first > 1:
            text = (
                "the bundle's classes may overlap; a voxel that belongs to several got the most"
                " probable of them"
            )
            self._warn(Note("overlapping_classes", text))
        return _Ready(
            prepared=prepared,
            settings=settings,
            opened=opened,
            output=output,
            grid=output_grid(prepared.shape, prepared.layout, is_nearest=output.is_nearest),
            classes=label_classes(metadata, n_outputs=opened.n_outputs, is_argmax=is_argmax),
            drops_first=drops_first,
        )

    def _target(self, ready: _Ready) -> Target:
        documents = repr((self._reading.bundle.sha256, self._reading.steps, ready.output))
        wish = TargetWish(
            job=self._job,
            name=ready.tiles_name,
            identity=hashlib.sha256(documents.encode()).hexdigest(),
            settings=ready.settings,
            prepared=ready.prepared,
            opened=ready.opened,
            decoder=ready.decoder(),
            classes=ready.classes,
            grid=ready.grid,
        )
        return open_target(wish, self._sink)

    # -- tiles

    def _run_tiles(self, ready: _Ready, target: Target) -> TileCount:
        say_what_is_kept(
            self._sink, target.done, n_layers=target.grid.shape[0] * len(target.plan.columns)
        )
        listener = TileEvents(
            self._sink,
            labels=target.store.path.name if ready.tiles_name == LABELS_NAME else None,
            n_axes=len(self._job.volume.spatial_shape),
        )
        decoder = ready.decoder()
        with Journal.go_on(self._job.run_dir / JOURNAL_NAME, target.done) as journal:
            execution = Execution(
                plan=target.plan,
                source=ready.prepared.source,
                runtime=ready.opened.runtime,
                decoder=decoder,
                grid=target.grid,
                labels=target.layers,
                probabilities=target.maps,
                journal=journal,
                done=target.done,
                weights=ready.weights,
            )
            grid = ready.grid
            if grid is not None:
                execution = replace(
                    execution,
                    decoder=Weighted(decoder),
                    outlet=lambda number, first: _outlet(
                        ready, grid, target, (journal, number), first
                    ),
                )
            count = execute(execution, listener)
        if grid is not None and target.maps is not None:
            inside = target.plan.columns[0].output
            for column in target.plan.columns[1:]:
                inside = inside.hull(column.output)
            values = _sure(ready.settings.measures)
            write_outside(target.maps, grid.shape, inside, values)
        return count

    def _finish(self, ready: _Ready, target: Target) -> Labels:
        store = target.store
        if ready.output.keep_largest is not None:
            store = keep_largest_pieces(
                store.finish(QuietSink(self._sink)),
                self._job.run_dir / LABELS_NAME,
                ready.output.keep_largest,
                like=self._job.volume,
                sink=self._sink,
            )
        if store.array.nchunks_initialized == 0:
            self._warn(Note("no_objects", "nothing was found: every voxel is background"))
        return store.finish(QuietSink(self._sink))


def _outlet(
    ready: _Ready,
    grid: OutputGrid,
    target: Target,
    journal: tuple[Journal, int],
    first_layer: int,
) -> ResamplingOutlet:
    output, column = ready.output, target.plan.columns[journal[1]].output
    place = Place(grid, column, first_layer, journal)
    sink = LabelSink(
        place,
        ready.decoder(),
        (target.layers, target.maps),
        background=_sure(ready.settings.measures),
    )

    def activate(logits: NDArray[np.float32]) -> NDArray[np.float32]:
        return shares(logits, output.activation, n=ready.opened.n_outputs)

    return ResamplingOutlet(
        grid,
        column,
        first_layer=place.first_crop_layer,
        sink=sink,
        n_threads=ready.settings.n_threads or 2,
        activate=activate if output.resampled == "probabilities" else None,
    )


def _sure(measures: tuple[str, ...]) -> tuple[int, ...]:
    return tuple(SURE.get(name, 0) for name in measures)


def _sample(prepared: Prepared, settings: Settings) -> NDArray[np.float32]:
    """A batch from the middle of the volume: corners are often empty."""
    source, tile = prepared.source, settings.tile
    start = [max(0, (n - t) // 2) for n, t in zip(source.shape, tile, strict=True)]
    stop = [min(n, s + t) for n, s, t in zip(source.shape, start, tile, strict=True)]
    data = source.read(Box(tuple(start), tuple(stop)))
    padded = np.zeros((settings.batch, source.n_channels, *tile), np.float32)
    _, z, y, x = data.shape
    padded[:, :, :z, :y, :x] = data
    return padded if len(prepared.layout.order) == 3 else padded[:, :, 0]


def _smaller(settings: Settings) -> Settings | None:
    """What a device with too little memory is given instead; None where there is no less."""
    tile = smaller_tile(
        settings.tile,
        tuple(
            max(16, d) if t > 1 else 1 for t, d in zip(settings.tile, settings.divisor, strict=True)
        ),
    )
    return None if tile is None else replace(settings, tile=tile, batch=1)


def _check_axes(job: EngineJob, reading: Reading) -> None:
    """Refuse a volume that the bundle's network cannot be run on.

    Raises:
        AxesError: an image for a network of volumes, or another number of channels.
    """
    volume, name = job.volume, reading.bundle.name
    if reading.n_axes == 3 and "z" not in volume.axes:
        raise AxesError(
            f"the bundle {name!r} segments volumes (z, y, x); the input is an image with the axes"
            f" {volume.axes}",
            hint="choose a 2-D model, or open the slices as one volume (a folder of slices)",
        )
    if volume.n_channels != reading.n_channels:
        raise AxesError(
            f"the bundle {name!r} takes {reading.n_channels} channel(s); the input has"
            f" {volume.n_channels}",
            hint=f"choose one with --channel 0 to {volume.n_channels - 1}"
            if reading.n_channels == 1
            else "stack the channels in this order into one file, along an axis c",
        )
