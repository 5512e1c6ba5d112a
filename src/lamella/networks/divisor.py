"""Which extents a network takes, found by trying it.

Networks halve their input a number of times, and most can put the halves together again only where
every extent is a multiple of some power of two. Nothing in a network says which, so it is asked;
and so is its trace, of which graphs are made: a network that pads odd extents does so by a decision
that a trace does not hold.

Examples:
    >>> from lamella.networks.registry import build_network
    >>> arguments = {"in_channels": 1, "out_channels": 2, "widths": [4, 4, 4]}
    >>> find_divisor(build_network("compact_unet3d", arguments), 1, (32, 32, 32))
    (4, 4, 4)
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from lamella.core.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn

__all__ = ["find_divisor", "fitted_tile"]

_LARGEST = 64
_BASES = (32, 64, 128, 256)


def find_divisor(network: nn.Module, in_channels: int, tile: Sequence[int]) -> tuple[int, ...]:
    """The smallest power of two, per axis, of which every extent must be a multiple.

    Where a network takes no extent but the tile's, that is its divisor.

    Args:
        network: on any device; it is left in the mode it was in.
        in_channels: channels of its input.
        tile: extents it was trained with, (z, y, x) or (y, x).

    Raises:
        ModelError: the network fails on the tile itself too.
    """
    was_training = network.training
    network.eval()
    try:
        base = _base(network, in_channels, tile)
        asked = (network, _trace(network, in_channels, base))
        return tuple(_along(asked, in_channels, base, axis) for axis in range(len(base)))
    finally:
        network.train(was_training)


def fitted_tile(tile: Sequence[int], divisor: Sequence[int]) -> tuple[int, ...]:
    """The tile with every extent raised to a multiple of the divisor.

    Examples:
        >>> fitted_tile((20, 100, 128), (1, 32, 32))
        (20, 128, 128)
    """
    return tuple(-(-size // d) * d for size, d in zip(tile, divisor, strict=True))


def _base(network: nn.Module, in_channels: int, tile: Sequence[int]) -> tuple[int, ...]:
    """A small extent that works on all axes."""
    tried = [(size,) * len(tile) for size in _BASES if size <= max(tile)]
    tried.append(tuple(tile))
    # A tile that was rounded nowhere yet may not fit where its next multiple does.
    tried.append(fitted_tile(tile, (_LARGEST,) * len(tile)))
    reason = ""
    for shape in tried:
        reason = _failure(network, in_channels, shape)
        if not reason:
            return shape
    raise ModelError(
        f"the network fails on a tile of {' x '.join(map(str, tile))}: {reason}",
        hint="choose another tile, such as a multiple of 32 along every axis",
    )


def _trace(network: nn.Module, in_channels: int, shape: tuple[int, ...]) -> Callable[..., Any]:
    import torch

    parameter = next(network.parameters())
    image = torch.zeros((1, in_channels, *shape), device=parameter.device)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the tracer warns of every shape turned into a number
        traced: Any = torch.jit.trace(network, image, check_trace=False)
    return traced


def _along(
    asked: tuple[Callable[..., Any], ...], in_channels: int, base: tuple[int, ...], axis: int
) -> int:
    divisor = 1
    while divisor <= _LARGEST:
        # One step beyond the base: an odd multiple of every power of two that divides the base.
        shape = (*base[:axis], base[axis] + divisor, *base[axis + 1 :])
        if base[axis] % divisor == 0 and not any(_failure(a, in_channels, shape) for a in asked):
            return divisor
        divisor *= 2
    return base[axis]


def _failure(network: Callable[..., Any], in_channels: int, shape: tuple[int, ...]) -> str:
    """Why the network does not take a shape; empty where it does."""
    import torch

    # A trace has its parameters too.
    parameter = next(network.parameters())  # pyright: ignore[reportFunctionMemberAccess]
    try:
        # A trace would otherwise be compiled anew for every shape.
        with (
            torch.no_grad(),
            torch.jit.optimized_execution(  # pyright: ignore[reportPrivateImportUsage]
                False
            ),
        ):
            image = torch.zeros((1, in_channels, *shape), device=parameter.device)
            output = network(image)
    except (RuntimeError, ValueError, AssertionError) as error:
        # Ours for images that do not fit is a ValueError too.
        return str(error).splitlines()[0] if str(error) else type(error).__name__
    found = tuple(output.shape[2:])
    return "" if found == shape else f"it maps {shape} to {found}"
