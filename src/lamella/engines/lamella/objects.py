"""Probability maps of a network become instances, layer by layer where the network is 2-D."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lamella.inference.instance_maps import (
    check_outputs,
    decode_maps,
    decoder_options,
    instances_of_maps,
    linear_channels,
)
from lamella.volume.box import Box
from lamella.wire.event import ProgressEvent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lamella.inference.layers import LabelLayers
    from lamella.wire.card import DecoderDoc
    from lamella.wire.event import EventSink

__all__ = [
    "check_outputs",
    "decode_instances",
    "decoder_options",
    "instances_of_maps",
    "linear_channels",
]


def decode_instances(
    maps: Any,
    store: LabelLayers,
    decoder: DecoderDoc,
    *,
    spacing: Sequence[float],
    is_2d: bool,
    sink: EventSink,
    scale: Sequence[float] = (1.0, 1.0, 1.0),
) -> int:
    """Write instances; ids are 1..n in the order of z, unique in the whole volume.

    A 2-D network tells objects apart within a slice only, so each slice is decoded on its own and
    memory is that of a few slices; a 3-D one needs its maps whole.

    Args:
        maps: lazy uint8 probabilities, 255 = 1.0, (p, z, y, x) or (p, y, x).
        store: receives uint32 ids.
        decoder: kind and parameters from the card.
        spacing: of the input, per spatial axis of ``maps``.
        is_2d: whether the network is 2-D.
        sink: progress and cancellation.
        scale: voxels of the maps per voxel of the network, (z, y, x), for flows.

    Returns:
        How many instances there are.
    """
    options = decoder_options(decoder)
    has_z = len(maps.shape) == 4
    n_layers = maps.shape[1] if has_z else 1
    step = store.unit[0] if is_2d else n_layers
    n_objects = 0
    for start in range(0, n_layers, step):
        sink.check()
        stop = min(n_layers, start + step)
        block = np.asarray(maps[:, start:stop] if has_z else maps[:][:, None])
        labels = np.zeros(block.shape[1:], np.uint32)
        parts = range(stop - start) if is_2d else [slice(None)]
        for part in parts:
            found = decode_maps(block[:, part], decoder.kind, spacing, options, scale)
            n_found = int(found.max(initial=0))
            labels[part] = np.where(found > 0, found + np.uint32(n_objects), 0)
            n_objects += n_found
        store.write(Box((start, 0, 0), (stop, *labels.shape[1:])), labels)
        sink.emit(ProgressEvent(stage="instances", done=stop, total=n_layers, unit="layers"))
    return n_objects
