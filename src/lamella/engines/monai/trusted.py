"""What a trusted bundle does by itself: MONAI's own parser, transforms and code.

Reached only with trust. The network is whatever the configuration builds. Where the transforms are
not among those that Lamella carries out itself, the whole pipeline runs as MONAI runs it, on the
whole image in memory: the input is written as NIfTI, ``preprocessing`` loads it, tiles are run
here, ``postprocessing`` makes labels of the logits (but saves nothing), and these become the run's.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lamella.core.errors import EngineError, ModelError
from lamella.core.optional import require
from lamella.engines.engine import LABELS_NAME, EngineResult
from lamella.engines.monai.classes import label_classes
from lamella.engines.monai.grid import Layout
from lamella.engines.monai.opening import open_network, open_runtime
from lamella.engines.monai.parser import as_engine_errors, opened_parser
from lamella.engines.monai.settings import resolve
from lamella.engines.tile_events import QuietSink, TileEvents
from lamella.inference.band import gaussian_weights
from lamella.inference.decode import Argmax
from lamella.inference.execute import Execution, execute
from lamella.inference.layers import GridMap
from lamella.inference.plan import make_plan
from lamella.volume.box import Box
from lamella.volume.volume import Note
from lamella.wire.event import WarningEvent

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lamella.engines.engine import EngineJob
    from lamella.engines.monai.reading import Reading
    from lamella.volume.labels import Labels
    from lamella.wire.event import EventSink

__all__ = ["segment_whole"]

IMAGE, PREDICTION = "image", "pred"
_SAVERS = ("SaveImage", "SaveImaged", "SaveImageD", "SaveImageDict")


def segment_whole(job: EngineJob, reading: Reading, sink: EventSink) -> EngineResult:
    """Run a trusted bundle with its own transforms, in memory.

    Args:
        job: what to do.
        reading: the bundle.
        sink: progress and cancellation.

    Raises:
        EngineError: when the bundle's own code fails.
        ModelError: when its labels are not one value a voxel on the image's grid.
    """
    notes = [
        *reading.notes,
        Note(
            "whole_volume",
            "the bundle's own transforms hold the whole image in memory (run as it came, trusted)",
        ),
    ]
    for note in notes:
        sink.emit(WarningEvent(code=note.code, message=note.message))
    network = open_network(reading)
    bundle = reading.bundle
    with opened_parser(bundle) as parser, tempfile.TemporaryDirectory(prefix="lamella-") as folder:
        path = _write_input(job, Path(folder))
        with as_engine_errors():
            steps = parser.get_parsed_content("preprocessing", instantiate=True)
            data = steps({IMAGE: str(path)})
        sink.check()
        image = data[IMAGE]
        logits, outcome = _run_tiles(job, reading, network, np.asarray(image, np.float32), sink)
        with as_engine_errors():
            data[PREDICTION] = _like(image, logits)
            after = _postprocessing(parser)
            labels = np.asarray(after(data)[PREDICTION])
    stored = _store(job, reading, labels, n_outputs=logits.shape[0], sink=sink)
    if not stored.load().any():
        note = Note("no_objects", "nothing was found: every voxel is background")
        notes.append(note)
        sink.emit(WarningEvent(code=note.code, message=note.message))
    return EngineResult(
        labels=stored,
        tiles_done=outcome.n_tiles,
        tiles_planned=outcome.n_tiles,
        device=outcome.device,
        runtime=outcome.runtime,
        precision=outcome.precision,
        options_resolved=outcome.options,
        warnings=tuple(notes),
    )


@dataclass(frozen=True, slots=True)
class _Outcome:
    n_tiles: int
    device: str
    runtime: str
    precision: str
    options: dict[str, Any] = field(default_factory=dict)


# --- Around MONAI's own code ---------------------------------------------------------------------


def _postprocessing(parser: Any) -> Any:
    """The bundle's postprocessing without what saves files."""
    transforms = require("monai.transforms", extra="monai", purpose="trusted MONAI bundles")
    if "postprocessing" not in parser:
        raise EngineError(
            "the bundle does not say how labels are decided: it has no 'postprocessing'",
            hint="its transforms before the network are its own; so have to be those behind it",
        )
    composed = parser.get_parsed_content("postprocessing", instantiate=True)
    members = composed.transforms if hasattr(composed, "transforms") else [composed]
    kept = [member for member in members if type(member).__name__ not in _SAVERS]
    return transforms.Compose(kept)


def _write_input(job: EngineJob, folder: Path) -> Path:
    """The input as the NIfTI that MONAI's readers take."""
    from lamella.io.format import SaveOptions, save_volume

    path = folder / "image.nii.gz"
    save_volume(job.volume, path, SaveOptions(compress=False))
    return path


def _like(image: Any, logits: NDArray[np.float32]) -> Any:
    """Logits with the geometry and the history of the image, so that they can be inverted."""
    torch = require("torch", extra="monai", purpose="trusted MONAI bundles")
    tensor = torch.from_numpy(logits)
    data = require("monai.data", extra="monai", purpose="trusted MONAI bundles")
    if not isinstance(image, data.MetaTensor):
        return tensor
    return data.MetaTensor(
        tensor, affine=image.affine, meta=dict(image.meta), applied_operations=[]
    )


# --- Tiles --------------------------------------------------------------------------------------


class _Array:
    """An image in memory as a source, axes as the network wants them."""

    def __init__(self, image: NDArray[np.float32]) -> None:
        self._image = image if image.ndim == 4 else image[:, None]
        self.n_channels = int(self._image.shape[0])
        z, y, x = (int(n) for n in self._image.shape[1:])
        self.shape: tuple[int, int, int] = (z, y, x)

    def read(self, box: Box) -> NDArray[np.float32]:
        """Read a box, (c, ...)."""
        return self._image[(slice(None), *box.slices())]


class _Collect:
    """Keeps mean logits of all layers: what the bundle's own transforms want whole."""

    def __init__(self, n_outputs: int, shape: tuple[int, int, int]) -> None:
        self.logits = np.zeros((n_outputs, *shape), np.float32)

    def put(self, logits: NDArray[np.float32], start: int) -> None:
        """Keep layers."""
        self.logits[:, start : start + logits.shape[1]] = logits

    def take_finished(self) -> list[Box]:
        """Nothing is on disk yet."""
        return []

    def __enter__(self) -> _Collect:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Nothing to close."""


class _Means(Argmax):
    """A decoder of nothing: its band keeps the sums of weights, because means are wanted."""

    def __init__(self, n_outputs: int) -> None:
        super().__init__(n_outputs)
        self.needs_weight = True


def _run_tiles(
    job: EngineJob, reading: Reading, network: Any, image: NDArray[np.float32], sink: EventSink
) -> tuple[NDArray[np.float32], _Outcome]:
    """Mean logits (k, ...) of a preprocessed image (c, ...), axes as the network has them."""
    if image.ndim != 1 + reading.n_axes:
        raise EngineError(
            f"the bundle's transforms made an array of shape {image.shape}; channels and"
            f" {reading.n_axes} axes were expected"
        )
    source = _Array(image)
    n = reading.n_axes
    # The array's axes are the network's own: nothing is turned.
    layout = Layout.of_input(source.shape, (1.0, 1.0, 1.0), n_axes=n)
    layout = Layout(layout.lines, tuple(range(3 - n, 3)))
    request = job.request.model_copy(update={"tile": None, "confidence": False})
    settings = resolve(request, layout, reading.inferer, reading.bundle.metadata.divisor)

    def sample() -> NDArray[np.float32]:
        tile = np.zeros((settings.batch, source.n_channels, *settings.tile), np.float32)
        stop = tuple(min(a, b) for a, b in zip(source.shape, settings.tile, strict=True))
        tile[(slice(None), slice(None), *(slice(0, b) for b in stop))] = source.read(
            Box((0, 0, 0), stop)
        )
        return tile if n == 3 else tile[:, :, 0]

    opened = open_runtime(
        network, layout, settings, n_channels=source.n_channels, sample=sample, is_sigmoid=False
    )
    plan = make_plan(source.shape, tile=settings.tile, overlap_fraction=settings.overlap_fraction)
    collected = _Collect(opened.n_outputs, source.shape)
    weights = (
        gaussian_weights(settings.tile, sigma_fraction=settings.sigma)
        if settings.is_gaussian
        else np.ones(settings.tile, np.float32)
    )
    count = execute(
        Execution(
            plan=plan,
            source=source,
            runtime=opened.runtime,
            decoder=_Means(opened.n_outputs),
            grid=GridMap.make(source.shape, source.shape),
            labels=None,
            weights=weights,
            outlet=lambda *_: collected,
        ),
        TileEvents(sink, stage="preview"),
    )
    logits = collected.logits if n == 3 else collected.logits[:, 0]
    options = settings.as_options() | {"runtime_check": opened.check, "transforms": "monai"}
    runtime = opened.runtime
    return logits, _Outcome(count.planned, runtime.device, runtime.name, runtime.precision, options)


# --- Labels -------------------------------------------------------------------------------------


def _store(
    job: EngineJob,
    reading: Reading,
    prediction: NDArray[Any],
    *,
    n_outputs: int,
    sink: EventSink,
) -> Labels:
    """Labels as MONAI left them, x first and perhaps one channel a class, in the run folder."""
    from lamella.io.label_store import create_labels

    is_argmax = prediction.ndim == 1 + reading.n_axes and prediction.shape[0] == 1
    if is_argmax and n_outputs == 1:
        is_argmax = False
    if prediction.shape[0] == 1:
        values = np.rint(prediction[0])
    else:
        # One channel a class: the last one that is there, as MONAI's own viewers show them.
        values = np.zeros(prediction.shape[1:])
        for channel in range(prediction.shape[0]):
            values[prediction[channel] > 0.5] = channel + 1
    labels = values.T.astype(np.uint8 if values.max(initial=0) < 256 else np.uint16)
    shape = job.volume.spatial_shape
    if labels.shape != shape:
        raise ModelError(
            f"the bundle left labels of shape {labels.shape}, the image has {shape}",
            hint="its postprocessing lacks Invertd: its labels cannot be placed on the image",
        )
    classes = label_classes(reading.bundle.metadata, n_outputs=n_outputs, is_argmax=is_argmax)
    store = create_labels(
        job.run_dir / LABELS_NAME, like=job.volume, dtype=labels.dtype, classes=classes
    )
    rest = shape[1:]
    for start in range(0, shape[0], store.unit[0]):
        sink.check()
        stop = min(start + store.unit[0], shape[0])
        box = Box((start, *(0,) * len(rest)), (stop, *rest))
        store.write(box, labels[start:stop])
    return store.finish(QuietSink(sink))
