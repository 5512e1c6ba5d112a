"""Targets of affinities: foreground, and whether voxels some way apart are of one object.

An affinity is known where both voxels are: it says the same of two voxels whether or not the rest
of their object is in the patch, so nothing is lost of objects that the patch cuts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from lamella.core.errors import InputError
from lamella.instances.affinity import affinity_targets
from lamella.training.configuration import LossTermConfig
from lamella.training.target import Target
from lamella.training.task import Encoded
from lamella.training.tasks.encoding import (
    channels_target,
    class_docs,
    decoder_of,
    read_ids,
    single_class,
    sum_of_losses,
)
from lamella.wire.card import ClassDoc, DecoderDoc

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lamella.training.augment import Sample
    from lamella.training.configuration import TaskConfig

__all__ = ["AffinityTask", "build", "default_offsets"]

LENGTHS = (3, 9)
"""Of the long default offsets, in voxels of the finest axis."""

Offset = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class AffinityTask:
    """Foreground and an affinity per offset, all sigmoids.

    Attributes:
        card_classes: background and the objects' class.
        decoder: mutex watershed where there are long offsets, watershed on edges otherwise.
        offsets: in voxels, per axis.
    """

    card_classes: tuple[ClassDoc, ...]
    decoder: DecoderDoc
    offsets: tuple[Offset, ...]
    card_task: Literal["semantic", "instance"] = field(default="instance", init=False)
    default_loss: tuple[LossTermConfig, ...] = field(
        default=sum_of_losses(("bce", 1.0, None, ""), ("dice", 1.0, None, "sigmoid")),
        init=False,
    )

    @property
    def n_outputs(self) -> int:
        """Foreground and the offsets."""
        return 1 + len(self.offsets)

    @property
    def score_names(self) -> tuple[str, ...]:
        """The objects' class, and where its voxels part from a neighbour."""
        return (self.card_classes[1].name, "boundary")

    def encode(self, sample: Sample) -> Encoded:
        """Foreground and affinities, float32 (1 + n_offsets, *spatial)."""
        ids, known = read_ids(sample)
        foreground = (ids > 0).astype(np.float32)
        values = np.concatenate([foreground[None], affinity_targets(ids, self.offsets)])
        valid = np.stack([known, *(_both_known(known, offset) for offset in self.offsets)])
        return Encoded(values, valid)

    def target(self, values: torch.Tensor, valid: torch.Tensor) -> Target:
        """A batch as the losses take it."""
        return channels_target(values, valid)

    def decide(self, logits: torch.Tensor) -> torch.Tensor:
        """Foreground, and where a neighbour is not of the same object, bool (n, 2, *spatial)."""
        return torch.stack([logits[:, 0] > 0, (logits[:, self._near()] <= 0).any(1)], dim=1)

    def scored(self, target: Target) -> Target:
        """Foreground, and in the foreground where a neighbour is not of the same object."""
        near = self._near()
        apart = (target.values[:, near] < 0.5).any(1)
        inside = target.valid[:, 0] & (target.values[:, 0] > 0.5)
        known = target.valid[:, near].all(1) & inside
        values = torch.stack([target.values[:, 0], apart.float()], dim=1)
        return Target(values, torch.stack([target.valid[:, 0], known], dim=1), False)

    def _near(self) -> list[int]:
        """Channels of the offsets that lead to face neighbours."""
        return [k for k, o in enumerate(self.offsets, start=1) if sum(map(abs, o)) == 1]


def default_offsets(sizes: tuple[float, ...]) -> tuple[Offset, ...]:
    """The face neighbours, and two longer offsets an axis, shorter in voxels along coarse axes.

    Examples:
        >>> default_offsets((5.0, 1.0))
        ((-1, 0), (0, -1), (-2, 0), (0, -3), (0, -9))
    """
    n = len(sizes)

    def along(axis: int, length: int) -> Offset:
        return tuple(-length if a == axis else 0 for a in range(n))

    offsets = [along(axis, 1) for axis in range(n)]
    for length in LENGTHS:
        offsets += [along(axis, max(2, round(length / sizes[axis]))) for axis in range(n)]
    return tuple(dict.fromkeys(offsets))


def _both_known(known: NDArray[np.bool_], offset: Offset) -> NDArray[np.bool_]:
    result = np.zeros_like(known)
    here = tuple(
        slice(max(0, -d), max(0, n - max(0, d))) for n, d in zip(known.shape, offset, strict=True)
    )
    there = tuple(
        slice(max(0, d), max(0, n + min(0, d))) for n, d in zip(known.shape, offset, strict=True)
    )
    result[here] = known[here] & known[there]
    return result


def build(config: TaskConfig, sizes: tuple[float, ...]) -> AffinityTask:
    """The task of a configuration."""
    single_class(config)
    offsets = tuple(tuple(o) for o in config.offsets) or default_offsets(sizes)
    wrong = [o for o in offsets if len(o) != len(sizes)]
    if wrong:
        raise InputError(
            f"task.offsets: {wrong[0]} does not fit {len(sizes)} axes",
            hint=f"give {len(sizes)} integers an offset, such as {default_offsets(sizes)[0]}",
        )
    if len(set(offsets)) != len(offsets):
        raise InputError("task.offsets: an offset is given twice")
    decoder = decoder_of("affinities", config, offsets=[list(o) for o in offsets])
    if decoder.parameters["offsets"] != [list(o) for o in offsets]:
        raise InputError(
            "task.decoder has offsets of its own",
            hint="give them once, under task.offsets: targets and decoder share them",
        )
    return AffinityTask(class_docs(config), decoder, offsets)
