"""Zarr arrays of an OME-Zarr image: chunks, shards, compression and pyramids in flat memory.

Chunks hold about 2¹⁸ voxels (64³, or 512² in 2-D): small enough to show one slice quickly, large
enough that a terabyte is not a billion files. Compression is Blosc with zstd (both in the zarr
core specification), bytes shuffled for intensities, bits for labels: measured here, labels take
half the room of plain zstd at the same speed.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lamella.core.progress import Progress, ProgressSink
from lamella.volume.axes import Axes
from lamella.volume.box import Box
from lamella.volume.pyramid import downsample_mean, pyramid_factors

__all__ = [
    "LevelFormat",
    "build_image_level",
    "build_label_levels",
    "chunk_shape",
    "create_level",
    "iter_blocks",
    "level_factors",
    "level_shape",
    "shard_shape",
    "storage_unit",
]

ZarrFormat = Literal[2, 3]
_CHUNK_VOXELS = 2**18
_BLOCK_BYTES = 16 * 2**20
_PIECE = 2**18
_SHARD_BYTES = 64 * 2**20
_PYRAMID_FROM = 256
_SHARD_FROM = 8192


def chunk_shape(spatial_shape: Sequence[int], n_leading: int = 0) -> tuple[int, ...]:
    """Chunks of about 2¹⁸ voxels, cubic as far as the shape allows; one channel and time each.

    Examples:
        >>> chunk_shape((512, 512, 512)), chunk_shape((4096, 4096)), chunk_shape((3, 2048, 2048))
        ((64, 64, 64), (512, 512), (3, 256, 256))
    """
    n = len(spatial_shape)
    edge = 2 ** round(math.log2(_CHUNK_VOXELS) / n)
    chunk = [min(length, edge) for length in spatial_shape]
    # Thin volumes get wider chunks instead of tiny ones.
    while math.prod(chunk) * 4 <= _CHUNK_VOXELS and any(
        c < length for c, length in zip(chunk, spatial_shape, strict=True)
    ):
        chunk = [min(length, 2 * c) for c, length in zip(chunk, spatial_shape, strict=True)]
    return (1,) * n_leading + tuple(max(1, c) for c in chunk)


def shard_shape(
    shape: Sequence[int], chunks: Sequence[int], itemsize: int, *, band_axis: int = 0
) -> tuple[int, ...] | None:
    """Shards for arrays of very many chunks, one chunk thick along the axis written in bands.

    A shard must be written whole (a part rewrites all of it), so it never spans two bands; it
    holds at most 64 MiB, which is what encoding one costs in memory.

    Returns:
        None below 8192 chunks: single files are simpler to copy, resume and read.

    Examples:
        >>> shard_shape((512, 512, 512), (64, 64, 64), 2) is None
        True
        >>> shard_shape((2048, 2048, 2048), (64, 64, 64), 2)
        (64, 512, 512)
    """
    counts = [-(-n // c) for n, c in zip(shape, chunks, strict=True)]
    if math.prod(counts) < _SHARD_FROM:
        return None
    multiples = [1] * len(chunks)
    while True:
        grown = [
            m if axis == band_axis or m >= count else m * 2
            for axis, (m, count) in enumerate(zip(multiples, counts, strict=True))
        ]
        size = math.prod(g * c for g, c in zip(grown, chunks, strict=True)) * itemsize
        if grown == multiples or size > _SHARD_BYTES or max(grown) > 8:
            return tuple(m * c for m, c in zip(multiples, chunks, strict=True))
        multiples = grown


def level_shape(shape: Sequence[int], factors: Sequence[int]) -> tuple[int, ...]:
    """Shape of a level: leading axes as they are, spatial ones divided and rounded up."""
    leading = len(shape) - len(factors)
    return tuple(shape[:leading]) + tuple(
        -(-n // f) for n, f in zip(shape[leading:], factors, strict=True)
    )


def level_factors(
    spatial_shape: Sequence[int], spacing: Sequence[float], pyramid: bool | None
) -> tuple[tuple[int, ...], ...]:
    """Factors of all levels, level 0 included.

    Args:
        spatial_shape: (z, y, x) or (y, x).
        spacing: per axis; only ratios matter.
        pyramid: whether to have coarser levels; None = when an axis is longer than 256.
    """
    full = (1,) * len(spatial_shape)
    if pyramid is None:
        pyramid = max(spatial_shape) > _PYRAMID_FROM
    return (full, *pyramid_factors(spatial_shape, spacing)) if pyramid else (full,)


@dataclass(frozen=True, slots=True)
class LevelFormat:
    """How the array of a level is stored.

    Args:
        axes: names of the dimensions.
        chunks: shape of a chunk.
        shards: shape of a shard (zarr 3 only), or None for one file per chunk.
        zarr_format: 3 for NGFF 0.5, 2 for 0.4.
        compress: losslessly.
        is_labels: labels compress better with their bits shuffled.
    """

    axes: Axes
    chunks: tuple[int, ...]
    shards: tuple[int, ...] | None = None
    zarr_format: ZarrFormat = 3
    compress: bool = True
    is_labels: bool = False


def create_level(
    path: Path, shape: Sequence[int], dtype: np.dtype[Any], layout: LevelFormat
) -> Any:
    """Create the array of one level.

    Args:
        path: folder of the array; its parents get no metadata.
        shape: in the order of the axes.
        dtype: of the elements.
        layout: how to store it.

    Returns:
        A ``zarr.Array``; chunks that hold only zeros are not stored.
    """
    import zarr

    settings: dict[str, Any] = {"compressors": None}
    if layout.zarr_format == 3:
        settings["dimension_names"] = layout.axes.names
        settings["shards"] = layout.shards
    else:
        settings["chunk_key_encoding"] = {"name": "v2", "separator": "/"}
    if layout.compress:
        settings["compressors"] = _compressor(layout.zarr_format, dtype, layout.is_labels)
    chunks = layout.chunks
    if layout.shards is None:
        chunks = tuple(min(c, max(1, n)) for c, n in zip(chunks, shape, strict=True))
    return zarr.create_array(
        str(path),
        shape=tuple(shape),
        chunks=chunks,
        dtype=dtype,
        fill_value=0,
        zarr_format=layout.zarr_format,
        **settings,
    )


def _compressor(zarr_format: ZarrFormat, dtype: np.dtype[Any], is_labels: bool) -> Any:
    if zarr_format == 3:
        from zarr.codecs import BloscCodec

        return BloscCodec(
            cname="zstd",
            clevel=1,
            shuffle="bitshuffle" if is_labels else "shuffle",
            typesize=dtype.itemsize,
        )
    from numcodecs import Blosc

    shuffle = Blosc.BITSHUFFLE if is_labels else Blosc.SHUFFLE
    return Blosc(cname="zstd", clevel=1, shuffle=shuffle)


def iter_blocks(
    shape: Sequence[int], unit: Sequence[int], itemsize: int, *, max_bytes: int = _BLOCK_BYTES
) -> Iterator[Box]:
    """Cover an array with blocks that are whole multiples of ``unit``, first axis slowest.

    Args:
        shape: of the array.
        unit: shape of a chunk or shard; a block holds at least one.
        itemsize: bytes per element.
        max_bytes: a block is grown, last axis first, while it is smaller than this.
    """
    block = list(unit)
    for axis in reversed(range(len(shape))):
        rest = math.prod(block) // block[axis] * itemsize
        times = max(1, max_bytes // max(1, rest * unit[axis]))
        block[axis] = min(unit[axis] * times, -(-shape[axis] // unit[axis]) * unit[axis])
        if block[axis] < shape[axis]:
            break
    counts = [-(-n // b) for n, b in zip(shape, block, strict=True)]
    for position in np.ndindex(*counts):
        start = tuple(p * b for p, b in zip(position, block, strict=True))
        stop = tuple(min(s + b, n) for s, b, n in zip(start, block, shape, strict=True))
        yield Box(start, stop)


def storage_unit(array: Any) -> tuple[int, ...]:
    """What must be written at once: a shard, or a chunk where there are none."""
    return tuple(array.shards or array.chunks)


def build_image_level(
    fine: Any,
    coarse: Any,
    factors: Sequence[int],
    sink: ProgressSink,
    stage: str,
) -> None:
    """Fill a coarser level with the means of blocks of the level before.

    Args:
        fine: zarr array of the level before.
        coarse: zarr array to fill.
        factors: of ``coarse`` relative to ``fine``, per spatial axis.
        sink: progress and cancellation.
        stage: name of this step for ``sink``.
    """
    leading = coarse.ndim - len(factors)
    grow = (1,) * leading + tuple(factors)
    blocks = list(
        iter_blocks(
            coarse.shape,
            storage_unit(coarse),
            coarse.dtype.itemsize * math.prod(grow),
        )
    )
    for done, block in enumerate(blocks):
        sink.check()
        sink.emit(Progress(stage, done, len(blocks), "blocks"))
        region = tuple(
            slice(a * g, min(b * g, n))
            for a, b, g, n in zip(block.start, block.stop, grow, fine.shape, strict=True)
        )
        coarse[block.slices()] = downsample_mean(np.asarray(fine[region]), factors)
    sink.emit(Progress(stage, len(blocks), len(blocks), "blocks"))


def build_label_levels(
    full: Any,
    levels: Sequence[tuple[Sequence[int], Any]],
    sink: ProgressSink,
    stage: str,
    *,
    max_values: int = 256,
) -> tuple[int, ...]:
    """Fill all coarser levels of labels in one pass over level 0, and see which values there are.

    Each coarse voxel is the middle voxel of its block in level 0 itself: picking from the level
    before would pick a corner of it in the end.

    Args:
        full: zarr array of level 0, spatial axes only.
        levels: (factors relative to level 0, zarr array to fill), level 1 first.
        sink: progress and cancellation.
        stage: name of this step for ``sink``.
        max_values: stop collecting values beyond this many.

    Returns:
        The non-zero values, sorted; empty when there are more than ``max_values``.
    """
    picks = [
        [_middles(n, f) for n, f in zip(full.shape, factors, strict=True)] for factors, _ in levels
    ]
    values: set[int] | None = set()
    unit = tuple(
        2 * u if levels and u < n else u
        for u, n in zip(storage_unit(full), full.shape, strict=True)
    )
    blocks = list(iter_blocks(full.shape, unit, full.dtype.itemsize))
    for done, block in enumerate(blocks):
        sink.check()
        sink.emit(Progress(stage, done, len(blocks), "blocks"))
        data = np.asarray(full[block.slices()])
        if not data.any():
            continue
        values = _collect(values, data, max_values)
        for (_, coarse), middles in zip(levels, picks, strict=True):
            _pick_into(coarse, data, block, middles)
    sink.emit(Progress(stage, len(blocks), len(blocks), "blocks"))
    return tuple(sorted(values)) if values is not None else ()


def _middles(length: int, factor: int) -> NDArray[np.intp]:
    starts = np.arange(0, length, factor)
    return np.minimum(starts + factor // 2, length - 1)


def _pick_into(
    coarse: Any, data: NDArray[Any], block: Box, middles: Sequence[NDArray[np.intp]]
) -> None:
    region: list[slice] = []
    local: list[NDArray[np.intp]] = []
    for middle, start, stop in zip(middles, block.start, block.stop, strict=True):
        first, last = (int(v) for v in np.searchsorted(middle, (start, stop)))
        if first == last:
            return
        region.append(slice(first, last))
        local.append(middle[first:last] - start)
    coarse[tuple(region)] = data[np.ix_(*local)]


def _collect(values: set[int] | None, data: NDArray[Any], limit: int) -> set[int] | None:
    """Add the values of a block; None once there are too many to name."""
    if values is None:
        return None
    flat = data.reshape(-1)
    for start in range(0, flat.size, _PIECE):
        piece = flat[start : start + _PIECE]
        if int(piece.min()) >= 0 and int(piece.max()) < 2**16:
            found = np.flatnonzero(np.bincount(piece.astype(np.intp)))
        else:
            found = np.unique(piece)
        if len(found) > limit + 1:
            return None
        values = values | {int(value) for value in found if value != 0}
        if len(values) > limit:
            return None
    return values
