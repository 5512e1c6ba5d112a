"""The network of a model folder, opened for crops when the first tile needs it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from lamella.core.errors import InputError
from lamella.inference.device import choose_machine
from lamella.inference.plan import smaller_tile

if TYPE_CHECKING:
    from lamella.inference.runtime import Precision, Runtime
    from lamella.models.folder import ModelFolder

__all__ = ["NetworkOptions", "NetworkSettings", "OpenedNetwork"]


@dataclass(frozen=True, slots=True)
class NetworkOptions:
    """What a caller may choose of how a network is run.

    Attributes:
        tile: voxels, one number an axis of the card; None = the card's.
        overlap_fraction: share of a tile in common with its neighbour; None = the card's.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        precision: ``auto`` or a precision.
        n_threads: on the CPU; None = as the runtime chooses.
    """

    tile: tuple[int, ...] | None = None
    overlap_fraction: float | None = None
    device: str = "auto"
    precision: Literal["auto"] | Precision = "auto"
    n_threads: int | None = None


@dataclass(frozen=True, slots=True)
class NetworkSettings:
    """Tile, (z, y, x) voxels with z = 1 for a 2-D network, and what tiles have in common."""

    tile: tuple[int, int, int]
    overlap_fraction: float


class OpenedNetwork:
    """A network that is opened once, at the first use of :attr:`runtime`.

    Args:
        model: opened folder.
        options: how to run it.

    Raises:
        InputError: a tile that the network cannot take.
    """

    def __init__(self, model: ModelFolder, options: NetworkOptions) -> None:
        card = model.card
        fraction = card.overlap_fraction
        if options.overlap_fraction is not None:
            fraction = options.overlap_fraction
        self.settings = NetworkSettings(_tile(model, options.tile), fraction)
        self.device = ""
        self._model = model
        self._options = options
        self._runtime: Runtime | None = None

    @property
    def runtime(self) -> Runtime:
        """The network, for batches of one tile.

        Raises:
            ModelError: it cannot be opened.
            DeviceError: the device is not there.
        """
        if self._runtime is None:
            self._runtime = self._open()
            self.device = self._runtime.device
        return self._runtime

    def shrink(self) -> bool:
        """Take half a tile from now on; False where there is none."""
        card = self._model.card
        divisor = (1,) * (3 - len(card.axes)) + (card.divisor or (1,) * len(card.axes))
        tile = smaller_tile(self.settings.tile, divisor)
        if tile is None:
            return False
        self.settings = replace(self.settings, tile=tile)
        self._runtime = None
        return True

    def _open(self) -> Runtime:
        model, options = self._model, self._options
        machine = choose_machine(options.device, "auto", options.precision)
        n_axes = len(model.card.axes)
        shape = (1, model.card.n_channels, *self.settings.tile[3 - n_axes :])
        if machine.runtime == "openvino" and model.has_graph:
            from lamella.inference.openvino_runtime import (
                OpenVinoOptions,
                OpenVinoRuntime,
                usable_precision,
            )

            precision, _ = usable_precision(machine.precision)
            chosen = OpenVinoOptions(precision=precision, n_threads=options.n_threads)
            return OpenVinoRuntime.open(model.openvino_path, shape, chosen)
        from lamella.inference.torch_runtime import TorchOptions, TorchRuntime

        torch_options = TorchOptions(
            device=machine.device,
            precision=machine.precision,
            n_threads=options.n_threads if machine.device == "cpu" else None,
        )
        return TorchRuntime(model.load_network(), shape, torch_options)


def _tile(model: ModelFolder, asked: tuple[int, ...] | None) -> tuple[int, int, int]:
    card = model.card
    tile = card.tile if asked is None else asked
    n = len(card.axes)
    if len(tile) != n:
        raise InputError(
            f"tile {tuple(tile)} does not fit the model's axes {card.axes!r}",
            hint=f"give {n} numbers, for example --tile {','.join(map(str, card.tile))}",
        )
    divisor = card.divisor or (1,) * n
    if any(size < 1 or size % d for size, d in zip(tile, divisor, strict=True)):
        near = [max(1, round(size / d)) * d for size, d in zip(tile, divisor, strict=True)]
        raise InputError(
            f"every extent of the tile {tuple(tile)} must be a multiple of {tuple(divisor)}",
            hint=f"the nearest that is: --tile {','.join(map(str, near))}",
        )
    z, y, x = (1,) * (3 - n) + tuple(tile)
    return z, y, x
