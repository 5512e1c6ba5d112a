"""A small image that a model may be tried on, and the labels it gives there.

The image is a crop of a validation region. Regions give intensities as the network sees them, after
normalisation; where that was linear (z-scores, percentiles) any brightness and contrast is as good
as the original, and the crop is kept as 16-bit integers; fixed normalisation is undone. The labels
are those of the network on the crop as it is stored, normalised on its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from lamella.inference.whole import labels_of_logits, normalised_whole
from lamella.io.format import SaveOptions, save_volume
from lamella.volume.box import Box
from lamella.volume.volume import Volume

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import nn

    from lamella.training.source import PatchSource, Region
    from lamella.volume.labels import Labels
    from lamella.wire.card import ModelCard, NormalisationDoc
    from lamella.wire.request import SpacingDoc

__all__ = [
    "INPUT_NAME",
    "OUTPUT_NAME",
    "Example",
    "labels_of",
    "make_example",
    "write_example",
]

INPUT_NAME = "example_input.tif"
OUTPUT_NAME = "example_output.tif"
MAX_VOXELS = 1 << 18
_N_TRIES = 24
_N_REGIONS = 4


@dataclass(frozen=True, slots=True)
class Example:
    """An image to try a model on.

    Attributes:
        volume: intensities, axes (c) (z) y x.
        origin: where it comes from, in words.
    """

    volume: Volume
    origin: str


def make_example(
    source: PatchSource, card: ModelCard, spacing: SpacingDoc | None, *, seed: int = 0
) -> Example | None:
    """A crop with something to see: of a validation region, else of the training data.

    Args:
        source: gives regions and patches.
        card: of the model; says tile, divisor and normalisation.
        spacing: of the source's voxels.
        seed: of the places that are looked at.

    Returns:
        None where every crop is constant, and nothing could be segmented.
    """
    rng = np.random.default_rng([seed, 0xE7])
    best, image, origin = -1.0, None, ""
    regions = list(source.regions("validation"))[:_N_REGIONS]
    for region in regions:
        for box in _places(rng, region, card, _N_TRIES // len(regions)):
            sample = region.read(box)
            score = _interest(sample.labels, sample.valid)
            if score > best and np.ptp(sample.image) > 0:
                best, image = score, sample.image
                origin = f"{region.name}, from {box.start}"
    if not regions:
        shape = _extents(card, None)
        for _ in range(_N_TRIES):
            sample = source.draw(rng, shape)
            score = _interest(sample.labels, sample.valid)
            if score > best and np.ptp(sample.image) > 0:
                best, image, origin = score, sample.image, "a patch of the training data"
    if image is None:
        return None
    raw = _as_intensities(image, card.normalisation)
    n_spatial = len(card.axes)
    data = raw if card.n_channels > 1 else raw[0]
    return Example(
        Volume.from_array(
            data,
            axes="c" * (card.n_channels > 1) + card.axes,
            spacing=None if spacing is None else spacing.values[-n_spatial:],
            unit=None if spacing is None else spacing.unit,
            name="example",
        ),
        origin,
    )


def labels_of(network: nn.Module, card: ModelCard, volume: Volume) -> Labels:
    """Labels of an image that is no larger than the model's tile, as the engine gives them.

    Args:
        network: in evaluation mode, on the CPU.
        card: of the model.
        volume: intensities.
    """
    image = normalised_whole(volume, card)
    # As inference does: an image smaller than the tile lies in its middle, zeros around it.
    before = [(t - n) // 2 for t, n in zip(card.tile, image.shape[1:], strict=True)]
    inner = tuple(slice(b, b + n) for b, n in zip(before, image.shape[1:], strict=True))
    tile = np.zeros((1, card.n_channels, *card.tile), np.float32)
    tile[(0, slice(None), *inner)] = image
    with torch.no_grad():
        logits = network(torch.from_numpy(tile)).float().numpy()[0][(slice(None), *inner)]
    return labels_of_logits(logits, card, volume)


def write_example(example: Example, labels: Labels, folder: Path) -> dict[str, Path]:
    """Write both as OME-TIFF; returns the files by name."""
    options = SaveOptions(overwrite=True, pyramid=False)
    return {
        name: save_volume(volume, folder / name, options)
        for name, volume in ((INPUT_NAME, example.volume), (OUTPUT_NAME, labels))
    }


def _places(rng: np.random.Generator, region: Region, card: ModelCard, n: int) -> list[Box]:
    extents = _extents(card, region.shape)
    boxes: list[Box] = []
    for _ in range(max(1, n)):
        start = tuple(
            int(rng.integers(0, size - extent + 1))
            for size, extent in zip(region.shape, extents, strict=True)
        )
        boxes.append(Box(start, tuple(s + e for s, e in zip(start, extents, strict=True))))
    return list(dict.fromkeys(boxes))


def _extents(card: ModelCard, available: Sequence[int] | None) -> tuple[int, ...]:
    """A multiple of the divisor where possible, no larger than the tile or what there is."""
    divisor = card.divisor or (1,) * len(card.axes)
    extents = list(card.tile)
    if available is not None:
        extents = [min(e, n) for e, n in zip(extents, available, strict=True)]
    while math.prod(extents) > MAX_VOXELS:
        axis = int(np.argmax(extents))
        half = extents[axis] // 2 // divisor[axis] * divisor[axis]
        if half == 0:
            break
        extents[axis] = half
    return tuple(e // d * d if e >= d else e for e, d in zip(extents, divisor, strict=True))


def _interest(labels: NDArray[np.generic], valid: NDArray[np.bool_]) -> float:
    """Largest where half of what is known is something."""
    share = float(((labels != 0) & valid).any(0).mean())
    return share * (1 - share)


def _as_intensities(image: NDArray[np.float32], doc: NormalisationDoc) -> NDArray[np.generic]:
    if doc.kind == "fixed":
        std, mean = 1.0 if doc.std is None else doc.std, doc.mean or 0.0
        return (image * np.float32(std) + np.float32(mean)).astype(np.float32)
    if doc.kind == "none" or (doc.kind == "percentile" and doc.clip):
        return image.astype(np.float32)
    low, high = float(image.min()), float(image.max())
    return np.rint((image - low) / (high - low) * 65535).astype(np.uint16)
