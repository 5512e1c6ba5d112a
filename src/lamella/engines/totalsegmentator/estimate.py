"""What a run will take, said before it starts: tiles, memory, and how to do with less.

The memory is an upper estimate from the arrays that the package and nnU-Net hold at once; the time
depends on the machine, so that tiles are counted instead and the clock is left to the first of
them.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lamella.core.memory import available_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lamella.engines.totalsegmentator.package import Stage
    from lamella.engines.totalsegmentator.settings import Settings
    from lamella.engines.totalsegmentator.weights import Weights
    from lamella.volume.volume import Volume

__all__ = ["Estimate", "estimate"]

_BYTES_PER_INPUT_VOXEL = 34
"""The image in float64, its copies and the labels on the input's grid."""
_BYTES_PER_MODEL_VOXEL = 24
"""The resampled image, its preprocessed copy and labels."""
_BYTES_PER_CLASS = 8
"""Sums of the tiles in half precision, their copy, and the scores that are compared."""
_BYTES_OF_HIGHER_ORDER = 420
"""Scores that are resampled to the input's grid, and the coordinates this is done at (measured)."""
_NETWORK_BYTES = 3e9
"""The interpreter, PyTorch, a network of 30 M parameters and one tile on its way through it."""
_TILE_VOXELS = 128**3


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a run will take.

    Attributes:
        n_tiles: of the whole image: a crop is not known beforehand, and pieces have more.
        memory_bytes: of the package's process, at its peak.
        message: in words.
        warning: where the machine may not have that; empty otherwise.
    """

    n_tiles: int
    memory_bytes: float
    message: str
    warning: str


def estimate(volume: Volume, settings: Settings, weights: Mapping[int, Weights]) -> Estimate:
    """Count tiles and memory of a run.

    Args:
        volume: what is segmented, (z, y, x).
        settings: how.
        weights: where the plans of the models lie.
    """
    from lamella.io.frames import affine_in_unit

    spacing = affine_in_unit(volume.affine, volume.unit, "mm").spacing
    size_mm = [n * s for n, s in zip(volume.spatial_shape, spacing, strict=True)]
    n_input = math.prod(volume.spatial_shape)
    n_tiles, peak = 0, 0.0
    for stage in settings.stages:
        for dataset in stage.datasets:
            tiles, n_bytes = _model(stage, weights[dataset], size_mm)
            n_tiles += tiles
            peak = max(peak, n_bytes)
    per_voxel = _BYTES_PER_INPUT_VOXEL
    if settings.options["higher_order_resampling"]:
        per_voxel += _BYTES_OF_HIGHER_ORDER
    memory = per_voxel * n_input + peak
    n_models = len(settings.datasets)
    message = (
        f"about {n_tiles} tiles in {n_models} model{'s' if n_models > 1 else ''}; up to about"
        f" {memory / 1e9:.1f} GB of memory. A whole body takes minutes on a GPU and the better part"
        " of an hour on a CPU; fast=true, fastest=true and roi_subset=... take a fraction"
    )
    return Estimate(n_tiles, memory, message, _doubt(memory))


def _model(stage: Stage, weights: Weights, size_mm: list[float]) -> tuple[int, float]:
    """Tiles of one model on the whole image, and the bytes it holds."""
    name = f"{stage.trainer}__{stage.plans}__{stage.model}"
    try:
        folder = weights.path / name
        plans = json.loads((folder / "plans.json").read_text(encoding="utf-8"))
        labels = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))["labels"]
        configuration = plans["configurations"][stage.model]
        patch = [int(value) for value in configuration["patch_size"]]
        # Sizes turn with the image; for an estimate the order of the axes does not matter much.
        fine = [float(value) for value in configuration["spacing"]]
        shape = [max(1, round(length / step)) for length, step in zip(size_mm, fine, strict=True)]
    except (OSError, ValueError, KeyError, TypeError):
        # The worker says what is wrong with the weights.
        return 1, _NETWORK_BYTES
    tiles = len(stage.folds or (0,))
    for n, tile in zip(shape, patch, strict=True):
        tiles *= 1 if n <= tile else math.ceil((n - tile) / (tile * stage.step)) + 1
    padded = math.prod(max(n, tile) for n, tile in zip(shape, patch, strict=True))
    per_voxel = _BYTES_PER_MODEL_VOXEL + _BYTES_PER_CLASS * len(labels)
    network = _NETWORK_BYTES * max(0.2, math.prod(patch) / _TILE_VOXELS)
    return tiles, per_voxel * padded + network


def _doubt(memory: float) -> str:
    available = available_bytes()
    if available is None or memory <= available:
        return ""
    return (
        f"this may need {memory / 1e9:.1f} GB of memory, and {available / 1e9:.1f} GB are free: if"
        " it fails, use fast=true, roi_subset=..., force_split=true or a cropped image"
    )
