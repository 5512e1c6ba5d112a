"""Everything a run needs, found and checked before anything is written.

A request names an input and a model; here they are opened, and all that can be wrong with them is
said at once: no such file, a damaged one, an unknown model, axes that do not fit, memory or disk
that would not do.
"""

import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lamella.core.errors import AxesError, InputError, StorageError
from lamella.core.places import Places
from lamella.core.progress import ProgressSink
from lamella.engines.engine import EngineDescriptor
from lamella.engines.registry import check_engine, find_engine, get_engine
from lamella.io.format import OpenOptions, open_volume
from lamella.volume.source import iter_slabs
from lamella.volume.volume import Volume
from lamella.wire.manifest import GeometryDoc, InputFact, ModelFact, NoteDoc
from lamella.wire.request import InputDoc, SegmentRequest, SpacingDoc
from lamella.workflows.fingerprint import path_fingerprint, voxel_sha256
from lamella.workflows.linking import check_strategy
from lamella.workflows.objects import check_memory, check_sizes

if TYPE_CHECKING:
    from lamella.models.folder import ModelFolder
    from lamella.models.foreign import ForeignModel

    AnyModel = ModelFolder | ForeignModel

__all__ = [
    "MEMORY_PREFIX",
    "Prepared",
    "check_disk",
    "find_model_of",
    "input_of_volume",
    "open_input",
    "prepare",
]

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
        model: the opened model; None for an engine without models.
        input_fact: fingerprint and geometry of the input.
        model_fact: identity of the model.
    """

    request: SegmentRequest
    volume: Volume
    engine: EngineDescriptor
    model: "AnyModel | None"
    input_fact: InputFact
    model_fact: ModelFact


def prepare(
    request: SegmentRequest,
    volume: Volume | None,
    sink: ProgressSink,
    *,
    places: Places | None = None,
    has_fingerprint: bool = True,
) -> Prepared:
    """Open and check what a request names.

    Args:
        request: what to do.
        volume: the input itself, where it is not a file.
        sink: progress and cancellation of reading the input for its fingerprint.
        places: where models and environments lie; the user's own unless given.
        has_fingerprint: whether to read the whole input for its SHA-256.

    Raises:
        LamellaError: of the kind that fits whatever is wrong.
    """
    places = places or Places.of_user()
    engine = _find_engine(request, places)
    _check_available(engine, places)
    model = _find_model(request, engine, places)
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
    _check_fit(volume, request, engine, model)
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


def find_model_of(request: SegmentRequest, places: Places) -> EngineDescriptor:
    """The engine that would run a request, once it and its model are known to be here.

    Raises:
        LamellaError: of the kind that fits a model or an engine that is not.
    """
    engine = _find_engine(request, places)
    _check_available(engine, places)
    _find_model(request, engine, places)
    return engine


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


def _find_engine(request: SegmentRequest, places: Places) -> EngineDescriptor:
    """The engine that is named, or that the model asks for."""
    named = _engine_of(request.model)
    if named is not None and request.engine not in (None, named.id):
        raise InputError(
            f"the model {request.model!r} is of the engine {named.id!r}, not of {request.engine!r}",
            hint="leave out --engine",
        )
    if named is not None:
        return named
    if request.engine is not None:
        engine = find_engine(request.engine)
        if not engine.needs_model:
            raise InputError(
                f"the engine {engine.id!r} takes no model {request.model!r}",
                hint=f"write --model {engine.id}:METHOD, or leave out --engine",
            )
        return engine
    from lamella.models.foreign import find_foreign

    stored = find_foreign(request.model, places, verify=False)
    return find_engine("lamella" if stored is None else stored.engine)


def _engine_of(model: str) -> EngineDescriptor | None:
    """The engine before the colon of ``ENGINE:NAME``; one without models may stand alone."""
    prefix, colon, _ = model.partition(":")
    known = get_engine(prefix)
    # The shipped models of this project may be called as its engine is.
    return known if known is not None and (colon or not known.needs_model) else None


def _find_model(
    request: SegmentRequest, engine: EngineDescriptor, places: Places
) -> "AnyModel | None":
    if not engine.needs_model:
        return None
    prefix, colon, rest = request.model.partition(":")
    reference = rest if colon and prefix == engine.id else request.model
    if not reference:
        raise InputError(
            f"{request.model!r} names no model",
            hint=f"write {engine.id}:NAME; `lamella models list` shows what is there",
        )
    if engine.model_module:
        found: ForeignModel = import_module(engine.model_module).find_model(reference, places)
        return found
    from lamella.models.store import find_model

    return find_model(reference, places)


def _check_available(engine: EngineDescriptor, places: Places) -> None:
    availability = check_engine(engine, places)
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


def _check_fit(
    volume: Volume,
    request: SegmentRequest,
    engine: EngineDescriptor,
    model: "AnyModel | None",
) -> None:
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
    check_strategy(request, volume, engine)
    if model is None:
        return
    if "c" in volume.axes and volume.n_channels == 1:
        volume = volume.select("c", 0)
    if engine.model_module:
        # Engines that can tell early whether a volume fits offer ``check_fit`` beside find_model.
        check = getattr(import_module(engine.model_module), "check_fit", None)
        if check is not None:
            check(volume, request, model)
        return
    _check_folder_fit(volume, request, model)


def _check_folder_fit(volume: Volume, request: SegmentRequest, model: "AnyModel") -> None:
    from lamella.engines.lamella.settings import check_axes
    from lamella.engines.lamella.strategy import check_decoder_memory
    from lamella.models.folder import ModelFolder

    assert isinstance(model, ModelFolder), "engines without a model module take model folders"
    check_axes(volume, model.card)
    check_decoder_memory(request, model.card, volume)
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
    request: SegmentRequest, engine: EngineDescriptor, model: "AnyModel | None"
) -> ModelFact:
    if model is None:
        return ModelFact(id=request.model, engine=engine.id)
    from lamella.models.folder import ModelFolder

    if not isinstance(model, ModelFolder):
        return ModelFact(
            id=model.id,
            version=model.version,
            engine=engine.id,
            sha256=model.sha256,
            licence=model.licence,
        )
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
