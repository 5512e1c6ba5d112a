"""The conversation with the worker: slices and normalised volumes out, labels and flows in."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lamella.core.errors import DeviceMemoryError, InputError, OfflineError, UnknownModelError
from lamella.core.places import Places
from lamella.engines.cellpose.models import home_folder
from lamella.engines.cellpose.preview import preview_steps
from lamella.isolation.environment import find_environment, python_of
from lamella.isolation.process import exchanged_array, relay, run_worker
from lamella.wire.event import LogEvent, ProgressEvent

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lamella.engines.cellpose.image import Image
    from lamella.engines.cellpose.settings import Settings
    from lamella.engines.cellpose.target import Target
    from lamella.engines.engine import EngineJob
    from lamella.models.foreign import ForeignModel
    from lamella.wire.event import EventSink

__all__ = ["WORKER", "Session", "WorkerFacts"]

WORKER = Path(__file__).with_name("worker.py")
"""The file that runs in the engine's environment."""

Found = tuple["NDArray[np.uint32]", "NDArray[np.uint8] | None"]
Steps = Generator[tuple["NDArray[np.float32]", bool], Found, None]


@dataclass(slots=True)
class WorkerFacts:
    """What the worker says of itself once the model is loaded."""

    device: str = "cpu"
    precision: str = "fp32"
    diameter: float | None = None


@dataclass(frozen=True, slots=True)
class Session:
    """Everything a worker is started with.

    Attributes:
        job: what is run.
        settings: as resolved.
        python: interpreter of the engine's environment.
        weights: of the model; None where Cellpose is to fetch them.
        file: name of a built-in model's weights.
        identity: what of model, engine and device the labels depend on, by part.
        sink: of the run.
    """

    job: EngineJob
    settings: Settings
    python: Path
    weights: Path | None
    file: str
    identity: Mapping[str, str]
    sink: EventSink

    @classmethod
    def open(
        cls, job: EngineJob, model: ForeignModel, settings: Settings, sink: EventSink
    ) -> Session:
        """Find environment and weights.

        Raises:
            MissingDependencyError: the environment is not ready.
            UnknownModelError: the weights are not here, and nobody asked to fetch them.
            OfflineError: they were to be fetched, and the network is forbidden.
        """
        places = job.places if job.places.environments is not None else Places.of_user()
        python = python_of(settings.engine, places)
        if model.path is None:
            _check_download(model, settings, places)
        identity = {
            "model": model.sha256 or model.id,
            "engine": f"{settings.engine} {find_environment(settings.engine).sha256}",
            "device": f"{settings.device} {settings.precision}",
        }
        file = str(model.details.get("file", ""))
        return cls(job, settings, python, model.path, file, identity, sink)

    def smaller(self, error: DeviceMemoryError) -> Session:
        """The same with fewer tiles at a time.

        Raises:
            DeviceMemoryError: there is nothing smaller than one tile.
        """
        batch = self.settings.options["batch"]
        if batch <= 1:
            raise DeviceMemoryError(
                f"{error.message}; one tile at a time is already the least",
                hint="run with --device cpu, or close what else uses the device",
            ) from error
        options = {**self.settings.options, "batch": max(1, batch // 4)}
        return replace(self, settings=replace(self.settings, options=options))

    def run(self, image: Image, target: Target, *, has_preview: bool) -> WorkerFacts:
        """Do what is not done yet.

        Args:
            image: the input.
            target: where labels go.
            has_preview: whether labels of the whole come first.

        Raises:
            LamellaError: what the worker, or writing its results, failed with.
        """
        talk = _Talk(self, image, target, has_preview)
        if talk.is_done:
            return talk.facts
        run_worker(
            self.python,
            WORKER,
            self._request(target),
            sink=self.sink,
            on_message=talk.take,
            exchange=target.state,
        )
        for left in ("image.npy", "labels.npy", "maps.npy", "volume.npy"):
            (target.state / left).unlink(missing_ok=True)
        return talk.facts

    def _request(self, target: Target) -> dict[str, Any]:
        settings, options = self.settings, self.settings.options
        names = ("diameter", "cellprob_threshold", "flow_threshold", "min_size", "niter")
        return {
            **{name: options[name] for name in names},
            "version": int(settings.engine[-1]),
            "mode": "ortho" if settings.strategy == "ortho" else "slices",
            "weights": None if self.weights is None else str(self.weights.absolute()),
            "file": self.file,
            "network": self.weights is None,
            "device": settings.device,
            "precision": settings.precision,
            "threads": options["threads"],
            "batch": options["batch"],
            "tile": settings.tile,
            "overlap": settings.overlap_fraction,
            "mirrors": settings.has_mirrors,
            "anisotropy": options["anisotropy"],
            "flow3D_smooth": options["flow3D_smooth"],
            "confidence": settings.has_confidence,
            "state": str(target.state.absolute()),
            "done": [target.done.finished(axis) for axis in range(3)],
        }


def _check_download(model: ForeignModel, settings: Settings, places: Places) -> None:
    file = model.details.get("file", model.id)
    if not settings.options["download"]:
        raise UnknownModelError(
            f"the weights of {model.engine}:{model.id} are not on this machine",
            hint=f"lamella models pull {model.engine}-{model.id.replace('_', '-')}; or put the file"
            f" {file!r} into {home_folder()}, or `lamella models import FILE`; or let Cellpose"
            " fetch it with --option download=true",
        )
    if places.is_offline:
        raise OfflineError(
            f"the weights of {model.engine}:{model.id} were to be fetched, and the network is"
            " forbidden (LAMELLA_OFFLINE)",
            hint=f"put the file {file!r} into {home_folder()}, or `lamella models import FILE`",
        )


@dataclass(slots=True)
class _Talk:
    """Answers the worker's questions, and takes what it finds."""

    session: Session
    image: Image
    target: Target
    has_preview: bool
    facts: WorkerFacts = field(default_factory=WorkerFacts)
    _steps: Steps | None = field(default=None, init=False)
    _found: Found | None = field(default=None, init=False)
    _has_slices: bool = field(default=True, init=False)

    @property
    def is_ortho(self) -> bool:
        return self.session.settings.strategy == "ortho"

    @property
    def is_done(self) -> bool:
        """Whether an earlier job did all of it."""
        return not self.is_ortho and self.target.done.finished(0) >= self.image.shape[0]

    def take(self, message: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """Take a message; what is returned answers a question."""
        if relay(message, self.session.sink):
            return None
        if message["type"] == "block":
            return self._take_labels(message)
        if message["type"] != "ask":
            return None
        if message["what"] == "ready":
            self.facts = WorkerFacts(message["device"], message["precision"], message["diameter"])
            where = f"{self.facts.device}, {self.facts.precision}"
            self.session.sink.emit(LogEvent(message=f"{message['weights']} on {where}"))
            return {}
        if message["what"] == "slice":
            return self._next_slice()
        self._take_planes(message["axis"], message["done"])
        return {}

    def _next_slice(self) -> Mapping[str, Any]:
        try:
            if self._steps is None:
                self._steps = self._work()
                plane, has_maps = next(self._steps)
            else:
                assert self._found is not None, "the worker asks again once it has answered"
                plane, has_maps = self._steps.send(self._found)
        except StopIteration:
            self._has_slices = False
            return {"image": None}
        np.save(self.target.state / "image.npy", plane)
        return {"image": "image.npy", "confidence": has_maps}

    def _work(self) -> Steps:
        """Slices to be segmented, in order; their labels are sent back."""
        sink, target = self.session.sink, self.target
        if self.has_preview:
            yield from self._previewed()
        if self.is_ortho:
            self._hand_over_volume()
            return
        has_maps = self.session.settings.has_confidence
        n_slices = self.image.shape[0]
        for z in range(target.done.finished(0), n_slices):
            labels, maps = yield self.image.plane(z), has_maps
            target.write_slice(z, labels, maps)
            sink.emit(ProgressEvent(stage="segmenting", done=z + 1, total=n_slices, unit="slices"))

    def _previewed(self) -> Steps:
        steps = preview_steps(self.image, self.session.job, self.session.sink)
        try:
            plane = next(steps)
            while True:
                labels, _ = yield plane, False
                plane = steps.send(labels)
        except StopIteration:
            return

    def _hand_over_volume(self) -> None:
        n_slices, n_rows, n_columns = self.image.shape
        shape = (n_slices, n_rows, n_columns, len(self.session.settings.channels))
        path = self.target.state / "volume.npy"
        volume = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
        for z in range(n_slices):
            self.session.sink.check()
            volume[z] = self.image.plane(z)
        volume.flush()

    def _take_labels(self, message: Mapping[str, Any]) -> None:
        exchange = self.target.state
        labels = np.asarray(exchanged_array(exchange, message["array"]), np.uint32)
        name = message.get("maps")
        maps = None if name is None else np.asarray(exchanged_array(exchange, name), np.uint8)
        if self._has_slices:
            self._found = (labels, maps)
        elif labels.shape == self.image.shape:
            self.target.write_volume(labels, maps)
        else:
            raise InputError(f"Cellpose returned labels of shape {labels.shape}")

    def _take_planes(self, axis: int, done: int) -> None:
        self.target.record(axis, done)
        total = sum(self.image.shape)
        before = sum(self.image.shape[:axis])
        share = done / max(1, self._planes_of(axis))
        at = before + share * self.image.shape[axis]
        self.session.sink.emit(
            ProgressEvent(stage="segmenting", done=round(at), total=total, unit="planes")
        )

    def _planes_of(self, axis: int) -> int:
        """Planes across an axis of the resampled volume."""
        path = self.target.state / f"flows_{axis}.npy"
        return int(exchanged_array(self.target.state, path.name).shape[0])
