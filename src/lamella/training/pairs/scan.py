"""Where the classes of a data set are: how many voxels of each, and some of their places.

Labels are looked at slab by slab, once, when they are first needed. Volumes of more than
:data:`MAX_VOXELS` are looked at in blocks at fixed places, so that the first patch does not wait
for a day; then a class that is rarer than the blocks can show counts as absent.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lamella.volume.box import Box

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lamella.training.pairs.store import PairStore

__all__ = ["MAX_POINTS", "MAX_VOXELS", "Scan", "scan_labels"]

MAX_POINTS = 2048
"""Places that are kept of each class."""
MAX_VOXELS = 1 << 28
_BLOCK = 128
_N_BLOCKS = 96
_SLAB_VOXELS = 1 << 22


@dataclass(frozen=True, slots=True, eq=False)
class Scan:
    """What a look at labels found.

    Attributes:
        counts: valid voxels of each class (or of objects).
        points: int32 (n, 3) places (z, y, x) of each class, at most :data:`MAX_POINTS`.
        known: int32 (n, 3) valid places; None where all are valid.
        n_valid: valid voxels.
        n_voxels: voxels that were looked at.
    """

    counts: tuple[int, ...]
    points: tuple[NDArray[np.int32], ...]
    known: NDArray[np.int32] | None
    n_valid: int
    n_voxels: int

    @property
    def n_bytes(self) -> int:
        """Memory of the places."""
        arrays = [*self.points, *([] if self.known is None else [self.known])]
        return sum(array.nbytes for array in arrays)


def scan_labels(store: PairStore, number: int, region: Box) -> Scan:
    """Look at the labels of a pair.

    Args:
        store: reads them.
        number: of the pair.
        region: part of it, (z, y, x).

    Raises:
        LamellaError: when they cannot be read or hold values that nothing names.
    """
    codec = store.codec
    n_classes = len(codec.balanced)
    # Same places every time and in every process: keys come from the region alone.
    rng = np.random.default_rng([*region.start, *region.stop])
    kept = [_Kept(rng) for _ in range(n_classes)]
    known = _Kept(rng)
    n_valid = n_voxels = 0
    has_invalid = False
    may_hide = codec.may_hide or bool(store.pairs[number].mask)
    for box in _boxes(region):
        labels, valid = store.labels(number, box)
        n_voxels += box.size
        anywhere = None if valid is None else np.asarray(valid.any(axis=0))
        n_valid += box.size if anywhere is None else int(np.count_nonzero(anywhere))
        has_invalid |= anywhere is not None and not bool(anywhere.all())
        if may_hide:
            known.add(np.ones(box.shape, bool) if anywhere is None else anywhere, box)
        for index in range(n_classes):
            kept[index].add(_of_class(codec.kind, labels, valid, index), box)
    return Scan(
        counts=tuple(one.count for one in kept),
        points=tuple(one.points for one in kept),
        known=known.points if has_invalid else None,
        n_valid=n_valid,
        n_voxels=n_voxels,
    )


def _of_class(
    kind: str, labels: NDArray[Any], valid: NDArray[np.bool_] | None, index: int
) -> NDArray[np.bool_]:
    """Valid voxels of a class, (z, y, x)."""
    if kind == "channels":
        found = labels[index] != 0
        return found if valid is None else found & valid[index]
    found = labels[0] != 0 if kind == "ids" else labels[0] == index + 1
    return found if valid is None else found & valid[0]


class _Kept:
    """A sample of places, each as likely as any other: those with the smallest random keys."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._keys = np.empty(0, np.float64)
        self.points = np.empty((0, 3), np.int32)
        self.count = 0

    def add(self, found: NDArray[np.bool_], box: Box) -> None:
        flat = np.flatnonzero(found)
        self.count += len(flat)
        if len(flat) == 0:
            return
        keys = self._rng.random(len(flat))
        if len(flat) > MAX_POINTS:
            chosen = np.argpartition(keys, MAX_POINTS)[:MAX_POINTS]
            chosen.sort()
            flat, keys = flat[chosen], keys[chosen]
        places = np.stack(np.unravel_index(flat, box.shape), axis=1) + np.array(box.start)
        keys = np.concatenate([self._keys, keys])
        points = np.concatenate([self.points, places.astype(np.int32)])
        if len(keys) > MAX_POINTS:
            chosen = np.argpartition(keys, MAX_POINTS)[:MAX_POINTS]
            chosen.sort()
            keys, points = keys[chosen], points[chosen]
        self._keys, self.points = keys, points


def _boxes(region: Box) -> Iterator[Box]:
    """The region in slabs; in blocks at fixed places where it is too large."""
    depth, height, width = region.shape
    if region.size <= MAX_VOXELS:
        step = max(1, _SLAB_VOXELS // max(1, height * width))
        for z in range(0, depth, step):
            stop = min(depth, z + step)
            yield Box((z, 0, 0), (stop, height, width)).shift(region.start)
        return
    shape = tuple(min(_BLOCK, n) for n in region.shape)
    grid = [range(0, n, b) for n, b in zip(region.shape, shape, strict=True)]
    total = len(grid[0]) * len(grid[1]) * len(grid[2])
    rng = np.random.default_rng(0)
    for flat in np.sort(rng.choice(total, min(_N_BLOCKS, total), replace=False)):
        at = np.unravel_index(int(flat), tuple(len(axis) for axis in grid))
        start = tuple(int(axis[i]) for axis, i in zip(grid, at, strict=True))
        stop = tuple(min(a + b, n) for a, b, n in zip(start, shape, region.shape, strict=True))
        yield Box(start, stop).shift(region.start)
