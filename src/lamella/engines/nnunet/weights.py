"""Weights of the voxels of a patch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["tile_weights"]


def tile_weights(tile: tuple[int, int, int]) -> NDArray[np.float32]:
    """Weights of a patch as nnU-Net has them, to the rounding of its half precision.

    A Gaussian of 1/8 of the patch, cut at four sigma, 10 at the centre; what half precision cannot
    hold becomes its smallest weight. Source: nnU-Net ``compute_gaussian`` (Apache-2.0).

    Args:
        tile: extent of a patch; the first is 1 for 2-D.
    """
    from scipy.ndimage import gaussian_filter

    shape = tile[1:] if tile[0] == 1 else tile
    point = np.zeros(shape)
    point[tuple(n // 2 for n in shape)] = 1
    weights = gaussian_filter(point, [n / 8 for n in shape], 0, mode="constant", cval=0)
    halves = (weights / (weights.max() / 10)).astype(np.float16)
    halves[halves == 0] = halves[halves != 0].min()
    return halves.astype(np.float32).reshape(tile)
