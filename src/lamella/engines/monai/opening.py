"""A bundle's network becomes a runtime, turned to the axes of the input.

On the CPU it is converted for OpenVINO in this process; one tile of the input goes through both,
and PyTorch takes over, aloud, where the two differ or the network does not convert.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lamella.core.errors import ModelError
from lamella.core.optional import import_openvino, require
from lamella.engines.monai.bundle import WEIGHTS
from lamella.engines.monai.grid import Turned
from lamella.engines.monai.network import build_network, load_script, load_weights
from lamella.inference.openvino_runtime import (
    OpenVinoOptions,
    OpenVinoRuntime,
    not_converted,
    usable_precision,
)
from lamella.inference.runtime import Mirrored, Runtime, Spread, compare
from lamella.volume.volume import Note

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from lamella.engines.monai.grid import Layout
    from lamella.engines.monai.reading import Reading
    from lamella.engines.monai.settings import Settings

    Sample = Callable[[], NDArray[np.float32]]

__all__ = ["Opened", "open_network", "open_runtime"]

_PURPOSE = "MONAI bundles"


@dataclass(frozen=True, slots=True)
class Opened:
    """A runtime and how far it was checked.

    Attributes:
        runtime: ready to run batches whose axes are the input's.
        n_outputs: channels of the network itself.
        version: of the library behind it.
        check: how it was compared with PyTorch, in words, for the manifest.
        notes: what the user must know.
    """

    runtime: Runtime
    n_outputs: int
    version: str
    check: str
    notes: tuple[Note, ...] = ()


def open_runtime(
    network: Any,
    layout: Layout,
    settings: Settings,
    *,
    n_channels: int,
    sample: Sample,
    is_sigmoid: bool,
) -> Opened:
    """Open a network for tiles.

    Args:
        network: ``torch.nn.Module`` in evaluation mode.
        layout: the order of its axes.
        settings: device, runtime, precision, tile.
        n_channels: of the image.
        sample: gives a tile of the input, (n, c, [z,] y, x), for the comparison.
        is_sigmoid: whether channels are decided one by one; for the spread.

    Raises:
        ModelError: a network that does not give logits of the tile's extent.
        DeviceError: when the device is not there or its memory too small.
    """
    n, tile = settings.batch, settings.tile
    shape = (n, n_channels, *layout.network_extent(tile))
    if settings.runtime == "torch":
        opened = _open_torch(network, shape, settings)
    else:
        opened = _open_openvino(network, shape, layout, settings, sample)
    turned: Runtime = Turned(opened.runtime, layout)
    if settings.mirror_axes:
        activation = "sigmoid" if is_sigmoid else "softmax"
        spread = Spread(activation) if settings.has_spread else None
        turned = Mirrored(turned, axes=settings.mirror_axes, spread=spread)
    return replace(opened, runtime=turned)


def _open_openvino(
    network: Any, shape: tuple[int, ...], layout: Layout, settings: Settings, sample: Sample
) -> Opened:
    precision, notes = usable_precision(settings.precision)
    options = OpenVinoOptions(precision=precision, n_threads=settings.n_threads)
    try:
        runtime = OpenVinoRuntime(_converted(network, shape), shape, options)
    except Exception as error:  # noqa: BLE001 - the converter raises what each layer's code raises
        return _instead(network, shape, settings, not_converted(error), "not converted")
    version = str(import_openvino().__version__)
    if settings.check == "never":
        check = "not compared with PyTorch (check=never)"
        return Opened(runtime, runtime.n_outputs, version, check, notes)
    batch = layout.turn(sample())
    torch = require("torch", extra="monai", purpose=_PURPOSE)
    with torch.inference_mode():
        reference = network(torch.from_numpy(batch)).numpy()
    difference = compare(runtime(batch), reference)
    check = f"compared with PyTorch fp32 on one tile: {difference}"
    if difference.is_acceptable(precision):
        return Opened(runtime, runtime.n_outputs, version, check, notes)
    return _instead(network, shape, settings, difference.as_note(precision), check)


def _converted(network: Any, shape: tuple[int, ...]) -> Any:
    torch = require("torch", extra="monai", purpose=_PURPOSE)
    openvino = import_openvino()
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # the tracer warns of every shape turned into a number
        example = torch.zeros(shape)
        output = network(example)
        if not isinstance(output, torch.Tensor):
            raise ModelError(f"the network gives a {type(output).__name__}, not one tensor")
        return openvino.convert_model(network, example_input=example, input=list(shape))


def _instead(
    network: Any, shape: tuple[int, ...], settings: Settings, note: Note, check: str
) -> Opened:
    opened = _open_torch(network, shape, replace(settings, precision="fp32"))
    return replace(opened, check=check, notes=(note, *opened.notes))


def _open_torch(network: Any, shape: tuple[int, ...], settings: Settings) -> Opened:
    from lamella.inference.torch_runtime import TorchOptions, TorchRuntime

    torch = require("torch", extra="monai", purpose=_PURPOSE)
    options = TorchOptions(
        device=settings.device,
        precision=settings.precision,
        is_deterministic=settings.is_deterministic,
        n_threads=settings.n_threads if settings.device == "cpu" else None,
    )
    runtime = TorchRuntime(network, shape, options)
    check = "PyTorch is the reference itself"
    return Opened(runtime, runtime.n_outputs, str(torch.__version__), check)


def open_network(reading: Reading) -> Any:
    """The network of a bundle with its weights, float32, in evaluation mode.

    Raises:
        ModelError: a network that cannot be built, or weights that are damaged or another's.
    """
    bundle = reading.bundle
    if reading.is_trusted:
        from lamella.engines.monai.parser import build_trusted_network

        network = build_trusted_network(bundle) if bundle.has(WEIGHTS) else load_script(bundle)
    else:
        assert reading.component is not None, "without trust only known networks pass"
        network = build_network(reading.component)
    if bundle.has(WEIGHTS):
        load_weights(bundle, network, is_trusted=reading.is_trusted)
    return network.float().eval()
