"""Statistics of intensities, streamed: any size in the memory of one slab.

Up to a limit every voxel counts. Beyond it a coarser level of the pyramid is taken, and without
one evenly spaced planes; the result says which, because the mean of blocks hides extremes.

Examples:
    >>> import numpy as np
    >>> ramp = Volume.from_array(np.arange(64, dtype=np.uint8).reshape(4, 4, 4))
    >>> result = intensity_statistics(ramp)
    >>> result.minimum, result.maximum, result.mean, result.source
    (0, 63, 31.5, 'all voxels')
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamella.volume.source import LazyArray
from lamella.volume.volume import Volume

__all__ = ["PERCENTS", "IntensityStatistics", "intensity_statistics"]

PERCENTS = (1.0, 5.0, 50.0, 95.0, 99.0)
_SLAB_BYTES = 16 * 2**20
_SAMPLE_SIZE = 2**20


@dataclass(frozen=True, slots=True)
class IntensityStatistics:
    """What the finite intensities of a volume are like.

    Args:
        minimum: smallest, exact (an int for integers); NaN when no voxel is finite, as the rest.
        maximum: largest.
        mean: arithmetic mean.
        std: standard deviation of the population.
        percentiles: at :data:`PERCENTS`.
        n_voxels: voxels looked at.
        n_nonzero: finite ones other than 0 among them (the foreground of labels).
        n_nan: NaN among them.
        n_infinite: infinities among them.
        source: which voxels were looked at, in words.
        is_complete: whether these are all voxels.
    """

    minimum: float
    maximum: float
    mean: float
    std: float
    percentiles: tuple[float, ...]
    n_voxels: int
    n_nonzero: int
    n_nan: int
    n_infinite: int
    source: str
    is_complete: bool

    @property
    def is_constant(self) -> bool:
        """Whether all finite voxels have one value."""
        return self.minimum == self.maximum


def intensity_statistics(volume: Volume, *, max_bytes: int = 256 * 2**20) -> IntensityStatistics:
    """Statistics over all voxels, or over fewer of a large volume.

    Args:
        volume: any real dtype; channels and times are taken together.
        max_bytes: look at every voxel up to this size.
    """
    if volume.nbytes <= max_bytes:
        return _collect(_slabs(volume.data), volume, "all voxels", is_complete=True)
    for number, level in enumerate(volume.levels, start=1):
        if level.nbytes <= max_bytes:
            return _collect(
                _slabs(level.data), level, f"level {number} of the pyramid", is_complete=False
            )
    length = volume.shape[0]
    plane_bytes = max(1, volume.nbytes // length)
    n_planes = max(1, min(length, max_bytes // plane_bytes))
    planes = sorted({int(p) for p in np.linspace(0, length - 1, n_planes).round()})
    axis = volume.axes.names[0]
    words = f"{len(planes)} of {length} planes along {axis}"
    return _collect(_planes(volume.data, planes), volume, words, is_complete=False)


def _slabs(array: LazyArray) -> Iterator[NDArray[Any]]:
    """The whole array in pieces along its first axes."""
    length = array.shape[0]
    n_bytes = math.prod(array.shape) * array.dtype.itemsize
    if n_bytes // length > _SLAB_BYTES and array.ndim > 2:
        # One plane of a 4-D array can be a whole volume.
        for at in range(length):
            for extent in _extents(array.shape[1], n_bytes // length):
                yield np.asarray(array[at : at + 1, extent])
        return
    for extent in _extents(length, n_bytes):
        yield np.asarray(array[extent])


def _extents(length: int, n_bytes: int) -> Iterator[slice]:
    depth = max(1, length * _SLAB_BYTES // max(1, n_bytes))
    for start in range(0, length, depth):
        yield slice(start, min(length, start + depth))


def _planes(array: LazyArray, planes: list[int]) -> Iterator[NDArray[Any]]:
    for at in planes:
        yield np.asarray(array[at : at + 1])


def _collect(
    slabs: Iterator[NDArray[Any]], volume: Volume, source: str, *, is_complete: bool
) -> IntensityStatistics:
    moments = _Moments()
    total = math.prod(volume.shape)
    step = max(1, total // _SAMPLE_SIZE)
    sample: list[NDArray[Any]] = []
    n_nan = n_infinite = n_voxels = n_nonzero = 0
    for slab in slabs:
        flat = slab.reshape(-1)
        n_voxels += flat.size
        if flat.dtype.kind == "f":
            finite = np.isfinite(flat)
            n_finite = int(finite.sum())
            if n_finite < flat.size:
                bad = int(np.isnan(flat).sum())
                n_nan += bad
                n_infinite += flat.size - n_finite - bad
                flat = flat[finite]
        if flat.size:
            moments.add(flat)
            n_nonzero += int(np.count_nonzero(flat))
            # A prime stride does not run along with the rows.
            sample.append(flat[:: step if step < 3 else step | 1].copy())
    values = np.concatenate(sample).astype(np.float64) if sample else np.full(1, np.nan)
    # Values near the limits of float64 overflow to infinity in sums: so be it, quietly.
    with np.errstate(over="ignore", invalid="ignore"):
        percentiles = tuple(float(v) for v in np.percentile(values, PERCENTS))
    return IntensityStatistics(
        minimum=moments.low,
        maximum=moments.high,
        mean=moments.mean if moments.count else math.nan,
        std=math.sqrt(moments.square / moments.count) if moments.count else math.nan,
        percentiles=percentiles,
        n_voxels=n_voxels,
        n_nonzero=n_nonzero,
        n_nan=n_nan,
        n_infinite=n_infinite,
        source=source,
        is_complete=is_complete,
    )


class _Moments:
    """Count, mean and sum of squared deviations, merged slab by slab.

    Source: Chan, Golub, LeVeque (1979), "Updating formulae and a pairwise algorithm for computing
    sample variances".
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = 0.0
        self.square = 0.0
        self.low: float = math.nan
        self.high: float = math.nan

    def add(self, flat: NDArray[Any]) -> None:
        """Add finite values."""
        n = flat.size
        with np.errstate(over="ignore", invalid="ignore"):
            mean = float(flat.mean(dtype=np.float64))
            deviation = flat.astype(np.float64) - mean
            square = float(np.dot(deviation, deviation))
            delta = mean - self.mean
            total = self.count + n
            self.square += square + delta * delta * self.count * n / total
            self.mean += delta * n / total
        self.count = total
        # Python's own numbers: ids beyond 2**53 stay exact.
        low, high = flat.min().item(), flat.max().item()
        self.low = low if math.isnan(self.low) else min(self.low, low)
        self.high = high if math.isnan(self.high) else max(self.high, high)
