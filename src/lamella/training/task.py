"""What a network learns: from labels to targets, and from its outputs to what is scored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from lamella.training.augment import Sample
    from lamella.training.configuration import LossTermConfig
    from lamella.training.target import Target
    from lamella.wire.card import ClassDoc, DecoderDoc

__all__ = ["Encoded", "Task"]


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """Targets of a patch.

    Attributes:
        values: int64 (*spatial) class values, or float32 (k, *spatial), one a network output.
        valid: bool, the shape of ``values``.
    """

    values: NDArray[Any]
    valid: NDArray[np.bool_]


class Task(Protocol):
    """A kind of target.

    Contract:
        * ``encode`` runs in the data workers, after augmentation, and draws nothing;
        * what depends on voxels that are not valid, or outside the patch, is not valid;
        * ``decide`` and ``scored`` give a pair that ``ConfusionCounts.add`` takes.
    """

    n_outputs: int
    card_task: Literal["semantic", "instance"]
    card_classes: tuple[ClassDoc, ...]
    decoder: DecoderDoc
    default_loss: tuple[LossTermConfig, ...]
    score_names: tuple[str, ...]

    def encode(self, sample: Sample) -> Encoded:
        """Targets of an augmented patch."""
        ...

    def target(self, values: torch.Tensor, valid: torch.Tensor) -> Target:
        """A batch of encoded patches as the losses take it."""
        ...

    def decide(self, logits: torch.Tensor) -> torch.Tensor:
        """What the network says, as ``ConfusionCounts.add`` takes it."""
        ...

    def scored(self, target: Target) -> Target:
        """The part of a target that is counted, such as foreground for objects."""
        ...
