"""Extents that a network can take: patches are checked, tiles are fitted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lamella.core.errors import InputError
from lamella.networks.divisor import find_divisor, fitted_tile

if TYPE_CHECKING:
    from torch import nn

    from lamella.training.configuration import TrainConfig

__all__ = ["validation_tile"]


def validation_tile(config: TrainConfig, network: nn.Module, n_channels: int) -> tuple[int, ...]:
    """Tile of the validation: the model's, or the patch, at the nearest extents that fit.

    Args:
        config: tile of the model, patch.
        network: tried with small images.
        n_channels: of its input.

    Raises:
        InputError: a patch that the network cannot take, with the nearest that it can.
    """
    patch = tuple(config.trainer.patch)
    wanted = tuple(config.model.tile) or patch
    if len(wanted) != len(patch):
        raise InputError(
            f"model.tile {wanted} and trainer.patch {patch} differ in their number of axes",
            hint="give both for the axes of the data",
        )
    divisor = find_divisor(network, n_channels, wanted)
    fitting = fitted_tile(patch, divisor)
    if fitting != patch:
        raise InputError(
            f"trainer.patch {list(patch)} does not fit network {config.network.id!r}: sides must be"
            f" multiples of {list(divisor)}",
            hint=f"use trainer.patch={list(fitting)}".replace(" ", ""),
        )
    return fitted_tile(wanted, divisor)
