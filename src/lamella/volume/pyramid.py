"""Coarser levels of a volume: how many, by how much, and how they are computed.

Axes that are already coarse are left alone until the others catch up, so a level's voxels become
more isotropic, never less: 50 x 4.6 x 4.6 nm is halved in y and x only.

Examples:
    >>> pyramid_factors((20, 1024, 1024), (50.0, 4.6, 4.6))
    ((1, 2, 2), (1, 4, 4), (1, 8, 8), (2, 16, 16))
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["downsample_labels", "downsample_mean", "pyramid_factors"]


def pyramid_factors(
    shape: Sequence[int], spacing: Sequence[float], *, smallest: int = 64
) -> tuple[tuple[int, ...], ...]:
    """Factors of each coarser level relative to level 0.

    Args:
        shape: spatial shape, (z, y, x) or (y, x).
        spacing: distance per axis; only ratios matter.
        smallest: stop once no axis is longer than this.

    Returns:
        One tuple per level from level 1 on; empty for a volume that is already small.
    """
    levels: list[tuple[int, ...]] = []
    factors = [1] * len(shape)
    while max(-(-n // f) for n, f in zip(shape, factors, strict=True)) > smallest:
        current = [s * f for s, f in zip(spacing, factors, strict=True)]
        finest = min(c for c, n, f in zip(current, shape, factors, strict=True) if -(-n // f) > 1)
        grown = [
            f * 2 if c < 2 * finest and -(-n // f) > 1 else f
            for f, c, n in zip(factors, current, shape, strict=True)
        ]
        if grown == factors:
            break
        factors = grown
        levels.append(tuple(factors))
    return tuple(levels)


def downsample_mean(block: NDArray[Any], factors: Sequence[int]) -> NDArray[Any]:
    """Average blocks of ``factors`` voxels over the last axes; edges average what is there.

    Args:
        block: any numeric dtype, (..., z, y, x).
        factors: one per spatial axis.

    Returns:
        The same dtype, integers rounded to nearest; extent ``ceil(n / factor)``.
    """
    result = block.astype(np.float64 if block.dtype.itemsize > 4 else np.float32)
    lead = block.ndim - len(factors)
    for offset, factor in enumerate(factors):
        if factor > 1:
            result = _mean_axis(result, lead + offset, factor)
    if block.dtype.kind in "ui":
        result = np.rint(result)
    return result.astype(block.dtype)


def downsample_labels(block: NDArray[Any], factors: Sequence[int]) -> NDArray[Any]:
    """Pick the voxel at the middle of each block: labels are chosen, never mixed.

    Args:
        block: integers, (..., z, y, x).
        factors: one per spatial axis.
    """
    lead = (slice(None),) * (block.ndim - len(factors))
    picks: list[NDArray[np.intp]] = []
    for factor, length in zip(factors, block.shape[block.ndim - len(factors) :], strict=True):
        picks.append(np.minimum(_starts(length, factor) + factor // 2, length - 1))
    return block[(*lead, *np.ix_(*picks))]


def _mean_axis(array: NDArray[Any], axis: int, factor: int) -> NDArray[Any]:
    # Strided adds are four times as fast as np.add.reduceat.
    length = array.shape[axis]
    before = (slice(None),) * axis
    total = array[(*before, slice(0, None, factor))].copy()
    for offset in range(1, min(factor, length)):
        part = array[(*before, slice(offset, None, factor))]
        total[(*before, slice(0, part.shape[axis]))] += part
    counts = np.minimum(factor, length - _starts(length, factor)).astype(array.dtype)
    shape = [1] * array.ndim
    shape[axis] = len(counts)
    total /= counts.reshape(shape)
    return total


def _starts(length: int, factor: int) -> NDArray[np.intp]:
    return np.arange(0, length, factor, dtype=np.intp)
