"""Resampling as nnU-Net does it, one axis at a time and only for the box asked for.

nnU-Net resamples whole volumes with ``skimage.transform.resize`` (splines of order 3 for images, 1
for logits). Spline interpolation is separable and linear: along one axis every new value is a fixed
weighted sum of the old ones. These weights (:class:`Operator`) are worked out once, exactly as
scipy does it (twelve voxels of padding, prefilter, B-splines), and cut where they fall below 1e-7 -
some 24 voxels for order 3, two for order 1. So layers can be resampled as they come, and nothing
waits for the whole volume.

Where one axis is far coarser than the others, nnU-Net resamples it on its own with order 0; which
axis that is, if any, is :func:`separate_axis`.

Source: nnU-Net ``preprocessing/resampling/default_resampling.py`` and ``resample_torch.py``
(Apache-2.0); scipy ``ndimage.zoom(grid_mode=True, mode="nearest")``.

Examples:
    >>> half = Operator.make(4, 2, order=1)
    >>> half.apply(np.array([[0.0, 1.0, 2.0, 3.0]], np.float32), axis=1).tolist()
    [[0.5, 2.5]]
    >>> separate_axis((5.0, 1.0, 1.0), (1.0, 1.0, 1.0)), separate_axis((1, 1, 1), (2, 2, 2))
    (0, None)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lamella.inference.operator import Operator as AxisOperator

__all__ = ["Operator", "Rule", "new_shape", "operators", "separate_axis"]

ANISOTROPY_THRESHOLD = 3.0
"""From this ratio of spacings on, nnU-Net treats the coarse axis on its own."""

_PADDING = 12


@dataclass(frozen=True, slots=True)
class Rule:
    """How one kind of array is resampled, as ``plans.json`` says.

    Attributes:
        order: of the splines.
        order_z: of the splines along an axis that is treated on its own.
        force_separate_z: treat the coarse axis on its own: yes, no, or None = where it is coarse.
        is_none: leave the grid as it is.
        ties_to_lowest: segmentations: of labels with equal shares the lowest wins, not the nearest.
    """

    order: int = 1
    order_z: int = 0
    force_separate_z: bool | None = None
    is_none: bool = False
    ties_to_lowest: bool = False


class Operator(AxisOperator):
    """Weighted sums along one axis, as nnU-Net's resampling has them."""

    @classmethod
    def make(cls, n_in: int, n_out: int, *, order: int) -> Operator:
        """The operator of a spline over the same extent.

        Args:
            n_in: voxels of the axis as it is.
            n_out: voxels of it as it shall be.
            order: 0 (nearest), 1 (linear) or 3 (cubic); others up to 5 as scipy has them.
        """
        at = ((np.arange(n_out) + 0.5) * (n_in / n_out) - 0.5).astype(np.float64)
        if order == 0:
            weights = np.zeros((n_out, n_in))
            nearest = np.clip(np.floor(at + 0.5).astype(np.int64), 0, n_in - 1)
            weights[np.arange(n_out), nearest] = 1.0
            return cls(weights)
        if order == 1:
            at = np.clip(at, 0, n_in - 1)
            low = np.minimum(np.floor(at).astype(np.int64), max(0, n_in - 2))
            weights = np.zeros((n_out, n_in))
            rows = np.arange(n_out)
            weights[rows, low] = 1.0 - (at - low)
            weights[rows, np.minimum(low + 1, n_in - 1)] += at - low
            return cls(weights)
        return cls(_spline_weights(n_in, at, order))


def _spline_weights(n_in: int, at: NDArray[np.float64], order: int) -> NDArray[np.float64]:
    """Weights of a spline at positions; beyond the border the outermost value goes on."""
    from scipy.interpolate import BSpline
    from scipy.ndimage import spline_filter1d

    padded = np.pad(np.eye(n_in), ((_PADDING, _PADDING), (0, 0)), mode="edge")
    coefficients = spline_filter1d(padded, order, axis=0, mode="nearest")
    basis = BSpline.basis_element(np.arange(order + 2) - (order + 1) / 2, extrapolate=False)
    middle = np.floor(at + (0.5 if order % 2 == 0 else 0.0)).astype(np.int64)
    weights = np.zeros((len(at), n_in))
    for step in range(-(order // 2) - 1, order // 2 + 3):
        value = np.nan_to_num(basis(at - (middle + step)))
        index = np.clip(middle + step + _PADDING, 0, n_in + 2 * _PADDING - 1)
        weights += value[:, None] * coefficients[index]
    return weights


def new_shape(
    shape: Sequence[int], spacing: Sequence[float], wanted: Sequence[float]
) -> tuple[int, int, int]:
    """Extent of a volume at another spacing; halves are rounded to even as nnU-Net does.

    Examples:
        >>> new_shape((10, 100, 100), (5.0, 0.8, 0.8), (2.5, 1.0, 1.0))
        (20, 80, 80)
    """
    z, y, x = (round(s / w * n) for s, w, n in zip(spacing, wanted, shape, strict=True))
    return max(1, z), max(1, y), max(1, x)


def separate_axis(
    spacing: Sequence[float], wanted: Sequence[float], *, force: bool | None = None
) -> int | None:
    """The axis that is resampled on its own, or None.

    Args:
        spacing: as it is, (z, y, x).
        wanted: as it shall be.
        force: from the plans; None decides by the anisotropy of either spacing.
    """
    if force is False:
        return None
    coarse = _coarse_axes(spacing)
    if force is None and not _is_anisotropic(spacing):
        if not _is_anisotropic(wanted):
            return None
        coarse = _coarse_axes(wanted)
    # Two equally coarse axes: neither stands alone.
    return coarse[0] if len(coarse) == 1 else None


def _is_anisotropic(spacing: Sequence[float]) -> bool:
    return max(spacing) / min(spacing) > ANISOTROPY_THRESHOLD


def _coarse_axes(spacing: Sequence[float]) -> list[int]:
    return [axis for axis, size in enumerate(spacing) if max(spacing) / size == 1]


def operators(
    shape: Sequence[int],
    target: Sequence[int],
    rule: Rule,
    separate: int | None,
) -> tuple[Operator | None, Operator | None, Operator | None]:
    """The operators of all axes; None where nothing changes.

    Args:
        shape: extent as it is, (z, y, x).
        target: extent as it shall be.
        rule: orders.
        separate: the axis that is treated on its own.
    """
    z, y, x = (
        None
        if a == b
        else Operator.make(a, b, order=rule.order_z if axis == separate else rule.order)
        for axis, (a, b) in enumerate(zip(shape, target, strict=True))
    )
    return z, y, x
