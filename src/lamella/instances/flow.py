"""Flows: every voxel points towards the middle of its object, and is followed there.

A network gives a foreground and a vector per voxel (Stringer et al. 2021, Cellpose,
doi:10.1038/s41592-020-01018-x, in 3-D). Objects are where the voxels arrive: all that end at the
same summit are one object. Targets come from heat that spreads from the middle of an object
through the object alone, so the vectors lead around corners and never through the background.

Examples:
    >>> labels = np.zeros((1, 12, 26), np.uint32)
    >>> labels[0, 2:10, 2:12], labels[0, 2:10, 12:23] = 1, 2
    >>> flows = flow_targets(labels)
    >>> found = flow_instances(labels > 0, flows)
    >>> flows.shape, bool((found == labels).all())
    ((3, 1, 12, 26), True)
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lamella.core.errors import InputError
from lamella.instances.clean import relabel_sequential, remove_small

__all__ = ["FlowOptions", "flow_instances", "flow_targets"]

_STILL = 0.02
"""Vectors shorter than this are the noise of their storage."""


@dataclass(frozen=True, slots=True)
class FlowOptions:
    """How flows become objects.

    Attributes:
        foreground_threshold: probability from which a voxel is foreground (a mask ignores it).
        n_steps: steps of at most one voxel; more than the largest radius of an object.
        min_votes: voxels that must arrive at a summit for it to be an object.
        min_size: smaller objects are dropped, in voxels.
    """

    foreground_threshold: float = 0.5
    n_steps: int = 200
    min_votes: int = 1
    min_size: int = 0

    def __post_init__(self) -> None:
        for name in ("n_steps", "min_votes"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}, expected 1 or more")


def flow_targets(labels: NDArray[Any]) -> NDArray[np.float32]:
    """What a network is to learn: unit vectors along which heat rises to an object's middle.

    The middle is the voxel of the object that is nearest to its median; heat spreads from it for
    as many steps as the object is long along all its axes together, twice over.

    Args:
        labels: integers, (z, y, x) or (y, x); 0 is background, a label is one object.

    Returns:
        float32, (3, z, y, x) or (2, y, x): vectors of length 1 in objects, 0 outside and in the
        middle.
    """
    from scipy.ndimage import find_objects

    from lamella.instances.flow_kernels import diffuse

    _check_axes(labels.ndim)
    volume = labels.reshape((1,) * (3 - labels.ndim) + labels.shape)
    compact = _compact(volume)
    result = np.zeros((3, *volume.shape), np.float32)
    for number, box in enumerate(find_objects(compact), start=1):
        if box is None:
            continue
        inside = np.pad(compact[box] == number, 1)
        center = _middle(inside)
        heat = diffuse(inside, center, 2 * sum(inside.shape))
        vectors = _uphill(np.log1p(heat * 1e6), inside)
        part = result[:, *box]
        part[:, inside[1:-1, 1:-1, 1:-1]] = vectors[:, inside]
    return result[3 - labels.ndim :].reshape(labels.ndim, *labels.shape)


def flow_instances(
    foreground: NDArray[Any], flows: NDArray[Any], *, options: FlowOptions | None = None
) -> NDArray[np.uint32]:
    """Objects from flows.

    Args:
        foreground: mask (bool) or probability (floating), (z, y, x) or (y, x).
        flows: voxels a step, floating, (3, z, y, x) or (2, y, x); longer than 1 is cut to 1.
        options: steps and thresholds.

    Returns:
        uint32 labels; 0 is background, objects are numbered 1..n by their first voxel in scan
        order.

    Raises:
        InputError: when the shapes do not fit together.
    """
    from lamella.instances.flow_kernels import climb, follow

    options = options or FlowOptions()
    _check_axes(foreground.ndim)
    if flows.shape != (foreground.ndim, *foreground.shape):
        raise InputError(
            f"flows have shape {flows.shape}, expected {(foreground.ndim, *foreground.shape)}:"
            " one component per axis"
        )
    inside = foreground
    if foreground.dtype != np.bool_:
        inside = foreground >= options.foreground_threshold
    shape = (1,) * (3 - inside.ndim) + inside.shape
    inside = inside.reshape(shape)
    field = np.zeros((3, *shape), np.float32)
    field[3 - foreground.ndim :] = flows.reshape(foreground.ndim, *shape)
    length = np.sqrt((field**2).sum(axis=0))
    field /= np.maximum(length, 1.0)
    field[:, (length < _STILL) | ~inside] = 0.0
    at = np.argwhere(inside)
    points = at.astype(np.float32)
    follow(points, field, options.n_steps)
    end = np.rint(points).astype(np.int64)
    flat = np.ravel_multi_index(tuple(end.T), shape)
    votes = np.bincount(flat, minlength=inside.size).reshape(shape)
    arrived, which = np.unique(flat, return_inverse=True)
    summit = climb(votes, arrived)[which]
    numbers, ids, counts = np.unique(summit, return_inverse=True, return_counts=True)
    del numbers
    labels = np.zeros(shape, np.uint32)
    labels[inside] = np.where(counts[ids] >= options.min_votes, ids + 1, 0)
    if options.min_size > 1:
        labels = remove_small(labels, options.min_size)
    numbered = relabel_sequential(labels, order="scan")
    return numbered.astype(np.uint32, copy=False).reshape(foreground.shape)


def _compact(volume: NDArray[Any]) -> NDArray[Any]:
    """Ids no larger than there are voxels; 0 stays 0."""
    if volume.size and int(volume.min()) >= 0 and int(volume.max()) <= volume.size:
        # Sorting all voxels would take longer than all the rest.
        return volume.astype(np.int32, copy=False) if volume.size < 2**31 else volume
    ids, compact = np.unique(volume, return_inverse=True)
    starts_at_zero = bool(ids.size) and ids[0] == 0
    return compact.reshape(volume.shape) + (0 if starts_at_zero else 1)


def _middle(inside: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The voxel nearest to the median of the object's voxels; the first of equals."""
    at = np.argwhere(inside)
    distance = ((at - np.median(at, axis=0)) ** 2).sum(axis=1)
    return at[int(distance.argmin())]


def _uphill(height: NDArray[np.float64], inside: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Unit vectors along the gradient; differences reach into the object only."""
    result = np.zeros((3, *height.shape))
    for axis in range(3):
        total = np.zeros(height.shape)
        for step in (-1, 1):
            neighbour = np.roll(height, -step, axis)
            is_there = np.roll(inside, -step, axis) & inside
            total += np.where(is_there, step * (neighbour - height), 0.0)
        result[axis] = total
    length = np.sqrt((result**2).sum(axis=0))
    return (result / np.maximum(length, 1e-12)).astype(np.float32)


def _check_axes(n: int) -> None:
    if n not in (2, 3):
        raise InputError(f"{n} axes were given, expected (y, x) or (z, y, x)")
