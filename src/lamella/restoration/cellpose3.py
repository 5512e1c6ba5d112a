"""Cellpose 3's restoration models, run in their own environment and process.

They were trained on cells and nuclei and draw what cells look like: good for finding cells, never
for measuring. Slices are brought to 0..1 by the 1st and 99th percentile of the whole channel, and
back. Weights are never fetched here: they are named by their path, or as a stored model.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamella.core.errors import EngineError, UnknownModelError
from lamella.core.places import Places
from lamella.core.progress import Progress, ProgressSink
from lamella.restoration.decision import Action, RestoreOptions
from lamella.restoration.quality import Quality
from lamella.restoration.source import ChannelSource
from lamella.volume.box import Box

__all__ = ["find_weights", "restore_with_cellpose3"]

ENVIRONMENT = "cellpose3"
_DEFAULT = {"denoise": "denoise_cyto3", "deblur": "deblur_cyto3"}
_WORKER = Path(__file__).with_name("cellpose3_worker.py")


def restore_with_cellpose3(
    source: ChannelSource,
    quality: Quality,
    action: Action,
    options: RestoreOptions,
    write: Callable[[Box, NDArray[np.float32]], None],
    places: Places,
    sink: ProgressSink,
) -> dict[str, Any]:
    """Restore a channel slice by slice.

    Args:
        source: the channel.
        quality: of the channel; gives the range that becomes 0..1.
        action: denoise or deblur.
        options: model, strength (ignored: the models have none), device.
        write: receives each slice.
        places: where environment and models lie.
        sink: progress and cancellation.

    Returns:
        What decided the result.

    Raises:
        MissingDependencyError: when the environment is not there.
        UnknownModelError: when the weights are not there.
        EngineError: when the worker fails.
    """
    from lamella.isolation.environment import python_of
    from lamella.isolation.process import exchanged_array, run_worker

    python = python_of(ENVIRONMENT, places)
    path, sha256 = find_weights(options.model or _DEFAULT[action], places)
    low, span = quality.dark, max(quality.bright - quality.dark, 1e-30)
    depth, height, width = source.shape

    def box_of(z: int) -> Box:
        return Box((z, 0, 0), (z + 1, height, width))

    def answer(message: Mapping[str, Any]) -> Mapping[str, Any] | None:
        if message["type"] == "progress":
            sink.emit(Progress(str(message["stage"]), message["done"], message["total"], "slices"))
        if message["type"] != "ask":
            return None
        z = int(message["z"])
        if message["what"] == "slice":
            plane = (source.read(box_of(z))[0] - np.float32(low)) / np.float32(span)
            np.save(exchange / "slice.npy", plane)
            return {"array": "slice.npy"}
        found = np.asarray(exchanged_array(exchange, str(message["array"])), np.float32)
        if found.shape != (height, width) or not np.isfinite(found).all():
            raise EngineError(f"Cellpose returned no usable slice {z}: shape {found.shape}")
        write(box_of(z), (found * np.float32(span) + np.float32(low))[None])
        return {}

    request = {
        "model": str(path),
        "n_slices": depth,
        "stage": action,
        "device": options.device if options.device.startswith("cuda") else "cpu",
    }
    with tempfile.TemporaryDirectory(prefix="lamella-") as name:
        exchange = Path(name)
        run_worker(python, _WORKER, request, sink=sink, on_message=answer, exchange=exchange)
    return {
        "model": options.model or _DEFAULT[action],
        "model_sha256": sha256,
        "range": [low, low + span],
    }


def find_weights(reference: str, places: Places) -> tuple[Path, str]:
    """The file of a restoration model and its SHA-256.

    Args:
        reference: a path, or the id of a stored model of the engine cellpose3.
        places: where models are stored.

    Raises:
        UnknownModelError: when there is none.
    """
    import hashlib

    path = Path(reference)
    if not path.is_file():
        from lamella.models.foreign import find_foreign

        stored = find_foreign(reference, places, engine=ENVIRONMENT)
        folder = None if stored is None else stored.path
        files = [] if folder is None else sorted(p for p in _files(folder) if p.is_file())
        if len(files) != 1:
            raise UnknownModelError(
                f"the weights of the restoration model {reference!r} are not here",
                hint="give their file with --model PATH, or store them: lamella models import PATH",
            )
        path = files[0]
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return path.absolute(), digest


def _files(folder: Path) -> list[Path]:
    return [folder] if folder.is_file() else list(folder.rglob("*"))
