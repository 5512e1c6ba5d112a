"""Logits of whole images and crops, tile by tile, for judging a network.

A region is covered by tiles that overlap; each voxel takes its logits from the one tile in whose
middle it lies most, so that no voxel is judged at the border of what the network saw::

    read   |<---- tile ---->|
                     |<---- tile ---->|
    core   |<-----------|----------->|

The cores are disjoint and cover the region: every voxel is counted exactly once. A region smaller
than the tile is mirrored at its end.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from lamella.training.augment import Sample
from lamella.volume.grid import cover

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from torch import nn

    from lamella.training.source import Region
    from lamella.volume.box import Box

__all__ = ["autocast_of", "iterate_logits", "n_tiles", "to_device"]

Precision = Literal["fp32", "bf16", "fp16"]

_LOW = {"bf16": torch.bfloat16, "fp16": torch.float16}


def iterate_logits(
    network: nn.Module,
    region: Region,
    *,
    tile: Sequence[int],
    overlap_fraction: float,
    device: torch.device | str,
    precision: Precision = "fp32",
) -> Iterator[tuple[Box, torch.Tensor, Sample]]:
    """Logits of a region, core by core.

    Args:
        network: in evaluation mode, on ``device``.
        region: what is judged.
        tile: extent of what the network sees at once, (z, y, x) or (y, x); multiples of its stride.
        overlap_fraction: share of a tile that it has in common with its neighbour.
        device: of the network.
        precision: of the forward pass.

    Yields:
        The core box in voxels of the region; its logits, float32 (1, k, *core) on ``device``; and
        image, labels and validity of the core.
    """
    device = torch.device(device)
    for one in cover(region.shape, tuple(tile), _overlap(tile, overlap_fraction)):
        sample = region.read(one.read)
        image = _filled(sample.image, tuple(tile))
        batch = to_device(torch.from_numpy(image)[None], device)
        with torch.no_grad(), autocast_of(device, precision):
            outputs = network(batch)
        # A network with outputs at several scales gives the finest first.
        logits = outputs if isinstance(outputs, torch.Tensor) else outputs[0]
        core = (slice(None), *one.write.relative_to(one.read).slices())
        yield (
            one.write,
            logits[(slice(None), *core)].float(),
            Sample(sample.image[core], sample.labels[core], sample.valid[core]),
        )


def n_tiles(shape: Sequence[int], tile: Sequence[int], overlap_fraction: float) -> int:
    """How many tiles :func:`iterate_logits` goes through.

    Examples:
        >>> n_tiles((100, 100), (64, 64), 0.25)
        4
    """
    return len(cover(shape, tuple(tile), _overlap(tile, overlap_fraction)))


def to_device(batch: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Images on a device, channels last, which is how convolutions are fastest.

    Args:
        batch: float32, (n, c, z, y, x) or (n, c, y, x).
        device: where to.
    """
    layout = torch.channels_last if batch.ndim == 4 else torch.channels_last_3d
    return batch.to(device, non_blocking=True).contiguous(memory_format=layout)


def autocast_of(device: torch.device, precision: Precision) -> torch.autocast:
    """The forward pass in less than float32, where that is wanted."""
    return torch.autocast(
        device.type, _LOW.get(precision, torch.bfloat16), enabled=precision in _LOW
    )


def _overlap(tile: Sequence[int], fraction: float) -> tuple[int, ...]:
    return tuple(min(size - 1, math.ceil(size * fraction)) for size in tile)


def _filled(image: NDArray[np.float32], tile: tuple[int, ...]) -> NDArray[np.float32]:
    """The image at the size of a tile, mirrored at its end where it is smaller."""
    lacking = [max(0, n - have) for n, have in zip(tile, image.shape[1:], strict=True)]
    if not any(lacking):
        return np.ascontiguousarray(image, np.float32)
    # Symmetric: that also fills an axis of one voxel, and more than the whole image over again.
    return np.pad(image, [(0, 0), *((0, n) for n in lacking)], mode="symmetric").astype(np.float32)
