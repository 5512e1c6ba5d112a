"""A picture of an image before and after its restoration, with the place of most detail enlarged.

::

    +--------+--------+
    | before | after  |     one slice of the whole, at one contrast
    +--------+--------+
    |  zoom  |  zoom  |     the marked square, four times as large or more
    +--------+--------+
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lamella.restoration.decision import METHOD_TITLES
from lamella.restoration.source import ChannelSource, iter_channels
from lamella.volume.box import Box
from lamella.volume.volume import Volume

if TYPE_CHECKING:
    from lamella.restoration.restore import ChannelRestoration

__all__ = ["draw_before_after"]

_SIDE = 560
_ZOOM = 96
_GAP, _HEAD, _FOOT = 12, 44, 24
_MARK = (255, 183, 77)
_INK, _SOFT, _PAPER = (24, 28, 34), (96, 104, 116), (255, 255, 255)


def draw_before_after(before: Volume, after: Volume, channel: ChannelRestoration) -> bytes:
    """Draw the middle slice of the first channel, before and after.

    Args:
        before: the image.
        after: the restored image, on the same grid.
        channel: what was done, for the captions.

    Returns:
        A PNG.
    """
    from PIL import Image, ImageDraw

    planes = [_middle(volume) for volume in (before, after)]
    limits = _limits(planes)
    size = _fitted(planes[0].shape)
    zoom = _place_of_detail(planes[1])
    side = size[0]
    height = _HEAD + size[1] + _GAP + side + _FOOT
    page = Image.new("RGB", (2 * side + 3 * _GAP, height), _PAPER)
    draw = ImageDraw.Draw(page)
    captions = _captions(channel)
    for column, plane in enumerate(planes):
        left = _GAP + column * (side + _GAP)
        draw.text((left, 8), captions[column][0], fill=_INK, font=_font(17))
        draw.text((left, 27), captions[column][1], fill=_SOFT, font=_font(12))
        whole = Image.fromarray(_grey(plane, limits)).resize(
            size, Image.Resampling.BOX if side < plane.shape[1] else Image.Resampling.NEAREST
        )
        page.paste(whole.convert("RGB"), (left, _HEAD))
        scale = side / plane.shape[1]
        corner = (left + zoom[1] * scale, _HEAD + zoom[0] * scale)
        reach = min(_ZOOM, *plane.shape) * scale
        draw.rectangle((*corner, corner[0] + reach, corner[1] + reach), outline=_MARK, width=2)
        cut = plane[zoom[0] : zoom[0] + _ZOOM, zoom[1] : zoom[1] + _ZOOM]
        large = Image.fromarray(_grey(cut, limits)).resize((side, side), Image.Resampling.NEAREST)
        page.paste(large.convert("RGB"), (left, _HEAD + size[1] + _GAP))
        top = _HEAD + size[1] + _GAP
        draw.rectangle((left, top, left + side - 1, top + side - 1), outline=_MARK, width=2)
    draw.text((_GAP, height - _FOOT + 5), _foot(before, channel), fill=_SOFT, font=_font(12))
    stream = io.BytesIO()
    page.save(stream, "PNG", optimize=True)
    return stream.getvalue()


def _middle(volume: Volume) -> NDArray[np.float32]:
    source = ChannelSource(iter_channels(volume)[0][1])
    z = source.shape[0] // 2
    return source.read(Box((z, 0, 0), (z + 1, *source.shape[1:])))[0]


def _limits(planes: list[NDArray[np.float32]]) -> tuple[float, float]:
    """One contrast for both: that of the restored image, where noise stretches nothing."""
    low, high = (float(v) for v in np.percentile(planes[1], (0.5, 99.7)))
    return (low, high) if high > low else (low, low + 1.0)


def _grey(plane: NDArray[np.float32], limits: tuple[float, float]) -> NDArray[np.uint8]:
    share = np.clip((plane - limits[0]) / (limits[1] - limits[0]), 0, 1)
    # A gamma lifts the dark part of fluorescence; the same for both.
    return np.rint(255 * share**0.8).astype(np.uint8)


def _fitted(shape: tuple[int, ...]) -> tuple[int, int]:
    """Width and height of the whole slice on the page."""
    height, width = shape
    return _SIDE, max(1, min(2 * _SIDE, round(_SIDE * height / width)))


def _place_of_detail(plane: NDArray[np.float32]) -> tuple[int, int]:
    """Upper left corner of the square with the strongest edges."""
    from scipy.ndimage import gaussian_gradient_magnitude, uniform_filter

    edges = np.asarray(gaussian_gradient_magnitude(plane, 1.5))
    around = np.asarray(uniform_filter(edges, _ZOOM // 2))
    half = _ZOOM // 2
    y, x = np.unravel_index(int(around.argmax()), plane.shape)
    limits = [max(0, n - _ZOOM) for n in plane.shape]
    return min(max(int(y) - half, 0), limits[0]), min(max(int(x) - half, 0), limits[1])


def _captions(channel: ChannelRestoration) -> tuple[tuple[str, str], tuple[str, str]]:
    def numbers(quality: Any) -> str:
        blur = "" if quality.blur_sigma is None else f"   blur {quality.blur_sigma:.2f} px"
        return f"contrast to noise {quality.contrast_to_noise:.3g}{blur}"

    done = METHOD_TITLES.get(channel.decision.method, "left as it is")
    return (
        ("as it came", numbers(channel.before)),
        (f"restored: {done}", numbers(channel.after)),
    )


def _foot(volume: Volume, channel: ChannelRestoration) -> str:
    where = f"slice {volume.spatial_shape[0] // 2}, " if "z" in volume.axes else ""
    name = f"{volume.name}, " if volume.name else ""
    which = f"{channel.channel}, " if channel.channel else ""
    return f"{name}{which}{where}one contrast for both; measure on the image as it came"


def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size)
