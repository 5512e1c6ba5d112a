"""A 2-D network along all three axes: its maps are averaged, and decoded in 3-D.

The volume is made isotropic (the spacing the network was trained at, or the finest of the input),
so that a network for pictures sees objects of the same size in every plane::

    volume ─▶ isotropic ─▶ planes y x, slice by slice along z ─┐
                       ├─▶ planes z x, slice by slice along y ─┼─▶ mean ─▶ watershed ─▶ labels
                       └─▶ planes z y, slice by slice along x ─┘                 on the input's grid

Each of the three passes is a whole run of the engine in a folder of its own (``parts/plane-z`` and
so on) with its journal, so an interrupted run goes on, and finished passes are not repeated. The
passes stream; averaging and watershed hold the isotropic volume, and are refused beforehand where
it does not fit.

References:
    Conrad & Narayan (2023), MitoNet, doi:10.1016/j.cels.2022.12.006, for consensus over planes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lamella.core.errors import InputError
from lamella.core.memory import available_bytes
from lamella.engines.engine import LABELS_NAME, PREVIEW_NAME, EngineResult
from lamella.engines.lamella.objects import decoder_options, instances_of_maps
from lamella.engines.lamella.target import PROBABILITIES_NAME
from lamella.engines.leftovers import remove_left
from lamella.engines.tile_events import QuietSink, announce_whole
from lamella.inference.resampler import Resampler
from lamella.io.label_store import create_labels
from lamella.volume.affine import Affine
from lamella.volume.box import Box
from lamella.volume.labels import LabelClass, Labels
from lamella.volume.source import FunctionArray
from lamella.wire.event import PreviewEvent, ProgressEvent, WarningEvent

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from lamella.engines.engine import EngineJob
    from lamella.volume.volume import Note, Volume
    from lamella.wire.card import ModelCard
    from lamella.wire.event import Event, EventSink

    RunPlane = Callable[[EngineJob, EventSink], EngineResult]

__all__ = ["segment_ortho"]

PLANES: dict[str, tuple[int, int, int]] = {"z": (0, 1, 2), "y": (1, 0, 2), "x": (2, 0, 1)}
"""Axes of the volume in the order in which each pass sees them."""
BYTES_PER_VOXEL = 48
"""What averaging and the watershed hold per isotropic voxel."""
_PART = "part.json"


def segment_ortho(
    job: EngineJob, card: ModelCard, sink: EventSink, run_plane: RunPlane
) -> EngineResult:
    """Segment a volume by the consensus of three planes.

    Args:
        job: a volume and a 2-D instance model.
        card: of the model.
        sink: events and cancellation.
        run_plane: runs the network over the slices of a volume and leaves its maps.

    Raises:
        InputError: when the isotropic volume does not fit into memory; and as ``run_plane``.
        RunCancelledError: the caller cancelled; finished passes and layers are kept.
    """
    resampler = Resampler.to_isotropic(job.volume, _spacing(job.volume, card))
    _check_memory(resampler.shape)
    isotropic = resampler.resample(job.volume)
    results: list[dict[str, Any]] = []
    notes: list[Note] = []
    for number, axis in enumerate(PLANES):
        folder = job.run_dir / "parts" / f"plane-{axis}"
        if not job.resume:
            remove_left(folder)
        known = _read_part(folder)
        if known is None:
            folder.mkdir(parents=True, exist_ok=True)
            part = _plane_job(job, isotropic, axis, folder, is_first=number == 0)
            result = run_plane(part, _PlaneSink(sink, job, folder, axis, resampler.shape))
            # What is missing from one plane may be there in the others.
            notes += [
                note for note in result.warnings if note not in notes and note.code != "no_objects"
            ]
            known = _write_part(folder, result)
        results.append(known)
    labels = _decode(job, card, resampler, isotropic, sink)
    remove_left(job.run_dir / "parts")
    first = results[0]
    return EngineResult(
        labels=labels,
        tiles_done=sum(part["tiles_done"] for part in results),
        tiles_planned=sum(part["tiles_planned"] for part in results),
        device=first["device"],
        runtime=first["runtime"],
        precision=first["precision"],
        options_resolved={
            **first["options_resolved"],
            "preview": job.request.preview,
            "instances": True,
            "strategy": "ortho",
            "isotropic_shape": list(resampler.shape),
            "isotropic_spacing": [round(v, 9) for v in isotropic.spacing.values],
        },
        warnings=tuple(notes),
    )


def _spacing(volume: Volume, card: ModelCard) -> float:
    """The isotropic spacing, in the unit of the volume."""
    wanted = card.spacing
    if wanted is not None and wanted.unit != "voxel" and volume.spacing.is_calibrated:
        return min(wanted.to_spacing().to(volume.unit).values)
    return min(volume.spacing.values)


def _check_memory(shape: tuple[int, ...]) -> None:
    n_bytes = BYTES_PER_VOXEL * math.prod(shape)
    available = available_bytes()
    if available is not None and n_bytes > available:
        raise InputError(
            f"--instances ortho makes the volume isotropic ({' x '.join(map(str, shape))} voxels)"
            f" and needs about {n_bytes / 1e9:.0f} GB of memory; {available / 1e9:.0f} GB are free",
            hint="use --instances hybrid, which needs little memory, or a cropped input",
        )


def _plane_job(
    job: EngineJob, isotropic: Volume, axis: str, folder: Path, *, is_first: bool
) -> EngineJob:
    """The job of one pass: the volume seen along an axis, maps instead of objects."""
    order = PLANES[axis]
    back = tuple(int(i) for i in np.argsort(order))
    leading = isotropic.axes.n_leading
    source = isotropic.data
    spatial = isotropic.spatial_shape
    there = tuple(leading + i for i in back)

    def read(box: tuple[slice, ...]) -> NDArray[Any]:
        inner = tuple(box[i] for i in there)
        block = np.asarray(source[(*box[:leading], *inner)])
        return block.transpose(*range(leading), *(leading + i for i in order))

    shape = (*isotropic.shape[:leading], *(spatial[i] for i in order))
    volume = replace(
        isotropic,
        data=FunctionArray(shape, isotropic.dtype, read),
        affine=Affine.diagonal([isotropic.spacing.values[i] for i in order]),
        levels=(),
    )
    changes = {
        "instances": "none",
        "confidence": False,
        "preview": job.request.preview and is_first,
    }
    request = job.request.model_copy(update=changes)
    return replace(job, volume=volume, request=request, run_dir=folder)


class _PlaneSink:
    """Events of one pass as those of the whole run."""

    def __init__(
        self, sink: EventSink, job: EngineJob, folder: Path, axis: str, shape: tuple[int, ...]
    ) -> None:
        self._sink = sink
        self._job = job
        self._folder = folder
        self._axis = axis
        self._shape = shape

    def emit(self, event: Event, /) -> None:
        """Pass on what is about the whole; foreground of a pass is no result."""
        if isinstance(event, PreviewEvent):
            if not event.is_final:
                self._sink.emit(self._preview(event))
        elif isinstance(event, ProgressEvent) and event.stage != "preview":
            stage = f"{event.stage} along {self._axis}"
            self._sink.emit(event.model_copy(update={"stage": stage}))
        elif not (isinstance(event, WarningEvent) and event.code == "no_objects"):
            self._sink.emit(event)

    def check(self) -> None:
        """Raise if the caller cancelled."""
        self._sink.check()

    def _preview(self, event: PreviewEvent) -> PreviewEvent:
        """The coarse labels of the first pass, moved to where previews lie."""
        target = self._job.run_dir / PREVIEW_NAME
        remove_left(target)
        (self._folder / event.path).rename(target)
        shape = self._job.volume.spatial_shape
        factors = tuple(
            f * n / m for f, n, m in zip(event.factors, shape, self._shape, strict=True)
        )
        return PreviewEvent(
            path=PREVIEW_NAME,
            factors=factors,
            box_start=(0,) * len(shape),
            box_stop=shape,
            is_final=False,
        )


def _decode(
    job: EngineJob, card: ModelCard, resampler: Resampler, isotropic: Volume, sink: EventSink
) -> Labels:
    """Average the maps, find the objects in 3-D, and bring them to the input's grid."""
    maps = _mean_maps(job, resampler.shape, sink)
    sink.check()
    ids = instances_of_maps(
        maps, card.decoder.kind, isotropic.spacing.values, decoder_options(card.decoder)
    )
    del maps
    found = Labels.like(
        replace(isotropic, affine=job.volume.affine.downsampled(_factors(resampler))),
        ids,
        is_instance=True,
    )
    labels = resampler.restore_labels(found)
    path = job.run_dir / LABELS_NAME
    remove_left(path)
    classes = tuple(LabelClass(c.value, c.name, c.color) for c in card.classes if c.value != 0)
    store = create_labels(path, like=job.volume, dtype=ids.dtype, classes=classes, is_instance=True)
    shape = job.volume.spatial_shape
    for start in range(0, shape[0], store.unit[0]):
        sink.check()
        stop = min(start + store.unit[0], shape[0])
        block = np.asarray(labels.data[start:stop])
        store.write(Box((start, 0, 0), (stop, *shape[1:])), block)
        sink.emit(ProgressEvent(stage="instances", done=stop, total=shape[0], unit="layers"))
    result = store.finish(QuietSink(sink))
    announce_whole(sink, LABELS_NAME, shape)
    return result


def _factors(resampler: Resampler) -> list[float]:
    return [a / b for a, b in zip(resampler.old_shape, resampler.shape, strict=True)]


def _mean_maps(job: EngineJob, shape: tuple[int, ...], sink: EventSink) -> NDArray[np.float32]:
    """Probabilities averaged over the three passes, (c, z, y, x)."""
    import zarr

    total: NDArray[np.float32] | None = None
    for axis, order in PLANES.items():
        path = job.run_dir / "parts" / f"plane-{axis}" / PROBABILITIES_NAME
        maps: Any = zarr.open_array(str(path), mode="r")
        if total is None:
            total = np.zeros((maps.shape[0], *shape), np.float32)
        # A view in the order in which the pass saw the axes.
        seen = total.transpose(0, *(1 + i for i in order))
        depth = int(maps.chunks[1])
        for start in range(0, maps.shape[1], depth):
            sink.check()
            part = slice(start, min(start + depth, maps.shape[1]))
            seen[:, part] += np.asarray(maps[:, part])
    assert total is not None, "there are three planes"
    total *= np.float32(1 / (255 * len(PLANES)))
    return total


def _read_part(folder: Path) -> dict[str, Any] | None:
    """What a finished pass left; None where it has to run (again)."""
    path = folder / _PART
    if not path.is_file() or not (folder / PROBABILITIES_NAME).exists():
        return None
    known: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return known


def _write_part(folder: Path, result: EngineResult) -> dict[str, Any]:
    known = {
        "tiles_done": result.tiles_done,
        "tiles_planned": result.tiles_planned,
        "device": result.device,
        "runtime": result.runtime,
        "precision": result.precision,
        "options_resolved": dict(result.options_resolved),
    }
    partial = folder / (_PART + ".partial")
    partial.write_text(json.dumps(known), "utf-8")
    partial.replace(folder / _PART)
    return known
