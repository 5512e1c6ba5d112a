"""A picture of labels in space: their surfaces, lit from the upper left, nearer ones brighter.

Surface voxels of a coarse copy with cubic voxels are turned, sorted by depth and painted from back
to front (an orthographic splat), twice as large as shown and then shrunk, so that edges are smooth.
A frame drawn around shows where the volume ends.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamella.measurement.report_slices import Palette
from lamella.volume.labels import Labels
from lamella.volume.source import iter_slabs

__all__ = ["draw_projection"]

_VOXELS = 160**3
"""Voxels of the coarse copy: enough for a picture, small enough for a second of work."""
_AZIMUTH = math.radians(-32.0)
_ELEVATION = math.radians(28.0)
_SUPERSAMPLING = 2


def draw_projection(
    labels: Labels, *, size_px: int = 560, background: tuple[int, int, int] = (24, 26, 31)
) -> NDArray[np.uint8] | None:
    """Draw labels as solid objects.

    Args:
        labels: classes or instances, (z, y, x); read once, slab by slab.
        size_px: width of the picture.
        background: RGB.

    Returns:
        uint8 RGB, (rows, columns, 3); None for images, single slices and empty labels.
    """
    shape = labels.spatial_shape
    if len(shape) == 2 or min(shape) < 2:
        return None
    coarse = _coarse_copy(labels)
    if not coarse.any():
        return None
    points, normals, values = _surface(coarse)
    turn = _rotation()
    extent = np.array(coarse.shape, np.float64)
    corners = np.array([[i, j, k] for i in (0, 1) for j in (0, 1) for k in (0, 1)]) * extent
    flat = (corners - extent / 2) @ turn.T
    low, high = flat[:, 1:].min(axis=0), flat[:, 1:].max(axis=0)
    pixels = size_px * _SUPERSAMPLING
    margin = 0.04 * pixels
    scale = (pixels - 2 * margin) / max((high - low)[1], (high - low)[0] / 0.85)
    canvas_rows = math.ceil((high - low)[0] * scale + 2 * margin)
    canvas = np.empty((canvas_rows, pixels, 3), np.float32)
    canvas[:] = background
    offset = np.array([margin, margin + (pixels - 2 * margin - (high - low)[1] * scale) / 2])

    def place(turned: NDArray[Any]) -> NDArray[Any]:
        return (turned[..., 1:] - low) * scale + offset

    view = _View(canvas, place(flat), flat[:, 0], np.array(background, np.float32))
    view.frame(is_behind=True)
    turned = (points + 0.5 - extent / 2) @ turn.T
    colors = _shade(Palette.of(labels).paint(values), normals @ turn.T, turned[:, 0])
    view.splat(place(turned), turned[:, 0], colors, width=math.ceil(scale * 1.25) + 1)
    view.frame(is_behind=False)
    return _reduced(canvas)


class _View:
    """A canvas with the corners of the volume on it."""

    def __init__(
        self,
        canvas: NDArray[np.float32],
        corners: NDArray[np.float64],
        depth: NDArray[np.float64],
        background: NDArray[np.float32],
    ) -> None:
        self._canvas = canvas
        self._corners = corners
        self._nearest = int(np.argmin(depth))
        self._farthest = int(np.argmax(depth))
        self._background = background

    def frame(self, *, is_behind: bool) -> None:
        """Draw the edges of the volume: those of the far corner, or those of the near one."""
        for a in range(8):
            for bit in (1, 2, 4):
                b = a | bit
                if a == b:
                    continue
                touches_near = self._nearest in (a, b)
                if is_behind != touches_near:
                    strength = 0.34 if is_behind else 0.16
                    self._line(self._corners[a], self._corners[b], strength)

    def splat(
        self, at: NDArray[Any], depth: NDArray[Any], colors: NDArray[np.float32], width: int
    ) -> None:
        """Paint squares from back to front."""
        order = np.argsort(-depth, kind="stable")
        corner = np.floor(at[order] - width / 2).astype(np.int64)
        colors = colors[order]
        rows, columns = self._canvas.shape[:2]
        # From far to near: where points share a pixel, the last assignment is the nearest.
        number = np.arange(len(corner), dtype=np.int32)
        owner = np.full(rows * columns, -1, np.int32)
        for step in range(width * width):
            row = np.clip(corner[:, 0] + step // width, 0, rows - 1)
            column = np.clip(corner[:, 1] + step % width, 0, columns - 1)
            pixel = row * columns + column
            owner[pixel] = np.maximum(owner[pixel], number)
        won = owner >= 0
        self._canvas.reshape(-1, 3)[won] = colors[owner[won]]

    def _line(self, start: NDArray[Any], stop: NDArray[Any], strength: float) -> None:
        n = 2 * int(np.ceil(np.abs(stop - start).max())) + 1
        path = start + (stop - start) * np.linspace(0, 1, n)[:, None]
        rows, columns = self._canvas.shape[:2]
        for shift in (0, 1):
            row = np.clip(path[:, 0].astype(int) + shift, 0, rows - 1)
            column = np.clip(path[:, 1].astype(int) + shift, 0, columns - 1)
            kept = self._canvas[row, column]
            self._canvas[row, column] = kept + (190 - kept) * strength


def _coarse_copy(labels: Labels) -> NDArray[Any]:
    """Labels on cubic voxels, few enough to draw.

    A coarse voxel takes the largest value within it, so that thin sheets do not fall apart.
    """
    spacing = labels.spacing.values
    extent = [n * s for n, s in zip(labels.spatial_shape, spacing, strict=True)]
    # Small volumes are drawn finer than they are: splats stay small.
    step = max(min(spacing) / 4, (math.prod(extent) / _VOXELS) ** (1 / 3))
    shape = tuple(max(1, round(e / step)) for e in extent)
    coarse = np.zeros(shape, labels.dtype)
    y = _AxisMap(labels.spatial_shape[1], shape[1])
    x = _AxisMap(labels.spatial_shape[2], shape[2])
    for sheet, slab in iter_slabs(labels.data, max_bytes=2**25):
        flat = np.maximum.reduceat(np.maximum.reduceat(slab, y.edges, axis=1), x.edges, axis=2)
        flat = flat[:, y.index][:, :, x.index]
        z_of = (np.arange(sheet.start, sheet.stop) + 0.5) * shape[0] / labels.spatial_shape[0]
        for plane, at in zip(flat, z_of.astype(int), strict=True):
            np.maximum(coarse[at], plane, out=coarse[at])
    if shape[0] > labels.spatial_shape[0]:
        source = ((np.arange(shape[0]) + 0.5) * labels.spatial_shape[0] / shape[0]).astype(int)
        first = ((source + 0.5) * shape[0] / labels.spatial_shape[0]).astype(int)
        coarse = coarse[first]
    return coarse


class _AxisMap:
    """How ``length`` voxels become ``wanted``: edges for a maximum, then an index for repeats."""

    def __init__(self, length: int, wanted: int) -> None:
        if wanted <= length:
            self.edges = (np.arange(wanted) * length / wanted).astype(np.intp)
            self.index = np.arange(wanted)
        else:
            self.edges = np.arange(length)
            self.index = ((np.arange(wanted) + 0.5) * length / wanted).astype(np.intp)


def _surface(coarse: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Voxels with background beside them: positions, outward unit normals, values."""
    from scipy import ndimage

    mask = np.pad(coarse != 0, 1)
    # Objects that touch the border are cut open there: the cut is surface too.
    inner = np.asarray(ndimage.binary_erosion(mask), bool)
    points = np.argwhere(mask & ~inner)
    smooth = np.asarray(ndimage.gaussian_filter(mask.astype(np.float32), 1.2))
    slopes: list[NDArray[Any]] = [np.gradient(smooth, axis=axis) for axis in range(mask.ndim)]
    gradient = np.stack([-slope[tuple(points.T)] for slope in slopes], axis=1)
    norm = np.linalg.norm(gradient, axis=1, keepdims=True)
    normals = gradient / np.where(norm > 1e-6, norm, 1.0)
    points = points - 1
    return points, normals, coarse[tuple(points.T)]


def _rotation() -> NDArray[np.float64]:
    """Turns (z, y, x) so that z looks away from the viewer, then tilts the view."""
    # Volume z runs upwards in the picture, y away from the viewer, x to the right.
    stand = np.array([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    c, s = math.cos(_AZIMUTH), math.sin(_AZIMUTH)
    around = np.array([[c, 0.0, -s], [0.0, 1.0, 0.0], [s, 0.0, c]])
    c, s = math.cos(_ELEVATION), math.sin(_ELEVATION)
    tilt = np.array([[c, s, 0.0], [-s, c, 0.0], [0.0, 0.0, 1.0]])
    return tilt @ around @ stand


def _shade(
    colors: NDArray[np.uint8], normals: NDArray[Any], depth: NDArray[Any]
) -> NDArray[np.float32]:
    """Lambert light from the upper left plus ambient, fading with depth."""
    # A sheet one voxel thick has a gradient near zero: lit as if it faced the viewer half-way.
    facing = normals @ _light()
    light = 0.42 + 0.58 * np.clip(0.5 + 0.5 * facing, 0, 1) ** 1.3
    span = max(float(np.ptp(depth)), 1e-6)
    fade = 1.0 - 0.45 * (depth - depth.min()) / span
    return (colors.astype(np.float32) * (light * fade)[:, None]).astype(np.float32)


def _light() -> NDArray[np.float64]:
    """Direction to the light in the turned (depth, down, right) system."""
    toward = np.array([-0.62, -0.58, -0.52])
    return toward / np.linalg.norm(toward)


def _reduced(canvas: NDArray[np.float32]) -> NDArray[np.uint8]:
    rows = canvas.shape[0] // _SUPERSAMPLING
    columns = canvas.shape[1] // _SUPERSAMPLING
    cut = canvas[: rows * _SUPERSAMPLING, : columns * _SUPERSAMPLING]
    blocks = cut.reshape(rows, _SUPERSAMPLING, columns, _SUPERSAMPLING, 3)
    return np.rint(blocks.mean(axis=(1, 3))).astype(np.uint8)
