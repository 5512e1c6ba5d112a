"""Own models for other programs: ONNX graphs and BioImage.io packages.

An image to try the model on is the example in its folder; models without one are tried on a
simulated image. What PyTorch gives on it, normalised and decoded by Lamella, is what the other
program has to give.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lamella.core.errors import InputError, LamellaError, ModelError, OutputExistsError
from lamella.core.optional import require
from lamella.core.progress import Progress
from lamella.core.storage import storage_error
from lamella.models.bioimage_options import BioimageOptions
from lamella.volume.volume import Volume

if TYPE_CHECKING:
    from lamella.core.places import Places
    from lamella.core.progress import ProgressSink
    from lamella.models.bioimage import TestTensors
    from lamella.models.folder import ModelFolder
    from lamella.wire.card import ModelCard

__all__ = ["ExportFormat", "Exported", "example_of", "export_graph"]

ExportFormat = Literal["onnx", "bioimageio"]

EXAMPLE_NAME = "example_input.tif"
_SUFFIXES: dict[ExportFormat, str] = {"onnx": ".onnx", "bioimageio": ".bioimageio.zip"}
_EXTENTS = {2: 192, 3: 64}
_STEPS = 3


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written.

    Attributes:
        path: the file.
        n_bytes: its size.
        difference: greatest difference of a logit to PyTorch's; None for packages, whose validator
            compares.
        warnings: what the other project would like better.
    """

    path: Path
    n_bytes: int
    difference: float | None = None
    warnings: tuple[str, ...] = ()


def export_graph(
    reference: str,
    target: Path,
    format_id: ExportFormat,
    places: Places,
    sink: ProgressSink,
    *,
    options: BioimageOptions | None = None,
    overwrite: bool = False,
) -> Exported:
    """Write an own model for other programs; the file appears when it was compared with PyTorch.

    Args:
        reference: id or folder of the model, or folder of a training.
        target: the file, or a folder for ``<id>.onnx`` or ``<id>.bioimageio.zip``.
        format_id: ``onnx`` (logits; the card in the metadata) or ``bioimageio``.
        places: where models lie.
        sink: progress and cancellation.
        options: authors, licence and tags of a package.
        overwrite: replace a file that is there.

    Raises:
        UnknownModelError: no such model.
        ModelError: a model of another engine, or a graph that differs from its network.
        MissingDependencyError: packages of the extra ``export`` are not installed.
        OutputExistsError: the file exists.
        StorageError: it cannot be written.
    """
    _check_packages(format_id)
    folder = _own_model(reference, places)
    path = _path(target, folder.card.id, format_id, overwrite=overwrite)
    options = options or BioimageOptions()
    network = folder.load_network()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".export-", dir=path.parent) as scratch:
            room = Path(scratch)
            if format_id == "onnx":
                exported = _onnx(folder, network, room, sink)
            else:
                exported = _bioimage(folder, network, options, room, sink)
            exported.path.chmod(0o644)
            exported.path.replace(path)
    except LamellaError:
        raise
    except OSError as error:
        raise storage_error(error, path) from error
    return replace(exported, path=path, n_bytes=path.stat().st_size)


def example_of(folder: ModelFolder) -> Volume:
    """An image to try a model on: its example, or a simulated one.

    Raises:
        InputError: an example that does not fit the card.
    """
    from lamella.io.format import open_volume

    card = folder.card
    if EXAMPLE_NAME in card.files:
        return open_volume(folder.path / EXAMPLE_NAME)
    channels = [_simulated(card, seed) for seed in range(card.n_channels)]
    data = channels[0] if card.n_channels == 1 else np.stack(channels)
    return Volume.from_array(
        data,
        axes="c" * (card.n_channels > 1) + card.axes,
        spacing=None if card.spacing is None else card.spacing.to_spacing(),
    )


def _check_packages(format_id: ExportFormat) -> None:
    needed = ["torch", "onnx", "onnxruntime"]
    if format_id == "bioimageio":
        needed += ["bioimageio.spec", "bioimageio.core"]
    for package in needed:
        require(package, extra="export", purpose=f"exporting a model as {format_id}")


def _own_model(reference: str, places: Places) -> ModelFolder:
    from lamella.models.foreign import RECORD_NAME, read_record
    from lamella.models.store import find_model, find_model_path

    path = find_model_path(reference, places)
    if (path / RECORD_NAME).is_file():
        raise ModelError(
            f"{reference!r} is a model of the engine {read_record(path).engine!r}; only Lamella's"
            " own networks are written as graphs",
            hint="export it with --format zip, for Lamella elsewhere",
        )
    return find_model(reference, places)


def _path(target: Path, model_id: str, format_id: ExportFormat, *, overwrite: bool) -> Path:
    suffix = _SUFFIXES[format_id]
    path = target / f"{model_id}{suffix}" if target.is_dir() else target
    last = "." + suffix.rpartition(".")[2]
    if path.suffix.lower() != last:
        raise InputError(
            f"{path} is no name for {format_id}", hint=f"write {path.name}{last}, or a folder"
        )
    if path.exists() and not overwrite:
        raise OutputExistsError(f"{path} exists", hint="choose another name, or use --overwrite")
    return path


def _onnx(folder: ModelFolder, network: Any, room: Path, sink: ProgressSink) -> Exported:
    from lamella.models.onnx_graph import save_onnx, trace_network

    sink.emit(Progress("tracing the network", 0, 2, "steps"))
    traced = trace_network(network, folder.card)
    sink.check()
    sink.emit(Progress("comparing with PyTorch", 1, 2, "steps"))
    path = room / "network.onnx"
    difference = save_onnx(traced, path)
    sink.emit(Progress("comparing with PyTorch", 2, 2, "steps"))
    return Exported(path, path.stat().st_size, difference)


def _bioimage(
    folder: ModelFolder,
    network: Any,
    options: BioimageOptions,
    room: Path,
    sink: ProgressSink,
) -> Exported:
    from lamella.models.bioimage import check_terms, write_bioimage

    check_terms(folder, options)
    sink.emit(Progress("making test tensors", 0, _STEPS, "steps"))
    tensors = _tensors(folder, network)
    sink.check()
    sink.emit(Progress("writing and validating", 1, _STEPS, "steps"))
    staging = room / "files"
    staging.mkdir()
    path = room / "package.zip"
    warnings = write_bioimage(
        folder, network, tensors, options, staging=staging, target=path, sink=sink
    )
    sink.emit(Progress("writing and validating", _STEPS, _STEPS, "steps"))
    if not options.authors:
        warnings = ("no author is named: --author NAME", *warnings)
    return Exported(path, path.stat().st_size, warnings=warnings)


def _tensors(folder: ModelFolder, network: Any) -> TestTensors:
    from lamella.inference.whole import (
        labels_of_logits,
        normalised_whole,
        probabilities_of_logits,
    )
    from lamella.models.bioimage import TestTensors
    from lamella.models.bioimage_tensors import extents_of, fitted, postprocessing

    card = folder.card
    torch = require("torch", extra="torch", purpose="exporting a model")
    example = example_of(folder)
    values = example.load().astype(np.float32)
    image = fitted(values if card.n_channels > 1 else values[None], extents_of(card))
    volume = Volume.from_array(
        image if card.n_channels > 1 else image[0], axes=example.axes, spacing=example.spacing
    )
    batch = torch.from_numpy(normalised_whole(volume, card)[None])
    with torch.no_grad():
        logits = network(batch).float().numpy()[0]
    prediction = probabilities_of_logits(logits, card) if postprocessing(card) else logits
    return TestTensors(image[None], prediction[None], labels_of_logits(logits, card, volume))


def _simulated(card: ModelCard, seed: int) -> np.ndarray[Any, Any]:
    n = len(card.axes)
    divisor = card.divisor or (1,) * n
    shape = tuple(
        -(-min(_EXTENTS[n], tile) // step) * step
        for tile, step in zip(card.tile, divisor, strict=True)
    )
    if n == 2:
        from lamella.simulation.nuclei import NucleiOptions, simulate_nuclei

        image, _ = simulate_nuclei(NucleiOptions(shape=shape), seed=seed)
        return image.load()
    from lamella.simulation.tomogram import TomogramOptions, simulate_tomogram

    spacing = card.spacing.to_spacing().to("nm").values[0] if card.spacing else 1.0
    # Membranes have to be visible, whatever the model was made for.
    spacing_nm = spacing if 0.3 <= spacing <= 3.0 else 1.0
    z, y, x = shape
    options = TomogramOptions(spacing_nm=spacing_nm, snr=0.5, membrane_density=3.0)
    return simulate_tomogram((z, y, x), seed=seed + 7, options=options).intensity
