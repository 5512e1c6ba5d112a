"""Which tiles are read, in which order, and what is finished after each row of them.

A plan is pure arithmetic on shapes: no data, no network. Tiles have a fixed size; their positions
along an axis are those of MONAI's ``sliding_window_inference`` (constant stride, the last tile
moved inward, a volume smaller than the tile centred in it), so that blended logits can be compared
number by number. They are visited in z-major order, and a *row* is all tiles that start at the
same z::

    z  0        32        64        96       128
       |<---- row 0 ---->|
                |<---- row 1 ---->|
                          |<---- row 2 ---->|
       |        |         |                 |
       after 0: 0-32 done |  after 2: 64-128 done          band = one tile deep, moves along z

What leaves the band after a row is a *band*: its write box is final, whatever comes later. A
volume that is wide in y and x is cut into *columns* that are run one after another, each with the
tiles that touch it, so that the band never exceeds a budget; seams don't show because every voxel
still receives the same tiles in the same order.

Laws (tested with hypothesis):

* write boxes of the tiles partition the volume, and so do the write boxes of the bands;
* a read box contains its write box and has exactly the shape of the tile; where the volume is
  smaller than the tile it reaches beyond the volume, and only there.

Examples:
    >>> plan = make_plan((128, 64, 64), tile=(64, 64, 64), overlap_fraction=0.5)
    >>> plan.n_tiles, [row.leave for row in plan.rows]
    (3, [(0, 32), (32, 64), (64, 128)])
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from lamella.core.errors import InputError
from lamella.volume.box import Box
from lamella.volume.grid import Tile, axis_starts

__all__ = [
    "Blend",
    "Column",
    "Plan",
    "Row",
    "chunk_extent",
    "column_extent",
    "cut_columns",
    "even_starts",
    "make_plan",
    "overlap_of",
    "smaller_tile",
]

Blend = Literal["gaussian", "crop"]
"""How overlapping tiles become one value.

``gaussian``: weighted mean of the logits, weights falling off from the centre of the tile.
``crop``: every voxel is taken from the one tile in whose centre it lies most (the tile's write
box); exact for an operator that reaches no further than half the overlap.
"""

MIN_STRIDE = 1
CHUNK_VOXELS = 1 << 18
MAX_CHUNK_DEPTH = 64
MIN_CHUNK_DEPTH = 16
DEFAULT_BAND_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Span:
    """A tile along one axis: what it reads and what it writes, in voxels of the volume."""

    read: tuple[int, int]
    write: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Row:
    """All tiles that start at the same z.

    Attributes:
        span: z range read and written by its tiles.
        leave: z range that is final once this row is done.
    """

    span: Span
    leave: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Column:
    """A (y, x) region that is run from the first to the last z on its own.

    Attributes:
        region: the box in (y, x) whose values are wanted, on the grid of the network.
        output: the box in (y, x) of the labels that are written, on the grid of the input; the
            same as ``region`` unless the input is resampled.
    """

    region: Box
    output: Box


@dataclass(frozen=True, slots=True)
class Plan:
    """Positions of all tiles of a volume.

    Attributes:
        shape: extent of the volume on the grid of the network, (z, y, x) voxels.
        tile: extent of a tile, (z, y, x) voxels; z is 1 for a 2-D network.
        overlap: voxels shared by neighbouring tiles, (z, y, x).
        blend: how overlapping tiles become one value.
        columns: regions in (y, x), in the order in which they are run.
        step_fraction: None for a constant stride; else tiles are spread evenly, at most this
            share of a tile apart, see :func:`even_starts`.
        from_end: axes whose tiles are counted from the end, as a network sees them that reads
            these axes backwards.
    """

    shape: tuple[int, int, int]
    tile: tuple[int, int, int]
    overlap: tuple[int, int, int]
    blend: Blend
    columns: tuple[Column, ...]
    step_fraction: float | None = None
    from_end: tuple[int, ...] = ()

    def spans(self, axis: int) -> tuple[Span, ...]:
        """The tiles along an axis, 0 = z."""
        length, tile = self.shape[axis], self.tile[axis]
        if self.step_fraction is None or length <= tile:
            spans = _spans(length, tile, self.overlap[axis])
        else:
            spans = _spans_at(length, tile, even_starts(length, tile, self.step_fraction))
        return _mirrored(spans, length) if axis in self.from_end else spans

    @property
    def rows(self) -> tuple[Row, ...]:
        """Rows in the order of z."""
        spans = self.spans(0)
        if self.blend == "crop":
            return tuple(Row(span, span.write) for span in spans)
        # Gaussian weights reach to the border of the tile: a layer is final only when the next
        # row starts behind it.
        edges = [0, *(span.read[0] for span in spans[1:]), self.shape[0]]
        return tuple(
            Row(span, (a, b)) for span, (a, b) in zip(spans, itertools.pairwise(edges), strict=True)
        )

    def tiles(self, column: Column, row: Row) -> tuple[Tile, ...]:
        """The tiles of a row that contribute to a column, in the order in which they are blended.

        The boxes are in (z, y, x) of the whole volume; read boxes reach beyond it where it is
        smaller than the tile, and write boxes are those of the whole volume, not of the column.
        """
        wanted_y = self._wanted(1, column)
        wanted_x = self._wanted(2, column)
        return tuple(
            Tile(
                read=_box(row.span.read, y.read, x.read),
                write=_box(row.span.write, y.write, x.write),
            )
            for y in wanted_y
            for x in wanted_x
        )

    def iter_bands(self, column: Column) -> Iterator[tuple[Row, Box]]:
        """Rows of a column with the box that is final after each."""
        for row in self.rows:
            (y0, x0), (y1, x1) = column.region.start, column.region.stop
            yield row, _box(row.leave, (y0, y1), (x0, x1))

    def n_tiles_per_row(self, column: Column) -> int:
        """How many tiles each row of a column has."""
        return len(self._wanted(1, column)) * len(self._wanted(2, column))

    @property
    def n_tiles(self) -> int:
        """Tiles of the whole run; those at the seam of two columns count in both."""
        return len(self.spans(0)) * sum(self.n_tiles_per_row(column) for column in self.columns)

    def _wanted(self, axis: int, column: Column) -> tuple[Span, ...]:
        low, high = column.region.start[axis - 1], column.region.stop[axis - 1]
        kept: list[Span] = []
        for span in self.spans(axis):
            start, stop = span.write if self.blend == "crop" else span.read
            if start < high and stop > low:
                kept.append(span)
        return tuple(kept)


def overlap_of(tile: Sequence[int], fraction: float) -> tuple[int, ...]:
    """Overlap in voxels of a fraction; the stride is ``int(tile * (1 - fraction))``, at least 1.

    Examples:
        >>> overlap_of((1, 64, 65), 0.5)
        (0, 32, 33)

    Raises:
        InputError: unless 0 <= fraction < 1.
    """
    if not 0.0 <= fraction < 1.0:
        raise InputError(
            f"overlap fraction {fraction} must be at least 0 and below 1", hint="0.5 is usual"
        )
    return tuple(size - max(MIN_STRIDE, int(size * (1.0 - fraction))) for size in tile)


def make_plan(
    shape: Sequence[int],
    *,
    tile: Sequence[int],
    overlap_fraction: float = 0.5,
    blend: Blend = "gaussian",
    columns: tuple[Column, ...] | None = None,
    step_fraction: float | None = None,
    from_end: tuple[int, ...] = (),
) -> Plan:
    """Plan the tiles of a volume.

    Args:
        shape: extent of the volume on the grid of the network, (z, y, x) voxels.
        tile: extent of a tile, (z, y, x); (1, y, x) for a 2-D network run over slices.
        overlap_fraction: share of a tile that it has in common with its neighbour.
        blend: how overlapping tiles become one value.
        columns: regions to run one after another, see :func:`cut_columns`; None for one.
        step_fraction: spread the tiles evenly, at most this share of a tile apart, instead of at
            the constant stride that ``overlap_fraction`` gives.
        from_end: axes whose tiles are counted from the end.

    Raises:
        InputError: for empty shapes, tiles below one voxel or an impossible overlap.
    """
    if len(shape) != 3 or len(tile) != 3:
        raise InputError(f"shape {tuple(shape)} and tile {tuple(tile)} must be (z, y, x)")
    if min(shape) < 1 or min(tile) < 1:
        raise InputError(f"shape {tuple(shape)} and tile {tuple(tile)} must be at least 1 voxel")
    z, y, x = (int(n) for n in shape)
    whole = Box((0, 0), (y, x))
    overlap = overlap_of(tile, overlap_fraction)
    return Plan(
        shape=(z, y, x),
        tile=(int(tile[0]), int(tile[1]), int(tile[2])),
        overlap=(overlap[0], overlap[1], overlap[2]),
        blend=blend,
        columns=columns or (Column(whole, whole),),
        step_fraction=step_fraction,
        from_end=from_end,
    )


def even_starts(length: int, tile: int, step_fraction: float) -> list[int]:
    """Where tiles start that are spread evenly over an axis no shorter than a tile.

    As few as keep neighbours within ``step_fraction * tile``, the first at the start and the last
    at the end. Source: nnU-Net ``compute_steps_for_sliding_window`` (Apache-2.0).

    Examples:
        >>> even_starts(110, 64, 0.5)
        [0, 23, 46]
    """
    last = length - tile
    n_steps = math.ceil(last / (tile * step_fraction)) + 1
    if n_steps == 1:
        return [0]
    stride = last / (n_steps - 1)
    return [round(stride * i) for i in range(n_steps)]


def smaller_tile(tile: Sequence[int], divisor: Sequence[int]) -> tuple[int, int, int] | None:
    """Half a tile, for a device whose memory is too small for the whole one.

    Args:
        tile: extent, (z, y, x); extents of 1 stay.
        divisor: every extent stays a multiple of this, (z, y, x).

    Returns:
        The nearest multiple below half of every extent, at least one; None where that is the tile
        itself.

    Examples:
        >>> smaller_tile((1, 512, 96), (1, 16, 64))
        (1, 256, 64)
        >>> smaller_tile((16, 16, 16), (16, 16, 16)) is None
        True
    """
    z, y, x = (max(1, n // 2 // d) * d for n, d in zip(tile, divisor, strict=True))
    return None if (z, y, x) == tuple(tile) else (z, y, x)


def chunk_extent(shape: tuple[int, int, int], n_layers: int) -> tuple[int, int, int]:
    """Chunks of labels as deep as a row moves the band, so that layers wait for no later row.

    Args:
        shape: extent of the labels, (z, y, x).
        n_layers: of the labels, by which the band moves from row to row.

    Examples:
        >>> chunk_extent((200, 300, 4000), 32), chunk_extent((10, 300, 4000), 32)
        ((32, 128, 128), (10, 256, 256))
    """
    depth = min(shape[0], max(MIN_CHUNK_DEPTH, min(MAX_CHUNK_DEPTH, n_layers)))
    edge = 2 ** math.ceil(math.log2(CHUNK_VOXELS / depth) / 2)
    return depth, min(shape[1], edge), min(shape[2], edge)


def column_extent(
    shape_yx: tuple[int, int], chunk_yx: tuple[int, int], bytes_per_pixel: float, budget_bytes: int
) -> tuple[int, int]:
    """Largest extent of a column, in multiples of label chunks, whose band fits a budget.

    Args:
        shape_yx: extent of the labels, (y, x) voxels.
        chunk_yx: extent of a chunk of the labels, (y, x); a column is never narrower.
        bytes_per_pixel: bytes of the band per (y, x) voxel of the labels.
        budget_bytes: bytes the band may take.

    Examples:
        >>> column_extent((4096, 4096), (256, 256), bytes_per_pixel=1024, budget_bytes=2**30)
        (1024, 1024)
    """
    extent = list(shape_yx)
    while extent[0] * extent[1] * bytes_per_pixel > budget_bytes:
        axis = 0 if extent[0] >= extent[1] else 1
        if extent[axis] <= chunk_yx[axis]:
            axis = 1 - axis
        if extent[axis] <= chunk_yx[axis]:
            break
        n_chunks = math.ceil(math.ceil(extent[axis] / chunk_yx[axis]) / 2)
        extent[axis] = n_chunks * chunk_yx[axis]
    return extent[0], extent[1]


def cut_columns(
    cover: Box,
    unit_yx: tuple[int, int],
    bytes_per_pixel: float,
    budget_bytes: int,
    *,
    region: Callable[[Box], Box | None],
) -> tuple[Column, ...]:
    """Cut what is written into columns whose band fits a budget, along the labels' chunks.

    Args:
        cover: what is written, (y, x) voxels of the labels; it starts on a chunk.
        unit_yx: extent of a chunk of the labels, (y, x).
        bytes_per_pixel: bytes of the band per (y, x) voxel of the labels.
        budget_bytes: bytes the band may take.
        region: from a column's box of the labels to the values that it wants of the network's
            grid; None for a column that nothing is run for.

    Examples:
        >>> whole = Box((0, 0), (100, 300))
        >>> cut = cut_columns(whole, (64, 64), 1.0, 100 * 200, region=lambda box: box)
        >>> [(column.output.start, column.output.stop) for column in cut]
        [((0, 0), (100, 192)), ((0, 192), (100, 300))]
    """
    (top, left), (bottom, right) = cover.start, cover.stop
    height, width = column_extent(
        (bottom - top, right - left), unit_yx, bytes_per_pixel, budget_bytes
    )
    columns: list[Column] = []
    for y in range(top, bottom, height):
        for x in range(left, right, width):
            output = Box((y, x), (min(y + height, bottom), min(x + width, right)))
            wanted = region(output)
            if wanted is not None:
                columns.append(Column(wanted, output))
    return tuple(columns)


def _spans(length: int, tile: int, overlap: int) -> tuple[Span, ...]:
    if length <= tile:
        before = (tile - length) // 2
        return (Span(read=(-before, tile - before), write=(0, length)),)
    return _spans_at(length, tile, axis_starts(length, tile, tile - overlap))


def _spans_at(length: int, tile: int, starts: Sequence[int]) -> tuple[Span, ...]:
    seams = [(a + tile + b) // 2 for a, b in itertools.pairwise(starts)]
    edges = [0, *seams, length]
    return tuple(
        Span(read=(start, start + tile), write=(a, b))
        for start, (a, b) in zip(starts, itertools.pairwise(edges), strict=True)
    )


def _mirrored(spans: tuple[Span, ...], length: int) -> tuple[Span, ...]:
    def turned(ends: tuple[int, int]) -> tuple[int, int]:
        return length - ends[1], length - ends[0]

    return tuple(Span(read=turned(s.read), write=turned(s.write)) for s in reversed(spans))


def _box(z: tuple[int, int], y: tuple[int, int], x: tuple[int, int]) -> Box:
    return Box((z[0], y[0], x[0]), (z[1], y[1], x[1]))
