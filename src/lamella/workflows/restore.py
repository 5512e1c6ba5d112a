"""Restoring images: to a file of their own, or as the first step of a run.

In a run the restored volume lies in the run folder (``restored.ome.zarr``) with its record
(``restoration.json``); the engine sees it, and **everything is measured on the image as it came**:
a restoration invents contrast. A finished restoration is kept when a run is resumed.
"""

import json
import math
import shutil
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lamella.core.errors import InputError, OutputExistsError, StorageError
from lamella.core.places import Places
from lamella.core.progress import ProgressSink, SilentSink
from lamella.io.format import SaveOptions, find_writer, open_volume, save_volume, storage_errors
from lamella.io.narrow import parse_dtype
from lamella.restoration.decision import RestoreOptions, check_available
from lamella.restoration.restore import Restored, restore_volume
from lamella.restoration.source import check_restorable
from lamella.volume.source import FunctionArray
from lamella.volume.spacing import Spacing
from lamella.volume.volume import Volume
from lamella.wire.event import EventSink, LogEvent
from lamella.wire.request import RestoreDoc, SegmentRequest
from lamella.workflows.fingerprint import voxel_sha256
from lamella.workflows.run_folder import RunFolder, write_bytes, write_text

__all__ = [
    "RESTORED_NAME",
    "RestoreJob",
    "check_restoration",
    "options_of",
    "restore_file",
    "restore_for_run",
]

RESTORED_NAME = "restored.ome.zarr"
_RECORD_NAME = "restoration.json"
_COPIES = 2
"""Of the voxels on disk while an image is restored: on the way, and written."""


@dataclass(frozen=True, slots=True)
class RestoreJob:
    """Where a restored image goes.

    Attributes:
        output: file or folder, by its suffix.
        dtype: type of its voxels: "same" as the input or a name; None: float32, or as the input
            for formats that hold no floats and where nothing was changed. Integers are rounded
            and held within the range of their type.
        overwrite: replace what is there.
        picture: PNG of before and after.
        record: JSON of what was seen and done.
        places: where environments and models lie; the user's own unless given.
    """

    output: Path
    dtype: str | None = None
    overwrite: bool = False
    picture: Path | None = None
    record: Path | None = None
    places: Places | None = None


def restore_file(
    volume: Volume, options: RestoreOptions, job: RestoreJob, *, sink: ProgressSink | None = None
) -> dict[str, Any]:
    """Restore an image and write it; nothing appears before it is complete.

    Args:
        volume: the image.
        options: what to do to it.
        job: where it goes.
        sink: progress and cancellation.

    Returns:
        The record, with ``path``, ``dtype``, ``sha256`` of the voxels and ``elapsed_s``.

    Raises:
        LamellaError: of the kind that fits what is wrong; all that can be known is said first.
    """
    began = time.monotonic()
    sink = sink or SilentSink()
    places = job.places or Places.of_user()
    check_restorable(volume)
    check_available(options, places)
    dtype = _checked_dtype(volume, job)
    _check_targets(job)
    _check_room(volume, job.output)
    _rehearse(volume, job, dtype)
    with storage_errors(job.output):
        job.output.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(prefix=".lamella-", dir=job.output.parent)
    with folder as name:
        scratch = Path(name) / "restored.raw"
        restored = restore_volume(volume, options, scratch=scratch, sink=sink, places=places)
        result = restored.volume
        if restored.is_changed or job.dtype is not None:
            result = _typed(result, dtype)
        save_volume(result, job.output, SaveOptions(overwrite=job.overwrite, sink=sink))
        record = restored.to_dict() | {
            "path": str(job.output),
            "dtype": str(result.dtype),
            "sha256": voxel_sha256(result.data, sink),
            "elapsed_s": round(time.monotonic() - began, 3),
        }
        if job.picture is not None:
            _draw(job.picture, volume, restored)
    if job.record is not None:
        write_text(job.record, _json(record))
    return record


def check_restoration(
    request: SegmentRequest, volume: Volume, folder: Path, places: Places
) -> None:
    """Refuse a request whose restoration cannot be done, before anything is written.

    Args:
        request: of a run.
        volume: its input.
        folder: of the run; it need not exist.
        places: where environments and models lie.

    Raises:
        InputError: for options that contradict each other, and images that cannot be restored.
        MissingDependencyError: for a method that is not installed.
        StorageError: where the restored voxels would not fit.
    """
    if request.restore is None:
        return
    options = options_of(request.restore, seed=request.seed, device=request.device)
    check_available(options, places)
    if options.mode != "none":
        check_restorable(volume)
        _check_room(volume, folder)


def restore_for_run(
    folder: RunFolder,
    request: SegmentRequest,
    volume: Volume,
    sink: EventSink,
    places: Places,
) -> tuple[Volume, dict[str, Any] | None]:
    """The image that the engine of a run sees, and the record for its manifest.

    Args:
        folder: of the run, locked; a restoration that is finished there is used again.
        request: of the run.
        volume: the image as it came.
        sink: events and cancellation.
        places: where environments and models lie.

    Raises:
        MissingDependencyError: when the method is not there; it is never skipped.
    """
    if request.restore is None:
        return volume, None
    kept = _kept(folder, volume, sink)
    if kept is not None:
        sink.emit(LogEvent(message="the restored image is on disk already"))
        return kept
    began = time.monotonic()
    options = options_of(request.restore, seed=request.seed, device=request.device)
    check_available(options, places)
    if options.mode == "none":
        return volume, {"mode": "none", "is_changed": False, "channels": []}
    scratch = folder.path / ".restoration.partial"
    try:
        restored = restore_volume(volume, options, scratch=scratch, sink=sink, places=places)
        for channel in restored.channels:
            sink.emit(LogEvent(message=f"restoration: {channel.summary}"))
        record = restored.to_dict() | {"measured_on": "the image as it came"}
        if restored.is_changed:
            path = folder.path / RESTORED_NAME
            save_volume(restored.volume, path, SaveOptions(overwrite=True, sink=sink))
            record |= {"path": RESTORED_NAME, "sha256": voxel_sha256(open_volume(path).data, sink)}
    finally:
        scratch.unlink(missing_ok=True)
    record["elapsed_s"] = round(time.monotonic() - began, 3)
    # Last: with the record the restoration counts as finished.
    write_text(folder.path / _RECORD_NAME, _json(record))
    return _seen(folder, volume, record), record


def options_of(document: RestoreDoc, *, seed: int = 0, device: str = "auto") -> RestoreOptions:
    """The options a request's document stands for.

    Raises:
        InputError: for options that contradict each other.
    """
    sigma = document.psf_sigma
    return RestoreOptions(
        mode=document.mode,
        method=document.method,
        strength=document.strength,
        psf_sigma=None if sigma is None else Spacing((sigma.value,) * 3, sigma.unit),
        psf=None if document.psf is None else Path(document.psf),
        model=document.model,
        seed=seed,
        device=device,
    )


def _kept(
    folder: RunFolder, volume: Volume, sink: EventSink
) -> tuple[Volume, dict[str, Any]] | None:
    """A finished restoration of an earlier process, whose voxels are still what they were."""
    path = folder.path / _RECORD_NAME
    try:
        record: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    if not record.get("is_changed"):
        return volume, record
    if not (folder.path / RESTORED_NAME).exists():
        return None
    seen = _seen(folder, volume, record)
    if voxel_sha256(seen.data, sink) != record.get("sha256"):
        return None
    return seen, record


def _seen(folder: RunFolder, volume: Volume, record: dict[str, Any]) -> Volume:
    """The restored voxels in the place of the input's: the geometry stays to the last digit."""
    if not record["is_changed"]:
        return volume
    stored = open_volume(folder.path / RESTORED_NAME)
    return replace(volume, data=stored.data, levels=stored.levels)


def _checked_dtype(volume: Volume, job: RestoreJob) -> np.dtype[Any]:
    """Type of the output's voxels.

    Raises:
        InputError: for a type that holds no intensities.
    """
    if job.dtype == "same":
        return volume.dtype
    if job.dtype is not None:
        dtype = parse_dtype(job.dtype)
        if dtype.kind == "b":
            raise InputError("intensities do not fit into booleans", hint="use uint8 or float32")
        return dtype
    only_integers = find_writer(job.output).id == "raster"
    return volume.dtype if only_integers else np.dtype(np.float32)


def _check_room(volume: Volume, target: Path) -> None:
    """Refuse to start where the result, and its voxels on the way there, would not fit.

    Raises:
        StorageError: with what is free and what is needed.
    """
    needed = _COPIES * 4 * math.prod(volume.shape)
    existing = next(parent for parent in (target, *target.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise StorageError(
            f"the disk of {target} has {free / 1e6:,.0f} MB free; the restored image needs about"
            f" {needed / 1e6:,.0f} MB while it arises",
            hint="free some space, or choose a place on another disk",
        )


def _check_targets(job: RestoreJob) -> None:
    for path in (job.output, job.picture, job.record):
        if path is not None and path.exists() and not job.overwrite:
            raise OutputExistsError(
                f"{path} is already there", hint="use --overwrite to replace it"
            )


def _rehearse(volume: Volume, job: RestoreJob, dtype: np.dtype[Any]) -> None:
    """Write a corner of nothing in the same format: what it cannot hold is known before the work.

    Raises:
        LamellaError: as the real thing would.
    """
    find_writer(job.output).load()
    shape = tuple(
        min(n, 4) if a not in ("c",) else n
        for a, n in zip(volume.axes.names, volume.shape, strict=True)
    )
    nothing = replace(volume, data=np.zeros(shape, dtype), levels=())
    with tempfile.TemporaryDirectory(prefix="lamella-") as name:
        save_volume(nothing, Path(name) / job.output.name)


def _typed(volume: Volume, dtype: np.dtype[Any]) -> Volume:
    """The volume as another type; integers rounded and held within their range."""
    if volume.dtype == dtype:
        return volume
    source = volume.data

    def read(slices: tuple[slice, ...]) -> np.ndarray[Any, Any]:
        values = np.asarray(source[slices])
        if dtype.kind not in "iu":
            return values.astype(dtype)
        limits = np.iinfo(dtype)
        # In float64: the limits of 32-bit integers are no float32 numbers.
        rounded = np.rint(values.astype(np.float64))
        return np.clip(rounded, limits.min, limits.max).astype(dtype)

    return replace(volume, data=FunctionArray(volume.shape, dtype, read), levels=())


def _draw(path: Path, volume: Volume, restored: Restored) -> None:
    from lamella.restoration.picture import draw_before_after

    first = restored.channels[0]
    write_bytes(path, draw_before_after(volume, restored.volume, first))


def _json(record: dict[str, Any]) -> str:
    return json.dumps(record, indent=2, ensure_ascii=False) + "\n"
