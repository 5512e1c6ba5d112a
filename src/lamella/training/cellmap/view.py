r"""A crop on the voxels of a network: which raw level, which part of it was fetched, what it shows.

The voxels of a network fill the raw data from their lower border on, edge to edge, which is how a
whole volume is resampled at inference; a crop is a box of them::

    raw data   |----|----|----|----|----|----|----|----|   level nearest by nm that was fetched
    network    |------|------|------|------|------|---...
    crop               [.................]                 voxels whose centres lie in the labels
    reach          [.........................]             with context, as far as it was fetched
"""

from __future__ import annotations

import itertools
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lamella.training.cellmap.grid import TOLERATED_RATIO, Grid, choose_level
from lamella.training.cellmap.regrid import intensity_taps, read_block, take_intensities
from lamella.volume.box import Box

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from lamella.training.cellmap.grid import Triple
    from lamella.training.cellmap.regrid import AxisTaps
    from lamella.training.cellmap.tree import Level, Tree
    from lamella.volume.source import LazyArray

__all__ = ["Chunks", "CropView", "find_view", "text_nm"]

_HAIR = 1e-3
"""Share of a voxel by which a crop's border may miss that of a voxel."""
_N_THREADS = 16


class Chunks:
    """Which chunks of arrays were fetched; each is asked for once.

    Args:
        tree: where they lie.
        assumes_all: take all for fetched without looking, as in a bucket that holds everything.
    """

    def __init__(self, tree: Tree, *, assumes_all: bool = False) -> None:
        self._tree = tree
        self._assumes_all = assumes_all
        self._known: dict[str, bool] = {}
        self._separators: dict[str, str] = {}

    def missing(self, level: Level, box: Box) -> frozenset[tuple[int, int, int]]:
        """Chunks that a box of voxels touches and that were not fetched."""
        if self._assumes_all:
            return frozenset()
        touched = [(z, y, x) for z, y, x in itertools.product(*_ranges(level, box))]
        if self._tree.is_remote:
            with ThreadPoolExecutor(_N_THREADS) as pool:
                there = list(pool.map(lambda index: self._is_there(level, index), touched))
        else:
            there = [self._is_there(level, index) for index in touched]
        return frozenset(i for i, is_there in zip(touched, there, strict=True) if not is_there)

    @staticmethod
    def count(level: Level, box: Box) -> int:
        """How many chunks a box of voxels touches."""
        return math.prod(len(along) for along in _ranges(level, box))

    def _is_there(self, level: Level, index: tuple[int, ...]) -> bool:
        separator = self._separators.get(level.path)
        if separator is None:
            document = self._tree.document(f"{level.path}/.zarray") or {}
            separator = self._separators[level.path] = document.get("dimension_separator", ".")
        path = f"{level.path}/{separator.join(map(str, index))}"
        if path not in self._known:
            self._known[path] = self._tree.has(path)
        return self._known[path]


def _ranges(level: Level, box: Box) -> list[range]:
    """Chunks that a box touches, along each axis."""
    return [
        range(max(0, a) // c, -(-min(b, n) // c))
        for a, b, c, n in zip(box.start, box.stop, level.chunks, level.grid.shape, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class CropView:
    """A crop on the voxels of a network.

    Attributes:
        raw: level that is read.
        grid: voxels of the network that fill the raw data.
        crop: voxels whose centres lie in the crop, in voxels of ``grid``.
        reach: the crop and what around it may be shown; contains ``crop``.
        missing: chunks of ``raw`` that the crop touches and that were not fetched.
        n_chunks: chunks of ``raw`` that the crop touches.
        worst_ratio: how far the raw voxels are from the network's, of the worst axis.
    """

    raw: Level
    grid: Grid
    crop: Box
    reach: Box
    missing: frozenset[tuple[int, int, int]]
    n_chunks: int
    worst_ratio: float

    def grid_of(self, box: Box) -> Grid:
        """The part of the grid that a box covers."""
        z, y, x = box.shape
        return Grid((z, y, x), self.grid.spacing, self.grid.world_of(box.start))

    def read(
        self, array: LazyArray, box: Box
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_] | None]:
        """Raw intensities of a box, and where they were fetched.

        Args:
            array: voxels of ``raw``.
            box: in voxels of ``grid``, inside it.

        Returns:
            Float32, (z, y, x), and bool of the same shape, None where all was fetched. What was
            not fetched is the mean of what was.

        Raises:
            UnreadableFileError: a chunk that cannot be decoded.
        """
        target = self.grid_of(box)
        taps = [intensity_taps(axis, self.raw.grid, target) for axis in range(3)]
        block = read_block(array, taps, path=self.raw.path)
        known = self._known(taps) if self.missing else None
        if known is None or known.all():
            return take_intensities(block, taps), None
        filled = block.astype(np.float32)
        filled[~known] = filled[known].mean() if known.any() else 0.0
        # Known where everything that a voxel is made of is.
        share = take_intensities(known.astype(np.float32), taps)
        return take_intensities(filled, taps), share > 1 - 1e-4

    def complaints(self, path: str, told: set[str]) -> list[str]:
        """What a person should hear of a crop.

        Args:
            path: of the crop.
            told: raw levels that were complained of already; those of now are added.
        """
        said = []
        if self.missing:
            said.append(
                f"{path}: {len(self.missing)} of {self.n_chunks} chunks of {self.raw.path} were not"
                " fetched; nothing is learnt there"
            )
        if self.worst_ratio > TOLERATED_RATIO and self.raw.path not in told:
            told.add(self.raw.path)
            said.append(
                f"{self.raw.path} ({text_nm(self.raw.grid.spacing)}) is the nearest level to"
                f" {text_nm(self.grid.spacing)}; it is resampled by up to {self.worst_ratio:.3g}"
            )
        return said

    def are_fetched(self, points: NDArray[np.integer]) -> NDArray[np.bool_]:
        """Whether the stored voxels nearest to voxels of ``grid``, (n, 3), were fetched."""
        if not self.missing:
            return np.ones(len(points), bool)
        world = points * np.array(self.grid.spacing) + np.array(self.grid.origin)
        index = (world - np.array(self.raw.grid.origin)) / np.array(self.raw.grid.spacing)
        chunks = np.rint(index).astype(np.int64) // np.array(self.raw.chunks)
        return np.array([tuple(chunk) not in self.missing for chunk in chunks.tolist()], bool)

    def _known(self, taps: Sequence[AxisTaps]) -> NDArray[np.bool_] | None:
        """Which stored voxels that taps need were fetched; None for all."""
        known: NDArray[np.bool_] | None = None
        starts = [along.start for along in taps]
        shape = tuple(along.stop - along.start for along in taps)
        for chunk in self.missing:
            edges = [
                (max(0, i * c - a), min(n, (i + 1) * c - a))
                for i, c, a, n in zip(chunk, self.raw.chunks, starts, shape, strict=True)
            ]
            if all(low < high for low, high in edges):
                if known is None:
                    known = np.ones(shape, bool)
                known[tuple(slice(low, high) for low, high in edges)] = False
        return known


def find_view(
    levels: Sequence[Level],
    extent: Grid,
    spacing: Triple,
    *,
    chunks: Chunks,
    context_nm: Triple = (0.0, 0.0, 0.0),
) -> CropView | None:
    """Look at a crop with voxels of a spacing.

    Of the raw levels the nearest by spacing is read all of whose chunks under the crop were
    fetched; where there is none, the one of which most were.

    Args:
        levels: of the raw data.
        extent: grid of the crop's labels.
        spacing: of the network's voxels, nm.
        chunks: tells which were fetched.
        context_nm: how far beyond the crop may be looked, nm, (z, y, x).

    Returns:
        The view; None where the crop lies outside of the raw data, or is thinner than a voxel.
    """
    best: CropView | None = None
    rest = list(levels)
    while rest:
        choice = choose_level([level.grid.spacing for level in rest], spacing)
        level = rest.pop(choice.index)
        view = _view(level, extent, spacing, chunks, choice.worst)
        if view is None:
            continue
        if best is None or _share(view) < _share(best):
            best = view
        if not view.missing:
            break
    if best is None:
        return None
    return _with_context(best, chunks, context_nm)


def _share(view: CropView) -> float:
    return len(view.missing) / max(1, view.n_chunks)


def _view(
    level: Level, extent: Grid, spacing: Triple, chunks: Chunks, worst_ratio: float
) -> CropView | None:
    raw = level.grid
    shape: list[int] = []
    for axis in range(3):
        length = (raw.high[axis] - raw.low[axis]) / spacing[axis]
        shape.append(max(1, math.floor(length + _HAIR)))
    origin = tuple(low + 0.5 * s for low, s in zip(raw.low, spacing, strict=True))
    grid = Grid((shape[0], shape[1], shape[2]), spacing, (origin[0], origin[1], origin[2]))
    low, high = grid.index_of(extent.low), grid.index_of(extent.high)
    start = [max(0, math.ceil(i - _HAIR)) for i in low]
    # Half-open: a centre on the upper border belongs to the next crop.
    stop = [min(n, math.ceil(i - _HAIR)) for i, n in zip(high, grid.shape, strict=True)]
    if any(a >= b for a, b in zip(start, stop, strict=True)):
        return None
    crop = Box(tuple(start), tuple(stop))
    touched = _stored(level, grid, crop)
    missing = chunks.missing(level, touched)
    n_chunks = chunks.count(level, touched)
    return CropView(level, grid, crop, crop, missing, n_chunks, worst_ratio)


def _stored(level: Level, grid: Grid, box: Box) -> Box:
    """Stored voxels that a box of the network's voxels is made of."""
    z, y, x = box.shape
    target = Grid((z, y, x), grid.spacing, grid.world_of(box.start))
    taps = [intensity_taps(axis, level.grid, target) for axis in range(3)]
    return Box(tuple(t.start for t in taps), tuple(t.stop for t in taps))


def _with_context(view: CropView, chunks: Chunks, context_nm: Triple) -> CropView:
    """The view with as much around the crop as was fetched."""
    margin = [
        math.floor(nm / s + _HAIR) for nm, s in zip(context_nm, view.grid.spacing, strict=True)
    ]
    start, stop = list(view.crop.start), list(view.crop.stop)
    for axis in range(3):
        wanted_low = max(0, start[axis] - margin[axis])
        wanted_high = min(view.grid.shape[axis], stop[axis] + margin[axis])
        start[axis] = _furthest(view, chunks, (start, stop), axis, wanted_low)
        stop[axis] = _furthest(view, chunks, (start, stop), axis, wanted_high)
    reach = Box(tuple(start), tuple(stop))
    return CropView(
        view.raw, view.grid, view.crop, reach, view.missing, view.n_chunks, view.worst_ratio
    )


def _furthest(
    view: CropView, chunks: Chunks, box: tuple[list[int], list[int]], axis: int, wanted: int
) -> int:
    """How far a side of a box can be moved towards ``wanted`` without unfetched chunks."""
    is_low = wanted <= box[0][axis]
    here = box[0][axis] if is_low else box[1][axis]
    # Halving: whether a slab is whole can only become worse with its depth.
    good, bad = 0, abs(wanted - here) + 1
    while bad - good > 1:
        middle = (good + bad) // 2
        start, stop = list(box[0]), list(box[1])
        if is_low:
            start[axis], stop[axis] = here - middle, here
        else:
            start[axis], stop[axis] = here, here + middle
        slab = _stored(view.raw, view.grid, Box(tuple(start), tuple(stop)))
        if chunks.missing(view.raw, slab):
            bad = middle
        else:
            good = middle
    return here - good if is_low else here + good


def text_nm(values: Triple) -> str:
    """Lengths for people.

    Examples:
        >>> text_nm((50.0, 4.6, 4.6))
        '50 x 4.6 x 4.6 nm'
    """
    return " x ".join(f"{value:.6g}" for value in values) + " nm"
