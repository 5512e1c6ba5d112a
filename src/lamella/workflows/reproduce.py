"""Run a manifest again and compare: is the result what it was?

The input and the model must be the very same bytes; the second run goes into a folder of its own,
on the same kind of device and in the same precision.
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lamella.core.errors import InputError, ModelError, RunError
from lamella.core.places import Places
from lamella.core.progress import SilentSink
from lamella.volume.labels import Labels
from lamella.volume.source import iter_slabs
from lamella.volume.volume import Volume
from lamella.wire.event import EventSink
from lamella.wire.manifest import RunManifest
from lamella.wire.request import SegmentRequest
from lamella.workflows.prepare import prepare
from lamella.workflows.run import Run
from lamella.workflows.segment import RunOptions, segment

__all__ = ["Reproduction", "reproduce"]


@dataclass(frozen=True, slots=True)
class Reproduction:
    """How a second run compares with the first.

    Attributes:
        sha256: of the labels' voxels, first and second run.
        n_voxels: in all.
        n_different: voxels whose label differs.
        changed: what is not as it was (versions, device), old and new value.
        folder: of the second run; None when it was temporary.
    """

    sha256: tuple[str, str]
    n_voxels: int
    n_different: int
    changed: dict[str, tuple[str, str]] = field(default_factory=dict[str, tuple[str, str]])
    folder: Path | None = None

    @property
    def is_identical(self) -> bool:
        """Whether every voxel is the same."""
        return self.sha256[0] == self.sha256[1]


def reproduce(
    folder: str | Path,
    *,
    run_dir: Path | None = None,
    source: Path | None = None,
    volume: Volume | None = None,
    sink: EventSink | None = None,
    places: Places | None = None,
    is_trusted: bool = False,
) -> Reproduction:
    """Run a finished run again and compare the labels.

    Args:
        folder: the run.
        run_dir: folder of the second run, kept; a temporary one unless given.
        source: where the input lies now, if it was moved.
        volume: the input itself, if it was an array in memory.
        sink: events and cancellation.
        places: where models and environments lie; the user's own unless given.
        is_trusted: code and pickles that come with the model may be run.

    Raises:
        RunError: when the first run is not finished.
        InputError: when the input is not what it was.
        ModelError: when the model is not what it was.
    """
    listener = sink or SilentSink()
    first = Run.open(folder)
    old = first.manifest
    labels = first.labels  # says so when the run is not finished
    request = _pinned(old)
    if source is not None:
        moved = request.input.model_copy(update={"path": str(source.absolute())})
        request = request.model_copy(update={"input": moved})
    _check_same(old, request, volume, listener, places)
    with _second_folder(run_dir) as where:
        options = RunOptions(where, fresh=True, places=places, is_trusted=is_trusted)
        second = segment(request, options, volume=volume, sink=listener)
        new = second.manifest
        assert old.labels is not None, "finished runs have labels"
        assert new.labels is not None, "finished runs have labels"
        hashes = (old.labels.sha256, new.labels.sha256)
        n_different = 0 if hashes[0] == hashes[1] else _count_different(labels, second.labels)
        return Reproduction(
            sha256=hashes,
            n_voxels=int(np.prod(labels.spatial_shape, dtype=np.int64)),
            n_different=n_different,
            changed=_changed(old, new),
            folder=None if run_dir is None else where,
        )


def _pinned(manifest: RunManifest) -> SegmentRequest:
    """The request with device and precision as they were resolved; no preview is needed."""
    fields: dict[str, object] = {"preview": False}
    request, runtime = manifest.request, manifest.runtime
    if runtime is not None and request.device == "auto":
        fields["device"] = runtime.device
    if runtime is not None and request.precision == "auto" and runtime.precision != "exact":
        fields["precision"] = runtime.precision
    return request.model_copy(update=fields)


def _check_same(
    old: RunManifest,
    request: SegmentRequest,
    volume: Volume | None,
    listener: EventSink,
    places: Places | None,
) -> None:
    prepared = prepare(request, volume, listener, places=places)
    now, before = prepared.input_fact.sha256, old.input.sha256
    if now != before:
        raise InputError(
            f"the input {request.input.path} is not what it was: SHA-256 {now[:12]}..., then"
            f" {before[:12]}...",
            hint="bring back the original file, or name it with --input",
            details={"now": now, "then": before},
        )
    if (prepared.model_fact.id, prepared.model_fact.sha256) != (old.model.id, old.model.sha256):
        raise ModelError(
            f"the model {request.model!r} is not what it was: its weights have another SHA-256",
            hint="bring back the version of the model that the manifest names",
            details={"now": prepared.model_fact.sha256, "then": old.model.sha256},
        )


@contextmanager
def _second_folder(run_dir: Path | None) -> Iterator[Path]:
    if run_dir is not None:
        if run_dir.exists() and any(run_dir.iterdir()):
            raise RunError(f"{run_dir} is not empty", hint="choose a new folder with --run-dir")
        yield run_dir
        return
    folder = Path(tempfile.mkdtemp(prefix="lamella-reproduce-"))
    try:
        yield folder / "again.run"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _count_different(first: Labels, second: Labels) -> int:
    if first.spatial_shape != second.spatial_shape:
        raise RunError(
            f"the second run's labels have shape {second.spatial_shape}, the first's"
            f" {first.spatial_shape}"
        )
    total = 0
    for extent, slab in iter_slabs(first.data):
        total += int(np.count_nonzero(slab != np.asarray(second.data[extent])))
    return total


def _changed(old: RunManifest, new: RunManifest) -> dict[str, tuple[str, str]]:
    changed = {
        name: (old.versions.get(name, "absent"), new.versions.get(name, "absent"))
        for name in sorted({*old.versions, *new.versions})
        if old.versions.get(name) != new.versions.get(name)
    }
    if old.runtime is not None and new.runtime is not None:
        for name in ("device", "runtime", "precision"):
            was, now = getattr(old.runtime, name), getattr(new.runtime, name)
            if was != now:
                changed[name] = (was, now)
    return changed
