"""The cover of a BioImage.io package: the test image, and the labels that the model gives on it."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np

from lamella.volume.labels import label_color

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lamella.volume.labels import Labels

__all__ = ["cover_png"]

_SIDE = 400
_OPACITY = 0.55
_EDGE_OPACITY = 0.95


def cover_png(image: NDArray[np.floating], labels: Labels) -> bytes:
    """A picture of two squares side by side, 800 x 400 pixels: image, and labels over it.

    Args:
        image: intensities, (c, *spatial); the first channel and the middle slice are shown.
        labels: of the same grid.
    """
    from PIL import Image

    values = labels.load()
    grey = image[0]
    if grey.ndim == 3:
        # The slice with the most labels among those around the middle.
        depth = grey.shape[0]
        middle = range(depth // 4, max(depth // 4 + 1, 3 * depth // 4))
        best = max(middle, key=lambda z: int(np.count_nonzero(values[z])))
        grey, values = grey[best], values[best]
    side = min(grey.shape)
    low, high = np.percentile(grey, (0.5, 99.5))
    shown = np.clip((grey[:side, :side] - low) / max(float(high - low), 1e-12), 0, 1)
    size = (_SIDE, _SIDE)
    picture = Image.fromarray((shown * 255).astype(np.uint8))
    left = picture.resize(size, Image.Resampling.BICUBIC).convert("RGB")
    # Nearest, by index: ids do not fit into the modes of a picture.
    at = np.arange(_SIDE) * side // _SIDE
    right = Image.fromarray(_overlaid(np.asarray(left), values[np.ix_(at, at)], labels))
    cover = Image.new("RGB", (2 * _SIDE, _SIDE))
    for number, part in enumerate((left, right)):
        cover.paste(part, (number * _SIDE, 0))
    stream = io.BytesIO()
    cover.save(stream, "PNG", optimize=True)
    return stream.getvalue()


def _overlaid(
    picture: NDArray[np.uint8], values: NDArray[np.integer], labels: Labels
) -> NDArray[np.uint8]:
    colors = {known.value: known.rgb for known in labels.classes}
    result = picture.astype(np.float32)
    is_edge = _edges(values)
    for value in np.unique(values[values != 0]).tolist():
        own = label_color(value)
        color = own if labels.is_instance else colors.get(value, own)
        inside = values == value
        for part, opacity in ((inside & ~is_edge, _OPACITY), (inside & is_edge, _EDGE_OPACITY)):
            result[part] = (1 - opacity) * result[part] + opacity * np.array(color, np.float32)
    return result.round().astype(np.uint8)


def _edges(values: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Where a neighbour has another label."""
    edge = np.zeros(values.shape, np.bool_)
    for axis in range(values.ndim):
        differs = np.diff(values, axis=axis) != 0
        pad = [(0, 0)] * values.ndim
        pad[axis] = (0, 1)
        edge |= np.pad(differs, pad)
        pad[axis] = (1, 0)
        edge |= np.pad(differs, pad)
    return edge
