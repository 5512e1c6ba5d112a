"""A small version of a volume to try a method on before the whole is read.

Examples:
    >>> import numpy as np
    >>> from lamella.volume.volume import Volume
    >>> coarse = coarse_volume(Volume.from_array(np.zeros((8, 64, 64), np.uint8)), max_voxels=9000)
    >>> coarse.factors, coarse.volume.shape
    ((2, 2, 2), (4, 32, 32))
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from lamella.volume.pyramid import downsample_mean, pyramid_factors

if TYPE_CHECKING:
    from lamella.volume.volume import Volume

__all__ = ["Coarse", "coarse_volume"]

MAX_VOXELS = 2 * 2**20


@dataclass(frozen=True, slots=True)
class Coarse:
    """A coarse volume in memory and how many full-resolution voxels one of its voxels spans."""

    volume: Volume
    factors: tuple[float, ...]


def coarse_volume(volume: Volume, *, max_voxels: int = MAX_VOXELS) -> Coarse:
    """Return the volume with at most about ``max_voxels`` voxels, in memory.

    A stored pyramid is used where there is one. Otherwise only every n-th plane along the first
    axis is read, so that the preview costs one n-th of a pass over the file.

    Args:
        volume: spatial axes only.
        max_voxels: upper limit, as far as factors of two allow.
    """
    if math.prod(volume.shape) <= max_voxels:
        return Coarse(replace(volume, data=volume.load(), levels=()), (1,) * len(volume.shape))
    for level in volume.levels:
        if math.prod(level.shape) <= max_voxels:
            factors = tuple(
                fine / coarse for fine, coarse in zip(volume.shape, level.shape, strict=True)
            )
            return Coarse(replace(level, data=level.load(), levels=()), factors)
    factors_int = _factors(volume, max_voxels)
    planes = []
    for start in range(0, volume.shape[0], factors_int[0]):
        middle = min(start + factors_int[0] // 2, volume.shape[0] - 1)
        plane = np.asarray(volume.data[middle : middle + 1])
        planes.append(downsample_mean(plane, (1, *factors_int[1:])))
    data = np.concatenate(planes)
    affine = volume.affine.downsampled(factors_int)
    return Coarse(replace(volume, data=data, affine=affine, levels=()), factors_int)


def _factors(volume: Volume, max_voxels: int) -> tuple[int, ...]:
    for factors in pyramid_factors(volume.shape, volume.affine.spacing, smallest=8):
        n_voxels = math.prod(-(-n // f) for n, f in zip(volume.shape, factors, strict=True))
        if n_voxels <= max_voxels:
            return factors
    return (1,) * len(volume.shape)
