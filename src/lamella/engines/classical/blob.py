"""Blobs of a known size: found at several scales, slab by slab, and drawn as balls.

A ball of radius r answers a Laplacian of Gaussian most at sigma = r / sqrt(number of axes); the
answer divided by that of an ideal ball is the blob's contrast, in intensities. Slabs overlap, and
a blob belongs to the slab that holds its centre, so the list does not depend on the slabs.

Examples:
    >>> import numpy as np
    >>> z, y, x = np.mgrid[:16, :16, :16]
    >>> ball = np.where((z - 8) ** 2 + (y - 8) ** 2 + (x - 8) ** 2 <= 9, 100, 10).astype(np.float32)
    >>> blobs = detect_blobs(ball, spacing=(1.0, 1.0, 1.0), radii=(2.5, 3.0, 3.6), min_contrast=30)
    >>> blobs.centers.round().astype(int).tolist()
    [[8, 8, 8]]
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lamella.engines.classical.filter import blob_response, halo_of
from lamella.volume.source import FunctionArray

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from lamella.volume.source import LazyArray

__all__ = ["Blobs", "blob_radii", "detect_blobs", "draw_blobs"]

_SCALE_STEP = 1.25
_SLAB_VOXELS = 4 * 2**20
_OVERLAP_ALLOWED = 0.7


@dataclass(frozen=True, slots=True)
class Blobs:
    """Blobs, strongest first.

    Attributes:
        centers: float64, (n, n_axes), index of the centre in voxels, (z, y, x).
        radii: float64, (n,), in the unit of the spacing.
        contrasts: float64, (n,), intensity above the surroundings.
    """

    centers: NDArray[np.float64]
    radii: NDArray[np.float64]
    contrasts: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.radii)


def blob_radii(radius: float, ratio: float) -> tuple[float, ...]:
    """Radii to seek, from ``radius / ratio`` to ``radius * ratio`` in equal ratios."""
    n_steps = math.ceil(math.log(ratio) / math.log(_SCALE_STEP)) if ratio > 1 else 0
    if n_steps == 0:
        return (radius,)
    return tuple(radius * ratio ** (k / n_steps) for k in range(-n_steps, n_steps + 1))


def detect_blobs(
    data: LazyArray,
    *,
    spacing: Sequence[float],
    radii: Sequence[float],
    min_contrast: float,
    on_slab: Callable[[int], None] | None = None,
) -> Blobs:
    """Find bright blobs of about the given radii.

    Args:
        data: real intensities, (z, y, x) or (y, x); read slab by slab with the halo of the
            largest radius.
        spacing: centre-to-centre distance per axis.
        radii: radii sought, ascending, in the unit of the spacing.
        min_contrast: least intensity above the surroundings.
        on_slab: called with the number of planes done, for progress and cancellation.
    """
    n_axes = len(spacing)
    sigmas = [[r / math.sqrt(n_axes) / step for step in spacing] for r in radii]
    window = [2 * max(1, round(0.7 * radii[0] / step)) + 1 for step in spacing]
    halo = halo_of(sigmas[-1])[0] + window[0] // 2 + 1
    plane = max(1, math.prod(data.shape[1:]))
    depth = max(2 * halo, _SLAB_VOXELS // plane, 1)
    centers, scales, contrasts = [], [], []
    for start in range(0, data.shape[0], depth):
        stop = min(start + depth, data.shape[0])
        low = max(0, start - halo)
        block = np.asarray(data[low : min(stop + halo, data.shape[0])], np.float32)
        peaks, scale, contrast = _peaks(block, sigmas, window, min_contrast)
        inside = (peaks[:, 0] + low >= start) & (peaks[:, 0] + low < stop)
        centers.append(peaks[inside] + np.array([low] + [0] * (n_axes - 1)))
        scales.append(scale[inside])
        contrasts.append(contrast[inside])
        if on_slab is not None:
            on_slab(stop)
    found = Blobs(
        np.concatenate(centers).astype(np.float64),
        np.asarray(radii, np.float64)[np.concatenate(scales)],
        np.concatenate(contrasts).astype(np.float64),
    )
    return _without_overlaps(found, np.asarray(spacing, np.float64))


def draw_blobs(blobs: Blobs, *, shape: Sequence[int], spacing: Sequence[float]) -> FunctionArray:
    """Return lazy uint32 labels with every blob drawn as a ball, numbered from 1.

    A voxel inside several balls belongs to the one whose surface it is deepest below, relative to
    the ball's radius; ties go to the stronger blob.

    Args:
        blobs: what to draw.
        shape: of the volume, (z, y, x) or (y, x).
        spacing: as given to :func:`detect_blobs`.
    """
    steps = np.asarray(spacing, np.float64)
    reach = blobs.radii[:, None] / steps if len(blobs) else np.zeros((0, len(steps)))
    first = np.maximum(np.ceil(blobs.centers - reach), 0).astype(np.int64)
    last = np.minimum(np.floor(blobs.centers + reach) + 1, shape).astype(np.int64)

    def read(slices: tuple[slice, ...]) -> NDArray[np.uint32]:
        start = np.array([part.start for part in slices])
        stop = np.array([part.stop for part in slices])
        labels = np.zeros(tuple(stop - start), np.uint32)
        depth = np.ones(labels.shape, np.float32)
        touched = np.flatnonzero(((first < stop) & (last > start)).all(axis=1))
        for index in touched:
            box = [
                np.arange(max(a, lo), min(b, hi))
                for a, b, lo, hi in zip(start, stop, first[index], last[index], strict=True)
            ]
            _draw(labels, depth, box, start, blobs, int(index), steps)
        return labels

    return FunctionArray(shape, np.uint32, read)


def _draw(
    labels: NDArray[np.uint32],
    depth: NDArray[np.float32],
    box: list[NDArray[np.int64]],
    start: NDArray[np.int64],
    blobs: Blobs,
    index: int,
    steps: NDArray[np.float64],
) -> None:
    offsets = np.meshgrid(
        *((c - m) * s for c, m, s in zip(box, blobs.centers[index], steps, strict=True)),
        indexing="ij",
        sparse=True,
    )
    squared: Any = sum(offset**2 for offset in offsets)
    relative = (squared / blobs.radii[index] ** 2).astype(np.float32)
    window = tuple(slice(c[0] - a, c[-1] + 1 - a) for c, a in zip(box, start, strict=True))
    wins = (relative <= 1.0) & (
        (relative < depth[window]) | ((labels[window] == 0) & (relative <= depth[window]))
    )
    labels[window][wins] = index + 1
    depth[window][wins] = relative[wins]


def _ideal_answer(n_axes: int) -> float:
    """Answer of the normalised operator at the centre of a ball of contrast 1, at best sigma."""
    if n_axes == 2:
        return 2.0 * math.exp(-1.0)
    return math.sqrt(2.0 / math.pi) * 3.0**1.5 * math.exp(-1.5)


def _peaks(
    block: NDArray[np.float32],
    sigmas: Sequence[Sequence[float]],
    window: Sequence[int],
    min_contrast: float,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Return positions, best scale and contrast of the local maxima over space and scale."""
    from scipy.ndimage import maximum_filter

    best = np.full(block.shape, -np.inf, np.float32)
    scale = np.zeros(block.shape, np.uint8)
    for index, sigma in enumerate(sigmas):
        response = blob_response(block, sigma)
        better = response > best
        best[better] = response[better]
        scale[better] = index
    best /= np.float32(_ideal_answer(block.ndim))
    is_peak = (best >= min_contrast) & (best == maximum_filter(best, size=window, mode="nearest"))
    positions = np.argwhere(is_peak)
    return positions, scale[is_peak].astype(np.int64), best[is_peak]


def _without_overlaps(found: Blobs, steps: NDArray[np.float64]) -> Blobs:
    """Keep the stronger of two blobs that lie mostly on each other; strongest first."""
    from scipy.spatial import KDTree

    # Ties are broken by position, so that the order never depends on the slabs.
    keys = (*found.centers.T[::-1], -found.contrasts)
    order = np.lexsort(keys)
    centers, radii = found.centers[order], found.radii[order]
    if not len(order):
        return found
    tree = KDTree(centers * steps)
    kept = np.ones(len(order), bool)
    largest = float(radii.max())
    for index in range(len(order)):
        if not kept[index]:
            continue
        near = tree.query_ball_point(centers[index] * steps, _OVERLAP_ALLOWED * 2 * largest)
        for other in near:
            limit = _OVERLAP_ALLOWED * (radii[index] + radii[other])
            distance = float(np.linalg.norm((centers[index] - centers[other]) * steps))
            if other > index and distance < limit:
                kept[other] = False
    return Blobs(centers[kept], radii[kept], found.contrasts[order][kept])
