"""Distances between surfaces: Hausdorff, mean surface distance and surface Dice, in physical units.

A surface is the voxels of a mask that have a face neighbour outside it (the border of the volume is
outside). For every surface voxel, the distance to the nearest surface voxel of the other mask is
exact and Euclidean on the anisotropic grid; it is computed in the box around both masks, not in the
whole volume::

    hd95 = max of the two directed 95th percentiles          assd = mean over both surfaces
    nsd  = share of both surfaces within the tolerance       (surface Dice)

Thin structures need these: a sheet of three voxels shifted by one loses a third of its Dice and
nothing of its nsd at one voxel.

Without a surface on both sides every measure is nan; on one side only: hd95 and assd are infinite,
nsd is 0.

Examples:
    >>> import numpy as np
    >>> sheet = np.zeros((9, 8, 8), bool)
    >>> sheet[3:6] = True
    >>> moved = np.roll(sheet, 1, axis=0)
    >>> score = score_surface(moved, sheet, spacing=(2.0, 1.0, 1.0), tolerance=2.0)
    >>> score.hausdorff_95, score.surface_dice
    (2.0, 1.0)

References:
    Nikolov et al. (2021), doi:10.2196/26151 (surface Dice).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamella.core.errors import GeometryError, InputError

__all__ = ["SurfaceScore", "score_surface", "surface_distances"]


@dataclass(frozen=True, slots=True)
class SurfaceScore:
    """Distances between two surfaces, in the unit of the spacing.

    Attributes:
        hausdorff_95: robust Hausdorff distance.
        hausdorff: largest distance.
        mean_distance: average symmetric surface distance (ASSD).
        surface_dice: normalised surface Dice (NSD) at ``tolerance``, 0..1.
        tolerance: in the unit of the spacing.
    """

    hausdorff_95: float
    hausdorff: float
    mean_distance: float
    surface_dice: float
    tolerance: float


def score_surface(
    prediction: NDArray[Any],
    reference: NDArray[Any],
    *,
    spacing: Sequence[float],
    tolerance: float,
) -> SurfaceScore:
    """Compare the surfaces of two masks.

    Args:
        prediction: bool, (z, y, x) or (y, x).
        reference: bool, same shape.
        spacing: centre-to-centre distance per axis, in the order of the array.
        tolerance: distance up to which a surface counts as right, in the same unit.

    Returns:
        The scores.

    Raises:
        GeometryError: when shapes or spacing do not fit together.
        InputError: for a negative tolerance.
    """
    if not tolerance >= 0:
        raise InputError(f"tolerance is {tolerance}, expected 0 or more")
    to_reference, to_prediction = surface_distances(prediction, reference, spacing=spacing)
    nan, infinite = float("nan"), float("inf")
    if not len(to_reference) and not len(to_prediction):
        return SurfaceScore(nan, nan, nan, nan, tolerance)
    if not len(to_reference) or not len(to_prediction):
        return SurfaceScore(infinite, infinite, infinite, 0.0, tolerance)
    both = np.concatenate([to_reference, to_prediction])
    # A hair of slack: a tolerance of "one voxel" must not fail on the rounding of float32.
    is_near = both <= tolerance * (1 + 1e-6)
    return SurfaceScore(
        hausdorff_95=max(float(np.percentile(d, 95)) for d in (to_reference, to_prediction)),
        hausdorff=float(both.max()),
        mean_distance=float(both.mean(dtype=np.float64)),
        surface_dice=float(is_near.mean()),
        tolerance=tolerance,
    )


def surface_distances(
    prediction: NDArray[Any], reference: NDArray[Any], *, spacing: Sequence[float]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Distance of every surface voxel to the other surface.

    Args:
        prediction: bool, (z, y, x) or (y, x).
        reference: bool, same shape.
        spacing: centre-to-centre distance per axis, in the order of the array.

    Returns:
        float32 distances of the prediction's surface voxels to the reference's, and the other way
        round, in scan order; infinite where the other side has no surface.

    Raises:
        GeometryError: when shapes or spacing do not fit together.

    Examples:
        >>> import numpy as np
        >>> line = np.array([[True, False, False, False]])
        >>> there, back = surface_distances(line, line[:, ::-1], spacing=(1.0, 0.5))
        >>> there.tolist(), back.tolist()
        ([1.5], [1.5])
    """
    if prediction.shape != reference.shape or len(spacing) != prediction.ndim:
        raise GeometryError(
            f"prediction {prediction.shape}, reference {reference.shape} and spacing"
            f" {tuple(spacing)} do not fit together",
            hint="compare labels on the same grid",
        )
    predicted, referenced = np.asarray(prediction, bool), np.asarray(reference, bool)
    box = _box_around(predicted | referenced)
    surfaces = [_surface(mask[box]) for mask in (predicted, referenced)]
    return (
        _distances(surfaces[0], surfaces[1], spacing),
        _distances(surfaces[1], surfaces[0], spacing),
    )


def _distances(
    here: NDArray[np.bool_], there: NDArray[np.bool_], spacing: Sequence[float]
) -> NDArray[np.float32]:
    """Distance of every voxel of one surface to the nearest voxel of another."""
    import edt

    if not here.any() or not there.any():
        return np.full(int(here.sum()), np.inf, np.float32)
    to_nearest = edt.edt(~there, anisotropy=tuple(spacing), black_border=False)
    return to_nearest[here]


def _surface(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Voxels of the mask with a face neighbour outside it; beyond the array is outside."""
    if mask.size == 0:
        return mask
    inner = mask.copy()
    for axis in range(mask.ndim):
        lower = (slice(None),) * axis + (slice(1, None),)
        upper = (slice(None),) * axis + (slice(None, -1),)
        inner[lower] &= mask[upper]
        inner[upper] &= mask[lower]
        for side in (0, -1):
            inner[(slice(None),) * axis + (side,)] = False
    return mask & ~inner


def _box_around(mask: NDArray[np.bool_]) -> tuple[slice, ...]:
    """The smallest box that holds every voxel of the mask."""
    box = []
    for axis in range(mask.ndim):
        others = tuple(other for other in range(mask.ndim) if other != axis)
        where = np.flatnonzero(mask.any(axis=others))
        box.append(slice(where[0], where[-1] + 1) if where.size else slice(0, 0))
    return tuple(box)
