"""Segmentation without weights: threshold, watershed, blobs.

The order is that of every engine: check the options, show a coarse preview of the whole volume,
then write the labels slab by slab. Thresholds and blobs never hold the volume in memory; the
watershed must, and refuses a volume that does not fit.

The method is ``request.options["method"]`` or the part of the model id behind the colon, as in
``--model classical:li``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lamella.core.errors import AxesError, InputError
from lamella.engines.classical.descriptor import CLASSICAL, METHODS
from lamella.engines.classical.method import Drawing, check_size, draw
from lamella.engines.classical.preview import coarse_volume
from lamella.engines.engine import LABELS_NAME, PREVIEW_NAME, EngineResult
from lamella.engines.leftovers import remove_left
from lamella.engines.options import resolve_options
from lamella.engines.tile_events import CheckOnly, announce_whole
from lamella.volume.box import Box
from lamella.volume.labels import LabelClass
from lamella.volume.volume import Note
from lamella.wire.event import ProgressEvent, WarningEvent

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from lamella.engines.engine import EngineDescriptor, EngineJob
    from lamella.engines.options import OptionValue
    from lamella.volume.labels import Labels
    from lamella.volume.volume import Volume
    from lamella.wire.event import EventSink

__all__ = ["ClassicalEngine", "build_engine"]

OBJECT_CLASS = LabelClass(1, "object")

_SLAB_VOXELS = 8 * 2**20


def build_engine() -> ClassicalEngine:
    """Return the engine; the name every engine's module offers."""
    return ClassicalEngine()


class ClassicalEngine:
    """Threshold, watershed and blobs; needs no model."""

    @property
    def descriptor(self) -> EngineDescriptor:
        """What this engine can do."""
        return CLASSICAL

    def segment(self, job: EngineJob, sink: EventSink) -> EngineResult:
        """Segment a volume; see :class:`lamella.engines.engine.Engine`.

        Raises:
            InputError: options that do not fit together, a constant volume, or a watershed that
                does not fit into memory.
            AxesError: a volume with several channels or time points.
            RunCancelledError: the caller cancelled.
        """
        options = _resolve(job.request.model, job.request.options)
        volume = _single_image(job.volume)
        check_size(volume, options)
        if job.request.preview:
            _show_preview(volume, options, job.run_dir, sink)
        drawing = draw(volume, options, on_plane=_planes(sink, "finding", volume.shape[0]))
        written = _write(volume, drawing, job.run_dir / LABELS_NAME, sink)
        notes = list(drawing.notes)
        if written.is_empty:
            notes.append(Note("no_objects", "nothing was found: every voxel is background"))
        for note in notes:
            sink.emit(WarningEvent(code=note.code, message=note.message))
        return EngineResult(
            labels=written.labels,
            tiles_done=written.n_slabs,
            tiles_planned=written.n_slabs,
            device="cpu",
            runtime=CLASSICAL.id,
            precision="fp32",
            options_resolved=drawing.options,
            warnings=tuple(notes),
        )


@dataclass(frozen=True, slots=True)
class _Written:
    labels: Labels
    is_empty: bool
    n_slabs: int


def _resolve(model: str, given: Mapping[str, object]) -> dict[str, OptionValue]:
    """Return all options; the method may come with the model id, as in ``classical:li``."""
    _, _, method = model.partition(":")
    if method and method not in METHODS:
        raise InputError(
            f"the classical engine has no method {method!r}",
            hint=f"use one of {', '.join(f'classical:{name}' for name in METHODS)}",
        )
    if method and given.get("method", method) != method:
        raise InputError(
            f"two methods are asked for: {method!r} by the model {model!r} and"
            f" {given['method']!r} by the option",
            hint="give only one of them",
        )
    options = resolve_options(CLASSICAL.id, CLASSICAL.options, given)
    if method:
        options["method"] = method
    if options["method"] == "fixed" and options["threshold"] is None:
        raise InputError(
            "method fixed needs a threshold",
            hint="add --option threshold=VALUE, or use otsu or li, which find one",
        )
    if options["threshold"] is not None and options["method"] not in ("fixed", "watershed"):
        raise InputError(
            f"method {options['method']} takes no threshold",
            hint="use method fixed (or watershed) to set the limit yourself",
        )
    if options["method"] == "log" and not options["radius"]:
        raise InputError(
            "method log needs the radius of the blobs",
            hint="add --option radius=VALUE in the unit of the input's spacing",
        )
    return options


def _single_image(volume: Volume) -> Volume:
    """Return the volume without channel and time axes of length one."""
    for axis, word in (("t", "time points"), ("c", "channels")):
        if axis not in volume.axes:
            continue
        length = volume.shape[volume.axes.index(axis)]
        if length != 1:
            option = "--channel" if axis == "c" else "--time"
            raise AxesError(
                f"the classical engine works on one image, this one has {length} {word}",
                hint=f"choose one with {option} 0 to {length - 1}",
            )
        volume = volume.select(axis, 0)
    return volume


def _show_preview(
    volume: Volume, options: Mapping[str, OptionValue], run_dir: Path, sink: EventSink
) -> None:
    """Run the method on a coarse version of the volume and announce the labels."""
    sink.check()
    coarse = coarse_volume(volume)
    drawing = draw(coarse.volume, options, on_plane=lambda _: sink.check(), is_preview=True)
    _write(coarse.volume, drawing, run_dir / PREVIEW_NAME, sink, stage="")
    announce_whole(sink, PREVIEW_NAME, volume.shape, coarse.factors)


def _planes(sink: EventSink, stage: str, total: int) -> Callable[[int], None]:
    def report(done: int) -> None:
        sink.check()
        sink.emit(ProgressEvent(stage=stage, done=done, total=total, unit="planes"))

    return report


def _write(
    volume: Volume, drawing: Drawing, path: Path, sink: EventSink, stage: str = "labels"
) -> _Written:
    """Write the labels slab by slab, each made of whole chunks."""
    from lamella.io.label_store import create_labels

    remove_left(path)
    store = create_labels(
        path,
        like=volume,
        dtype=drawing.labels.dtype,
        classes=(OBJECT_CLASS,),
        is_instance=drawing.is_instance,
    )
    plane = max(1, math.prod(volume.shape[1:]))
    depth = store.unit[0] * max(1, _SLAB_VOXELS // (plane * store.unit[0]))
    starts = range(0, volume.shape[0], depth)
    is_empty = True
    for done, start in enumerate(starts, start=1):
        sink.check()
        stop = min(start + depth, volume.shape[0])
        block = np.asarray(drawing.labels[start:stop])
        is_empty = is_empty and not block.any()
        box = Box((start, *(0,) * (block.ndim - 1)), (stop, *volume.shape[1:]))
        store.write(box, block)
        if stage:
            sink.emit(ProgressEvent(stage=stage, done=done, total=len(starts), unit="slabs"))
    return _Written(store.finish(CheckOnly(sink)), is_empty, len(starts))
