"""Distance-transform watershed: from foreground (and boundaries) to objects, in physical units.

Touching objects are told apart by their shape (the distance to the background has one summit per
object) or by a boundary class that a network draws between them. All lengths are in the unit of the
spacing, so an anisotropic grid gives the same objects as an isotropic one; the result depends on
the input alone, not on threads or on memory.

This is also the decoder of networks with a foreground and a boundary output::

    watershed_instances(p_inside + p_boundary, p_boundary, spacing=(0.5, 0.5), options=options)

Examples:
    >>> import numpy as np
    >>> y, x = np.mgrid[:21, :40]
    >>> two_discs = ((y - 10) ** 2 + (x - 11) ** 2 < 81) | ((y - 10) ** 2 + (x - 26) ** 2 < 81)
    >>> int(watershed_instances(two_discs, spacing=(1.0, 1.0)).max())
    2
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamella.core.errors import InputError
from lamella.instances.components import label_components

__all__ = ["WatershedOptions", "watershed_instances"]

# Levels of the landscape: fine enough that a step is 1/65535 of the largest object's radius.
_LEVELS = 65_535


@dataclass(frozen=True, slots=True)
class WatershedOptions:
    """What counts as an object of its own.

    Attributes:
        foreground_threshold: probability from which a voxel is foreground (a mask ignores it).
        boundary_threshold: probability from which a voxel separates objects.
        min_seed_distance: seeds nearer than this are one object, in the unit of the spacing. With
            a boundary, None makes every piece of foreground between boundaries one seed.
        min_seed_depth: how far a summit of the distance map must rise above the pass to a higher
            one, in the unit of the spacing; None = half the coarsest spacing, which removes the
            summits that are artefacts of the grid.
        min_size: smaller objects are dropped, in voxels.
    """

    foreground_threshold: float = 0.5
    boundary_threshold: float = 0.5
    min_seed_distance: float | None = None
    min_seed_depth: float | None = None
    min_size: int = 0

    def __post_init__(self) -> None:
        for name in ("min_seed_distance", "min_seed_depth", "min_size"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise InputError(f"{name} is {value}, expected 0 or more")


def watershed_instances(
    foreground: NDArray[Any],
    boundary: NDArray[Any] | None = None,
    *,
    spacing: Sequence[float],
    options: WatershedOptions | None = None,
) -> NDArray[np.uint32]:
    """Split foreground into objects.

    Seeds are the summits of the distance to the nearest background (or boundary) voxel; they grow
    over the foreground along that distance, or along the boundary probability where one is given.
    A piece of foreground that has no seed is an object of its own: nothing is lost in silence.

    Args:
        foreground: mask (bool) or probability (floating), (z, y, x) or (y, x).
        boundary: probability that a voxel lies between objects, same shape, or None.
        spacing: centre-to-centre distance per axis, in the order of the array.
        options: thresholds and lengths; default :class:`WatershedOptions`.

    Returns:
        uint32 labels of the same shape; 0 is background, objects are numbered 1..n by their first
        voxel in scan order.

    Raises:
        InputError: when shapes, axes or dtypes do not fit together.

    References:
        Meyer (1994), doi:10.1016/0165-1684(94)90060-4.
    """
    options = options or WatershedOptions()
    _check(foreground, boundary, spacing)
    inside = _as_mask(foreground, options.foreground_threshold)
    if inside.ndim == 2:
        flat_boundary = None if boundary is None else boundary[None]
        flat_spacing = (max(spacing), *spacing)
        return _watershed(inside[None], flat_boundary, flat_spacing, options)[0]
    return _watershed(inside, boundary, tuple(spacing), options)


def _watershed(
    inside: NDArray[np.bool_],
    boundary: NDArray[Any] | None,
    spacing: tuple[float, ...],
    options: WatershedOptions,
) -> NDArray[np.uint32]:
    """Three-dimensional core of :func:`watershed_instances`."""
    if not inside.any():
        return np.zeros(inside.shape, np.uint32)
    from lamella.instances.flood import flood

    core = inside if boundary is None else inside & ~(boundary >= options.boundary_threshold)
    if boundary is not None and options.min_seed_distance is None:
        labels = label_components(core, connectivity=6).labels.astype(np.uint32)
        rank = _quantise(boundary, 1.0)
    else:
        distance = _distance_to_outside(core, spacing)
        labels = _seeds(core, distance, spacing, options)
        rank = (
            _quantise(boundary, 1.0)
            if boundary is not None
            else _LEVELS - _quantise(distance, float(distance.max()))
        )
    _seed_the_seedless(labels, inside)
    flood(labels, inside, rank, _LEVELS + 1)
    return _number_by_first_voxel(labels, options.min_size)


def _seeds(
    core: NDArray[np.bool_],
    distance: NDArray[np.float32],
    spacing: tuple[float, ...],
    options: WatershedOptions,
) -> NDArray[np.uint32]:
    """One voxel per summit that is deep and far enough from better ones, numbered best first."""
    from lamella.instances.flood import deep_maxima, thin_by_distance

    depth = options.min_seed_depth
    if depth is None:
        depth = 0.5 * max(spacing)
    top = float(distance.max())
    level = _quantise(distance, top)
    # Sorting 16-bit integers is a radix sort: linear, and stable, so ties stay in scan order.
    where = np.flatnonzero(core)
    order = where[np.argsort(_LEVELS - level.ravel()[where], kind="stable")]
    peaks = deep_maxima(level, order, depth / top * _LEVELS if top > 0 else 0.0)
    if options.min_seed_distance:
        shape = tuple(int(n) for n in core.shape)
        peaks = thin_by_distance(
            peaks, shape, np.asarray(spacing, float), options.min_seed_distance
        )
    labels = np.zeros(core.shape, np.uint32)
    labels.ravel()[peaks] = np.arange(1, len(peaks) + 1, dtype=np.uint32)
    return labels


def _seed_the_seedless(labels: NDArray[np.uint32], inside: NDArray[np.bool_]) -> None:
    """Give every face-connected piece of foreground without a seed its first voxel as seed."""
    pieces = label_components(inside, connectivity=6)
    has_seed = np.zeros(pieces.count + 1, bool)
    has_seed[pieces.labels[labels > 0]] = True
    has_seed[0] = True
    if has_seed.all():
        return
    lonely = np.flatnonzero(~has_seed[pieces.labels].ravel())
    _, first = np.unique(pieces.labels.ravel()[lonely], return_index=True)
    start = int(labels.max()) + 1
    labels.ravel()[lonely[first]] = np.arange(start, start + len(first), dtype=np.uint32)


def _distance_to_outside(
    core: NDArray[np.bool_], spacing: tuple[float, ...]
) -> NDArray[np.float32]:
    """float32 distance to the nearest voxel outside ``core``; the volume's border is no outside."""
    import edt

    if core.all():
        return np.ones(core.shape, np.float32)
    return edt.edt(np.ascontiguousarray(core), anisotropy=spacing, black_border=False)


def _quantise(values: NDArray[Any], top: float) -> NDArray[np.uint16]:
    """Values 0..top as uint16 levels."""
    scale = _LEVELS / top if top > 0 else 0.0
    scaled = np.clip(values.astype(np.float32, copy=False) * np.float32(scale), 0, _LEVELS)
    return scaled.astype(np.uint16)


def _number_by_first_voxel(labels: NDArray[np.uint32], min_size: int) -> NDArray[np.uint32]:
    """Drop what is small and number the rest by its first voxel in scan order."""
    from lamella.instances.clean import relabel_sequential, remove_small

    if min_size > 1:
        labels = remove_small(labels, min_size)
    return relabel_sequential(labels, order="scan").astype(np.uint32, copy=False)


def _as_mask(foreground: NDArray[Any], threshold: float) -> NDArray[np.bool_]:
    if foreground.dtype == np.bool_:
        return np.ascontiguousarray(foreground)
    if np.issubdtype(foreground.dtype, np.floating):
        return np.ascontiguousarray(foreground >= threshold)
    raise InputError(
        f"foreground has dtype {foreground.dtype}, expected a mask (bool) or probabilities (float)",
        hint="for labels write `labels > 0`, or use label_components",
    )


def _check(
    foreground: NDArray[Any], boundary: NDArray[Any] | None, spacing: Sequence[float]
) -> None:
    if foreground.ndim not in (2, 3):
        raise InputError(f"foreground has {foreground.ndim} axes, expected (y, x) or (z, y, x)")
    if len(spacing) != foreground.ndim:
        raise InputError(
            f"spacing has {len(spacing)} values for an array with {foreground.ndim} axes"
        )
    if boundary is not None and boundary.shape != foreground.shape:
        raise InputError(
            f"boundary has shape {boundary.shape}, foreground has {foreground.shape}",
            hint="both must come from the same grid",
        )
