"""One look at all voxels before a run: the box that is not zero, and sums for normalisation.

nnU-Net cuts away what is zero in all channels around the image and normalises what is left. Zeros
change no sum, so one pass in layers gives both. Where normalisation is to leave out the zeros
around a specimen, but not those inside it (``use_mask_for_norm``), these have to be told apart:
zero voxels are joined to components layer by layer, and those that reach the border of the volume
are outside. The mask lies on disk, never in memory.

Source: nnU-Net ``crop_to_nonzero`` (Apache-2.0).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from lamella.core.errors import InputError
from lamella.inference.slab import Slabs
from lamella.volume.box import Box
from lamella.wire.event import ProgressEvent

if TYPE_CHECKING:
    from lamella.wire.event import EventSink

__all__ = ["ChannelSums", "Survey", "survey", "write_mask"]

_BLOCK_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class ChannelSums:
    """Of one channel, over the whole volume: sums in float64, smallest and largest value."""

    total: float
    squares: float
    minimum: float
    maximum: float

    def mean_and_std(self, n: int) -> tuple[float, float]:
        """Mean and standard deviation over ``n`` voxels, all others being zero."""
        mean = self.total / n
        return mean, math.sqrt(max(0.0, self.squares / n - mean * mean))


@dataclass(frozen=True, slots=True)
class Survey:
    """What was seen.

    Attributes:
        shape: extent of the input, (z, y, x).
        crop: box outside of which every channel is zero.
        channels: sums of each channel.
        sha256: of the voxels as float32.
    """

    shape: tuple[int, int, int]
    crop: Box
    channels: tuple[ChannelSums, ...]
    sha256: str

    @property
    def is_whole(self) -> bool:
        """Whether nothing is cut away."""
        return self.crop.shape == self.shape

    @property
    def is_empty(self) -> bool:
        """Whether every voxel is zero."""
        return all(one.minimum == one.maximum == 0.0 for one in self.channels)


def survey(source: Slabs, sink: EventSink) -> Survey:
    """Look at every voxel once.

    Args:
        source: the input.
        sink: progress and cancellation.

    Raises:
        InputError: for NaN or infinite voxels.
    """
    digest = hashlib.sha256(repr((source.n_channels, source.shape)).encode())
    used = [np.zeros(n, bool) for n in source.shape]
    totals: list[list[float]] = [[] for _ in range(source.n_channels)]
    squares: list[list[float]] = [[] for _ in range(source.n_channels)]
    lowest = np.full(source.n_channels, np.inf)
    highest = np.full(source.n_channels, -np.inf)
    for start, stop, block in _blocks(source, sink, "looking at the input"):
        _check_finite(block, start)
        digest.update(np.ascontiguousarray(block).data)
        is_used = (block != 0).any(axis=0)
        used[0][start:stop] = is_used.any(axis=(1, 2))
        used[1] |= is_used.any(axis=(0, 2))
        used[2] |= is_used.any(axis=(0, 1))
        for channel, values in enumerate(block):
            totals[channel].append(float(values.sum(dtype=np.float64)))
            squares[channel].append(float(np.einsum("zyx,zyx->", values, values, dtype=np.float64)))
        lowest = np.minimum(lowest, block.min(axis=(1, 2, 3)))
        highest = np.maximum(highest, block.max(axis=(1, 2, 3)))
    return Survey(
        shape=source.shape,
        crop=_hull(used),
        channels=tuple(
            ChannelSums(math.fsum(a), math.fsum(b), float(low), float(high))
            for a, b, low, high in zip(totals, squares, lowest, highest, strict=True)
        ),
        sha256=digest.hexdigest(),
    )


def _hull(used: list[NDArray[np.bool_]]) -> Box:
    """The box of what is used; the whole where nothing is."""
    if not used[0].any():
        return Box.from_shape([len(axis) for axis in used])
    bounds = [(int(axis.argmax()), int(len(axis) - axis[::-1].argmax())) for axis in used]
    return Box(tuple(a for a, _ in bounds), tuple(b for _, b in bounds))


def _blocks(
    source: Slabs, sink: EventSink, stage: str
) -> Iterator[tuple[int, int, NDArray[np.float32]]]:
    depth, height, width = source.shape
    step = max(1, _BLOCK_BYTES // max(1, 4 * source.n_channels * height * width))
    for start in range(0, depth, step):
        sink.check()
        stop = min(depth, start + step)
        yield start, stop, source.read(Box((start, 0, 0), (stop, height, width)))
        sink.emit(ProgressEvent(stage=stage, done=stop, total=depth, unit="layers"))


def _check_finite(block: NDArray[np.float32], start: int) -> None:
    with np.errstate(invalid="ignore", over="ignore"):
        if np.isfinite(block.sum(dtype=np.float64)):
            return
    n = int(block.size - np.count_nonzero(np.isfinite(block)))
    raise InputError(
        f"{n} voxel(s) of the input are NaN or infinite (layers from {start} on)",
        hint="replace them first, for example by the mean of the others; nnU-Net would spread"
        " them over the whole result",
    )


# --- Zeros inside and outside --------------------------------------------------------------------


def write_mask(source: Slabs, crop: Box, path: Path, sink: EventSink) -> tuple[Any, int]:
    """Write the mask of the specimen: not zero, or enclosed by what is not zero.

    Args:
        source: the input, all channels.
        crop: the part that is kept.
        path: ``.npy`` file to write.
        sink: progress and cancellation.

    Returns:
        The mask of the crop, bool, memory-mapped, (z, y, x), and how many voxels are in it.
    """
    outside, offsets = _outside_components(source, sink)
    mask = np.lib.format.open_memmap(path, mode="w+", dtype=np.bool_, shape=crop.shape)
    (z0, y0, x0), (z1, y1, x1) = crop.start, crop.stop
    n_inside = 0
    for start, stop, block in _blocks(source, sink, "filling the mask"):
        for z in range(max(start, z0), min(stop, z1)):
            pieces, _ = _zero_pieces(block[:, z - start])
            is_outside = np.zeros(int(pieces.max()) + 1, bool)
            is_outside[1:] = outside[offsets[z] : offsets[z] + len(is_outside) - 1]
            inside = ~is_outside[pieces[y0:y1, x0:x1]]
            mask[z - z0] = inside
            n_inside += int(np.count_nonzero(inside))
    mask.flush()
    return mask, n_inside


def _outside_components(source: Slabs, sink: EventSink) -> tuple[NDArray[np.bool_], list[int]]:
    """Which pieces of zeros reach the border, and the number of the first piece of each layer."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    offsets, n_pieces = [], 0
    edges: list[NDArray[np.int64]] = []
    touching: list[NDArray[np.int64]] = []
    before: NDArray[np.int64] | None = None
    depth = source.shape[0]
    for start, stop, block in _blocks(source, sink, "finding what is outside"):
        for z in range(start, stop):
            pieces, n = _zero_pieces(block[:, z - start])
            ids = np.where(pieces > 0, pieces.astype(np.int64) + (n_pieces - 1), -1)
            offsets.append(n_pieces)
            frame = [ids[0], ids[-1], ids[:, 0], ids[:, -1]]
            ends = [ids.ravel()] if z in (0, depth - 1) else frame
            touching.append(np.unique(np.concatenate(ends)))
            if before is not None:
                both = (before >= 0) & (ids >= 0)
                pairs = np.stack([before[both], ids[both]])
                edges.append(np.unique(pairs, axis=1))
            before = ids
            n_pieces += n
    if n_pieces == 0:
        return np.zeros(0, bool), offsets
    joined = np.concatenate(edges, axis=1) if edges else np.zeros((2, 0), np.int64)
    graph = coo_array(
        (np.ones(joined.shape[1], np.bool_), (joined[0], joined[1])), shape=(n_pieces, n_pieces)
    )
    _, component = connected_components(graph, directed=False)
    at_border = np.concatenate(touching)
    is_outside = np.zeros(n_pieces, bool)
    is_outside[component[at_border[at_border >= 0]]] = True
    return is_outside[component], offsets


def _zero_pieces(layer: NDArray[np.float32]) -> tuple[NDArray[np.int32], int]:
    """Pieces, 4-connected, of what is zero in all channels of a layer (c, y, x): 1..n."""
    from scipy.ndimage import label

    pieces = np.zeros(layer.shape[1:], np.int32)
    n = label(~(layer != 0).any(axis=0), output=pieces)
    return pieces, cast("int", n)
