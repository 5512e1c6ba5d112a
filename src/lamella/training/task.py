"""What a network learns: from labels to targets, and from its outputs to what is scored.

Targets are such that a network which gave them perfectly would be decoded to the labels they were
made from, by the decoder that the card of the trained model names.

Examples:
    >>> from lamella.training.configuration import ClassConfig, TaskConfig
    >>> cells = TaskConfig(kind="boundary", classes=(ClassConfig(name="cell"),))
    >>> task = build_task(cells, "yx")
    >>> task.n_outputs, task.decoder.kind, task.score_names
    (2, 'boundary_watershed', ('cell', 'boundary'))
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import torch
    from numpy.typing import NDArray

    from lamella.training.augment import Sample
    from lamella.training.configuration import LossTermConfig, TaskConfig
    from lamella.training.target import Target
    from lamella.wire.card import ClassDoc, DecoderDoc

__all__ = ["Encoded", "Task", "build_task"]

_MODULES = {
    "semantic": "lamella.training.tasks.classes",
    "multilabel": "lamella.training.tasks.classes",
    "boundary": "lamella.training.tasks.boundary",
    "distance": "lamella.training.tasks.distance",
    "affinities": "lamella.training.tasks.affinities",
    "flows": "lamella.training.tasks.flows",
}


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

    @property
    def n_outputs(self) -> int:
        """Channels of the network's output."""
        ...

    @property
    def card_task(self) -> Literal["semantic", "instance"]:
        """What the card calls it."""
        ...

    @property
    def card_classes(self) -> tuple[ClassDoc, ...]:
        """Classes of the card, background first, each with a colour."""
        ...

    @property
    def decoder(self) -> DecoderDoc:
        """What makes labels of the outputs."""
        ...

    @property
    def default_loss(self) -> tuple[LossTermConfig, ...]:
        """Terms that suit the task, where a configuration names none."""
        ...

    @property
    def score_names(self) -> tuple[str, ...]:
        """What is counted, in the order of the counts; ``background`` comes first or not at all."""
        ...

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


def build_task(
    config: TaskConfig,
    axes: Literal["zyx", "yx"] | str,
    *,
    spacing: Sequence[float] | None = None,
) -> Task:
    """The task that a configuration describes.

    Args:
        config: kind, classes and parameters.
        axes: spatial axes of the patches.
        spacing: of their voxels per axis, in any unit; None = the same along all axes. It widens
            nothing but boundaries, distances and the default offsets of affinities.

    Raises:
        InputError: for classes, offsets or parameters of the decoder that cannot be right.
    """
    from lamella.core.errors import InputError

    if axes not in ("zyx", "yx"):
        raise InputError(f"axes are {axes!r}, expected 'zyx' or 'yx'")
    sizes = tuple(float(s) for s in (spacing or (1.0,) * len(axes)))
    if len(sizes) != len(axes) or not all(s > 0 for s in sizes):
        raise InputError(
            f"spacing is {spacing}, expected {len(axes)} positive numbers, one for each of {axes!r}"
        )
    # By name: the tasks import what is defined here.
    build = import_module(_MODULES[config.kind]).build
    task: Task = build(config, tuple(s / min(sizes) for s in sizes))
    return task
