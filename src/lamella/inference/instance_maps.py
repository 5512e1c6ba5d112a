"""What a network's maps mean by its card's decoder, and the objects that are made of them.

The engine uses it on whole volumes, training on the regions that judge a network.

Examples:
    >>> from lamella.wire.card import DecoderDoc
    >>> decoder_options(DecoderDoc(kind="boundary_watershed")).foreground_threshold
    0.5
"""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np

from lamella.core.errors import InputError, ModelError
from lamella.instances.affinity import AffinityOptions, affinity_instances
from lamella.instances.flow import FlowOptions, flow_instances
from lamella.instances.watershed import WatershedOptions, watershed_instances

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from lamella.wire.card import DecoderDoc, ModelCard

__all__ = [
    "DecoderOptions",
    "check_outputs",
    "decode_maps",
    "decoder_options",
    "instances_of_maps",
    "linear_channels",
    "linear_outputs",
]

DecoderOptions = WatershedOptions | AffinityOptions | FlowOptions
_OPTIONS: dict[str, type[WatershedOptions] | type[AffinityOptions] | type[FlowOptions]] = {
    "boundary_watershed": WatershedOptions,
    "distance_watershed": WatershedOptions,
    "affinities": AffinityOptions,
    "flows": FlowOptions,
}


def decoder_options(decoder: DecoderDoc) -> DecoderOptions:
    """The options of a card's decoder of instances.

    Raises:
        ModelError: for parameters that the decoder does not have, or that make no sense.
    """
    kind = _OPTIONS[decoder.kind]
    known = {field.name for field in fields(kind)}
    unknown = sorted(set(decoder.parameters) - known)
    if unknown:
        raise ModelError(
            f"the card's decoder has unknown parameters: {', '.join(unknown)}",
            hint=f"it takes {', '.join(sorted(known))}",
        )
    values: dict[str, Any] = dict(decoder.parameters)
    try:
        return kind(**values)
    except (InputError, TypeError, ValueError) as error:
        raise ModelError(f"the card's decoder {decoder.kind!r} cannot be used: {error}") from error


def check_outputs(card: ModelCard) -> None:
    """Refuse a card whose network cannot give what its decoder of instances reads.

    Raises:
        ModelError: for another number of outputs, or offsets with another number of axes.
    """
    decoder = card.decoder
    if decoder.kind not in _OPTIONS:
        return
    options = decoder_options(decoder)
    expected = 2
    if isinstance(options, FlowOptions):
        expected = 1 + len(card.axes)
    if isinstance(options, AffinityOptions):
        expected = 1 + len(options.offsets)
        if len(options.offsets[0]) != len(card.axes):
            raise ModelError(
                f"the card's offsets {options.offsets} do not fit its axes {card.axes!r}"
            )
    if card.n_outputs != expected:
        raise ModelError(
            f"the card's decoder {decoder.kind!r} reads {expected} outputs; the network gives"
            f" {card.n_outputs}"
        )


def linear_channels(card: ModelCard) -> tuple[int, ...]:
    """Outputs that are quantities in 0..1, not logits."""
    return linear_outputs(card.decoder, card.n_outputs)


def linear_outputs(decoder: DecoderDoc, n_outputs: int) -> tuple[int, ...]:
    """Outputs of a network that are quantities in 0..1, not logits, by its decoder.

    Examples:
        >>> from lamella.wire.card import DecoderDoc
        >>> linear_outputs(DecoderDoc(kind="flows"), 3)
        (1, 2)
    """
    if decoder.kind == "distance_watershed":
        return (1,)
    return tuple(range(1, n_outputs)) if decoder.kind == "flows" else ()


def decode_maps(
    maps: NDArray[np.uint8],
    kind: str,
    spacing: Sequence[float],
    options: DecoderOptions,
    scale: Sequence[float] = (1.0, 1.0, 1.0),
) -> NDArray[np.uint32]:
    """Instances of the maps that a network left.

    Args:
        maps: uint8, 255 = 1.0, (n, z, y, x) or (n, y, x); foreground first.
        kind: of the card's decoder.
        spacing: per spatial axis; only the last ones are taken for a slice.
        options: of the decoder.
        scale: voxels of the maps per voxel of the network, (z, y, x), for flows.
    """
    if isinstance(options, FlowOptions):
        n = maps.ndim - 1
        # 128 stands for 0: half a step off, and far shorter than what counts as a step.
        steps = maps[1:].astype(np.float32) / np.float32(127.5) - np.float32(1)
        steps *= np.asarray(scale, np.float32)[3 - n :].reshape(n, *(1,) * n)
        foreground = maps[0].astype(np.float32) / np.float32(255)
        return flow_instances(foreground, steps, options=options)
    return instances_of_maps(maps.astype(np.float32) / np.float32(255), kind, spacing, options)


def instances_of_maps(
    maps: NDArray[np.float32], kind: str, spacing: Sequence[float], options: DecoderOptions
) -> NDArray[np.uint32]:
    """Instances of a foreground map and what tells objects apart.

    Args:
        maps: probabilities, float32, (n, z, y, x) or (n, y, x); foreground first.
        kind: of the card's decoder; not flows, which are no probabilities.
        spacing: per spatial axis; only the last ones are taken for a slice.
        options: of the decoder.
    """
    foreground = maps[0]
    if isinstance(options, AffinityOptions):
        return affinity_instances(foreground, maps[1:], options=options)
    assert isinstance(options, WatershedOptions), "flows are followed elsewhere"
    # A distance is largest where a boundary is least likely: its complement ranks voxels the same.
    boundary = maps[1] if kind == "boundary_watershed" else 1.0 - maps[1]
    return watershed_instances(
        foreground, boundary, spacing=tuple(spacing)[-foreground.ndim :], options=options
    )
