"""The methods of the classical engine as lazy label arrays.

:func:`draw` reads what a method has to know of the whole volume (its range, its histogram, its
blobs) and returns labels that are computed where they are sliced.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from lamella.core.errors import InputError
from lamella.engines.classical.blob import blob_radii, detect_blobs, draw_blobs
from lamella.engines.classical.filter import smoothed
from lamella.engines.classical.threshold import (
    FiniteRange,
    build_histogram,
    finite_range,
    li_threshold,
    otsu_threshold,
)
from lamella.volume.source import FunctionArray
from lamella.volume.volume import Note

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from lamella.engines.options import OptionValue
    from lamella.volume.source import LazyArray
    from lamella.volume.volume import Volume

__all__ = ["Drawing", "check_size", "draw"]

# Mask, distance map (float32), ranks, two label images (uint32) and the sorted order (int64).
_WATERSHED_BYTES_PER_VOXEL = 28
_MEMORY_SHARE = 0.7
_PREVIEW_MIN_RADIUS_VOX = 1.5


@dataclass(frozen=True, slots=True)
class Drawing:
    """Labels of a method, and what was decided on the way.

    Attributes:
        labels: uint8 (1 = object) or uint32 instance ids, shape of the volume, lazy.
        is_instance: whether values are instance ids.
        options: every option with the value used.
        notes: what the user must know.
    """

    labels: LazyArray
    is_instance: bool
    options: Mapping[str, object]
    notes: tuple[Note, ...] = field(default=())


@dataclass(frozen=True, slots=True)
class _Bright:
    """The smoothed volume with bright objects; ``sign`` is -1 where objects are dark."""

    data: FunctionArray
    value_range: FiniteRange
    sign: float
    smoothing: float


def check_size(volume: Volume, options: Mapping[str, OptionValue]) -> None:
    """Refuse blobs smaller than a voxel, and a watershed larger than memory, before any work.

    Raises:
        InputError: says what would do.
    """
    if options["method"] == "watershed":
        _check_memory(volume)
    if options["method"] != "log":
        return
    radius = float(options["radius"] or 0)
    if radius < max(volume.affine.spacing[-2:]):
        raise InputError(
            f"blobs of radius {radius:g} {volume.unit} are smaller than a voxel ({volume.spacing})",
            hint="give the radius in the unit of the input's spacing",
        )


def draw(
    volume: Volume,
    options: Mapping[str, OptionValue],
    *,
    on_plane: Callable[[int], None],
    is_preview: bool = False,
) -> Drawing:
    """Prepare a method for a volume.

    Args:
        volume: spatial axes only.
        options: all of the engine's options, resolved.
        on_plane: called with the number of planes read in the present pass.
        is_preview: whether ``volume`` is a coarse version: blobs too small to be seen there are
            replaced by a threshold.

    Raises:
        InputError: a volume without contrast.
    """
    known = finite_range(volume.data, on_slab=on_plane)
    if known.is_constant:
        raise InputError(
            f"every voxel has the value {known.low:g}: there is nothing to tell apart",
            hint="is this the right channel, dataset or file?",
        )
    bright = _bright(volume, options, known)
    method = str(options["method"])
    if method == "log" and is_preview and not _can_be_seen(volume, options):
        method = "otsu"
    if method == "log":
        drawing = _draw_log(volume, options, bright, on_plane)
    else:
        drawing = _draw_threshold(volume, options, bright, on_plane, method)
    if known.n_not_finite:
        note = Note(
            "not_finite",
            f"{known.n_not_finite:,} voxels are NaN or infinite and were taken for background",
        )
        drawing = Drawing(
            drawing.labels, drawing.is_instance, drawing.options, (*drawing.notes, note)
        )
    return drawing


def _bright(volume: Volume, options: Mapping[str, OptionValue], known: FiniteRange) -> _Bright:
    spacing = volume.affine.spacing
    given = options["smoothing"]
    smoothing = float(given) if given is not None else min(spacing)
    if options["method"] == "log" and given is None:
        smoothing = 0.0  # the operator smooths by itself
    sign = -1.0 if options["objects"] == "dark" else 1.0
    data = smoothed(
        volume.data,
        sigma_vox=[smoothing / step for step in spacing],
        fill=known.low if sign > 0 else known.high,
        sign=sign,
    )
    low, high = sorted((sign * known.low, sign * known.high))
    return _Bright(data, FiniteRange(low, high), sign, smoothing)


def _draw_threshold(
    volume: Volume,
    options: Mapping[str, OptionValue],
    bright: _Bright,
    on_plane: Callable[[int], None],
    method: str,
) -> Drawing:
    given = options["threshold"]
    if given is not None and method in ("fixed", "watershed"):
        limit = bright.sign * float(given)
    else:
        histogram = build_histogram(bright.data, value_range=bright.value_range, on_slab=on_plane)
        limit = li_threshold(histogram) if method == "li" else otsu_threshold(histogram)
    resolved = dict(options) | {
        "smoothing": bright.smoothing,
        "threshold": bright.sign * limit,
    }

    def read(slices: tuple[slice, ...]) -> NDArray[np.uint8]:
        return (bright.data[slices] > limit).astype(np.uint8)

    if method != "watershed":
        return Drawing(FunctionArray(volume.shape, np.uint8, read), False, resolved)
    return Drawing(_watershed(volume, options, read), True, resolved)


def _watershed(
    volume: Volume,
    options: Mapping[str, OptionValue],
    read: Callable[[tuple[slice, ...]], NDArray[np.uint8]],
) -> NDArray[np.uint32]:
    from lamella.instances.watershed import WatershedOptions, watershed_instances

    mask = np.zeros(volume.shape, bool)
    depth = max(1, 2**24 // max(1, math.prod(volume.shape[1:])))
    whole = tuple(slice(0, n) for n in volume.shape[1:])
    for start in range(0, volume.shape[0], depth):
        extent = slice(start, min(start + depth, volume.shape[0]))
        mask[extent] = read((extent, *whole))
    radius = options["radius"]
    return watershed_instances(
        mask,
        spacing=volume.affine.spacing,
        options=WatershedOptions(min_seed_distance=float(radius) if radius else None),
    )


def _check_memory(volume: Volume) -> None:
    import os

    needed = math.prod(volume.shape) * _WATERSHED_BYTES_PER_VOXEL
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > _MEMORY_SHARE * there:
        raise InputError(
            f"a watershed of {' x '.join(map(str, volume.shape))} voxels needs about"
            f" {needed / 2**30:.0f} GiB of memory, this machine has {there / 2**30:.0f}",
            hint="use method otsu with --instances components, which works slab by slab",
        )


def _draw_log(
    volume: Volume,
    options: Mapping[str, OptionValue],
    bright: _Bright,
    on_plane: Callable[[int], None],
) -> Drawing:
    radius, ratio = float(options["radius"] or 0), float(options["radius_range"] or 1)
    spacing = volume.affine.spacing
    histogram = build_histogram(bright.data, value_range=bright.value_range, on_slab=on_plane)
    contrast_range = histogram.percentile(99.9) - histogram.percentile(50.0)
    min_contrast = (1.0 - float(options["sensitivity"] or 0)) ** 2 * contrast_range
    if min_contrast <= 0:
        # A tie with zero would make a blob of every flat voxel.
        min_contrast = 1e-6 * (bright.value_range.high - bright.value_range.low)
    blobs = detect_blobs(
        bright.data,
        spacing=spacing,
        radii=blob_radii(radius, ratio),
        min_contrast=min_contrast,
        on_slab=on_plane,
    )
    resolved = dict(options) | {"smoothing": bright.smoothing, "min_contrast": min_contrast}
    labels: Any = draw_blobs(blobs, shape=volume.shape, spacing=spacing)
    return Drawing(labels, True, resolved)


def _can_be_seen(volume: Volume, options: Mapping[str, OptionValue]) -> bool:
    radius = float(options["radius"] or 0)
    return radius >= _PREVIEW_MIN_RADIUS_VOX * max(volume.affine.spacing)
