"""Probability maps of a network become instances, layer by layer where the network is 2-D."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np

from lamella.core.errors import ModelError
from lamella.instances.watershed import WatershedOptions, watershed_instances
from lamella.volume.box import Box
from lamella.wire.event import ProgressEvent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from lamella.inference.layers import LabelLayers
    from lamella.wire.card import DecoderDoc
    from lamella.wire.event import EventSink

__all__ = ["decode_instances", "instances_of_maps", "watershed_options"]

MAX_ID = np.iinfo(np.uint32).max


def watershed_options(decoder: DecoderDoc) -> WatershedOptions:
    """The options of a card's decoder.

    Raises:
        ModelError: for parameters that the watershed does not have.
    """
    known = {field.name for field in fields(WatershedOptions)}
    unknown = sorted(set(decoder.parameters) - known)
    if unknown:
        raise ModelError(
            f"the card's decoder has unknown parameters: {', '.join(unknown)}",
            hint=f"it takes {', '.join(sorted(known))}",
        )
    values: dict[str, Any] = dict(decoder.parameters)
    return WatershedOptions(**values)


def decode_instances(
    maps: Any,
    store: LabelLayers,
    decoder: DecoderDoc,
    *,
    spacing: Sequence[float],
    is_2d: bool,
    sink: EventSink,
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

    Returns:
        How many instances there are.
    """
    options = watershed_options(decoder)
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
            found = _decode(block[:, part], decoder.kind, spacing, options)
            n_found = int(found.max(initial=0))
            labels[part] = np.where(found > 0, found + np.uint32(n_objects), 0)
            n_objects += n_found
        store.write(Box((start, 0, 0), (stop, *labels.shape[1:])), labels)
        sink.emit(ProgressEvent(stage="instances", done=stop, total=n_layers, unit="layers"))
    return n_objects


def _decode(
    maps: NDArray[np.uint8], kind: str, spacing: Sequence[float], options: WatershedOptions
) -> NDArray[np.uint32]:
    return instances_of_maps(maps.astype(np.float32) / np.float32(255), kind, spacing, options)


def instances_of_maps(
    maps: NDArray[np.float32], kind: str, spacing: Sequence[float], options: WatershedOptions
) -> NDArray[np.uint32]:
    """Instances of a foreground and a boundary (or distance) map.

    Args:
        maps: probabilities, float32, (2, z, y, x) or (2, y, x).
        kind: of the card's decoder.
        spacing: per spatial axis; only the last ones are taken for a slice.
        options: of the watershed.
    """
    foreground, second = maps[0], maps[1]
    # A distance is largest where a boundary is least likely: its complement ranks voxels the same.
    boundary = second if kind == "boundary_watershed" else 1.0 - second
    return watershed_instances(
        foreground, boundary, spacing=tuple(spacing)[-foreground.ndim :], options=options
    )
