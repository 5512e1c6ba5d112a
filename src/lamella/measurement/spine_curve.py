"""The curve of the spine through vertebrae, found from their places alone.

Levels are the question, so they cannot be the answer: the order along the spine is the shortest
path through the centroids, whatever they are called. Height alone would do for a straight spine,
but not for a scoliosis or a patient who lies curled up::

        o            o
         o          o        the path follows the bend,
          o   not    o       where sorting by z would jump
         o          o   o    between its two sides
        o            o o
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["arc_positions", "order_along", "spine_samples"]

_CLEARLY_UPRIGHT = 0.35
"""Share of the path's extent that must run along the body for its upper end to be known."""


def order_along(points: ArrayLike, hints: Sequence[float] | None = None) -> NDArray[np.intp]:
    """The order of points along the spine, from the head down.

    Args:
        points: centroids, (n, 3), mm, RAS in the order (z, y, x): z runs to the head.
        hints: a number that mostly grows from the head down (the level as it was labelled), for
            spines that lie across the body.

    Returns:
        Indices into ``points``.
    """
    places = np.asarray(points, dtype=np.float64)
    n = len(places)
    if n < 2:
        return np.arange(n, dtype=np.intp)
    path = _shortest_path(places)
    ordered = places[path]
    extent = float(np.ptp(ordered, axis=0).max())
    rise = float(ordered[0, 0] - ordered[-1, 0])
    if abs(rise) >= _CLEARLY_UPRIGHT * extent or hints is None:
        return path if rise >= 0 else path[::-1].copy()
    trend = np.corrcoef(np.arange(n), np.asarray(hints, float)[path])[0, 1]
    return path if not trend < 0 else path[::-1].copy()


def arc_positions(ordered: ArrayLike) -> NDArray[np.float64]:
    """Distance along the spine's curve of points in their order, mm, from the first.

    Args:
        ordered: centroids along the spine, (n, 3), mm.
    """
    places = np.asarray(ordered, dtype=np.float64)
    if len(places) < 3:
        steps = np.linalg.norm(np.diff(places, axis=0), axis=1)
        return np.concatenate([[0.0], np.cumsum(steps)])[: len(places)]
    curve, at = _curve(places)
    fine = np.linspace(0, at[-1], 32 * len(places))
    fine = np.unique(np.concatenate([fine, at]))
    samples = curve(fine)
    along = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(samples, axis=0), axis=1))])
    return along[np.searchsorted(fine, at)]


def spine_samples(ordered: ArrayLike, n: int = 200) -> NDArray[np.float64]:
    """Points on the curve through ordered centroids, (n, 3), mm; a single point is repeated."""
    places = np.asarray(ordered, dtype=np.float64)
    if len(places) < 3:
        share = np.linspace(0, 1, n)[:, None]
        return places[0] * (1 - share) + places[-1] * share
    curve, at = _curve(places)
    return np.asarray(curve(np.linspace(0, at[-1], n)))


def _curve(places: NDArray[np.float64]) -> tuple[Any, NDArray[np.float64]]:
    """A shape-keeping cubic through points, and where on it they lie.

    Source: centripetal parametrisation (Lee 1989), monotone cubic pieces (Fritsch & Butland 1984):
    neither overshoots between points at uneven distances.
    """
    from scipy.interpolate import PchipInterpolator

    steps = np.sqrt(np.linalg.norm(np.diff(places, axis=0), axis=1))
    at = np.concatenate([[0.0], np.cumsum(np.maximum(steps, 1e-6))])
    return PchipInterpolator(at, places), at


def _shortest_path(places: NDArray[np.float64]) -> NDArray[np.intp]:
    """A short open path through all points: by the longest extent, then improved.

    Source: 2-opt and or-opt moves (Croes 1958, Or 1976) until none shortens the path; vertebrae
    are few and lie nearly in order from the start.
    """
    centred = places - places.mean(axis=0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    path = [int(k) for k in np.argsort(centred @ axes[0], kind="stable")]
    far = np.linalg.norm(places[:, None] - places[None], axis=2)
    for _ in range(len(path) ** 2):
        better = _improved(path, far)
        if better is None:
            break
        path = better
    return np.array(path, dtype=np.intp)


def _improved(path: list[int], far: NDArray[np.float64]) -> list[int] | None:
    """A path that is shorter by one move, or None."""
    length = _length(path, far)
    n = len(path)
    for i in range(n - 1):
        for j in range(i + 1, n):
            turned = path[:i] + path[i : j + 1][::-1] + path[j + 1 :]
            if _length(turned, far) < length - 1e-9:
                return turned
    for i in range(n):
        rest = path[:i] + path[i + 1 :]
        for j in range(n):
            moved = [*rest[:j], path[i], *rest[j:]]
            if _length(moved, far) < length - 1e-9:
                return moved
    return None


def _length(path: list[int], far: NDArray[np.float64]) -> float:
    return float(far[path[:-1], path[1:]].sum())
