"""Voxels to the package's process and labels back, slab by slab, through arrays on disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lamella.engines.engine import CONFIDENCE_NAME
from lamella.io.format import storage_errors
from lamella.volume.box import Box
from lamella.volume.source import iter_slabs
from lamella.volume.volume import Volume

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from lamella.core.progress import ProgressSink
    from lamella.volume.labels import LabelClass, Labels
    from lamella.wire.event import EventSink

__all__ = ["AIR_HU", "labels_from", "write_image"]

AIR_HU = -1024
"""What stands for nothing in CT."""
_SLAB_BYTES = 64 * 2**20


def write_image(
    volume: Volume, path: Path, sink: ProgressSink | EventSink, *, fill: float = AIR_HU
) -> int:
    """Write a volume as an array on disk that the package's process maps.

    Args:
        volume: (z, y, x).
        path: of the ``.npy`` file: int16 where every value of the type fits, else float32.
        sink: asked for cancellation.
        fill: what stands for values that are not finite.

    Returns:
        How many values were not finite.

    Raises:
        StorageError: the disk is full.
    """
    fits = np.can_cast(volume.dtype, np.int16, "safe")
    with storage_errors(path):
        target = np.lib.format.open_memmap(
            path, mode="w+", dtype=np.int16 if fits else np.float32, shape=volume.shape
        )
        n_odd = 0
        for extent, slab in iter_slabs(volume.data, max_bytes=_SLAB_BYTES):
            sink.check()
            if slab.dtype.kind == "f":
                is_odd = ~np.isfinite(slab)
                n_odd += int(np.count_nonzero(is_odd))
                slab = np.where(is_odd, slab.dtype.type(fill), slab)
            target[extent] = slab
        target.flush()
    return n_odd


def labels_from(
    values: NDArray[np.uint8],
    path: Path,
    *,
    like: Volume,
    classes: Sequence[LabelClass],
    maps: NDArray[np.uint8] | None,
    sink: ProgressSink,
) -> Labels:
    """Store labels and the maps that go with them.

    Args:
        values: class ids, (z, y, x), on the grid of ``like``.
        path: of the labels; the maps lie beside them.
        like: the input.
        classes: names.
        maps: confidence, (m, z, y, x), 255 = 1.0.
        sink: progress and cancellation.

    Raises:
        StorageError: the disk is full.
    """
    from lamella.inference.layers import ProbabilityLayers
    from lamella.io.label_store import create_labels

    store = create_labels(path, like=like, dtype=values.dtype, classes=classes)
    depth, height, width = store.unit
    layers = None
    if maps is not None:
        layers = ProbabilityLayers(
            path.with_name(CONFIDENCE_NAME),
            shape=like.spatial_shape,
            n_maps=maps.shape[0],
            unit=(depth, height, width),
            restart=True,
        )
    plane = max(1, values[0].nbytes)
    step = depth * max(1, _SLAB_BYTES // (plane * depth))
    for start in range(0, values.shape[0], step):
        sink.check()
        stop = min(start + step, values.shape[0])
        box = Box((start, 0, 0), (stop, *values.shape[1:]))
        store.write(box, np.asarray(values[start:stop]))
        if layers is not None and maps is not None:
            layers.write(box, np.asarray(maps[:, start:stop]))
    return store.finish(sink)
