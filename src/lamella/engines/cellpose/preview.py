"""The coarse pass: every n-th slice, or the image at half its size, before any final label."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lamella.engines.cellpose.target import OBJECT_CLASS
from lamella.engines.coarse import create_preview
from lamella.engines.engine import PREVIEW_NAME
from lamella.engines.tile_events import CheckOnly, announce_whole
from lamella.volume.box import Box

if TYPE_CHECKING:
    from collections.abc import Generator

    from numpy.typing import NDArray

    from lamella.engines.cellpose.image import Image
    from lamella.engines.engine import EngineJob
    from lamella.wire.event import EventSink

__all__ = ["preview_steps"]

BUDGET_FRACTION = 0.05
"""Share of the slices that a preview segments."""
MAX_SLICES = 64
_SMALLEST_EDGE = 256
"""Smaller images are segmented as quickly as a coarse copy would be."""


def preview_steps(
    image: Image, job: EngineJob, sink: EventSink
) -> Generator[NDArray[np.float32], NDArray[np.uint32], None]:
    """Yield coarse slices, take their labels, and announce labels of the whole volume.

    Args:
        image: the input.
        job: whose run folder receives the preview.
        sink: hears of the preview.

    Yields:
        Normalised slices, (y, x, c); labels of the same extent are sent back.
    """
    n_slices, n_rows, n_columns = image.shape
    step = -(-n_slices // max(1, min(MAX_SLICES, round(BUDGET_FRACTION * n_slices))))
    edge = 2 if n_slices == 1 and min(n_rows, n_columns) >= _SMALLEST_EDGE else 1
    starts = range(0, n_slices, step)
    shape = (len(starts), -(-n_rows // edge), -(-n_columns // edge))
    spatial = len(job.volume.spatial_shape)
    factors = tuple(
        full / coarse
        for full, coarse in zip(job.volume.spatial_shape, shape[3 - spatial :], strict=True)
    )
    store = create_preview(
        job.run_dir,
        job.volume,
        shape[3 - spatial :],
        factors,
        dtype=np.uint32,
        classes=(OBJECT_CLASS,),
        is_instance=True,
    )
    last_id = 0
    for at, start in enumerate(starts):
        middle = min(start + step // 2, n_slices - 1)
        plane = image.plane(middle)
        labels = yield _half(plane) if edge == 2 else plane
        lifted = np.where(labels > 0, labels + np.uint32(last_id), 0).astype(np.uint32)
        last_id += int(labels.max(initial=0))
        box = Box((at, 0, 0)[3 - spatial :], (at + 1, *shape[1:])[3 - spatial :])
        store.write(box, lifted if spatial == 2 else lifted[None])
    store.finish(CheckOnly(sink))
    announce_whole(sink, PREVIEW_NAME, job.volume.spatial_shape, factors)


def _half(plane: NDArray[np.float32]) -> NDArray[np.float32]:
    """Means of 2 x 2 pixels; an odd last row or column is its own mean."""
    rows, columns = (n % 2 for n in plane.shape[:2])
    padded = np.pad(plane, ((0, rows), (0, columns), (0, 0)), mode="edge")
    y, x, c = padded.shape
    return padded.reshape(y // 2, 2, x // 2, 2, c).mean(axis=(1, 3), dtype=np.float32)
