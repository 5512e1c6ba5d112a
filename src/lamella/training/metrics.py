"""Scores of a network over a data set, counted voxel by voxel and never averaged over batches.

A mean of batch scores depends on how batches were drawn, and a batch without a class has no score
at all. So voxels are counted over everything, and scores are made of the counts at the end. Counts
add up: over batches, workers and machines, in any order.

Examples:
    >>> import torch
    >>> counts = ConfusionCounts.zeros(2)
    >>> counts.add(torch.tensor([[0, 1, 1]]), Target.of_classes(torch.tensor([[0, 1, 0]])))
    >>> [round(score.iou, 2) for score in counts.scores()]
    [0.5, 0.5]
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from lamella.core.errors import InputError
from lamella.training.target import Target

__all__ = ["ClassScores", "ConfusionCounts", "mean_score"]


@dataclass(frozen=True, slots=True)
class ClassScores:
    """Scores of one class; nan where it neither is nor was predicted.

    Attributes:
        iou: TP / (TP + FP + FN).
        dice: 2 TP / (2 TP + FP + FN), which is F1.
        precision: TP / (TP + FP).
        recall: TP / (TP + FN).
        accuracy: share of voxels that are right about this class.
        n_reference: voxels of the class in the reference.
        n_predicted: voxels of the class in the prediction.
    """

    iou: float
    dice: float
    precision: float
    recall: float
    accuracy: float
    n_reference: int
    n_predicted: int


class ConfusionCounts:
    """True and false positives and negatives of every class.

    Args:
        counts: int64, (k, 4): TP, FP, FN, TN.
    """

    def __init__(self, counts: torch.Tensor) -> None:
        self.counts = counts

    @classmethod
    def zeros(cls, n_classes: int, device: torch.device | str = "cpu") -> ConfusionCounts:
        """Counts of nothing."""
        return cls(torch.zeros((n_classes, 4), dtype=torch.int64, device=device))

    @property
    def n_classes(self) -> int:
        """How many classes are counted."""
        return len(self.counts)

    def add(self, prediction: torch.Tensor, target: Target) -> None:
        """Count a batch; voxels that are not valid are left out.

        Args:
            prediction: class values, integers (n, *spatial), for a target of classes; bool
                (n, k, *spatial) for one of channels.
            target: what is right.

        Raises:
            InputError: when shapes or classes do not fit.
        """
        if prediction.shape != target.values.shape:
            raise InputError(
                f"predictions have shape {tuple(prediction.shape)}, targets"
                f" {tuple(target.values.shape)}",
                hint="predict class values for classes, and one truth value per channel",
            )
        if target.is_classes:
            self._add_classes(prediction, target)
        else:
            self._add_channels(prediction, target)

    def merged(self, other: ConfusionCounts) -> ConfusionCounts:
        """The counts of both."""
        return ConfusionCounts(self.counts + other.counts.to(self.counts.device))

    def scores(self) -> tuple[ClassScores, ...]:
        """Scores of every class."""
        return tuple(_scores(*row) for row in self.counts.tolist())

    def _add_classes(self, prediction: torch.Tensor, target: Target) -> None:
        k = self.n_classes
        predicted, referenced = prediction[target.valid].long(), target.values[target.valid]
        largest = max(
            (int(side.max()) for side in (predicted, referenced) if side.numel()), default=0
        )
        if largest >= k:
            raise InputError(
                f"class {largest} occurs, but only {k} classes (0 to {k - 1}) are counted",
                hint="check the number of classes, or the ignore value",
            )
        matrix = torch.bincount(referenced * k + predicted, minlength=k * k).reshape(k, k)
        both = matrix.diagonal()
        false_positives, false_negatives = matrix.sum(0) - both, matrix.sum(1) - both
        rest = matrix.sum() - both - false_positives - false_negatives
        self.counts += torch.stack([both, false_positives, false_negatives, rest], dim=1).to(
            self.counts.device
        )

    def _add_channels(self, prediction: torch.Tensor, target: Target) -> None:
        if prediction.shape[1] != self.n_classes:
            raise InputError(
                f"predictions have {prediction.shape[1]} channels, {self.n_classes} are counted"
            )
        axes = (0, *range(2, prediction.ndim))
        predicted, referenced, valid = prediction.bool(), target.values > 0.5, target.valid
        parts = [
            (a & b & valid).sum(axes)
            for a, b in (
                (predicted, referenced),
                (predicted, ~referenced),
                (~predicted, referenced),
                (~predicted, ~referenced),
            )
        ]
        self.counts += torch.stack(parts, dim=1).to(self.counts.device)


def mean_score(
    scores: tuple[ClassScores, ...], name: str, *, skip_background: bool = True
) -> float:
    """Mean of a score over the classes that have one; nan when none has.

    Args:
        scores: of all classes.
        name: of the score, such as ``"iou"``.
        skip_background: leave out class 0, which is easy and large.
    """
    values = [getattr(score, name) for score in scores[1 if skip_background else 0 :]]
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def _scores(tp: int, fp: int, fn: int, tn: int) -> ClassScores:
    def ratio(part: int, whole: int) -> float:
        return part / whole if whole else math.nan

    return ClassScores(
        iou=ratio(tp, tp + fp + fn),
        dice=ratio(2 * tp, 2 * tp + fp + fn),
        precision=ratio(tp, tp + fp),
        recall=ratio(tp, tp + fn),
        accuracy=ratio(tp + tn, tp + fp + fn + tn),
        n_reference=tp + fn,
        n_predicted=tp + fp,
    )
