"""One configuration over one input: source, runtime, plan, tiles, and what they leave.

A job is one stage, or several: the first stage of a cascade leaves labels for the second; every
member of an ensemble but the last leaves probabilities for it. Each has a journal of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from lamella.core.errors import UnreadableFileError
from lamella.engines.leftovers import remove_left, say_what_changed
from lamella.engines.nnunet.decode import Shares, decoder_of
from lamella.engines.nnunet.export import make_output_grid, one_blas_thread
from lamella.engines.nnunet.layout import Layout, SourceWish, lay_out, make_source
from lamella.engines.nnunet.opening import Opened, open_runtime
from lamella.engines.nnunet.settings import input_spacing
from lamella.engines.nnunet.weights import tile_weights
from lamella.engines.nnunet.write import Member, MemberSink, TransposedStore, averaged, turned
from lamella.engines.tile_events import TileEvents
from lamella.inference.confidence import measures_of
from lamella.inference.execute import Execution, TileCount, execute
from lamella.inference.journal import Journal, JournalState, digest
from lamella.inference.layers import LabelLayers, LayerStore, ProbabilityLayers
from lamella.inference.outlet import LabelSink, Place, ResamplingOutlet, write_outside
from lamella.inference.plan import (
    MIN_CHUNK_DEPTH,
    Column,
    Plan,
    chunk_extent,
    cut_columns,
    make_plan,
)
from lamella.io.label_store import LabelStore, create_labels
from lamella.volume.box import Box
from lamella.volume.labels import LabelClass, Labels
from lamella.wire.event import LogEvent

if TYPE_CHECKING:
    from lamella.engines.engine import EngineJob
    from lamella.engines.nnunet.classes import ClassRule
    from lamella.engines.nnunet.settings import Chosen, Settings
    from lamella.engines.nnunet.survey import Survey
    from lamella.inference.slab import Slabs
    from lamella.wire.event import EventSink

__all__ = ["Paths", "Stage", "StageWish", "classes_of"]

Role = Literal["labels", "stage", "member"]
# Options that change nothing in the labels beyond what the plan and the runtime already say.
_FREE_OPTIONS = ("band_mb", "check", "preview", "postprocess", "trusted")


@dataclass(frozen=True, slots=True)
class Paths:
    """Where a stage writes.

    Attributes:
        labels: OME-Zarr of its labels; for members of an ensemble, the array of probabilities.
        journal: its journal.
        confidence: maps of confidence.
        work: folder for what is needed only while it runs.
    """

    labels: Path
    journal: Path
    confidence: Path
    work: Path


@dataclass(frozen=True, slots=True)
class StageWish:
    """What a stage is made of.

    Attributes:
        job: the job it belongs to.
        chosen: configuration and folds.
        settings: of the job.
        rule: classes of the model.
        seen: what was seen of the input.
        role: what it leaves.
        paths: where.
        previous: labels of the first stage of a cascade.
        members: paths of the probabilities of the members before it.
    """

    job: EngineJob
    chosen: Chosen
    settings: Settings
    rule: ClassRule
    seen: Survey
    role: Role
    paths: Paths
    previous: Labels | None = None
    members: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class _Target:
    """Where the tiles go; what of it is done."""

    stores: tuple[LayerStore | None, LayerStore | None]
    store: LabelStore | None
    member: Any
    unit: tuple[int, int, int]
    plan: Plan
    done: JournalState = field(default_factory=JournalState)


class Stage:
    """A configuration, opened and planned; :meth:`run` runs its tiles."""

    target: _Target
    """Where its tiles went; there once it has run."""

    def __init__(self, wish: StageWish, sink: EventSink) -> None:
        self.wish = wish
        self._sink = sink
        folder = wish.chosen.folder
        volume = wish.job.volume
        spacing, self.unit = input_spacing(folder, volume, wish.settings.unit)
        self.layout: Layout = lay_out(folder, wish.seen, spacing, self.unit)
        wish.paths.work.mkdir(parents=True, exist_ok=True)
        self.source: Slabs = make_source(
            SourceWish(
                volume,
                wish.seen,
                folder,
                wish.rule,
                self.layout,
                wish.previous,
                wish.paths.work,
            ),
            sink,
        )
        patch = [int(n) for n in folder.settings["patch_size"]]
        z, y, x = [1] * (3 - len(patch)) + patch
        self.tile: tuple[int, int, int] = (z, y, x)
        is_ensemble = wish.role == "member" or bool(wish.members)
        has_maps = wish.settings.has_confidence and wish.role == "labels"
        self.opened: Opened = open_runtime(
            wish.chosen,
            wish.rule,
            wish.settings,
            self._sample,
            wants_spread=has_maps and not is_ensemble,
        )
        self.measures = measures_of(is_asked=has_maps, has_spread=self.opened.has_spread)
        self.decoder = decoder_of(wish.rule, self.measures, has_spread=self.opened.has_spread)
        self.grid = make_output_grid(
            self.layout.shape,
            self.layout.crop,
            self.layout.network_shape,
            self.layout.logits,
            self.layout.separate_back,
        )

    @property
    def title(self) -> str:
        """Configuration, for messages."""
        return self.wish.chosen.folder.configuration

    def _sample(self) -> NDArray[np.float32]:
        """The tile in the middle: corners are often empty."""
        shape = self.source.shape
        start = [max(0, (n - t) // 2) for n, t in zip(shape, self.tile, strict=True)]
        stop = [min(n, a + t) for n, a, t in zip(shape, start, self.tile, strict=True)]
        data = self.source.read(Box(tuple(start), tuple(stop)))
        padded = np.zeros((1, self.source.n_channels, *self.tile), np.float32)
        _, z, y, x = data.shape
        padded[0, :, :z, :y, :x] = data
        n_axes = self.wish.chosen.folder.n_axes
        return padded.reshape((*padded.shape[:2], *self.tile[3 - n_axes :]))

    # -- tiles

    def run(self) -> TileCount:
        """Run every tile that is not done.

        Raises:
            RunCancelledError: the caller cancelled; finished layers are kept.
            EngineError: the network failed.
            StorageError: labels cannot be written.
        """
        target = self._open_target()
        wish = self.wish
        if target.done.layers:
            done, total = sum(target.done.layers.values()), self.grid.shape[0]
            total *= len(target.plan.columns)
            self._sink.emit(
                LogEvent(
                    message=f"going on with {self.title}: {done} of {total} layers are on disk"
                )
            )
        listener = self._listener(target)
        with one_blas_thread(), Journal.go_on(wish.paths.journal, target.done) as journal:
            count = execute(
                Execution(
                    plan=target.plan,
                    source=self.source,
                    runtime=self.opened.runtime,
                    decoder=self.decoder,
                    grid=self.grid.grid_map(),
                    labels=None,
                    done=target.done,
                    weights=tile_weights(self.tile),
                    outlet=lambda number, first: self._outlet(target, journal, number, first),
                ),
                listener,
            )
        self._finish_maps(target)
        self.target = target
        return count

    def _listener(self, target: _Target) -> TileEvents:
        is_final = self.wish.role == "labels" and target.store is not None
        back = tuple(self.layout.transpose.index(axis) for axis in range(3))
        return TileEvents(
            self._sink,
            stage="tiles" if self.wish.role == "labels" else f"tiles of {self.title}",
            labels=target.store.path.name if is_final and target.store is not None else None,
            n_axes=len(self.wish.job.volume.spatial_shape),
            on_input=lambda box: turned(box, back),
        )

    def _outlet(
        self, target: _Target, journal: Journal, number: int, first_layer: int
    ) -> ResamplingOutlet:
        wish = self.wish
        output = target.plan.columns[number].output
        place = Place(self.grid, output, first_layer, (journal, number))
        shares = Shares(wish.rule.n_outputs, has_regions=wish.rule.has_regions)
        if target.member is not None:
            member = Member(target.member, self.layout.transpose)
            sink: Any = MemberSink(place, member, shares, depth=MIN_CHUNK_DEPTH)
        else:
            labels, maps = target.stores
            assert labels is not None, "stages that leave labels have a store"
            members = [Member(Member.reopen(path), self.layout.transpose) for path in wish.members]
            sink = LabelSink(
                place,
                self.decoder,
                (labels, maps),
                adjust=averaged(shares, members),
                background=_background(self.measures),
            )
        return ResamplingOutlet(
            self.grid,
            output,
            first_layer=place.first_crop_layer,
            sink=sink,
            n_threads=wish.settings.n_threads or 2,
        )

    def _finish_maps(self, target: _Target) -> None:
        maps = target.stores[1]
        if maps is None:
            return
        columns = [column.output for column in target.plan.columns]
        inside = columns[0]
        for column in columns[1:]:
            inside = inside.hull(column)
        write_outside(maps, self.grid.shape, inside, _background(self.measures))

    # -- where they go

    def _open_target(self) -> _Target:
        wish = self.wish
        state = Journal.read(wish.paths.journal) if wish.job.resume else JournalState()
        if state.fingerprint:
            target = self._reopen(state)
            if target is not None:
                return target
        remove_left(wish.paths.labels, wish.paths.confidence)
        target = self._place(self._create())
        Journal.start(wish.paths.journal, self._fingerprint(target)).close()
        return _with_state(target, Journal.read(wish.paths.journal))

    def _reopen(self, state: JournalState) -> _Target | None:
        """What an equal job left, or None (and said why) where it was another."""
        wish = self.wish
        if not wish.paths.labels.exists() or (self.measures and not wish.paths.confidence.exists()):
            return None
        try:
            if wish.role == "member":
                target = self._place(Member.reopen(wish.paths.labels))
            else:
                target = self._place(LabelStore.reopen(wish.paths.labels))
        except (UnreadableFileError, ValueError):
            return None
        changed = state.differences(self._fingerprint(target))
        if changed:
            say_what_changed(self._sink, changed)
            return None
        return _with_state(target, state)

    def _create(self) -> Any:
        wish, volume = self.wish, self.wish.job.volume
        if wish.role == "member":
            return Member.create(wish.paths.labels, wish.rule.n_outputs, wish.seen.shape)
        n = len(volume.spatial_shape)
        return create_labels(
            wish.paths.labels,
            like=volume,
            dtype=self.decoder.label_dtype,
            classes=classes_of(wish.rule),
            chunks=self._chunks()[3 - n :],
            band_axis=max(0, self.layout.transpose[0] - (3 - n)),
        )

    def _place(self, made: Any) -> _Target:
        wish, transpose = self.wish, self.layout.transpose
        if not isinstance(made, LabelStore):
            unit = _in_plan_order(self._chunks(), transpose)
            return _Target((None, None), None, made, unit, self._plan(unit))
        labels = TransposedStore(LabelLayers(made), transpose)
        maps: LayerStore | None = None
        if self.measures:
            plain = ProbabilityLayers(
                wish.paths.confidence,
                shape=wish.job.volume.spatial_shape,
                n_maps=len(self.measures),
                unit=LabelLayers(made).unit,
                restart=False,
            )
            maps = TransposedStore(plain, transpose)
        return _Target((labels, maps), made, None, labels.unit, self._plan(labels.unit))

    def _chunks(self) -> tuple[int, int, int]:
        """Chunks, in the order of the input, as deep as a row of tiles moves the band."""
        shape, crop = self.grid.shape, self.layout.crop.shape
        moved = self.tile[0] * self.wish.settings.step_fraction
        layers = moved * crop[0] / self.layout.network_shape[0]
        chunks = chunk_extent(shape, int(layers))
        z, y, x = (chunks[self.layout.transpose.index(axis)] for axis in range(3))
        return z, y, x

    def _plan(self, unit: tuple[int, int, int]) -> Plan:
        crop, network = self.layout.crop, self.layout.network_shape
        cover = [
            (a // u * u, min(n, -(-b // u) * u))
            for a, b, u, n in zip(
                crop.start[1:], crop.stop[1:], unit[1:], self.grid.shape[1:], strict=True
            )
        ]
        # Sums, their weights and the slabs under them, per (y, x) voxel of the labels.
        n_values = self.opened.runtime.n_outputs + 1 + self.source.n_channels
        ratio = network[1] * network[2] / (crop.shape[1] * crop.shape[2])
        (top, bottom), (left, right) = cover
        columns = cut_columns(
            Box((top, left), (bottom, right)),
            unit[1:],
            4 * self.tile[0] * n_values * ratio,
            self.wish.settings.band_bytes,
            region=self.grid.region,
        )
        return self.make_plan(columns)

    def make_plan(self, columns: tuple[Column, ...] | None = None) -> Plan:
        """Tiles where nnU-Net has them."""
        return make_plan(
            self.layout.network_shape,
            tile=self.tile,
            overlap_fraction=max(0.0, 1.0 - self.wish.settings.step_fraction),
            columns=columns,
            step_fraction=self.wish.settings.step_fraction,
        )

    def _fingerprint(self, target: _Target) -> dict[str, str]:
        wish, runtime = self.wish, self.opened.runtime
        options = sorted(
            (k, v) for k, v in wish.settings.as_options().items() if k not in _FREE_OPTIONS
        )
        model = wish.job.model
        return {
            "input": wish.seen.sha256,
            "model": f"{getattr(model, 'sha256', '')} {wish.chosen.title} {wish.role}",
            "plan": digest((target.plan, self.grid.shape, self.layout, target.unit)),
            "options": digest((options, len(wish.members))),
            "runtime": f"{runtime.name} {self.opened.version} {runtime.device} {runtime.precision}",
        }


def classes_of(rule: ClassRule) -> tuple[LabelClass, ...]:
    """Names of the labels, background left out."""
    return tuple(LabelClass(value, name) for value, name in rule.named_values)


def _background(measures: tuple[str, ...]) -> tuple[int, ...]:
    """Maps where the image was cut away: background for certain."""
    return tuple(255 if name in ("probability", "margin") else 0 for name in measures)


def _with_state(target: _Target, state: JournalState) -> _Target:
    from dataclasses import replace

    return replace(target, done=state)


def _in_plan_order(
    values: tuple[int, int, int], transpose: tuple[int, int, int]
) -> tuple[int, int, int]:
    z, y, x = (values[axis] for axis in transpose)
    return z, y, x
