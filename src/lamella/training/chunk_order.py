"""An order of random patches in which neighbours in time share chunks.

A patch of 128³ in chunks of 64³ touches 27 of them and needs the content of 8: most of what is
decoded is thrown away, and decoding is what limits reading. Here patches come in *groups*: all of
a group start in the same *block* of positions, so that its chunks are decoded once and served
from the cache. Every single patch is still equally likely to lie anywhere: a block is drawn with
the probability of its number of positions, a position in it uniformly.

Groups are interleaved in *lanes*: with a batch of 2 and 4 lanes ::

    step      0    1    2    3 |  4    5    6    7 |  8 …
    groups   0 1  2 3  4 5  6 7| 0 1  2 3  4 5  6 7| 0 1 …   until each gave its 8 patches
    worker    0    1    0    1 |  0    1    0    1 |          (two workers)

so no batch holds two patches of a group, neighbouring steps share none, and each group stays in
one worker (for 1, 2 and 4 workers; others decode some chunks twice). All of it follows from the
seed and the number of the patch: the number of workers changes the speed and nothing else, and a
training resumes exactly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lamella.core.errors import InputError
from lamella.training.source import NearbySource

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from lamella.training.augment import Sample
    from lamella.training.source import PatchSource
    from lamella.volume.box import Box

__all__ = ["PatchOrder", "draw_point", "draw_start"]


@dataclass(frozen=True, slots=True)
class PatchOrder:
    """Which patches belong together.

    Attributes:
        seed: of the training.
        batch: patches of one step, all devices together.
        lanes: steps from one patch of a group to its next; a multiple of the number of workers
            keeps groups whole.
        group: patches of a group. Of 2ⁿ patches in n dimensions the block that
            :func:`draw_start` draws holds as many voxels as its patches together.

    Examples:
        >>> order = PatchOrder(seed=0, batch=2, lanes=4, group=8)
        >>> [order.group_of(n) for n in range(10)]
        [0, 1, 2, 3, 4, 5, 6, 7, 0, 1]
        >>> order.group_of(8 * 8)
        8
    """

    seed: int
    batch: int
    lanes: int = 4
    group: int = 8

    def __post_init__(self) -> None:
        if self.seed < 0 or min(self.batch, self.lanes, self.group) < 1:
            raise InputError(f"{self}: expected a seed from 0 and numbers from 1")

    def group_of(self, number: int) -> int:
        """The group of a patch."""
        if number < 0:
            raise InputError(f"patch number {number}, expected one from 0")
        width = self.batch * self.lanes
        lane, turn = number % width, number // width
        return turn // self.group * width + lane

    def generators(self, number: int) -> tuple[np.random.Generator, np.random.Generator]:
        """What decides about a patch.

        Returns:
            The group's generator, in the same state for each of its patches, and the patch's own.
        """
        # A spawn key, as numbers of groups and of patches would seed alike.
        place = np.random.SeedSequence([self.seed, self.group_of(number)], spawn_key=(1,))
        return np.random.default_rng(place), np.random.default_rng([self.seed, number])

    def draw(self, source: PatchSource, number: int, shape: tuple[int, ...]) -> Sample:
        """A patch, from a source that knows of groups or from any other.

        Args:
            source: of training patches.
            number: of the patch, from 0.
            shape: of the patch, spatial axes.
        """
        place, own = self.generators(number)
        if isinstance(source, NearbySource) and source.has_chunks:
            return source.draw_near(place, own, shape)
        return source.draw(own, shape)

    def augmentation(self, number: int) -> np.random.Generator:
        """What decides how a patch is changed; known before the patch is drawn."""
        return np.random.default_rng(np.random.SeedSequence([self.seed, number], spawn_key=(2,)))


def draw_start(
    place: np.random.Generator,
    own: np.random.Generator,
    domain: Box,
    shape: Sequence[int],
    chunks: Sequence[int],
) -> tuple[int, ...]:
    """First voxel of a patch, uniform over all positions inside a region.

    Positions are cut into blocks at chunk borders, each about as long as a patch. Where the region
    is shorter than the patch, the patch is centred on it.

    Args:
        place: draws the block; in equal states the same block.
        own: draws the position in it.
        domain: region that patches lie in, voxels of the array.
        shape: of the patch.
        chunks: of the array; the grid begins at voxel 0.

    Returns:
        One index per axis; may lie outside ``domain`` on axes that are too short.

    Examples:
        >>> from lamella.volume.box import Box
        >>> rng = np.random.default_rng(0)
        >>> start = draw_start(rng, rng, Box((64, 0), (320, 100)), (128, 128), (64, 64))
        >>> 64 <= start[0] <= 192, start[1]
        (True, -14)
    """
    found = []
    for low, stop, length, chunk in zip(domain.start, domain.stop, shape, chunks, strict=True):
        last = stop - length
        if last < low:
            found.append(low + math.floor((last - low) / 2))
            continue
        block = _block_length(length, chunk)
        first, end = _block_around(int(place.integers(low, last + 1)), low, last + 1, block)
        found.append(int(own.integers(first, end)))
    return tuple(found)


def draw_point(
    place: np.random.Generator,
    own: np.random.Generator,
    points: NDArray[np.integer],
    shape: Sequence[int],
    chunks: Sequence[int],
) -> tuple[int, ...]:
    """One of many voxels, all equally likely; those of a group lie in one block.

    Args:
        place: draws the block; in equal states the same block.
        own: draws the voxel in it.
        points: indices of voxels, (n, axes), at least one.
        shape: of the patches around them.
        chunks: of the array; the grid begins at voxel 0.

    Examples:
        >>> rng = np.random.default_rng(0)
        >>> draw_point(rng, rng, np.array([[5, 7]]), (8, 8), (4, 4))
        (5, 7)
    """
    blocks = [_block_length(n, chunk) for n, chunk in zip(shape, chunks, strict=True)]
    anchor = points[int(place.integers(len(points)))]
    is_near = np.ones(len(points), bool)
    for axis, block in enumerate(blocks):
        first = int(anchor[axis]) // block * block
        is_near &= (points[:, axis] >= first) & (points[:, axis] < first + block)
    near = np.flatnonzero(is_near)
    return tuple(int(v) for v in points[near[int(own.integers(len(near)))]])


def _block_length(length: int, chunk: int) -> int:
    """A patch's length in whole chunks."""
    return max(1, math.ceil(length / chunk)) * chunk


def _block_around(position: int, low: int, stop: int, block: int) -> tuple[int, int]:
    """The block of ``low <= p < stop`` that holds a position.

    Borders are multiples of ``block``; a piece shorter than half a block at either end belongs
    to its neighbour.
    """
    first = -(-low // block) * block
    if first - low < block / 2:
        first += block
    last = stop // block * block
    if stop - last < block / 2:
        last -= block
    if first > last:
        return low, stop
    if position < first:
        return low, first
    if position >= last:
        return last, stop
    start = position // block * block
    return start, start + block
