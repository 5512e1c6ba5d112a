"""Only the largest piece of a label: bundles may end with ``KeepLargestConnectedComponent``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lamella.engines.leftovers import remove_left
from lamella.io.label_store import LabelStore, create_labels
from lamella.volume.box import Box
from lamella.wire.event import ProgressEvent

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from lamella.volume.labels import Labels
    from lamella.volume.volume import Volume
    from lamella.wire.event import EventSink

__all__ = ["keep_largest_pieces"]


def keep_largest_pieces(
    labels: Labels, path: Path, wanted: Sequence[int], *, like: Volume, sink: EventSink
) -> LabelStore:
    """Write labels without all but the largest connected piece of some of them.

    The labels themselves are held in memory (a byte a voxel), one class after another.

    Args:
        labels: what the tiles left.
        path: where the result goes.
        wanted: labels that are treated; all of them where empty.
        like: the input.
        sink: progress and cancellation.
    """
    from lamella.instances import keep_largest

    data = labels.load()
    values = [int(value) for value in np.unique(data) if value]
    treated = [value for value in values if not wanted or value in wanted]
    for done, value in enumerate(treated):
        sink.check()
        own = data == value
        kept = keep_largest(own.astype(np.uint8), connectivity=_most(own.ndim))
        data[own & (kept == 0)] = 0
        sink.emit(ProgressEvent(stage="largest", done=done + 1, total=len(treated), unit="classes"))
    remove_left(path)
    store = create_labels(path, like=like, dtype=data.dtype, classes=labels.classes)
    depth, rest = store.unit[0], data.shape[1:]
    for start in range(0, data.shape[0], depth):
        sink.check()
        stop = min(start + depth, data.shape[0])
        box = Box((start, *(0,) * len(rest)), (stop, *rest))
        store.write(box, data[start:stop])
    return store


def _most(n_axes: int) -> int:
    """Neighbours that share as much as a corner, as MONAI counts them."""
    return 26 if n_axes == 3 else 8
