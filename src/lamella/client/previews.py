"""Labels that a server sends while it works, as an image in the local run folder.

The coarse pass fills the preview; labels that are final replace it box by box, thinned to the
preview's voxels. The run folder that is downloaded in the end brings the server's own preview.
"""

from __future__ import annotations

import base64
import binascii
import logging
import math
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

from lamella.core.errors import LamellaError
from lamella.volume.box import Box

if TYPE_CHECKING:
    from pathlib import Path

    from lamella.io.label_store import LabelStore
    from lamella.volume.volume import Volume
    from lamella.wire.event import LabelsDelta, PreviewEvent

__all__ = ["PreviewWriter", "decoded"]

logger = logging.getLogger(__name__)
_LARGEST_BYTES = 2**31


class PreviewWriter:
    """Writes what preview events carry.

    Args:
        folder: the local run folder.
        volume: the input; only its grid is used.
    """

    def __init__(self, folder: Path, volume: Volume) -> None:
        self._folder = folder
        self._volume = volume
        self._store: LabelStore | None = None
        self._factors: tuple[float, ...] = ()
        self.is_there = False
        """Whether a preview lies in the folder."""

    @property
    def path(self) -> Path:
        """Where the preview lies."""
        from lamella.engines.engine import PREVIEW_NAME

        return self._folder / PREVIEW_NAME

    def write(self, event: PreviewEvent) -> None:
        """Write the labels of an event; what cannot be shown is left out, never an error."""
        if event.labels is None:
            return
        try:
            labels = decoded(event.labels)
            if not event.is_final:
                self._begin(event, labels)
            elif self._store is not None:
                self._refine(event, labels)
        except (LamellaError, ValueError, OSError) as error:
            logger.info("a preview was left out: %s", error)

    def _begin(self, event: PreviewEvent, labels: np.ndarray[Any, Any]) -> None:
        """The coarse labels of the whole volume, in the place of earlier ones."""
        from lamella.core.progress import SilentSink
        from lamella.engines.coarse import create_preview

        assert event.labels is not None, "the caller has looked"
        shape = self._volume.spatial_shape
        factors = event.labels.factors
        is_whole = tuple(event.box_start) == (0,) * len(shape) and tuple(event.box_stop) == shape
        if not is_whole:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        store = create_preview(
            self._folder, self._volume, labels.shape, factors, dtype=labels.dtype, classes=()
        )
        store.write(Box.from_shape(labels.shape), labels)
        store.finish(SilentSink())
        self._store, self._factors, self.is_there = store, factors, True

    def _refine(self, event: PreviewEvent, labels: np.ndarray[Any, Any]) -> None:
        """Final labels of a box: the preview's voxels whose centres lie in it."""
        store = self._store
        assert store is not None, "there is a preview to refine"
        starts, stops, picks = [], [], []
        for axis, factor in enumerate(self._factors):
            first, last = event.box_start[axis], event.box_stop[axis]
            start = max(0, math.ceil(first / factor - 0.5))
            stop = min(store.shape[axis], math.ceil(last / factor - 0.5))
            if start >= stop:
                return
            centres = (np.arange(start, stop) + 0.5) * factor - first
            scale = labels.shape[axis] / (last - first)
            picks.append(np.clip((centres * scale).astype(int), 0, labels.shape[axis] - 1))
            starts.append(start)
            stops.append(stop)
        values = labels[np.ix_(*picks)]
        if values.dtype.itemsize > store.dtype.itemsize:
            return
        store.write(Box(tuple(starts), tuple(stops)), values.astype(store.dtype))


def decoded(delta: LabelsDelta) -> np.ndarray[Any, Any]:
    """The labels of a delta: integers of its dtype and shape, (z, y, x) or (y, x).

    Raises:
        ValueError: when bytes and shape do not fit.
    """
    dtype = np.dtype(delta.dtype).newbyteorder("<")
    n_bytes = math.prod(delta.shape) * dtype.itemsize
    if n_bytes > _LARGEST_BYTES:
        raise ValueError(f"{n_bytes} bytes of labels in one event")
    try:
        inflate = zlib.decompressobj()
        data = inflate.decompress(base64.b64decode(delta.data, validate=True), n_bytes + 1)
    except (zlib.error, binascii.Error) as error:
        raise ValueError(f"labels that cannot be unpacked: {error}") from None
    if len(data) != n_bytes:
        raise ValueError(f"{len(data)} bytes for labels of shape {delta.shape}")
    return np.frombuffer(data, dtype).reshape(delta.shape).astype(delta.dtype)
