"""Overlap of classes: Dice, IoU, precision, recall and accuracy, from one contingency table.

For a class with TP voxels in both, FP in the prediction only and FN in the reference only::

    dice = 2 TP / (2 TP + FP + FN)     precision = TP / (TP + FP)
    iou  =   TP / (TP + FP + FN)       recall    = TP / (TP + FN)

**Nothing to compare is not a number.** A class absent from both has nan everywhere and counts in no
mean; absent from the prediction only: dice, iou, recall 0 and precision nan; absent from the
reference only: dice, iou, precision 0 and recall nan.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lamella.evaluation.contingency import ContingencyTable, Marginal

__all__ = ["SemanticScores", "score_classes"]


@dataclass(frozen=True, slots=True)
class SemanticScores:
    """Scores per class; arrays are (n_classes,), in the order of ``classes``.

    Attributes:
        classes: class ids.
        dice: 0..1, or nan where the class is absent from both.
        iou: 0..1 or nan.
        precision: 0..1 or nan.
        recall: 0..1 or nan.
        prediction_voxels: int64.
        reference_voxels: int64.
        accuracy: share of all voxels (background included) with the right class, 0..1 or nan.
    """

    classes: tuple[int, ...]
    dice: NDArray[np.float64]
    iou: NDArray[np.float64]
    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    prediction_voxels: NDArray[np.int64]
    reference_voxels: NDArray[np.int64]
    accuracy: float

    @property
    def mean_dice(self) -> float:
        """Mean over the classes present in either; nan when there is none."""
        return _mean(self.dice)

    @property
    def mean_iou(self) -> float:
        """Mean over the classes present in either; nan when there is none."""
        return _mean(self.iou)


def score_classes(table: ContingencyTable, classes: Sequence[int] | None = None) -> SemanticScores:
    """Score every class.

    Args:
        table: of class labels, from :func:`lamella.evaluation.count_overlaps`.
        classes: class ids; default every positive label of either side, ascending.

    Returns:
        The scores.

    Examples:
        >>> import numpy as np
        >>> from lamella.evaluation import count_overlaps
        >>> table = count_overlaps(np.array([0, 1, 1, 2]), np.array([0, 1, 2, 2]))
        >>> scores = score_classes(table)
        >>> scores.classes, scores.dice.round(3).tolist(), scores.accuracy
        ((1, 2), [0.667, 0.667], 0.75)
    """
    predicted, referenced = table.side_prediction(), table.side_reference()
    if classes is None:
        both = np.union1d(predicted.ids, referenced.ids)
        classes = [int(label) for label in both if label != 0]
    diagonal = table.prediction == table.reference
    agreed = Marginal(table.prediction[diagonal], table.voxels[diagonal], np.zeros(0, np.int64))
    hit, n_predicted, n_referenced = (
        _voxels_of(side, classes) for side in (agreed, predicted, referenced)
    )
    either = n_predicted + n_referenced - hit
    return SemanticScores(
        classes=tuple(int(label) for label in classes),
        dice=_ratio(2 * hit, n_predicted + n_referenced),
        iou=_ratio(hit, either),
        precision=_ratio(hit, n_predicted),
        recall=_ratio(hit, n_referenced),
        prediction_voxels=n_predicted,
        reference_voxels=n_referenced,
        accuracy=float(_ratio(np.array(table.voxels[diagonal].sum()), np.array(table.total))),
    )


def _voxels_of(side: Marginal, classes: Sequence[int]) -> NDArray[np.int64]:
    """Voxels of each class on one side, 0 where it does not occur."""
    known = dict(zip(side.ids.tolist(), side.voxels.tolist(), strict=True))
    return np.array([known.get(int(label), 0) for label in classes], np.int64)


def _ratio(part: NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    """The share ``part / whole``, nan for 0 / 0."""
    result = np.full(np.shape(whole), np.nan)
    return np.divide(part, whole, out=result, where=whole > 0)


def _mean(values: NDArray[np.float64]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
