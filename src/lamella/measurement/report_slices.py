"""Pictures of slices: image and overlay in true proportions, with a scale bar.

Three planes through one position, all at one scale, laid out as an orthogonal view::

    +-------+---+
    |  xy   | yz|      y down, x right; z to the right of, and below, the xy plane
    +-------+---+
    |  xz   |
    +-------+

Memory stays flat: planes are read one at a time, from a coarse level of the pyramid where there is
one, and thinned while reading where there is none.
"""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamella.volume.labels import Labels, label_color
from lamella.volume.source import iter_slabs
from lamella.volume.spacing import Spacing
from lamella.volume.volume import Volume

__all__ = [
    "OrthoView",
    "Palette",
    "best_position",
    "contrast_limits",
    "draw_grey",
    "draw_ortho",
    "encode_png",
    "nice_length",
    "outline_of",
]

Rgb = NDArray[np.uint8]

_PLANE_PX = 1400
"""Planes longer than this are read coarser: pictures are shown at half of it."""
_FILL_ALPHA = 0.38
_LINE_ALPHA = 0.95
_GAP_PX = 6
_NEARLY = 0.85
"""Share of the largest score from which a plane nearer the middle is preferred."""
_POSITION_VOXELS = 2**26
"""Labels larger than this are searched on a coarse level."""


@dataclass(frozen=True, slots=True)
class OrthoView:
    """What was drawn.

    Attributes:
        image: uint8 RGBA, (rows, columns, 4); the image alone, gaps transparent.
        overlay: the same with labels on it.
        position: full-resolution index of the planes, (z, y, x) or (y, x).
    """

    image: Rgb
    overlay: Rgb
    position: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Palette:
    """Colours of label values: given for classes, stable and distinct for ids.

    Attributes:
        colors: RGB by value, for those that have one of their own.
    """

    colors: dict[int, tuple[int, int, int]]

    @classmethod
    def of(cls, labels: Labels) -> "Palette":
        """The colours of a label volume."""
        if labels.is_instance:
            return cls({})
        return cls({known.value: known.rgb for known in labels.classes})

    def color(self, value: int) -> tuple[int, int, int]:
        """RGB of a value."""
        return self.colors.get(value) or label_color(value)

    def paint(self, values: NDArray[Any]) -> Rgb:
        """RGB of every element, uint8, (..., 3)."""
        known, inverse = np.unique(values, return_inverse=True)
        table = np.array([self.color(int(value)) for value in known], np.uint8).reshape(-1, 3)
        return table[inverse.reshape(values.shape)]


def best_position(labels: Labels) -> tuple[int, ...]:
    """The position whose planes show most: where all classes together are most frequent.

    Every class counts alike, however small it is (its profile along an axis is divided by its
    total); the middle where there is no foreground.

    Returns:
        Full-resolution index, (z, y, x) or (y, x).
    """
    level = _level_for(labels, _POSITION_VOXELS)
    shape = level.spatial_shape
    profiles = _class_profiles(level, as_mask=labels.is_instance)
    position = []
    for axis, length in enumerate(labels.spatial_shape):
        score = np.zeros(shape[axis])
        for counts in profiles.values():
            score += counts[axis] / max(1.0, float(counts[axis].sum()))
        if not profiles:
            position.append(length // 2)
            continue
        # Smoothed over three planes, so that one stray plane does not win; among planes that show
        # nearly as much, the one nearest the middle is the most typical.
        smooth = np.convolve(np.pad(score, 1, mode="edge"), np.ones(3) / 3, "valid")
        distance = np.abs(np.arange(len(smooth)) - (len(smooth) - 1) / 2)
        distance[smooth < _NEARLY * smooth.max()] = np.inf
        near = int(np.argmin(distance))
        best = max(range(max(0, near - 1), min(len(score), near + 2)), key=lambda at: score[at])
        position.append(min(length - 1, int((best + 0.5) * length / shape[axis])))
    return tuple(position)


def contrast_limits(planes: Sequence[NDArray[Any]]) -> tuple[float, float]:
    """Intensities drawn black and white: the 0.5 and 99.5 percentiles of what is finite."""
    finite = [plane[np.isfinite(plane)].ravel() for plane in planes]
    values = np.concatenate(finite) if finite else np.zeros(0)
    if values.size == 0:
        return 0.0, 1.0
    low, high = (float(v) for v in np.percentile(values, (0.5, 99.5)))
    if high <= low:
        low, high = float(values.min()), float(values.max())
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def draw_ortho(image: Volume | None, labels: Labels, *, width_px: int = 620) -> OrthoView:
    """Draw the planes through the most telling position.

    Args:
        image: intensities on the labels' grid, or on a finer one that covers the same space (for
            coarse labels); grey where None.
        labels: what is drawn over it.
        width_px: width of each picture.
    """
    position = best_position(labels)
    planes = _planes(labels, position)
    drawn: list[_Panel] = []
    raw = [None if image is None else _read_image(image, labels, p, position) for p in planes]
    limits = contrast_limits([plane for plane in raw if plane is not None])
    palette = Palette.of(labels)
    layout = _layout(labels.spatial_shape, labels.spacing, width_px)
    for plane, pixels, size in zip(planes, raw, layout.sizes, strict=True):
        values = _read_plane(labels, plane, position)
        if plane.is_transposed_in(layout):
            values = values.T
            pixels = None if pixels is None else pixels.T
        grey = draw_grey(pixels, size, limits)
        drawn.append(_Panel(grey, _overlay(grey, values, palette)))
    view = OrthoView(
        np.zeros((*layout.canvas, 4), np.uint8), np.zeros((*layout.canvas, 4), np.uint8), position
    )
    marks = _marks(planes, position, labels.spatial_shape, layout)
    for plane, panel, corner, mark in zip(planes, drawn, layout.corners, marks, strict=True):
        for picture, canvas in ((panel.image, view.image), (panel.overlay, view.overlay)):
            has_bar = plane.name == "xy"
            _annotate(picture, plane.name if len(planes) > 1 else "", mark)
            if has_bar:
                _draw_scale_bar(picture, layout.px_per_unit, labels.spacing)
            region = canvas[corner[0] :, corner[1] :][: picture.shape[0], : picture.shape[1]]
            region[..., :3] = picture
            region[..., 3] = 255
    return view


def encode_png(picture: Rgb) -> bytes:
    """A picture as PNG.

    Args:
        picture: uint8, (rows, columns), (rows, columns, 3) or (rows, columns, 4).
    """
    from PIL import Image

    stream = io.BytesIO()
    if picture.ndim == 3 and np.ptp(picture[..., :3], axis=2).max(initial=0) == 0:
        # Grey: a third of the bytes.
        picture = picture[..., [0, 3]] if picture.shape[2] == 4 else picture[..., 0]
    Image.fromarray(picture).save(stream, format="PNG", compress_level=4)
    return stream.getvalue()


def nice_length(limit: float) -> float:
    """The largest of 1, 2, 5 times a power of ten that is not above ``limit``.

    Examples:
        >>> nice_length(37.0), nice_length(0.6)
        (20.0, 0.5)
    """
    power = 10.0 ** math.floor(math.log10(limit))
    for factor in (5.0, 2.0, 1.0):
        if factor * power <= limit * (1 + 1e-9):
            return factor * power
    return power


# --- Planes and their layout ------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Plane:
    """A plane across ``axis``; rows and columns are the spatial axes that remain, in order."""

    axis: int | None
    name: str

    def is_transposed_in(self, layout: "_Layout") -> bool:
        """Whether z runs to the right in this layout."""
        return (self.name == "yz" and not layout.is_long) or (
            layout.is_long and self.name in ("xz", "yz")
        )


@dataclass(frozen=True, slots=True)
class _Panel:
    image: Rgb
    overlay: Rgb


@dataclass(frozen=True, slots=True)
class _Layout:
    """Sizes (rows, columns) and corners of the panels on the canvas, in pixels."""

    sizes: tuple[tuple[int, int], ...]
    corners: tuple[tuple[int, int], ...]
    canvas: tuple[int, int]
    px_per_unit: float
    is_long: bool = False


def _planes(labels: Labels, position: tuple[int, ...]) -> tuple[_Plane, ...]:
    if len(position) == 2:
        return (_Plane(None, "xy"),)
    if labels.spatial_shape[0] == 1:
        return (_Plane(0, "xy"),)
    return (_Plane(0, "xy"), _Plane(1, "xz"), _Plane(2, "yz"))


def _layout(shape: tuple[int, ...], spacing: Spacing, width_px: int) -> _Layout:
    extents = [n * s for n, s in zip(shape, spacing.values, strict=True)]
    if len(extents) == 2 or shape[0] == 1:
        scale = min(width_px / extents[-1], 1.6 * width_px / extents[-2])
        size = _pixels(extents[-2] * scale), _pixels(extents[-1] * scale)
        return _Layout((size,), ((0, 0),), size, scale)
    z, y, x = extents
    if z > 2 * max(x, y):
        return _long_layout(z, y, x, width_px)
    scale = min((width_px - _GAP_PX) / (x + z), 1.4 * width_px / (y + z))
    rows, columns, depth = _pixels(y * scale), _pixels(x * scale), _pixels(z * scale)
    return _Layout(
        sizes=((rows, columns), (depth, columns), (rows, depth)),
        corners=((0, 0), (rows + _GAP_PX, 0), (0, columns + _GAP_PX)),
        canvas=(rows + _GAP_PX + depth, columns + _GAP_PX + depth),
        px_per_unit=scale,
    )


def _long_layout(z: float, y: float, x: float, width_px: int) -> _Layout:
    """A volume much longer along z: xz and yz below each other, z to the right, xy on top."""
    scale = width_px / z
    long_x, long_y = _pixels(x * scale), _pixels(y * scale)
    # The small plane is drawn larger than life beside the others: it gets the scale bar.
    own = min(width_px / x, 0.6 * width_px / y)
    rows, columns = _pixels(y * own), _pixels(x * own)
    second = rows + _GAP_PX
    third = second + long_x + _GAP_PX
    return _Layout(
        sizes=((rows, columns), (long_x, width_px), (long_y, width_px)),
        corners=((0, 0), (second, 0), (third, 0)),
        canvas=(third + long_y, width_px),
        px_per_unit=own,
        is_long=True,
    )


def _pixels(length: float) -> int:
    return max(1, round(length))


def _read_image(
    image: Volume, labels: Labels, plane: _Plane, position: tuple[int, ...]
) -> NDArray[Any]:
    """The image's plane at a position of the labels, which may be coarser."""
    shapes = zip(position, image.spatial_shape, labels.spatial_shape, strict=True)
    moved = tuple(min(n - 1, int((at + 0.5) * n / m)) for at, n, m in shapes)
    return _read_plane(_flat(image), plane, moved)


def _flat(volume: Volume) -> Volume:
    """The first channel and time point."""
    for axis in ("t", "c"):
        if axis in volume.axes:
            volume = volume.select(axis, 0)
    return volume


def _level_for(volume: Volume, max_voxels: int) -> Volume:
    """The finest level of at most ``max_voxels``; the coarsest where none is small enough."""
    for level in (volume, *volume.levels):
        if math.prod(level.spatial_shape) <= max_voxels:
            return level
    return volume.levels[-1] if volume.levels else volume


def _read_plane(volume: Volume, plane: _Plane, position: tuple[int, ...]) -> NDArray[Any]:
    """A plane as (rows, columns), from the coarsest level that still has enough pixels."""
    full = volume.spatial_shape
    level = volume
    for candidate in volume.levels:
        if max(_in_plane(candidate.spatial_shape, plane)) >= _PLANE_PX // 2:
            level = candidate
    shape = level.spatial_shape
    index: list[slice] = [slice(0, n) for n in shape]
    if plane.axis is not None:
        at = int((position[plane.axis] + 0.5) * shape[plane.axis] / full[plane.axis])
        at = min(at, shape[plane.axis] - 1)
        index[plane.axis] = slice(at, at + 1)
    first = 0 if plane.axis != 0 else 1
    step = max(1, -(-max(_in_plane(shape, plane)) // _PLANE_PX))
    if step == 1:
        data = np.asarray(level.data[tuple(index)])
        return data if plane.axis is None else data.squeeze(plane.axis)
    return _thinned(level, index, first, step)


def _thinned(level: Volume, index: list[slice], first: int, step: int) -> NDArray[Any]:
    """Every ``step``-th row and column, read a few rows at a time."""
    rows = []
    for start in range(0, level.spatial_shape[first], step):
        index[first] = slice(start, start + 1)
        line = np.asarray(level.data[tuple(index)])
        rows.append(line.reshape(-1)[::step])
    return np.stack(rows)


def _in_plane(shape: tuple[int, ...], plane: _Plane) -> tuple[int, ...]:
    return tuple(n for axis, n in enumerate(shape) if axis != plane.axis)


# --- Drawing ------------------------------------------------------------------------------------


def draw_grey(
    plane: NDArray[Any] | None, size: tuple[int, int], limits: tuple[float, float]
) -> Rgb:
    """A plane as grey RGB of ``size``; shrunk by averaging, enlarged linearly.

    Args:
        plane: intensities, (rows, columns); a plain grey where None.
        size: rows and columns of the picture.
        limits: intensities drawn black and white.
    """
    from PIL import Image

    if plane is None:
        return np.full((*size, 3), 60, np.uint8)
    low, high = limits
    scaled = (np.nan_to_num(plane.astype(np.float32), nan=low) - low) / (high - low)
    grey = np.rint(np.clip(scaled, 0.0, 1.0) * 255).astype(np.uint8)
    shrinks = grey.shape[0] * grey.shape[1] > size[0] * size[1]
    method = Image.Resampling.BOX if shrinks else Image.Resampling.BILINEAR
    resized = Image.fromarray(grey).resize((size[1], size[0]), method)
    return np.repeat(np.asarray(resized)[..., None], 3, axis=2)


def _overlay(grey: Rgb, values: NDArray[Any], palette: Palette) -> Rgb:
    """Labels over a picture: filled lightly, outlined strongly."""
    size = grey.shape[:2]
    if values.shape[0] * values.shape[1] < size[0] * size[1]:
        values = values[_nearest(values.shape[0], size[0])][:, _nearest(values.shape[1], size[1])]
    alpha = np.where(values != 0, np.where(outline_of(values), _LINE_ALPHA, _FILL_ALPHA), 0.0)
    color = palette.paint(values).astype(np.float32)
    # Premultiplied, so that shrinking mixes colours by what they cover.
    weighted = np.concatenate([color * alpha[..., None], alpha[..., None] * 255], axis=2)
    weighted = _shrink(weighted.astype(np.float32), (size[0], size[1]))
    blended = grey * (1 - weighted[..., 3:] / 255) + weighted[..., :3]
    return np.rint(np.clip(blended, 0, 255)).astype(np.uint8)


def outline_of(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Voxels with another value beside them (4 neighbours)."""
    edge = np.zeros(values.shape, bool)
    down = values[1:] != values[:-1]
    right = values[:, 1:] != values[:, :-1]
    edge[1:] |= down
    edge[:-1] |= down
    edge[:, 1:] |= right
    edge[:, :-1] |= right
    return edge


def _shrink(channels: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    from PIL import Image

    if channels.shape[:2] == size:
        return channels
    resized = [
        np.asarray(
            Image.fromarray(np.ascontiguousarray(channels[..., i])).resize(
                (size[1], size[0]), Image.Resampling.BOX
            )
        )
        for i in range(channels.shape[2])
    ]
    return np.stack(resized, axis=2)


def _nearest(length: int, wanted: int) -> NDArray[np.intp]:
    return np.minimum((np.arange(wanted) + 0.5) * length / wanted, length - 1).astype(np.intp)


def _marks(
    planes: Sequence[_Plane], position: tuple[int, ...], shape: tuple[int, ...], layout: _Layout
) -> list[tuple[int, int] | None]:
    """Where the other planes cut each panel, (row, column) in pixels; None for a single plane."""
    if len(planes) == 1:
        return [None]
    marks: list[tuple[int, int] | None] = []
    for plane, (rows, columns) in zip(planes, layout.sizes, strict=True):
        along = [axis for axis in range(3) if axis != plane.axis]
        if plane.is_transposed_in(layout):
            along.reverse()
        at = [(position[axis] + 0.5) / shape[axis] for axis in along]
        marks.append((int(at[0] * rows), int(at[1] * columns)))
    return marks


def _annotate(picture: Rgb, name: str, mark: tuple[int, int] | None) -> None:
    """Name of the plane, upper left, and ticks at the edges where the other planes cut it."""
    from PIL import Image, ImageDraw, ImageFont

    rows, columns = picture.shape[:2]
    if mark is None or min(rows, columns) < 40:
        return
    row, column = mark
    canvas = Image.fromarray(picture)
    draw = ImageDraw.Draw(canvas, "RGBA")
    tick, white = 7, (255, 255, 255, 230)
    for start, stop in ((0, tick), (rows - tick, rows)):
        draw.line((column, start, column, stop - 1), fill=white)
    for start, stop in ((0, tick), (columns - tick, columns)):
        draw.line((start, row, stop - 1, row), fill=white)
    font = ImageFont.load_default(size=13)
    width = draw.textlength(name, font=font)
    draw.rounded_rectangle((6, 6, 18 + width, 25), 4, (0, 0, 0, 130))
    draw.text((12, 7), name, font=font, fill=(255, 255, 255, 255))
    picture[...] = np.asarray(canvas)


def _draw_scale_bar(picture: Rgb, px_per_unit: float, spacing: Spacing) -> None:
    """White bar with its length, lower left, on a dark ground that any image lets through."""
    from PIL import Image, ImageDraw, ImageFont

    rows, columns = picture.shape[:2]
    if columns < 60 or rows < 40:
        return
    length = nice_length(0.3 * columns / px_per_unit)
    width = max(2, round(length * px_per_unit))
    unit = spacing.unit
    text = f"{length:g} {unit}" + ("s" if unit == "voxel" and length != 1 else "")
    canvas = Image.fromarray(picture)
    draw = ImageDraw.Draw(canvas, "RGBA")
    font = ImageFont.load_default(size=13)
    left, bottom = 10, rows - 10
    text_width = draw.textlength(text, font=font)
    right = left + max(width, int(text_width))
    draw.rounded_rectangle((left - 5, bottom - 25, right + 5, bottom + 5), 4, (0, 0, 0, 130))
    draw.rectangle((left, bottom - 3, left + width - 1, bottom), fill=(255, 255, 255, 255))
    draw.text((left, bottom - 22), text, font=font, fill=(255, 255, 255, 255))
    if unit == "um":
        # Pillow's own font has no micro sign: a u with a tail is one.
        stem = left + draw.textlength(f"{length:g} ", font=font) + font.getbbox("u")[0]
        foot = bottom - 22 + font.getbbox("u")[3]
        draw.line((stem + 0.5, foot - 2, stem + 0.5, foot + 2), fill=(255, 255, 255, 255))
    picture[...] = np.asarray(canvas)


def _class_profiles(labels: Volume, *, as_mask: bool) -> dict[int, list[NDArray[np.float64]]]:
    """Voxels of each class in every plane across every axis."""
    shape = labels.spatial_shape
    profiles: dict[int, list[NDArray[np.float64]]] = {}
    for extent, slab in iter_slabs(labels.data, max_bytes=2**24):
        values = (slab != 0).astype(np.uint8) if as_mask else slab
        for value in np.unique(values):
            if value == 0:
                continue
            here = values == value
            counts = profiles.setdefault(int(value), [np.zeros(n) for n in shape])
            for axis in range(len(shape)):
                others = tuple(i for i in range(len(shape)) if i != axis)
                along = here.sum(axis=others)
                target = counts[axis][extent] if axis == 0 else counts[axis]
                target += along
    return profiles
