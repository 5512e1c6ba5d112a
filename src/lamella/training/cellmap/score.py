"""Predictions of crops scored against their reference, as the challenge does it.

The formula is in :mod:`lamella.evaluation.challenge`. Here crops are opened, predictions are
brought to the reference's grid, masks (``CLASS_mask`` beside a class) are applied, and one answer
is made of both readings of the score, with VOI and adapted Rand error beside it, which the
challenge does not count.

A class that was not predicted counts as an empty prediction: all its objects or voxels are missed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lamella.core.errors import InputError
from lamella.core.progress import Progress, SilentSink
from lamella.evaluation.challenge import (
    ChallengeScore,
    InstanceCounts,
    SemanticCounts,
    combine_scores,
    score_instances_of_crop,
    score_semantic_of_crop,
)
from lamella.evaluation.contingency import count_overlaps
from lamella.evaluation.instance import adapted_rand, variation_of_information
from lamella.training.cellmap.aligned import align
from lamella.training.cellmap.classes import ClassTable
from lamella.training.cellmap.index import GROUND_TRUTH, MASK_SUFFIX, index_cellmap
from lamella.training.cellmap.manifest import WantedLabel, manifest_of_index
from lamella.training.cellmap.predictions import find_prediction
from lamella.training.cellmap.tree import Tree

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from lamella.core.progress import ProgressSink
    from lamella.training.cellmap.index import CellmapIndex

__all__ = ["CellmapScore", "CropScore", "score_cellmap"]


@dataclass(frozen=True, slots=True, eq=False)
class CropScore:
    """One class of one crop.

    Attributes:
        label: which.
        is_missing: whether nothing was predicted.
        official: counts as the challenge's program counts.
        strict: counts without its quirk; the same object for semantic classes.
        voi: split and merge, bits, of an instance class; None for others.
        rand_error: adapted Rand error of an instance class; None for others.
    """

    label: WantedLabel
    is_missing: bool
    official: SemanticCounts | InstanceCounts
    strict: SemanticCounts | InstanceCounts
    voi: tuple[float, float] | None = None
    rand_error: float | None = None


@dataclass(frozen=True, slots=True)
class CellmapScore:
    """All crops, and the two readings of the score."""

    crops: tuple[CropScore, ...]
    official: ChallengeScore
    strict: ChallengeScore

    def to_dict(self) -> dict[str, Any]:
        """JSON values; what is not a number is null."""
        return {
            "official": _score_dict(self.official),
            "strict": _score_dict(self.strict),
            "crops": [
                {
                    "data_set": crop.label.data_set,
                    "crop": crop.label.crop,
                    "class": crop.label.name,
                    "is_missing": crop.is_missing,
                    "true_positives": crop.official.true_positives,
                    "false_positives": crop.official.false_positives,
                    "false_negatives": crop.official.false_negatives,
                    "voi_split": None if crop.voi is None else crop.voi[0],
                    "voi_merge": None if crop.voi is None else crop.voi[1],
                    "rand_error": _number(crop.rand_error),
                }
                for crop in self.crops
            ],
        }


def score_cellmap(
    predictions: str,
    root: str,
    *,
    classes: Sequence[str] = (),
    crops: Sequence[str] = (),
    sink: ProgressSink | None = None,
) -> CellmapScore:
    """Score predictions of annotated crops.

    Args:
        predictions: folder or address, see :mod:`lamella.training.cellmap.predictions`.
        root: CellMap data with the reference.
        classes: only these; every class that the challenge tests and a crop has, unless given.
        crops: only these.
        sink: progress and cancellation.

    Raises:
        InputError: no crop is left to score, or nothing at all was predicted.
        LamellaError: for data that cannot be read.
    """
    listener = sink or SilentSink()
    index = index_cellmap(root, sink=listener)
    wanted = _wanted(index, classes, crops)
    found = Tree.open(predictions)
    truth = Tree.open(root)
    paths = {known.name: known.path for known in index.data_sets}
    scored = []
    for done, label in enumerate(wanted):
        listener.check()
        listener.emit(Progress("scoring", done, len(wanted), "classes of crops"))
        scored.append(_score(found, truth, f"{paths[label.data_set]}/{GROUND_TRUTH}", label))
    listener.emit(Progress("scoring", len(wanted), len(wanted), "classes of crops"))
    if all(crop.is_missing for crop in scored):
        raise InputError(
            f"{predictions} holds no prediction of any of the {len(wanted)} classes of crops",
            hint="expected DATASET.zarr/cropN/CLASS or cropN/CLASS",
        )
    by_class: dict[str, list[CropScore]] = {}
    for crop in scored:
        by_class.setdefault(crop.label.name, []).append(crop)
    official: dict[str, Any] = {n: [c.official for c in of] for n, of in by_class.items()}
    strict: dict[str, Any] = {n: [c.strict for c in of] for n, of in by_class.items()}
    return CellmapScore(tuple(scored), combine_scores(official), combine_scores(strict))


def _wanted(
    index: CellmapIndex, classes: Sequence[str], crops: Sequence[str]
) -> tuple[WantedLabel, ...]:
    table = ClassTable.read()
    for name in classes:
        _ = table[name]  # says which names there are
    chosen = set(classes or table.tested)
    wanted = tuple(
        label
        for label in manifest_of_index(index)
        if label.name in chosen and (not crops or label.crop in crops)
    )
    if not wanted:
        raise InputError(
            f"no crop of {index.root} has the classes and crops asked for",
            hint=f"annotated classes: {', '.join(index.class_names) or 'none'}",
        )
    return wanted


def _score(found: Tree, truth: Tree, base: str, label: WantedLabel) -> CropScore:
    path = f"{base}/{label.crop}/{label.name}"
    finest = min(truth.levels(path), key=lambda level: level.grid.spacing)
    reference = np.asarray(truth.open_array(finest.path)[...])
    is_instance = ClassTable.read()[label.name].is_instance
    known = find_prediction(found, label)
    if known is None:
        prediction: NDArray[Any] = np.zeros(reference.shape, np.uint8)
    else:
        prediction = align(known.array, known.grid, finest.grid, is_instance=is_instance)
    mask = _mask(truth, path + MASK_SUFFIX)
    if mask is not None:
        prediction, reference = (
            np.where(mask, side, np.zeros((), side.dtype)) for side in (prediction, reference)
        )
    if not is_instance:
        counts = score_semantic_of_crop(prediction, reference)
        return CropScore(label, known is None, counts, counts)
    if prediction.dtype.kind == "f":
        prediction = np.rint(prediction).astype(np.int64)
    official, strict = (
        score_instances_of_crop(
            prediction, reference, voxel_size=finest.grid.spacing, reading=reading
        )
        for reading in ("official", "strict")
    )
    table = count_overlaps(prediction, reference)
    voi, rand = variation_of_information(table), adapted_rand(table)
    return CropScore(label, known is None, official, strict, (voi.split, voi.merge), rand.error)


def _mask(truth: Tree, path: str) -> NDArray[np.bool_] | None:
    for place in (path, f"{path}/s0"):
        if truth.document(f"{place}/.zarray") is not None:
            return np.asarray(truth.open_array(place)[...]) > 0
    return None


def _score_dict(score: ChallengeScore) -> dict[str, Any]:
    return {
        "overall": _number(score.overall),
        "instance": _number(score.instance),
        "semantic": _number(score.semantic),
        "classes": {
            name: {
                "score": known.score,
                "is_instance": known.is_instance,
                "f1": known.f1,
                "closeness": known.closeness,
                "true_positives": known.true_positives,
                "false_positives": known.false_positives,
                "false_negatives": known.false_negatives,
                "n_crops": known.n_crops,
                "problems": list(known.problems),
            }
            for name, known in score.classes.items()
        },
    }


def _number(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else value
