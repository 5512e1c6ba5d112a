"""Targets of classes: one of several per voxel, or each class for itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from lamella.core.errors import InputError
from lamella.training.configuration import LossTermConfig
from lamella.training.target import Target
from lamella.training.task import Encoded
from lamella.training.tasks.encoding import (
    channels_target,
    class_docs,
    decoder_of,
    sum_of_losses,
)
from lamella.wire.card import ClassDoc, DecoderDoc

if TYPE_CHECKING:
    from lamella.training.augment import Sample
    from lamella.training.configuration import TaskConfig

__all__ = ["MultilabelTask", "SemanticTask", "build"]


@dataclass(frozen=True, slots=True)
class SemanticTask:
    """One class a voxel: a softmax, output 0 is background."""

    card_classes: tuple[ClassDoc, ...]
    decoder: DecoderDoc
    card_task: Literal["semantic", "instance"] = field(default="semantic", init=False)
    default_loss: tuple[LossTermConfig, ...] = field(
        default=sum_of_losses(("cross_entropy", 1.0, None, ""), ("dice", 1.0, None, "softmax")),
        init=False,
    )

    @property
    def n_outputs(self) -> int:
        """Background and the classes."""
        return len(self.card_classes)

    @property
    def score_names(self) -> tuple[str, ...]:
        """Background and the classes."""
        return tuple(known.name for known in self.card_classes)

    def encode(self, sample: Sample) -> Encoded:
        """Class values, int64 (*spatial).

        Raises:
            InputError: for a value that no class has.
        """
        _need_channels(sample, 1)
        labels, valid = sample.labels[0], sample.valid[0]
        values = np.where(valid, labels, 0).astype(np.int64, copy=False)
        low, high = int(values.min(initial=0)), int(values.max(initial=0))
        if low < 0 or high >= self.n_outputs:
            raise InputError(
                f"the labels hold the value {low if low < 0 else high}; the task has classes 0 to"
                f" {self.n_outputs - 1} ({', '.join(self.score_names)})",
                hint="name the class under task.classes, or the value under task.ignore_values",
            )
        return Encoded(values, valid)

    def target(self, values: torch.Tensor, valid: torch.Tensor) -> Target:
        """A batch as the losses take it."""
        valid = valid.bool()
        return Target(torch.where(valid, values.long(), 0), valid, True)

    def decide(self, logits: torch.Tensor) -> torch.Tensor:
        """The likeliest class, int64 (n, *spatial)."""
        return logits.argmax(1)

    def scored(self, target: Target) -> Target:
        """All of it."""
        return target


@dataclass(frozen=True, slots=True)
class MultilabelTask:
    """Every class for itself: sigmoids; classes may overlap, and each has a mask of its own."""

    card_classes: tuple[ClassDoc, ...]
    decoder: DecoderDoc
    card_task: Literal["semantic", "instance"] = field(default="semantic", init=False)
    default_loss: tuple[LossTermConfig, ...] = field(
        default=sum_of_losses(("bce", 1.0, None, ""), ("dice", 1.0, None, "sigmoid")),
        init=False,
    )

    @property
    def n_outputs(self) -> int:
        """One a class; background has none."""
        return len(self.card_classes) - 1

    @property
    def score_names(self) -> tuple[str, ...]:
        """The classes."""
        return tuple(known.name for known in self.card_classes[1:])

    def encode(self, sample: Sample) -> Encoded:
        """0 and 1, float32 (k, *spatial); NaN is not valid.

        Raises:
            InputError: for another number of channels.
        """
        _need_channels(sample, self.n_outputs)
        labels, valid = sample.labels, sample.valid
        if np.issubdtype(labels.dtype, np.floating):
            valid = valid & ~np.isnan(labels)
        return Encoded((valid & (labels > 0)).astype(np.float32), valid)

    def target(self, values: torch.Tensor, valid: torch.Tensor) -> Target:
        """A batch as the losses take it."""
        return channels_target(values, valid)

    def decide(self, logits: torch.Tensor) -> torch.Tensor:
        """Which classes are there, bool (n, k, *spatial)."""
        threshold = torch.tensor(float(str(self.decoder.parameters["threshold"])))
        return logits > float(threshold.logit())

    def scored(self, target: Target) -> Target:
        """All of it."""
        return target


def build(config: TaskConfig, sizes: tuple[float, ...]) -> SemanticTask | MultilabelTask:
    """The task of a configuration; the voxels' sizes mean nothing here."""
    del sizes
    if config.kind == "semantic":
        return SemanticTask(class_docs(config), decoder_of("argmax", config))
    return MultilabelTask(class_docs(config), decoder_of("threshold", config, threshold=0.5))


def _need_channels(sample: Sample, expected: int) -> None:
    if sample.labels.shape[0] != expected:
        raise InputError(
            f"labels have {sample.labels.shape[0]} channels, the task wants {expected}",
            hint="one map of class values for semantic, one map a class for multilabel",
        )
