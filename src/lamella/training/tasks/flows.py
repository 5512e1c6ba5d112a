"""Targets of flows: foreground, and the way to the middle of the object.

Vectors are stored as (v + 1) / 2, one channel an axis, 0.5 in the background. An object that the
border of the patch cuts has its middle nobody knows where: its vectors are not learnt from.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from lamella.instances.flow import flow_targets
from lamella.training.configuration import LossTermConfig
from lamella.training.target import Target
from lamella.training.task import Encoded
from lamella.training.tasks.encoding import (
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
    from lamella.training.augment import Sample
    from lamella.training.configuration import TaskConfig

__all__ = ["FlowTask", "build"]

_STEEP = 0.25
"""Share of a unit vector from which its component along an axis has a direction that counts."""


@dataclass(frozen=True, slots=True)
class FlowTask:
    """Foreground (sigmoid) and a vector component per axis (linear, 0 to 1).

    Attributes:
        card_classes: background and the objects' class.
        decoder: following the flows.
        axes: spatial axes, one component each.
    """

    card_classes: tuple[ClassDoc, ...]
    decoder: DecoderDoc
    axes: str
    card_task: Literal["semantic", "instance"] = field(default="instance", init=False)

    @property
    def n_outputs(self) -> int:
        """Foreground and the components."""
        return 1 + len(self.axes)

    @property
    def default_loss(self) -> tuple[LossTermConfig, ...]:
        """Vectors weigh much because errors of (v + 1) / 2 are small."""
        vectors = tuple(range(1, self.n_outputs))
        return sum_of_losses(
            ("bce", 1.0, (0,), ""), ("dice", 1.0, (0,), "sigmoid"), ("mse", 20.0, vectors, "")
        )

    @property
    def score_names(self) -> tuple[str, ...]:
        """The objects' class, and the direction along each axis."""
        return (self.card_classes[1].name, *(f"direction {axis}" for axis in self.axes))

    def encode(self, sample: Sample) -> Encoded:
        """Foreground and vectors, float32 (1 + axes, *spatial)."""
        ids, known = read_ids(sample)
        pieces = find_pieces(ids)
        is_whole = pieces.is_whole[pieces.labels]
        flows = flow_targets(np.where(is_whole, pieces.labels, 0))
        foreground = (ids > 0).astype(np.float32)
        values = np.concatenate([foreground[None], (flows + 1) / 2]).astype(np.float32, copy=False)
        vectors_known = np.broadcast_to(known & is_whole, flows.shape)
        return Encoded(values, np.concatenate([known[None], vectors_known]))

    def target(self, values: torch.Tensor, valid: torch.Tensor) -> Target:
        """A batch as the losses take it."""
        return channels_target(values, valid)

    def decide(self, logits: torch.Tensor) -> torch.Tensor:
        """Foreground, and whether each component is positive, bool (n, 1 + axes, *spatial)."""
        return torch.cat([logits[:, :1] > 0, logits[:, 1:] > 0.5], dim=1)

    def scored(self, target: Target) -> Target:
        """Foreground, and the sign of components that have one."""
        components = 2 * target.values[:, 1:] - 1
        values = torch.cat([target.values[:, :1], (components > 0).float()], dim=1)
        is_clear = target.valid[:, 1:] & (components.abs() > _STEEP)
        return Target(values, torch.cat([target.valid[:, :1], is_clear], dim=1), False)


def build(config: TaskConfig, sizes: tuple[float, ...]) -> FlowTask:
    """The task of a configuration; flows are in voxels, whatever their sizes."""
    single_class(config)
    return FlowTask(class_docs(config), decoder_of("flows", config), "zyx"[3 - len(sizes) :])
