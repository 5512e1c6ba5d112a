"""What every engine promises, as a pytest class to inherit.

Examples:
    An engine proves itself by saying how a job of its kind looks::

        class TestClassical(EngineContract):
            engine_id = "classical"

            def make_request(self):
                return SegmentRequest(input=InputDoc(path="image"), model="classical:otsu")
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from numpy.typing import NDArray

from lamella.core.errors import InputError, LamellaError, RunCancelledError
from lamella.engines.engine import LABELS_NAME, Engine, EngineDescriptor, EngineJob, EngineResult
from lamella.engines.registry import check_engine, find_engine, list_engines, load_engine
from lamella.volume import Affine, Labels, Volume
from lamella.wire.event import PreviewEvent, ProgressEvent, WarningEvent
from lamella.wire.request import SegmentRequest

if TYPE_CHECKING:
    from pathlib import Path

    from lamella.models.folder import ModelFolder
    from lamella.models.foreign import ForeignModel

__all__ = ["EngineContract", "RecordingSink"]


@dataclass
class RecordingSink:
    """Keeps what an engine reports; cancels at the ``cancel_at``-th question, if given."""

    cancel_at: int | None = None
    events: list[Any] = field(default_factory=list)
    n_checks: int = 0

    def emit(self, event: Any, /) -> None:
        """Keep an event."""
        self.events.append(event)

    def check(self) -> None:
        """Count, and raise from the ``cancel_at``-th time on."""
        self.n_checks += 1
        if self.cancel_at is not None and self.n_checks >= self.cancel_at:
            raise RunCancelledError("cancelled by the test")


class EngineContract(ABC):
    """What every engine promises. Inherit, and give :meth:`make_request`.

    Attributes:
        engine_id: id in the list of engines.
        axes: spatial axes of the test volumes.
    """

    engine_id: ClassVar[str]
    axes: ClassVar[str] = "zyx"

    @abstractmethod
    def make_request(self) -> SegmentRequest:
        """A request that finds the objects of :meth:`make_volume`."""

    def make_model(self) -> ModelFolder | ForeignModel | None:
        """The model of the request, opened; None for engines without models."""
        return None

    def make_volume(self) -> Volume:
        """Bright balls in noise, on an anisotropic, rotated grid away from the world's origin."""
        shape = (24, 40, 48)[-len(self.axes) :]
        points = np.moveaxis(np.indices(shape), 0, -1).astype(np.float32)
        image = np.random.default_rng(3).normal(100, 5, shape).astype(np.float32)
        for center in ((12, 12, 12), (12, 26, 34)):
            distance2 = ((points - np.array(center[-len(shape) :])) ** 2).sum(-1)
            image[distance2 < 36] += 100
        n = len(shape)
        direction = np.eye(n)
        direction[-2:, -2:] = [[0.0, 1.0], [-1.0, 0.0]]
        affine = Affine(
            (2.0, 1.0, 1.0)[-n:], (10.0, -20.0, 30.0)[-n:], tuple(map(tuple, direction)), "stage"
        )
        image16 = np.clip(image, 0, 65535).astype(np.uint16)
        return replace(
            Volume.from_array(image16, axes=self.axes, unit="nm", name="balls"), affine=affine
        )

    # -- helpers -----------------------------------------------------------------------------

    @property
    def descriptor(self) -> EngineDescriptor:
        """The engine's descriptor as it is listed."""
        return find_engine(self.engine_id)

    def load(self) -> Engine:
        """The engine; skips the test where a package it needs is not installed."""
        availability = check_engine(self.descriptor)
        if not availability.is_available:
            pytest.skip(availability.reason)
        return load_engine(self.engine_id)

    def run(
        self,
        folder: Path,
        *,
        volume: Volume | None = None,
        sink: RecordingSink | None = None,
        **changes: Any,
    ) -> EngineResult:
        """Segment a volume in a new run folder."""
        folder.mkdir(parents=True, exist_ok=True)
        job = EngineJob(
            volume=self.make_volume() if volume is None else volume,
            request=self.make_request().model_copy(update=changes),
            model=self.make_model(),
            run_dir=folder,
        )
        return self.load().segment(job, sink or RecordingSink())

    # -- the promises ------------------------------------------------------------------------

    def test_is_listed_once_and_keeps_its_word(self) -> None:
        assert [entry.id for entry in list_engines()].count(self.engine_id) == 1
        engine = self.load()
        assert isinstance(engine, Engine)
        assert engine.descriptor == self.descriptor
        assert self.axes in self.descriptor.axes

    def test_labels_lie_exactly_on_the_input(self, tmp_path: Path) -> None:
        volume = self.make_volume()
        result = self.run(tmp_path, volume=volume)
        assert isinstance(result.labels, Labels)
        assert result.labels.same_grid(volume)
        assert result.labels.unit == volume.unit
        assert (tmp_path / LABELS_NAME).is_dir()

    def test_objects_are_found_where_they_are(self, tmp_path: Path) -> None:
        labels = self.run(tmp_path).labels.load()
        index = (12, 12, 12)[-labels.ndim :], (12, 26, 34)[-labels.ndim :]
        assert labels[index[0]] > 0
        assert labels[index[1]] > 0
        assert 0 < np.count_nonzero(labels) < labels.size / 2

    def test_a_finished_run_has_done_all_it_planned(self, tmp_path: Path) -> None:
        result = self.run(tmp_path)
        assert result.tiles_done == result.tiles_planned > 0

    def test_resolved_options_name_every_known_option(self, tmp_path: Path) -> None:
        result = self.run(tmp_path)
        assert {option.name for option in self.descriptor.options} <= set(result.options_resolved)

    def test_the_same_job_twice_gives_the_same_labels(self, tmp_path: Path) -> None:
        if not self.descriptor.is_deterministic:
            pytest.skip("the engine does not promise it")
        first, second = (self.run(tmp_path / name).labels.load() for name in "ab")
        assert_array_equal(first, second)

    def test_the_input_is_left_alone(self, tmp_path: Path) -> None:
        volume = self.make_volume()
        before: NDArray[Any] = volume.load().copy()
        self.run(tmp_path, volume=volume)
        assert_array_equal(volume.load(), before)

    def test_a_preview_of_the_whole_comes_before_the_first_final_labels(
        self, tmp_path: Path
    ) -> None:
        if not self.descriptor.has_preview:
            pytest.skip("the engine has no preview")
        sink = RecordingSink()
        volume = self.make_volume()
        self.run(tmp_path, volume=volume, sink=sink)
        previews = [event for event in sink.events if isinstance(event, PreviewEvent)]
        assert previews, "no preview was announced"
        assert not previews[0].is_final
        assert previews[0].box_start == (0,) * len(volume.spatial_shape)
        assert previews[0].box_stop == volume.spatial_shape
        assert (tmp_path / previews[0].path).exists()

    def test_a_run_without_preview_announces_no_coarse_labels(self, tmp_path: Path) -> None:
        sink = RecordingSink()
        self.run(tmp_path, sink=sink, preview=False)
        assert not [e for e in sink.events if isinstance(e, PreviewEvent) and not e.is_final]

    def test_progress_never_exceeds_its_total(self, tmp_path: Path) -> None:
        sink = RecordingSink()
        self.run(tmp_path, sink=sink)
        steps = [event for event in sink.events if isinstance(event, ProgressEvent)]
        assert steps, "no progress was reported"
        assert all(0 <= event.done <= event.total for event in steps)

    def test_cancelling_stops_it_without_finished_labels(self, tmp_path: Path) -> None:
        sink = RecordingSink()
        self.run(tmp_path / "whole", sink=sink)
        for at in sorted({1, sink.n_checks // 2, sink.n_checks} - {0}):
            folder = tmp_path / f"cancelled-{at}"
            with pytest.raises(RunCancelledError):
                self.run(folder, sink=RecordingSink(cancel_at=at))
            assert not (folder / LABELS_NAME / "zarr.json").exists()

    def test_finding_nothing_is_a_warning_not_silence(self, tmp_path: Path) -> None:
        sink = RecordingSink()
        volume = self.make_empty_volume()
        if volume is None:
            pytest.skip("the engine finds something in everything")
        result = self.run(tmp_path, volume=volume, sink=sink, **self.changes_for_nothing())
        assert not result.labels.load().any()
        codes = {note.code for note in result.warnings}
        told = {event.code for event in sink.events if isinstance(event, WarningEvent)}
        assert "no_objects" in codes & told

    def make_empty_volume(self) -> Volume | None:
        """A volume in which the engine finds nothing; None where there is no such thing."""
        return self.make_volume()

    def changes_for_nothing(self) -> dict[str, Any]:
        """Changes of the request by which nothing is found in :meth:`make_empty_volume`."""
        return {}

    def test_an_unknown_option_is_refused_before_any_work(self, tmp_path: Path) -> None:
        if self.descriptor.takes_any_option:
            pytest.skip("the engine checks its options itself")
        options = {**self.make_request().options, "no_such_option": 1}
        with pytest.raises(InputError, match="no_such_option"):
            self.run(tmp_path, options=options)
        assert not (tmp_path / LABELS_NAME).exists()

    def test_several_channels_are_refused_or_expected(self, tmp_path: Path) -> None:
        volume = self.make_volume()
        data = np.stack([volume.load()] * 3)
        colored = replace(volume, data=data, axes=type(volume.axes).parse(f"c{self.axes}"))
        card = getattr(self.make_model(), "card", None)
        if card is not None and card.n_channels == 3:
            pytest.skip("the model takes three channels")
        with pytest.raises(LamellaError) as caught:
            self.run(tmp_path, volume=colored)
        assert caught.value.hint
