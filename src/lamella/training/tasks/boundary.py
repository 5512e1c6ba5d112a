"""Targets of boundaries: foreground, and where two objects are near each other.

::

    ids          1 1 1 2 2 2 0 3 3 0 0
    foreground   1 1 1 1 1 1 0 1 1 0 0
    boundary     . . 1 1 . 1 1 1 . . .     half width 1.5: objects touch, or nearly do

A boundary is known only where everything around it is, so not at the border of a patch. A network
that gives this perfectly is decoded by its card's ``boundary_watershed`` into the objects, unless
an object is so thin that it is boundary through and through.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from lamella.training.configuration import LossTermConfig
from lamella.training.target import Target
from lamella.training.task import Encoded
from lamella.training.tasks.encoding import (
    UNKNOWN,
    channels_target,
    class_docs,
    decoder_of,
    offsets_within,
    read_ids,
    single_class,
    sum_of_losses,
)
from lamella.wire.card import ClassDoc, DecoderDoc

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lamella.training.augment import Sample
    from lamella.training.configuration import TaskConfig

__all__ = ["BoundaryTask", "build", "find_boundaries"]


@dataclass(frozen=True, slots=True)
class BoundaryTask:
    """Foreground and boundary, both sigmoids.

    Attributes:
        card_classes: background and the objects' class.
        decoder: watershed from what lies between boundaries.
        width: half width of a boundary, in voxels of the finest axis.
        sizes: of a voxel per axis, the finest 1.
    """

    card_classes: tuple[ClassDoc, ...]
    decoder: DecoderDoc
    width: float
    sizes: tuple[float, ...]
    n_outputs: int = field(default=2, init=False)
    card_task: Literal["semantic", "instance"] = field(default="instance", init=False)
    default_loss: tuple[LossTermConfig, ...] = field(
        default=sum_of_losses(("bce", 1.0, None, ""), ("dice", 1.0, None, "sigmoid")),
        init=False,
    )

    @property
    def score_names(self) -> tuple[str, ...]:
        """The objects' class, and boundaries."""
        return (self.card_classes[1].name, "boundary")

    def encode(self, sample: Sample) -> Encoded:
        """Foreground and boundary, float32 (2, *spatial)."""
        ids, known = read_ids(sample)
        boundary, is_certain = find_boundaries(ids, self.width, self.sizes)
        values = np.stack([ids > 0, boundary]).astype(np.float32)
        return Encoded(values, np.stack([known, is_certain]))

    def target(self, values: torch.Tensor, valid: torch.Tensor) -> Target:
        """A batch as the losses take it."""
        return channels_target(values, valid)

    def decide(self, logits: torch.Tensor) -> torch.Tensor:
        """Foreground and boundary, bool (n, 2, *spatial)."""
        return logits > 0

    def scored(self, target: Target) -> Target:
        """All of it."""
        return target


def find_boundaries(
    ids: NDArray[np.int64], width: float, sizes: tuple[float, ...]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Voxels with two objects around them, and voxels around which everything is known.

    Args:
        ids: int64, (z, y, x) or (y, x); 0 is background, -1 unknown.
        width: how far is around, in voxels of the finest axis; face neighbours always are.
        sizes: of a voxel per axis, the finest 1.

    Examples:
        >>> ids = np.array([[1, 1, 1, 2, 2, 2]])
        >>> find_boundaries(ids, 1.0, (1.0, 1.0))[0].astype(int).tolist()
        [[0, 0, 1, 1, 0, 0]]
    """
    from lamella.training.tasks.kernels import near_two_objects

    steps = offsets_within(width, sizes)
    margin = steps.max(axis=0)
    padded = np.pad(ids, [(int(m), int(m)) for m in margin], constant_values=UNKNOWN)
    lift = 3 - ids.ndim
    strides = (0,) * lift + tuple(s // padded.itemsize for s in padded.strides)
    start = int(sum(m * s for m, s in zip(margin, strides[lift:], strict=True)))
    flat_steps = steps @ np.asarray(strides[lift:], np.int64)
    shape = (1,) * lift + ids.shape
    found, known = near_two_objects(padded.ravel(), start, shape, strides, flat_steps)
    return found.reshape(ids.shape), known.reshape(ids.shape)


def build(config: TaskConfig, sizes: tuple[float, ...]) -> BoundaryTask:
    """The task of a configuration."""
    single_class(config)
    decoder = decoder_of("boundary_watershed", config)
    return BoundaryTask(class_docs(config), decoder, config.boundary_width, sizes)
