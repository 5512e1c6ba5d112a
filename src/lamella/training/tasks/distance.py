"""Targets of distances: foreground, and how deep in its object a voxel lies.

Depth is measured from the surface of the voxels, and is 1 where the object is deepest, so that a
threshold of 0.5 leaves one core an object whatever its size. The depth of an object that the border
of the patch cuts is unknown, for all of its voxels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from lamella.training.configuration import LossTermConfig
from lamella.training.target import Target
from lamella.training.task import Encoded
from lamella.training.tasks.encoding import (
    Pieces,
    channels_target,
    class_docs,
    decoder_of,
    find_pieces,
    read_ids,
    single_class,
    sum_of_losses,
)
from lamella.wire.card import ClassDoc, DecoderDoc

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lamella.training.augment import Sample
    from lamella.training.configuration import TaskConfig

__all__ = ["DistanceTask", "build", "relative_depth"]


@dataclass(frozen=True, slots=True)
class DistanceTask:
    """Foreground (sigmoid) and relative depth (linear, 0 to 1).

    Attributes:
        card_classes: background and the objects' class.
        decoder: watershed from the cores.
        sizes: of a voxel per axis, the finest 1.
    """

    card_classes: tuple[ClassDoc, ...]
    decoder: DecoderDoc
    sizes: tuple[float, ...]
    n_outputs: int = field(default=2, init=False)
    card_task: Literal["semantic", "instance"] = field(default="instance", init=False)
    default_loss: tuple[LossTermConfig, ...] = field(
        default=sum_of_losses(
            ("bce", 1.0, (0,), ""), ("dice", 1.0, (0,), "sigmoid"), ("mse", 10.0, (1,), "")
        ),
        init=False,
    )

    @property
    def score_names(self) -> tuple[str, ...]:
        """The objects' class, and the cores of objects."""
        return (self.card_classes[1].name, "core")

    def encode(self, sample: Sample) -> Encoded:
        """Foreground and depth, float32 (2, *spatial)."""
        ids, known = read_ids(sample)
        pieces = find_pieces(ids)
        values = np.stack([(ids > 0).astype(np.float32), relative_depth(pieces, self.sizes)])
        return Encoded(values, np.stack([known, known & pieces.is_whole[pieces.labels]]))

    def target(self, values: torch.Tensor, valid: torch.Tensor) -> Target:
        """A batch as the losses take it."""
        return channels_target(values, valid)

    def decide(self, logits: torch.Tensor) -> torch.Tensor:
        """Foreground and core, bool (n, 2, *spatial)."""
        return torch.stack([logits[:, 0] > 0, logits[:, 1] > 0.5], dim=1)

    def scored(self, target: Target) -> Target:
        """Foreground, and whether it is the core."""
        core = torch.stack([target.values[:, 0], (target.values[:, 1] > 0.5).float()], dim=1)
        return Target(core, target.valid, False)


def relative_depth(pieces: Pieces, sizes: tuple[float, ...]) -> NDArray[np.float32]:
    """Depth in the own piece, 1 where it is deepest; float32 (*spatial), 0 outside of whole ones.

    Args:
        pieces: of objects.
        sizes: of a voxel per axis, the finest 1.
    """
    import edt

    labels = np.ascontiguousarray(pieces.labels, np.uint32)
    labels = np.where(pieces.is_whole[labels], labels, np.uint32(0))
    # Centre to centre; the surface lies half a voxel before the next centre.
    depth = edt.edt(labels, anisotropy=sizes, black_border=False) - np.float32(0.5)
    _flatten_faces(depth, pieces.labels, sizes)
    deepest = np.full(pieces.count + 1, 0.5, np.float32)
    np.maximum.at(deepest, labels.ravel(), depth.ravel())
    return np.where(labels > 0, depth / deepest[labels], np.float32(0))


def _flatten_faces(
    depth: NDArray[np.float32], labels: NDArray[Any], sizes: tuple[float, ...]
) -> None:
    """A voxel at a face to another object is not deep, however coarse that axis is.

    Otherwise the cores of objects that lie on each other in a coarse stack would be one.
    """
    for axis in (axis for axis, size in enumerate(sizes) if size > 1):
        there, flat = np.moveaxis(labels, axis, 0), np.moveaxis(depth, axis, 0)
        touches = (there[1:] != there[:-1]) & (there[1:] > 0) & (there[:-1] > 0)
        for side in (flat[1:], flat[:-1]):
            side[touches] = np.minimum(side[touches], np.float32(0.5))


def build(config: TaskConfig, sizes: tuple[float, ...]) -> DistanceTask:
    """The task of a configuration."""
    single_class(config)
    return DistanceTask(class_docs(config), decoder_of("distance_watershed", config), sizes)
