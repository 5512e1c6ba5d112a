"""Lazy Gaussian smoothing and blob response: computed for the region asked for, with its halo.

Both are local operators: what is read in slabs equals what would be computed whole, bit for bit.

Examples:
    >>> import numpy as np
    >>> image = np.zeros((9, 9), np.float32); image[4, 4] = 1
    >>> smooth = smoothed(image, sigma_vox=(1.0, 1.0))
    >>> bool(np.array_equal(smooth[0:5, :], smooth[...][0:5, :]))
    True
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lamella.volume.source import FunctionArray

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from lamella.volume.source import LazyArray

__all__ = ["blob_response", "halo_of", "smoothed", "with_halo"]

_TRUNCATE = 4.0
_DIFFERENCE_SIGMA = 2.0


def halo_of(sigma_vox: Sequence[float]) -> tuple[int, ...]:
    """Voxels of context a Gaussian needs on each side, per axis."""
    return tuple(int(_TRUNCATE * sigma + 0.5) for sigma in sigma_vox)


def smoothed(
    data: LazyArray, *, sigma_vox: Sequence[float], fill: float = 0.0, sign: float = 1.0
) -> FunctionArray:
    """Return ``sign`` times the Gaussian mean of ``data``, float32, computed when sliced.

    Args:
        data: any real dtype, (z, y, x) or (y, x).
        sigma_vox: standard deviation per axis in voxels; 0 leaves an axis alone.
        fill: stands in for NaN and infinite values.
        sign: -1 turns dark objects into bright ones.
    """
    from scipy.ndimage import gaussian_filter

    def apply(block: NDArray[Any]) -> NDArray[np.float32]:
        values = _finite(block, fill) * np.float32(sign)
        if not any(sigma_vox):
            return values
        return np.asarray(
            gaussian_filter(values, sigma_vox, mode="reflect", truncate=_TRUNCATE), np.float32
        )

    return with_halo(data, halo_of(sigma_vox), apply)


def blob_response(block: NDArray[np.float32], sigma_vox: Sequence[float]) -> NDArray[np.float32]:
    """Return the scale-normalised, negated Laplacian of Gaussian: high inside bright blobs.

    With sigma in voxels proportional to 1 / spacing, the sum of ``sigma² * d²`` over the axes is
    the Laplacian in physical units, so an anisotropic grid needs no resampling.

    Args:
        block: float32, (z, y, x) or (y, x).
        sigma_vox: standard deviation per axis in voxels.

    References:
        Lindeberg (1998), doi:10.1023/A:1008045108935.
    """
    from scipy.ndimage import correlate1d, gaussian_filter

    response = np.zeros(block.shape, np.float32)
    if min(sigma_vox) >= _DIFFERENCE_SIGMA:
        # One smoothing and second differences: a third of the passes, 1 / (12 sigma²) off.
        smooth = gaussian_filter(block, sigma_vox, mode="reflect", truncate=_TRUNCATE)
        for axis, sigma in enumerate(sigma_vox):
            weights = np.array([-1.0, 2.0, -1.0]) * sigma**2
            response += correlate1d(smooth, weights, axis=axis, mode="reflect")
        return response
    for axis, sigma in enumerate(sigma_vox):
        order: Any = [0] * block.ndim
        order[axis] = 2
        response -= np.float32(sigma**2) * gaussian_filter(
            block, sigma_vox, order=order, mode="reflect", truncate=_TRUNCATE
        )
    return response


def with_halo(
    data: LazyArray,
    halo: Sequence[int],
    apply: Callable[[NDArray[Any]], NDArray[np.float32]],
) -> FunctionArray:
    """Return a lazy float32 array of a local operator.

    Args:
        data: what the operator reads.
        halo: context per axis, at least the operator's reach.
        apply: maps a block to an equally large block.
    """
    shape = tuple(int(n) for n in data.shape)

    def read(slices: tuple[slice, ...]) -> NDArray[np.float32]:
        grown = tuple(
            slice(max(0, part.start - reach), min(size, part.stop + reach))
            for part, reach, size in zip(slices, halo, shape, strict=True)
        )
        inner = tuple(
            slice(part.start - wide.start, part.stop - wide.start)
            for part, wide in zip(slices, grown, strict=True)
        )
        return apply(np.asarray(data[grown]))[inner]

    return FunctionArray(shape, np.float32, read)


def _finite(block: NDArray[Any], fill: float) -> NDArray[np.float32]:
    values = block.astype(np.float32)
    if block.dtype.kind == "f":
        values[~np.isfinite(values)] = fill
    return values
