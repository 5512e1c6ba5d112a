"""A model folder becomes a runtime, compared with the reference where that is asked for.

On the CPU that is the folder's OpenVINO graph, whose SHA-256 was compared with the card when the
folder was opened. Where PyTorch is loaded already (or ``check=always``), one tile of the input goes
through both; if they differ by more than rounding, PyTorch takes over and the result says so. It
also does where a folder has no graph.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lamella.core.errors import UnknownIdError
from lamella.core.optional import require
from lamella.inference.openvino_runtime import (
    OpenVinoOptions,
    OpenVinoRuntime,
    usable_precision,
)
from lamella.inference.runtime import Mirrored, Runtime, Spread, compare
from lamella.volume.volume import Note

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from lamella.engines.lamella.settings import Settings
    from lamella.models.folder import ModelFolder

    Sample = Callable[[], NDArray[np.float32]]

__all__ = ["Opened", "open_runtime"]

_CHECKED_AT_EXPORT = (
    "graph compared with PyTorch when the model was written; SHA-256 as in the card"
)


@dataclass(frozen=True, slots=True)
class Opened:
    """A runtime and how far it was checked.

    Attributes:
        runtime: ready to run batches.
        version: of the library behind it.
        check: how it was compared with the reference, in words, for the manifest.
        notes: what the user must know.
    """

    runtime: Runtime
    version: str
    check: str
    notes: tuple[Note, ...] = ()


def open_runtime(
    model: ModelFolder, settings: Settings, batch_shape: tuple[int, ...], sample: Sample
) -> Opened:
    """Open the network of a folder.

    Args:
        model: opened folder.
        settings: device, runtime, precision.
        batch_shape: (n, c, z, y, x) or (n, c, y, x).
        sample: gives a batch of the input, for the comparison; called only if there is one.

    Raises:
        ModelError: when the network cannot be opened.
        DeviceError: when the device is not there.
    """
    if settings.runtime == "torch" or not model.has_graph:
        opened = _open_torch(model, settings, batch_shape, precision=settings.precision)
    else:
        opened = _open_openvino(model, settings, batch_shape, sample)
    if not settings.mirror_axes:
        return opened
    spread = _spread(model) if settings.has_spread else None
    mirrored = Mirrored(opened.runtime, axes=settings.mirror_axes, spread=spread)
    return Opened(mirrored, opened.version, opened.check, opened.notes)


def _spread(model: ModelFolder) -> Spread:
    """Of which probability mirrored copies tell the spread: that which the decoder decides by."""
    card = model.card
    temperature = 1.0 if card.calibration is None else card.calibration.temperature
    if card.decoder.kind == "argmax":
        return Spread("softmax", temperature=temperature)
    channel = None if card.decoder.kind == "threshold" else 0
    return Spread("sigmoid", channel=channel, temperature=temperature)


def _open_openvino(
    model: ModelFolder, settings: Settings, batch_shape: tuple[int, ...], sample: Sample
) -> Opened:
    precision, notes = usable_precision(settings.precision)
    options = OpenVinoOptions(precision=precision, n_threads=settings.n_threads)
    runtime: Runtime = OpenVinoRuntime.open(model.openvino_path, batch_shape, options)
    version = str(require("openvino", extra="", purpose="running networks").__version__)
    if settings.check == "never" or (settings.check == "auto" and "torch" not in sys.modules):
        return Opened(runtime, version, _CHECKED_AT_EXPORT, notes)
    try:
        reference = _open_torch(model, settings, batch_shape, precision="fp32").runtime
    except UnknownIdError as error:
        # A graph whose network is not in the registry runs all the same; the manifest says that
        # there was nothing to compare it with.
        if settings.check == "always":
            raise
        check = f"not compared with PyTorch here: {error.message}"
        return Opened(runtime, version, check, notes)
    batch = sample()
    difference = compare(runtime(batch), reference(batch))
    check = f"compared with PyTorch fp32 on one tile: {difference}"
    if difference.is_acceptable(precision):
        return Opened(runtime, version, check, notes)
    notes = (*notes, difference.as_note(precision))
    fallback = _open_torch(model, settings, batch_shape, precision="fp32")
    return Opened(fallback.runtime, fallback.version, check, notes)


def _open_torch(
    model: ModelFolder, settings: Settings, batch_shape: tuple[int, ...], *, precision: Any
) -> Opened:
    from lamella.inference.torch_runtime import TorchOptions, TorchRuntime

    torch = require("torch", extra="torch", purpose="running networks on PyTorch")
    options = TorchOptions(
        device=settings.device,
        precision=precision,
        is_deterministic=settings.is_deterministic,
        compile=settings.compiles,
        n_threads=settings.n_threads if settings.device == "cpu" else None,
    )
    runtime = TorchRuntime(model.load_network(), batch_shape, options)
    return Opened(runtime, str(torch.__version__), "PyTorch is the reference itself")
