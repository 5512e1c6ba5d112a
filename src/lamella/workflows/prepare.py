"""Everything a run needs, found and checked before anything is written.

A request names an input and a model; here they are opened, and all that can be wrong with them is
said at once: no such file, a damaged one, an unknown model, axes that do not fit, memory or disk
that would not do.
"""

import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lamella.core.errors import AxesError, InputError, StorageError
from lamella.core.progress import ProgressSink
from lamella.engines.engine import EngineDescriptor
from lamella.engines.registry import check_engine, find_engine, list_engines
from lamella.io.format import OpenOptions, open_volume
from lamella.volume.source import iter_slabs
from lamella.volume.volume import Volume
from lamella.wire.manifest import GeometryDoc, InputFact, ModelFact, NoteDoc
from lamella.wire.request import InputDoc, SegmentRequest, SpacingDoc
from lamella.workflows.fingerprint import path_fingerprint, voxel_sha256
from lamella.workflows.objects import check_memory, check_sizes

if TYPE_CHECKING:
    from lamella.models.folder import ModelFolder

__all__ = ["MEMORY_PREFIX", "Prepared", "check_disk", "input_of_volume", "open_input", "prepare"]

MEMORY_PREFIX = "memory:"
"""Begins the path of an input that was an array in memory."""
_BYTES_PER_VOXEL = 0.35
"""Labels, objects and maps of a run on disk, compressed, seldom take more."""
_BYTES_BESIDE = 20e6
"""Report, tables and journals."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request whose input and model are at hand.

    Attributes:
        request: with the input's path made whole.
        volume: the input, lazy.
        engine: what will run.
        model: the opened model folder; None for an engine without models.
        input_fact: fingerprint and geometry of the input.
        model_fact: identity of the model.
    """

    request: SegmentRequest
    volume: Volume
    engine: EngineDescriptor
    model: "ModelFolder | None"
    input_fact: InputFact
    model_fact: ModelFact


def prepare(
    request: SegmentRequest,
    volume: Volume | None,
    sink: ProgressSink,
    *,
    user_models: Path | None = None,
    has_fingerprint: bool = True,
) -> Prepared:
    """Open and check what a request names.

    Args:
        request: what to do.
        volume: the input itself, where it is not a file.
        sink: progress and cancellation of reading the input for its fingerprint.
        user_models: folder of the user's own models.
        has_fingerprint: whether to read the whole input for its SHA-256.

    Raises:
        LamellaError: of the kind that fits whatever is wrong.
    """
    engine, model = _find_model(request, user_models)
    _check_available(engine)
    if volume is None:
        path = Path(request.input.path)
        if request.input.path.startswith(MEMORY_PREFIX):
            raise InputError(
                "the input of this run was an array in memory, which is gone",
                hint="pass it again: lamella.segment(volume, ...)",
            )
        request = request.model_copy(
            update={"input": request.input.model_copy(update={"path": str(path.absolute())})}
        )
        volume = open_input(request.input)
    volume = _single_time(volume)
    _check_fit(volume, model)
    check_sizes(request, volume)
    check_memory(request, volume)
    if not has_fingerprint:
        sha256, n_bytes = "", 0
    elif request.input.path.startswith(MEMORY_PREFIX):
        sha256, n_bytes = voxel_sha256(volume.data, sink), volume.nbytes
    else:
        known = path_fingerprint(Path(request.input.path), sink)
        sha256, n_bytes = known.sha256, known.n_bytes
    return Prepared(
        request=request,
        volume=volume,
        engine=engine,
        model=model,
        input_fact=_input_fact(request, volume, sha256, n_bytes),
        model_fact=_model_fact(request, engine, model),
    )


def open_input(document: InputDoc) -> Volume:
    """Open the input a document names, with its corrections."""
    names = ("dataset", "series", "level", "channel", "time", "axes", "resample_irregular")
    options = OpenOptions(
        **{name: getattr(document, name) for name in names},
        spacing=None if document.spacing is None else document.spacing.to_spacing(),
    )
    return open_volume(document.path, options)


def input_of_volume(volume: Volume) -> InputDoc:
    """The document of an input given as an object.

    A volume that is what its file holds, voxel for voxel, is named by that file, so that the run
    can be resumed and reproduced from anywhere; any other lives in memory only.
    """
    if volume.path is not None and volume.path.exists() and _is_as_on_disk(volume, volume.path):
        return InputDoc(path=str(volume.path.absolute()))
    return InputDoc(path=MEMORY_PREFIX + (volume.name or "volume"))


def check_disk(volume: Volume, folder: Path) -> None:
    """Refuse to start where the labels would not fit.

    Raises:
        StorageError: with what is free and what is needed.
    """
    needed = _BYTES_PER_VOXEL * math.prod(volume.spatial_shape) + _BYTES_BESIDE
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise StorageError(
            f"the disk of {folder} has {free / 1e6:,.0f} MB free; this run needs about"
            f" {needed / 1e6:,.0f} MB",
            hint="free some space, or choose a folder on another disk with --run-dir",
        )


def _find_model(
    request: SegmentRequest, user_models: Path | None
) -> "tuple[EngineDescriptor, ModelFolder | None]":
    """The engine, and the model folder where it needs one."""
    prefix = request.model.partition(":")[0]
    without_model = [known.id for known in list_engines() if not known.needs_model]
    if prefix in without_model and request.engine in (None, prefix):
        return find_engine(prefix), None
    engine = find_engine(request.engine or "lamella")
    if not engine.needs_model:
        raise InputError(
            f"the engine {engine.id!r} takes no model {request.model!r}",
            hint=f"write --model {engine.id}:METHOD, or leave out --engine",
        )
    from lamella.models.store import find_model

    return engine, find_model(request.model, user_folder=user_models)


def _check_available(engine: EngineDescriptor) -> None:
    availability = check_engine(engine)
    if not availability.is_available:
        from lamella.core.errors import MissingDependencyError

        raise MissingDependencyError(
            f"the engine {engine.id!r} can't run here: {availability.reason}",
            hint=availability.hint,
        )


def _single_time(volume: Volume) -> Volume:
    """The volume without a time axis of length one."""
    if "t" not in volume.axes:
        return volume
    n_times = volume.shape[volume.axes.index("t")]
    if n_times != 1:
        raise AxesError(
            f"the input has {n_times} time points; one is segmented at a time",
            hint=f"choose one with --time 0 to {n_times - 1}",
        )
    return volume.select("t", 0)


def _check_fit(volume: Volume, model: "ModelFolder | None") -> None:
    """Say early what the engine would say late: the fingerprint of a large file takes a while."""
    if min(volume.shape) < 1:
        raise InputError(
            f"the input is empty: its shape is {volume.shape}", hint="check it with `lamella info`"
        )
    if volume.dtype.kind not in "uifb":
        raise InputError(
            f"the input holds values of type {volume.dtype}, not intensities",
            hint="export its magnitude or its real part first",
        )
    if model is None:
        return
    from lamella.engines.lamella.settings import check_axes

    if "c" in volume.axes and volume.n_channels == 1:
        volume = volume.select("c", 0)
    check_axes(volume, model.card)
    if model.card.axes == "zyx" and min(volume.spatial_shape) == 1:
        raise AxesError(
            f"the model {model.card.id!r} segments volumes; the input of shape"
            f" {volume.spatial_shape} is a single plane",
            hint="choose a 2-D model, or check the axes with `lamella info`",
        )


def _input_fact(request: SegmentRequest, volume: Volume, sha256: str, n_bytes: int) -> InputFact:
    affine = volume.affine
    return InputFact(
        path=request.input.path,
        sha256=sha256,
        n_bytes=n_bytes,
        dtype=str(volume.dtype),
        geometry=GeometryDoc(
            shape=volume.spatial_shape,
            axes=str(volume.axes),
            spacing=SpacingDoc.of(volume.spacing),
            origin=affine.origin,
            direction=affine.direction,
            frame=affine.frame,
        ),
        notes=tuple(NoteDoc(code=note.code, message=note.message) for note in volume.notes),
    )


def _model_fact(
    request: SegmentRequest, engine: EngineDescriptor, model: "ModelFolder | None"
) -> ModelFact:
    if model is None:
        return ModelFact(id=request.model, engine=engine.id)
    card = model.card
    weights: Mapping[str, str] = card.files
    return ModelFact(
        id=card.id,
        version=card.version,
        engine=engine.id,
        sha256=weights.get(model.weights_path.name),
        licence=card.licence,
    )


def _is_as_on_disk(volume: Volume, path: Path) -> bool:
    """Whether opening ``path`` plainly gives exactly this volume."""
    plain = open_volume(path)
    same = (
        plain.shape == volume.shape
        and plain.axes == volume.axes
        and plain.dtype == volume.dtype
        and plain.unit == volume.unit
        and plain.affine == volume.affine
    )
    if not same:
        return False
    slabs = zip(iter_slabs(plain.data), iter_slabs(volume.data), strict=True)
    return all(np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for (_, a), (_, b) in slabs)
