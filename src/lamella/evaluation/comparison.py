"""Compare two labels with their geometry: what ``lamella evaluate`` and ``lm.evaluate`` report.

Examples:
    >>> import numpy as np
    >>> from lamella.volume.labels import Labels
    >>> data = np.zeros((6, 8, 8), np.uint8)
    >>> data[2:4, 2:6, 2:6] = 1
    >>> labels = Labels.from_array(data, spacing=(2.0, 1.0, 1.0), unit="nm")
    >>> comparison = compare_labels(labels, labels)
    >>> comparison.to_dict()["classes"][0]["dice"]
    1.0
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lamella.core.errors import GeometryError, InputError
from lamella.core.progress import Progress, ProgressSink, SilentSink
from lamella.evaluation.contingency import count_overlaps
from lamella.evaluation.instance import DEFAULT_THRESHOLDS, InstanceScores, score_instances
from lamella.evaluation.semantic import SemanticScores, score_classes
from lamella.evaluation.surface import SurfaceScore, score_surface
from lamella.volume.labels import Labels

__all__ = ["Comparison", "ComparisonOptions", "compare_labels"]

_MOST_CLASSES = 255


@dataclass(frozen=True, slots=True)
class ComparisonOptions:
    """What to compare.

    Attributes:
        classes: class ids to score; None = every positive label of either side.
        instances: whether values are instance ids: objects are scored, and surfaces are those of
            the foreground as a whole.
        surfaces: whether to measure surface distances (loads the labels into memory).
        tolerance: distance at which surface Dice is taken, in the unit of the reference's spacing;
            None = the largest spacing, that is one voxel.
        ignore_label: voxels with this reference label are left out everywhere.
        thresholds: IoU thresholds of the matching.
    """

    classes: Sequence[int] | None = None
    instances: bool = False
    surfaces: bool = True
    tolerance: float | None = None
    ignore_label: int | None = None
    thresholds: Sequence[float] = DEFAULT_THRESHOLDS


@dataclass(frozen=True, slots=True)
class Comparison:
    """The scores of one prediction against one reference.

    Attributes:
        unit: unit of the distances.
        tolerance: at which surface Dice was taken, in ``unit``.
        class_names: per scored class.
        semantic: scores per class (for instances: of the foreground as class 1).
        surfaces: per scored class, or empty.
        instance: scores of the objects, or None.
    """

    unit: str
    tolerance: float
    class_names: tuple[str, ...]
    semantic: SemanticScores
    surfaces: tuple[SurfaceScore, ...]
    instance: InstanceScores | None

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values: as :meth:`to_values`, but None for nan and infinity.

        None means that there was nothing to compare, or a surface on one side only; the numbers of
        voxels tell which.
        """
        return _finite(self.to_values())

    def to_values(self) -> dict[str, Any]:
        """Everything as nested dictionaries and lists of plain numbers, nan and infinity too."""
        scores = self.semantic
        rows = []
        for k, label in enumerate(scores.classes):
            row: dict[str, Any] = {
                "class": label,
                "name": self.class_names[k],
                "dice": float(scores.dice[k]),
                "iou": float(scores.iou[k]),
                "precision": float(scores.precision[k]),
                "recall": float(scores.recall[k]),
                "prediction_voxels": int(scores.prediction_voxels[k]),
                "reference_voxels": int(scores.reference_voxels[k]),
            }
            if self.surfaces:
                surface = self.surfaces[k]
                row |= {
                    "hd95": surface.hausdorff_95,
                    "hausdorff": surface.hausdorff,
                    "assd": surface.mean_distance,
                    "nsd": surface.surface_dice,
                }
            rows.append(row)
        values: dict[str, Any] = {
            "unit": self.unit,
            "tolerance": self.tolerance,
            "classes": rows,
            "mean_dice": scores.mean_dice,
            "mean_iou": scores.mean_iou,
            "accuracy": scores.accuracy,
        }
        if self.instance is not None:
            values["instances"] = _instance_values(self.instance)
        return values


def compare_labels(
    prediction: Labels,
    reference: Labels,
    options: ComparisonOptions | None = None,
    *,
    sink: ProgressSink | None = None,
) -> Comparison:
    """Score a prediction against a reference on the same grid.

    Args:
        prediction: classes or instances.
        reference: the same, same shape and spacing.
        options: what to compare.
        sink: for progress and cancellation.

    Returns:
        The scores.

    Raises:
        GeometryError: when shape or spacing differ; both are in the message.
        InputError: for negative labels other than the ignore label.
        RunCancelledError: when the sink says so.
    """
    options = options or ComparisonOptions()
    sink = sink or SilentSink()
    check_same_grid(prediction, reference)
    tolerance = options.tolerance
    if tolerance is None:
        tolerance = max(reference.spacing.values)
    table = count_overlaps(prediction.data, reference.data, ignore_label=options.ignore_label)
    sink.emit(Progress("overlaps", 1, 1))
    sink.check()
    if options.instances:
        instance = score_instances(table, thresholds=options.thresholds)
        semantic = score_classes(table.as_foreground(), [1])
        names: tuple[str, ...] = ("foreground",)
    else:
        instance = None
        semantic = score_classes(table, options.classes)
        _refuse_many(semantic.classes, options)
        names = tuple(reference.class_name(label) for label in semantic.classes)
    surfaces: tuple[SurfaceScore, ...] = ()
    if options.surfaces:
        surfaces = _score_surfaces(
            prediction, reference, semantic.classes, (options, tolerance), sink
        )
    return Comparison(
        unit=reference.unit,
        tolerance=tolerance,
        class_names=names,
        semantic=semantic,
        surfaces=surfaces,
        instance=instance,
    )


def _refuse_many(classes: Sequence[int], options: ComparisonOptions) -> None:
    """Thousands of "classes" are instances: scoring each would take hours and mean nothing."""
    if options.classes is None and len(classes) > _MOST_CLASSES:
        raise InputError(
            f"the labels have {len(classes)} different values, more than {_MOST_CLASSES} classes",
            hint="add --instances if they are objects, or choose with --classes",
        )


def check_same_grid(prediction: Labels, reference: Labels) -> None:
    """Refuse labels that do not lie on each other.

    Raises:
        GeometryError: when shape or spacing (beyond 1 %) differ. A spacing that one side does not
            know (unit voxel) is taken from the other.
    """
    ours, theirs = prediction.spacing, reference.spacing
    described = (
        f"prediction has shape {prediction.shape}, spacing {ours}; reference has shape"
        f" {reference.shape}, spacing {theirs}"
    )
    if prediction.shape != reference.shape:
        raise GeometryError(
            described, hint="compare labels on the same grid; resample one of them first"
        )
    if not (ours.is_calibrated and theirs.is_calibrated):
        return
    converted = ours.to(theirs.unit).values
    if not np.allclose(converted, theirs.values, rtol=0.01, atol=0):
        raise GeometryError(
            described,
            hint="if one of the headers is wrong, set it with `lamella convert --spacing`",
        )


def _score_surfaces(
    prediction: Labels,
    reference: Labels,
    classes: Sequence[int],
    settings: tuple[ComparisonOptions, float],
    sink: ProgressSink,
) -> tuple[SurfaceScore, ...]:
    """Surface scores per class, or of the foreground for instances."""
    options, tolerance = settings
    predicted, referenced = prediction.load(), reference.load()
    if options.ignore_label is not None:
        ignored = referenced == options.ignore_label
        predicted = np.where(ignored, 0, predicted)
        referenced = np.where(ignored, 0, referenced)
    scores = []
    for done, label in enumerate(classes):
        sink.check()
        masks = [
            (side > 0) if options.instances else (side == label) for side in (predicted, referenced)
        ]
        scores.append(
            score_surface(masks[0], masks[1], spacing=reference.spacing.values, tolerance=tolerance)
        )
        sink.emit(Progress("surfaces", done + 1, len(classes), "classes"))
    return tuple(scores)


def _instance_values(scores: InstanceScores) -> dict[str, Any]:
    """Instance scores as plain numbers."""
    matchings = [
        {
            "threshold": m.threshold,
            "true_positives": m.true_positives,
            "false_positives": m.false_positives,
            "false_negatives": m.false_negatives,
            "average_precision": m.average_precision,
            "precision": m.precision,
            "recall": m.recall,
            "f1": m.f1,
        }
        for m in scores.matchings
    ]
    return {
        "n_prediction": scores.n_prediction,
        "n_reference": scores.n_reference,
        "mean_average_precision": scores.mean_average_precision,
        "panoptic_quality": scores.panoptic_quality,
        "segmentation_quality": scores.segmentation_quality,
        "recognition_quality": scores.recognition_quality,
        "voi_split": scores.voi.split,
        "voi_merge": scores.voi.merge,
        "voi": scores.voi.total,
        "adapted_rand_error": scores.rand.error,
        "adapted_rand_precision": scores.rand.precision,
        "adapted_rand_recall": scores.rand.recall,
        "n_splits": scores.n_splits,
        "n_merges": scores.n_merges,
        "matchings": matchings,
    }


def _finite(value: Any) -> Any:
    """None for floats that JSON does not know."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
