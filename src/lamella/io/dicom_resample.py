"""Slices that make no even grid, brought onto one by linear interpolation.

Uneven spacing and missing slices: each plane of the even grid is blended from its two neighbours.
Gantry tilt: each slice is first shifted sideways to where it lies, so that the grid stands at right
angles. Only the region asked for is computed.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamella.io.dicom_geometry import Stack
from lamella.volume import Affine, FunctionArray
from lamella.volume.source import LazyArray

__all__ = ["resampled"]


@dataclass(frozen=True, slots=True)
class _Plan:
    """Where source slices lie in the even grid.

    Args:
        depths: height of each source slice, in target planes, ascending.
        shifts: place of each source slice's first pixel in the target plane, pixels, (y, x).
        shape: target extent (z, y, x).
        fill: value where no slice reaches.
    """

    depths: NDArray[np.float64]
    shifts: NDArray[np.float64]
    shape: tuple[int, int, int]
    fill: float


def resampled(source: LazyArray, stack: Stack, *, fill: float) -> tuple[FunctionArray, Affine]:
    """Slices on an even, right-angled grid.

    Args:
        source: slices in the order of the stack, (extra axes …, z, y, x).
        stack: where they lie; its affine has the spacing of the even grid.
        fill: value where no slice reaches (corners of a tilted stack).

    Returns:
        Lazy values of the same type (integers rounded) and their geometry.
    """
    spacing_z, spacing_y, spacing_x = stack.affine.spacing
    pixels = stack.shifts / np.array([spacing_y, spacing_x])
    start = np.floor(pixels.min(axis=0) + 1e-6)
    extra = np.ceil((pixels - start).max(axis=0) - 1e-6).astype(int)
    n_planes = math.floor(stack.heights[-1] / spacing_z + 1e-6) + 1
    plan = _Plan(
        stack.heights / spacing_z,
        pixels - start,
        (n_planes, source.shape[-2] + int(extra[0]), source.shape[-1] + int(extra[1])),
        fill,
    )
    leading = source.shape[:-3]

    def read(slices: tuple[slice, ...]) -> NDArray[Any]:
        fixed, (z, y, x) = slices[:-3], slices[-3:]
        planes = [_plane(source, plan, fixed, at, y, x) for at in range(z.start, z.stop)]
        values = np.stack(planes, axis=-3)
        if source.dtype.kind in "iu":
            values = np.rint(values)
        return values.astype(source.dtype)

    origin = stack.affine.apply((0.0, float(start[0]), float(start[1])))
    affine = Affine(
        stack.affine.spacing,
        tuple(float(value) for value in origin),
        stack.affine.direction,
        stack.affine.frame,
    )
    return FunctionArray((*leading, *plan.shape), source.dtype, read), affine


def _plane(
    source: LazyArray,
    plan: _Plan,
    fixed: tuple[slice, ...],
    at: int,
    y: slice,
    x: slice,
) -> NDArray[np.float64]:
    """Part of one target plane, blended from the slices below and above, float64."""
    above = int(np.searchsorted(plan.depths, at - 1e-6))
    above = min(above, len(plan.depths) - 1)
    below = max(above - 1, 0) if plan.depths[above] > at + 1e-6 else above
    upper = _shifted(source, plan, (*fixed, slice(above, above + 1)), y, x)
    if below == above:
        return upper
    weight = (at - plan.depths[below]) / (plan.depths[above] - plan.depths[below])
    lower = _shifted(source, plan, (*fixed, slice(below, below + 1)), y, x)
    return lower * (1.0 - weight) + upper * weight


def _shifted(
    source: LazyArray, plan: _Plan, chosen: tuple[slice, ...], y: slice, x: slice
) -> NDArray[np.float64]:
    """One source slice where it lies in the target plane, linear between pixels."""
    slab = np.asarray(source[(*chosen, slice(None), slice(None))], dtype=np.float64)
    values = slab.reshape(*slab.shape[:-3], *slab.shape[-2:])
    shift = plan.shifts[chosen[-1].start]
    for axis, region, offset in ((-2, y, shift[0]), (-1, x, shift[1])):
        values = _along(values, axis, np.arange(region.start, region.stop) - offset, plan.fill)
    return values


def _along(
    values: NDArray[np.float64], axis: int, places: NDArray[np.float64], fill: float
) -> NDArray[np.float64]:
    """Values at fractional places along an axis; ``fill`` beyond the ends."""
    length = values.shape[axis]
    places = np.where(np.abs(places - np.rint(places)) < 1e-6, np.rint(places), places)
    inside = (places >= 0) & (places <= length - 1)
    first = np.clip(np.floor(places).astype(int), 0, length - 1)
    second = np.minimum(first + 1, length - 1)
    weight = np.clip(places - first, 0.0, 1.0)
    shape = [1] * values.ndim
    shape[axis] = len(places)
    weight = weight.reshape(shape)
    blended = values.take(first, axis) * (1.0 - weight) + values.take(second, axis) * weight
    return np.where(inside.reshape(shape), blended, fill)
