"""Only the coarse pass of an engine: labels of the whole volume at once, and a picture.

The engine runs as for a whole segmentation and is stopped as soon as it has shown its preview, so
there is no second way to make one.
"""

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lamella.core.errors import EngineError, InputError, OutputExistsError, RunCancelledError
from lamella.core.places import Places
from lamella.core.progress import SilentSink
from lamella.engines.engine import PREVIEW_NAME, EngineJob
from lamella.engines.registry import load_engine
from lamella.io.format import SaveOptions, find_writer, open_labels, save_volume
from lamella.volume.labels import Labels
from lamella.wire.event import EventSink, PreviewEvent
from lamella.wire.request import SegmentRequest
from lamella.workflows.measure import shown_image
from lamella.workflows.prepare import prepare
from lamella.workflows.run_folder import write_bytes

__all__ = ["Preview", "PreviewOptions", "preview"]


@dataclass(frozen=True, slots=True)
class PreviewOptions:
    """Where a preview goes.

    Attributes:
        labels: path of the coarse labels, in the format of its suffix.
        picture: path of the PNG picture.
        overwrite: replace what is there.
        places: where models and environments lie; the user's own unless given.
        is_trusted: code and pickles that come with a model may be run.
    """

    labels: Path
    picture: Path
    overwrite: bool = False
    places: Places | None = None
    is_trusted: bool = False


@dataclass(frozen=True, slots=True)
class Preview:
    """What a preview left.

    Attributes:
        labels: coarse labels; their affine puts them on the input.
        factors: input voxels per preview voxel, (z, y, x) or (y, x).
        elapsed_s: from the call until the labels could be seen.
        is_empty: whether nothing was found. Structures as thin as a few voxels can vanish at
            coarse voxels, so the full run may still find them.
    """

    labels: Labels
    factors: tuple[float, ...]
    elapsed_s: float
    is_empty: bool


def preview(
    request: SegmentRequest, options: PreviewOptions, *, sink: EventSink | None = None
) -> Preview:
    """Make a preview.

    Args:
        request: as for a segmentation.
        options: where to.
        sink: events and cancellation.

    Raises:
        InputError: and its kin, for whatever is wrong; engines without a preview say so.
        OutputExistsError: when an output is there and may not be replaced.
    """
    began = time.monotonic()
    listener = sink or SilentSink()
    for path in (options.labels, options.picture):
        if path.exists() and not options.overwrite:
            raise OutputExistsError(
                f"{path} is already there", hint="use --overwrite to replace it"
            )
    find_writer(options.labels).load()
    request = request.model_copy(update={"preview": True})
    # The preview itself does not depend on the input's bytes: no fingerprint, no waiting.
    prepared = prepare(request, None, listener, places=options.places, has_fingerprint=False)
    if not prepared.engine.has_preview:
        raise InputError(
            f"the engine {prepared.engine.id!r} makes no preview", hint="use `lamella segment`"
        )
    with tempfile.TemporaryDirectory(prefix="lamella-preview-") as folder:
        stop = _StopAtPreview(listener)
        places = options.places or Places.of_user()
        job = EngineJob(
            prepared.volume,
            prepared.request,
            prepared.model,
            Path(folder),
            places=places,
            is_trusted=options.is_trusted,
        )
        try:
            load_engine(prepared.engine.id, places).segment(job, stop)
        except RunCancelledError:
            if stop.event is None:
                raise
        if stop.event is None:
            raise EngineError(f"the engine {prepared.engine.id!r} made no preview")
        elapsed = time.monotonic() - began
        coarse = open_labels(Path(folder) / PREVIEW_NAME)
        save_volume(coarse, options.labels, SaveOptions(overwrite=options.overwrite))
        _draw(shown_image(prepared.volume), coarse, options.picture)
        is_empty = not coarse.load().any()
    return Preview(open_labels(options.labels), stop.event.factors, elapsed, is_empty)


def _draw(image: Any, labels: Labels, path: Path) -> None:
    from lamella.measurement.report import overview_png

    write_bytes(path, overview_png(image, labels))


class _StopAtPreview:
    """Passes events on until the preview is there, then asks the engine to stop."""

    def __init__(self, listener: EventSink) -> None:
        self._listener = listener
        self.event: PreviewEvent | None = None

    def emit(self, event: Any, /) -> None:
        """Pass an event on, or take the preview."""
        if isinstance(event, PreviewEvent) and not event.is_final:
            self.event = self.event or event
        if self.event is None:
            self._listener.emit(event)

    def check(self) -> None:
        """Raise once the preview is there, or when the listener wants to stop."""
        if self.event is not None:
            raise RunCancelledError("the preview is there")
        self._listener.check()
