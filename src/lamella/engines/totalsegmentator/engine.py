"""TotalSegmentator's tasks on a volume: checked here, run by the package in its own process.

The order is that of every engine: refuse what cannot be right, say what it will take, show a
coarse preview of the whole volume, run, and leave the labels on the input's grid. Each model of a
task that is finished is kept in ``parts`` and not run again when an interrupted job goes on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lamella.core.errors import DeviceMemoryError, InputError
from lamella.engines.coarse import create_preview
from lamella.engines.engine import LABELS_NAME, PREVIEW_NAME, ConfidenceMaps, EngineResult
from lamella.engines.leftovers import remove_left
from lamella.engines.tile_events import QuietSink, announce_whole
from lamella.engines.totalsegmentator.descriptor import TOTALSEGMENTATOR
from lamella.engines.totalsegmentator.estimate import Estimate, estimate
from lamella.engines.totalsegmentator.exchange import (
    AIR_HU,
    labels_from,
    write_image,
)
from lamella.engines.totalsegmentator.licence import HINT
from lamella.engines.totalsegmentator.models import places_of, task_of
from lamella.engines.totalsegmentator.package import ENVIRONMENT, WORKER, describe_package
from lamella.engines.totalsegmentator.settings import (
    Settings,
    check_split,
    check_volume,
    resolve,
    single_image,
)
from lamella.engines.totalsegmentator.statistics import (
    STATISTICS_NAME,
    class_statistics,
    write_statistics,
)
from lamella.engines.totalsegmentator.weights import Weights, verified
from lamella.io.frames import affine_in_unit, affine_to_xyz
from lamella.models.foreign import ForeignModel
from lamella.volume.box import Box
from lamella.volume.labels import LabelClass
from lamella.volume.volume import Note
from lamella.wire.event import LogEvent, WarningEvent

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from lamella.core.places import Places
    from lamella.engines.engine import EngineDescriptor, EngineJob
    from lamella.volume.labels import Labels
    from lamella.volume.volume import Volume
    from lamella.wire.event import EventSink

__all__ = ["TotalSegmentatorEngine", "build_engine"]

PARTS_NAME = "parts"
EXCHANGE_NAME = ".exchange"


def build_engine() -> TotalSegmentatorEngine:
    """Return the engine; the name every engine's module offers."""
    return TotalSegmentatorEngine()


class TotalSegmentatorEngine:
    """Runs the tasks of TotalSegmentator."""

    @property
    def descriptor(self) -> EngineDescriptor:
        """What this engine can do."""
        return TOTALSEGMENTATOR

    def segment(self, job: EngineJob, sink: EventSink) -> EngineResult:
        """Segment a volume; see :class:`lamella.engines.engine.Engine`.

        Raises:
            InputError: another kind of image, or options that the task does not take.
            LicenceError: a licensed task without a licence number.
            UnknownModelError: weights that are not here.
            ModelError: weights that are damaged, changed, or hold code.
            RunCancelledError: the caller cancelled; finished parts are kept.
            EngineError: the package failed, or its process died; finished parts are kept.
            StorageError: labels cannot be written.
        """
        sink.check()
        if not isinstance(job.model, ForeignModel) or "task" not in job.model.details:
            raise InputError(
                "the engine 'totalsegmentator' needs one of its tasks",
                hint="write --model totalsegmentator:TASK, such as totalsegmentator:total",
            )
        return _Run(job, job.model, sink).segment()


class _Run:
    """One job from beginning to end."""

    def __init__(self, job: EngineJob, model: ForeignModel, sink: EventSink) -> None:
        self._job = job
        self._sink = sink
        self._notes: list[Note] = []
        self._places: Places = job.places if job.places.environments else places_of(model)
        package = describe_package(self._places, sink)
        task, mode = task_of(model, package)
        doubts = check_volume(job.volume, job.request, task)
        self._volume: Volume = single_image(job.volume)
        self._settings: Settings = resolve(job.request, task, mode, package, self._places)
        check_split(self._volume, self._settings)
        self._weights = self._verified()
        self._warn(*doubts)

    def segment(self) -> EngineResult:
        # The package's process works in a folder of its own: whole paths only.
        exchange = self._job.run_dir.absolute() / EXCHANGE_NAME
        parts = self._job.run_dir.absolute() / PARTS_NAME
        remove_left(exchange)
        if not self._job.resume:
            remove_left(parts)
            remove_left(self._job.run_dir / PREVIEW_NAME)
        exchange.mkdir()
        parts.mkdir(exist_ok=True)
        try:
            self._say_what_it_takes(parts)
            self._hand_over(exchange)
            answer = self._run(exchange, parts)
            labels, confidence = self._take_over(exchange, answer)
        finally:
            remove_left(exchange)
        self._measure(labels)
        # From here on the labels are on disk: nothing is ever taken from the parts again.
        remove_left(parts)
        return self._result(labels, confidence, answer)

    def _warn(self, *notes: Note) -> None:
        for note in notes:
            self._notes.append(note)
            self._sink.emit(WarningEvent(code=note.code, message=note.message))

    # -- before

    def _verified(self) -> dict[int, Weights]:
        """The weights of all passes, each compared with what the store recorded."""
        settings = self._settings
        stages = [*settings.stages, *(settings.preview.stages if settings.preview else ())]
        wanted = {number for stage in stages for number in stage.datasets}
        found: dict[int, Weights] = {}
        for number in sorted(wanted):
            self._sink.check()
            found[number] = verified(settings.weights[number], self._places)
        return found

    def _say_what_it_takes(self, parts: Path) -> None:
        kept = sum(1 for _ in parts.glob("*/part.json"))
        if kept:
            message = f"going on: {kept} finished parts are here already"
            self._sink.emit(LogEvent(message=message))
        found: Estimate = estimate(self._volume, self._settings, self._weights)
        self._sink.emit(LogEvent(message=found.message))
        if found.warning:
            self._warn(Note("memory_may_not_suffice", found.warning))

    def _hand_over(self, exchange: Path) -> None:
        fill = AIR_HU if self._settings.task.modality == "CT" else 0
        n_odd = write_image(self._volume, exchange / "image.npy", self._sink, fill=fill)
        if n_odd:
            message = f"{n_odd} voxels are not finite: they are taken as {fill}"
            self._warn(Note("not_finite", message))

    # -- the package's process

    def _run(self, exchange: Path, parts: Path) -> Mapping[str, Any]:
        try:
            return self._start(exchange, parts, spares_device=False)
        except DeviceMemoryError as error:
            # The tile is fixed by the model's plans; what else lies on the device can go.
            self._warn(
                Note(
                    "device_memory",
                    f"the device's memory did not suffice ({error.message}): once more, with all"
                    " results in main memory",
                )
            )
        try:
            return self._start(exchange, parts, spares_device=True)
        except DeviceMemoryError as error:
            raise DeviceMemoryError(
                f"the device's memory does not hold a tile of this model: {error.message}",
                hint="use --device cpu, or free the device of other work; finished parts are kept",
                details=error.details,
            ) from error

    def _start(self, exchange: Path, parts: Path, *, spares_device: bool) -> Mapping[str, Any]:
        from lamella.isolation.environment import python_of
        from lamella.isolation.process import run_worker

        return run_worker(
            python_of(ENVIRONMENT, self._places),
            WORKER,
            {**self._request(parts), "spares_device": spares_device},
            sink=self._sink,
            on_message=lambda message: self._on_message(message, exchange),
            exchange=exchange,
        )

    def _request(self, parts: Path) -> dict[str, Any]:
        settings, volume = self._settings, self._volume
        geometry = affine_to_xyz(affine_in_unit(volume.affine, volume.unit, "mm"), "RAS")
        return {
            "kind": "segment",
            "shape_xyz": list(reversed(volume.spatial_shape)),
            "spacing_xyz": list(geometry.spacing),
            "affine_xyz": geometry.matrix.tolist(),
            "arguments": dict(settings.arguments),
            "stages": [stage.as_document() for stage in settings.stages],
            "preview": self._preview_request(parts),
            "confidence": list(settings.measures),
            "weights": {
                str(number): {"path": str(one.path), "sha256": one.sha256}
                for number, one in self._weights.items()
            },
            "versions": dict(settings.package.versions),
            "parts": str(parts),
            "device": settings.device,
            "is_licensed": settings.task.is_licensed,
            "licence": settings.licence,
            "licence_hint": HINT,
            "is_trusted": self._job.is_trusted,
            "is_deterministic": self._job.request.deterministic,
        }

    def _preview_request(self, parts: Path) -> dict[str, Any] | None:
        plan = self._settings.preview
        if plan is None:
            return None
        if (self._job.run_dir / PREVIEW_NAME / "zarr.json").exists() and any(parts.iterdir()):
            self._sink.emit(LogEvent(message="the preview is there already"))
            return None
        self._sink.emit(LogEvent(message=f"preview {plan.how}"))
        spacing = affine_in_unit(self._volume.affine, self._volume.unit, "mm").spacing
        factors = [
            max(1, min(n, round(plan.spacing_mm / s) if np.isfinite(plan.spacing_mm) else 2))
            for s, n in zip(spacing, self._volume.spatial_shape, strict=True)
        ]
        return {
            "stages": [stage.as_document() for stage in plan.stages],
            "arguments": dict(plan.arguments),
            "is_coarse": plan.is_coarse,
            "factors": factors,
            "keep": sorted(self._settings.classes) if self._settings.roi else None,
        }

    def _on_message(self, message: Mapping[str, Any], exchange: Path) -> None:
        from lamella.isolation.process import exchanged_array, relay

        if message["type"] == "warning":
            self._warn(Note(str(message["code"]), str(message["message"])))
        elif message["type"] == "preview":
            factors = tuple(float(f) for f in message["factors"])
            values = np.asarray(exchanged_array(exchange, message["array"]))
            store = create_preview(
                self._job.run_dir,
                self._volume,
                values.shape,
                factors,
                dtype=values.dtype,
                classes=self._classes(),
            )
            store.write(Box.from_shape(values.shape), values)
            store.finish(QuietSink(self._sink))
            announce_whole(self._sink, PREVIEW_NAME, self._volume.spatial_shape, factors)
        else:
            relay(message, self._sink)

    # -- after

    def _take_over(
        self, exchange: Path, answer: Mapping[str, Any]
    ) -> tuple[Labels, ConfidenceMaps | None]:
        from lamella.isolation.process import exchanged_array

        path = self._job.run_dir / LABELS_NAME
        remove_left(path)
        maps = exchanged_array(exchange, "confidence.npy") if answer["has_confidence"] else None
        labels = labels_from(
            exchanged_array(exchange, "labels.npy"),
            path,
            like=self._volume,
            classes=self._classes(),
            maps=maps,
            sink=QuietSink(self._sink),
        )
        announce_whole(self._sink, LABELS_NAME, self._volume.spatial_shape)
        if maps is None:
            return labels, None
        return labels, ConfidenceMaps(measures=self._settings.measures, is_calibrated=False)

    def _measure(self, labels: Labels) -> None:
        """Leave ``statistics.json``, and say which structures are cut by the image."""
        spacing = affine_in_unit(self._volume.affine, self._volume.unit, "mm").spacing
        found = class_statistics(
            labels.data,
            self._volume.data,
            self._settings.classes,
            voxel_mm3=float(np.prod(spacing)),
            sink=QuietSink(self._sink),
        )
        write_statistics(self._job.run_dir / STATISTICS_NAME, found)
        present = [name for name, row in found.items() if row["n_voxels"]]
        cut = [name for name in present if found[name]["is_incomplete"]]
        if not present:
            self._warn(Note("no_objects", "nothing was found: every voxel is background"))
        elif cut:
            shown = ", ".join(cut[:5]) + (f" and {len(cut) - 5} more" if len(cut) > 5 else "")
            self._sink.emit(
                LogEvent(
                    message=f"{len(cut)} of {len(present)} structures reach the border of the image"
                    f" and may be incomplete: {shown}"
                )
            )

    def _result(
        self, labels: Labels, confidence: ConfidenceMaps | None, answer: Mapping[str, Any]
    ) -> EngineResult:
        settings = self._settings
        tiles = int(answer["tiles"])
        peak = int(answer["peak_bytes"])
        self._sink.emit(
            LogEvent(message=f"TotalSegmentator's process took {peak / 1e9:.1f} GB of memory")
        )
        device = str(answer["device"])
        return EngineResult(
            labels=labels,
            tiles_done=tiles,
            tiles_planned=tiles,
            device={"gpu": "cuda"}.get(device, device.replace("gpu:", "cuda:")),
            runtime=f"totalsegmentator {settings.package.version}",
            precision="fp32" if device in ("cpu", "mps") else "mixed",
            options_resolved={
                **settings.options,
                "task": settings.task.name,
                "weights_used": [
                    {
                        "dataset": number,
                        "folder": settings.package.folders.get(number, one.path.name),
                        "sha256": one.sha256,
                    }
                    for number, one in self._weights.items()
                    if number in settings.datasets
                ],
                "preview": settings.preview.how if settings.preview else None,
                "peak_bytes": peak,
                "versions": dict(answer["versions"]),
            },
            warnings=tuple(self._notes),
            confidence=confidence,
        )

    def _classes(self) -> tuple[LabelClass, ...]:
        return tuple(LabelClass(value, name) for value, name in self._settings.classes.items())
