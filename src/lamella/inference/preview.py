"""The coarse pass: labels of the whole volume before the first full-resolution tile.

It is an ordinary run on a grid coarsened until it costs a few percent of the tiles of the run to
come, so it too streams and its memory is flat.

Examples:
    >>> coarse = plan_preview((256, 256, 256), tile=(64, 64, 64), n_planned=343)
    >>> coarse.factors, coarse.plan.n_tiles
    ((2, 2, 2), 8)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lamella.inference.plan import Plan, make_plan
from lamella.inference.slab import AveragedSlabs, Slabs

__all__ = ["Preview", "coarse_source", "plan_preview"]

# With reading and decoding the whole stays below 5 % of the run.
BUDGET_FRACTION = 0.035
# A short run can spare a few tiles more: networks see little at three times their voxels.
SMALL_BUDGET_TILES = 4
SMALL_BUDGET_FRACTION = 0.125
# A preview that takes minutes is none, however long the run.
MAX_TILES = 64
FACTORS = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
# Slices that a preview by a 2-D network shows at least, before slices themselves are coarsened.
MIN_SLICES = 4


@dataclass(frozen=True, slots=True)
class Preview:
    """A coarse plan.

    Attributes:
        factors: voxels of the network's grid per coarse voxel, (z, y, x).
        plan: tiles on the coarse grid.
    """

    factors: tuple[int, int, int]
    plan: Plan


def plan_preview(
    shape: tuple[int, int, int], *, tile: tuple[int, int, int], n_planned: int
) -> Preview:
    """Choose the finest coarse grid that fits the budget (one tile always does).

    The budget is 3.5 % of the tiles to come; for runs of fewer than about a hundred tiles up to
    four tiles, if these are no more than an eighth of them.

    Args:
        shape: extent of the volume on the grid of the network, (z, y, x).
        tile: extent of a tile; z is 1 for a 2-D network, whose slices are then thinned out.
        n_planned: tiles of the run to come.
    """
    spare = min(SMALL_BUDGET_TILES, int(n_planned * SMALL_BUDGET_FRACTION))
    budget = max(1, min(MAX_TILES, max(spare, int(n_planned * BUDGET_FRACTION))))
    best: Preview | None = None
    for factors in _candidates(shape, tile, budget):
        coarse = tuple(-(-n // f) for n, f in zip(shape, factors, strict=True))
        for overlap_fraction in (0.25, 0.0):
            plan = make_plan(coarse, tile=tile, overlap_fraction=overlap_fraction)
            found = Preview(factors, plan)
            if plan.n_tiles <= budget:
                return found
            if best is None or plan.n_tiles < best.plan.n_tiles:
                best = found
    assert best is not None, "there is at least one candidate"
    return best


def _candidates(
    shape: tuple[int, int, int], tile: tuple[int, int, int], budget: int
) -> Iterator[tuple[int, int, int]]:
    z, y, x = shape
    if tile[0] > 1:
        for factor in FACTORS:
            yield min(factor, z), min(factor, y), min(factor, x)
        return
    for factor in FACTORS:
        in_plane = (min(factor, y), min(factor, x))
        one = make_plan((1, -(-y // in_plane[0]), -(-x // in_plane[1])), tile=tile)
        slices = max(1, budget // one.n_tiles)
        if slices >= min(z, MIN_SLICES) or factor == FACTORS[-1]:
            yield (-(-z // slices), *in_plane)


def coarse_source(
    fine: Slabs, factors: tuple[int, int, int], *, is_2d: bool, levels: tuple[Slabs, ...] = ()
) -> Slabs:
    """The coarse grid of a preview.

    Args:
        fine: the network's grid.
        factors: of the preview.
        is_2d: a 2-D network sees single slices, not means of several.
        levels: stored coarser levels of the same grid, finest first; the coarsest that the
            factors are a multiple of is read instead of the full one.
    """
    for level in reversed(levels):
        ratio = [round(n / m) for n, m in zip(fine.shape, level.shape, strict=True)]
        covers = all(
            -(-n // r) == m for n, r, m in zip(fine.shape, ratio, level.shape, strict=True)
        )
        if covers and all(f % r == 0 for f, r in zip(factors, ratio, strict=True)):
            z, y, x = (f // r for f, r in zip(factors, ratio, strict=True))
            return AveragedSlabs(level, (z, y, x), picks_layers=is_2d)
    return AveragedSlabs(fine, factors, picks_layers=is_2d)
