"""Global thresholds from a histogram that is built slab by slab.

The histogram is exact for integers of up to 16 bits; for wider types it has 65,536 bins between
the smallest and the largest finite value, so the limit is off by at most 1/65,536 of the range.

Examples:
    >>> import numpy as np
    >>> histogram = build_histogram(np.repeat(np.array([10, 200], np.uint8), 50).reshape(10, 10))
    >>> 10 <= otsu_threshold(histogram) < 200
    True
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lamella.core.errors import InputError
from lamella.volume.source import iter_slabs

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from lamella.volume.source import LazyArray

__all__ = [
    "FiniteRange",
    "Histogram",
    "build_histogram",
    "finite_range",
    "li_threshold",
    "otsu_threshold",
]

_N_BINS = 65_536
_SLAB_BYTES = 16 * 2**20
_LI_TOLERANCE = 0.5
_LI_MAX_STEPS = 200


@dataclass(frozen=True, slots=True)
class FiniteRange:
    """Smallest and largest finite intensity, and how many voxels are NaN or infinite."""

    low: float
    high: float
    n_not_finite: int = 0

    @property
    def is_constant(self) -> bool:
        """Whether all finite voxels have one value."""
        return self.low == self.high


@dataclass(frozen=True, slots=True)
class Histogram:
    """How often each intensity occurs.

    Attributes:
        counts: int64, (n_bins,).
        centers: float64, (n_bins,), the intensity a bin stands for.
    """

    counts: NDArray[np.int64]
    centers: NDArray[np.float64]

    @property
    def bin_width(self) -> float:
        """Distance of two bins' centres."""
        return float(self.centers[1] - self.centers[0]) if len(self.centers) > 1 else 1.0

    def percentile(self, percent: float) -> float:
        """Intensity below which ``percent`` of the finite voxels lie."""
        cumulative = np.cumsum(self.counts)
        at = int(np.searchsorted(cumulative, percent / 100.0 * cumulative[-1]))
        return float(self.centers[min(at, len(self.centers) - 1)])


def build_histogram(
    data: LazyArray,
    *,
    value_range: FiniteRange | None = None,
    on_slab: Callable[[int], None] | None = None,
) -> Histogram:
    """Count intensities of an array larger than memory.

    Args:
        data: any real dtype and shape.
        value_range: of ``data`` where it is known already, which saves reading it twice.
        on_slab: called with the number of planes read after each slab, for progress and
            cancellation.

    Raises:
        InputError: when no value is finite.
    """
    known = value_range or finite_range(data, on_slab=on_slab)
    is_exact = data.dtype.kind in "uib" and known.high - known.low < _N_BINS
    n_bins = int(known.high - known.low) + 1 if is_exact else _N_BINS
    width = 1.0 if is_exact else max((known.high - known.low) / n_bins, np.finfo(np.float32).tiny)
    counts = np.zeros(n_bins, np.int64)
    for extent, slab in iter_slabs(data, max_bytes=_SLAB_BYTES):
        if is_exact:
            bins = (slab.astype(np.int64) - int(known.low)).ravel()
        else:
            values = slab[np.isfinite(slab)] if slab.dtype.kind == "f" else slab.ravel()
            bins = ((values - known.low) * (1.0 / width)).astype(np.int64)
        counts += np.bincount(np.clip(bins, 0, n_bins - 1), minlength=n_bins)
        if on_slab is not None:
            on_slab(extent.stop)
    first = known.low if is_exact else known.low + 0.5 * width
    return Histogram(counts, np.asarray(first + width * np.arange(n_bins), np.float64))


def otsu_threshold(histogram: Histogram) -> float:
    """Return the limit that separates two classes best; foreground is above it.

    References:
        Otsu (1979), doi:10.1109/TSMC.1979.4310076.
    """
    counts, centers = histogram.counts.astype(np.float64), histogram.centers
    below, above = np.cumsum(counts), np.cumsum(counts[::-1])[::-1]
    sums = counts * centers
    mean_below = np.cumsum(sums) / np.maximum(below, 1)
    mean_above = np.cumsum(sums[::-1])[::-1] / np.maximum(above, 1)
    between = below[:-1] * above[1:] * (mean_below[:-1] - mean_above[1:]) ** 2
    return float(centers[int(np.argmax(between))])


def li_threshold(histogram: Histogram) -> float:
    """Return the limit of least cross-entropy; keeps faint objects that Otsu's drops.

    References:
        Li & Tam (1998), doi:10.1016/S0167-8655(98)00057-9.
    """
    counts = histogram.counts.astype(np.float64)
    floor = float(histogram.centers[0])
    centers = histogram.centers - floor
    weights = np.cumsum(counts)
    sums = np.cumsum(counts * centers)
    limit = sums[-1] / weights[-1]
    for _ in range(_LI_MAX_STEPS):
        at = int(np.searchsorted(centers, limit, side="right")) - 1
        at = min(max(at, 0), len(centers) - 2)
        back = sums[at] / max(weights[at], 1.0)
        front = (sums[-1] - sums[at]) / max(weights[-1] - weights[at], 1.0)
        if back <= 0 or front <= back:
            # All of the background has the smallest value: no limit separates better.
            break
        new = (back - front) / (np.log(back) - np.log(front))
        if abs(new - limit) < _LI_TOLERANCE * histogram.bin_width:
            limit = new
            break
        limit = new
    return float(limit + floor)


def finite_range(data: LazyArray, *, on_slab: Callable[[int], None] | None = None) -> FiniteRange:
    """Read an array slab by slab for its smallest and largest finite value.

    Args:
        data: any real dtype and shape.
        on_slab: as for :func:`build_histogram`.

    Raises:
        InputError: when no value is finite.
    """
    low, high, n_not_finite = np.inf, -np.inf, 0
    for extent, slab in iter_slabs(data, max_bytes=_SLAB_BYTES):
        finite: NDArray[Any] = slab
        if slab.dtype.kind == "f":
            is_finite = np.isfinite(slab)
            n_bad = slab.size - int(np.count_nonzero(is_finite))
            n_not_finite += n_bad
            finite = slab[is_finite] if n_bad else slab
        if finite.size:
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
        if on_slab is not None:
            on_slab(extent.stop)
    if low > high:
        raise InputError(
            "no voxel has a finite value: the volume holds only NaN or infinity",
            hint="look at it with `lamella info`; was it written by a failed run?",
        )
    return FiniteRange(low, high, n_not_finite)
