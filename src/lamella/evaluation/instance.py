"""Agreement of objects: VOI, adapted Rand, average precision, panoptic quality, splits and merges.

All of it comes from one contingency table of instance ids; 0 is background.

Two views that must not be mixed. **Matching** measures (precision, recall, F1, average precision,
panoptic quality) ask how many objects were found: an object is found when one of the other side
overlaps it with enough IoU. **Clustering** measures (variation of information, adapted Rand error)
ask how well voxels are grouped, and need no threshold. ``voi_split`` and ``n_splits`` grow when
objects are cut apart, ``voi_merge`` and ``n_merges`` when they are fused.

Without objects on both sides, matching measures are nan (there was nothing to find); with objects
on one side only they are 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lamella.core.errors import InputError
from lamella.evaluation.contingency import ContingencyTable

__all__ = [
    "AdaptedRand",
    "InstanceScores",
    "Matching",
    "VariationOfInformation",
    "adapted_rand",
    "count_splits_and_merges",
    "match_objects",
    "score_instances",
    "variation_of_information",
]

# From 0.5 to 0.95 in steps of 0.05, as in COCO and the Data Science Bowl 2018.
DEFAULT_THRESHOLDS = tuple(round(0.5 + 0.05 * k, 2) for k in range(10))


@dataclass(frozen=True, slots=True)
class VariationOfInformation:
    """Conditional entropies in bits; 0 is perfect.

    Attributes:
        split: H(prediction | reference), over-segmentation.
        merge: H(reference | prediction), under-segmentation.
    """

    split: float
    merge: float

    @property
    def total(self) -> float:
        """Both together."""
        return self.split + self.merge


@dataclass(frozen=True, slots=True)
class AdaptedRand:
    """Adapted Rand error, 0 (perfect) to 1, and the two sides it is made of.

    Attributes:
        error: 1 - harmonic mean of precision and recall; nan when no two voxels share an object.
        precision: of pairs of voxels together in the prediction, the share together in the
            reference; low when objects are merged.
        recall: of pairs together in the reference, the share together in the prediction; low when
            objects are split.
    """

    error: float
    precision: float
    recall: float


@dataclass(frozen=True, slots=True)
class Matching:
    """Objects found at one IoU threshold.

    Attributes:
        threshold: smallest IoU of a match.
        true_positives: matched pairs, one to one, as many as possible.
        false_positives: predicted objects without a match.
        false_negatives: reference objects without a match.
    """

    threshold: float
    true_positives: int
    false_positives: int
    false_negatives: int

    @property
    def average_precision(self) -> float:
        """TP / (TP + FP + FN), as in Cellpose and the Data Science Bowl 2018; nan without objects.

        COCO's average precision, an area under a curve over confidences, is another measure.
        """
        whole = self.true_positives + self.false_positives + self.false_negatives
        return self.true_positives / whole if whole else float("nan")

    @property
    def precision(self) -> float:
        """TP / (TP + FP); nan without predicted objects."""
        whole = self.true_positives + self.false_positives
        return self.true_positives / whole if whole else float("nan")

    @property
    def recall(self) -> float:
        """TP / (TP + FN); nan without reference objects."""
        whole = self.true_positives + self.false_negatives
        return self.true_positives / whole if whole else float("nan")

    @property
    def f1(self) -> float:
        """2 TP / (2 TP + FP + FN); nan without objects."""
        whole = 2 * self.true_positives + self.false_positives + self.false_negatives
        return 2 * self.true_positives / whole if whole else float("nan")


@dataclass(frozen=True, slots=True)
class InstanceScores:
    """Everything about two sets of objects.

    Attributes:
        n_prediction: objects predicted.
        n_reference: objects in the reference.
        matchings: one per threshold, ascending.
        panoptic_quality: sum of the IoU of matches above 0.5 / (TP + FP/2 + FN/2), or nan
            (Kirillov 2019, arXiv:1801.00868); segmentation_quality x recognition_quality.
        segmentation_quality: mean IoU of these matches, or nan.
        recognition_quality: F1 above 0.5, or nan.
        voi: variation of information.
        rand: adapted Rand.
        n_splits: reference objects' surplus pieces.
        n_merges: predicted objects' surplus contents.
    """

    n_prediction: int
    n_reference: int
    matchings: tuple[Matching, ...]
    panoptic_quality: float
    segmentation_quality: float
    recognition_quality: float
    voi: VariationOfInformation
    rand: AdaptedRand
    n_splits: int
    n_merges: int

    @property
    def mean_average_precision(self) -> float:
        """Mean of the average precision over the thresholds, or nan."""
        return float(np.mean([m.average_precision for m in self.matchings]))


def score_instances(
    table: ContingencyTable, *, thresholds: Sequence[float] = DEFAULT_THRESHOLDS
) -> InstanceScores:
    """Score objects in every way.

    Args:
        table: of instance ids, from :func:`lamella.evaluation.count_overlaps`.
        thresholds: IoU of a match, each in (0, 1].

    Returns:
        The scores; VOI over all voxels and adapted Rand without the reference's background, the
        defaults of scikit-image.

    Raises:
        InputError: for a threshold outside (0, 1].

    Examples:
        >>> import numpy as np
        >>> from lamella.evaluation import count_overlaps
        >>> reference = np.repeat([0, 1, 2], 8)
        >>> prediction = np.repeat([0, 1, 2, 3], [8, 8, 4, 4])      # object 2 is cut in two
        >>> scores = score_instances(count_overlaps(prediction, reference))
        >>> scores.n_splits, scores.n_merges, round(scores.voi.split, 3), scores.voi.merge
        (1, 0, 0.333, 0.0)
        >>> scores.matchings[0]
        Matching(threshold=0.5, true_positives=2, false_positives=1, false_negatives=0)
    """
    overlaps = _Overlaps.of(table)
    matchings = tuple(_match(overlaps, threshold) for threshold in sorted(thresholds))
    strong = overlaps.iou > 0.5
    matched = float(overlaps.iou[strong].sum())
    n_matched = int(strong.sum())
    n_objects = overlaps.n_prediction + overlaps.n_reference
    n_splits, n_merges = _splits_and_merges(overlaps)
    return InstanceScores(
        n_prediction=overlaps.n_prediction,
        n_reference=overlaps.n_reference,
        matchings=matchings,
        panoptic_quality=2 * matched / n_objects if n_objects else float("nan"),
        segmentation_quality=matched / n_matched if n_matched else float("nan"),
        recognition_quality=2 * n_matched / n_objects if n_objects else float("nan"),
        voi=variation_of_information(table),
        rand=adapted_rand(table),
        n_splits=n_splits,
        n_merges=n_merges,
    )


def match_objects(table: ContingencyTable, threshold: float) -> Matching:
    """Match objects one to one at an IoU of at least ``threshold``, as many as possible.

    Raises:
        InputError: for a threshold outside (0, 1].
    """
    return _match(_Overlaps.of(table), threshold)


def variation_of_information(
    table: ContingencyTable, *, ignore_background: bool = False
) -> VariationOfInformation:
    """Conditional entropies of the two labelings (Meilă 2007, doi:10.1016/j.jmva.2006.11.013).

    Args:
        table: of instance ids.
        ignore_background: leave out voxels that are background in the reference, as CREMI does;
            otherwise background is a label like any other, as in scikit-image.

    Examples:
        >>> import numpy as np
        >>> from lamella.evaluation import count_overlaps
        >>> halves = count_overlaps(np.array([1, 1, 2, 2]), np.array([1, 1, 1, 1]))
        >>> variation_of_information(halves)
        VariationOfInformation(split=1.0, merge=0.0)
    """
    if ignore_background:
        table = table.without_reference(0)
    if not table.total:
        return VariationOfInformation(0.0, 0.0)
    voxels = table.voxels.astype(float)
    share = voxels / voxels.sum()
    given = []
    for side in (table.side_reference(), table.side_prediction()):
        entropy = -(share * np.log2(voxels / side.voxels[side.index])).sum()
        given.append(max(0.0, float(entropy)))
    return VariationOfInformation(split=given[0], merge=given[1])


def adapted_rand(table: ContingencyTable, *, ignore_background: bool = True) -> AdaptedRand:
    """Adapted Rand error (Arganda-Carreras 2015, doi:10.3389/fnana.2015.00142).

    Args:
        table: of instance ids.
        ignore_background: leave out voxels that are background in the reference, as the SNEMI3D
            challenge and scikit-image do.

    Examples:
        >>> import numpy as np
        >>> from lamella.evaluation import count_overlaps
        >>> halves = count_overlaps(np.array([1, 1, 2, 2]), np.array([1, 1, 1, 1]))
        >>> round(adapted_rand(halves).error, 3)
        0.5
    """
    if ignore_background:
        table = table.without_reference(0)
    # float64 squares: counts are exact to 2^53 and the ratio only needs relative precision.
    together = _pairs(table.voxels)
    in_prediction = _pairs(table.side_prediction().voxels)
    in_reference = _pairs(table.side_reference().voxels)
    both = in_prediction + in_reference
    nan = float("nan")
    return AdaptedRand(
        error=1.0 - 2.0 * together / both if both else nan,
        precision=together / in_prediction if in_prediction else nan,
        recall=together / in_reference if in_reference else nan,
    )


def count_splits_and_merges(table: ContingencyTable) -> tuple[int, int]:
    """How many cuts and how many fusions separate the two sets of objects.

    A predicted object belongs to the reference object that holds more than half of its voxels; a
    reference object with k such pieces was split k - 1 times. Merges are the same the other way
    round. Small overlaps along boundaries count for neither.

    Returns:
        Number of splits and number of merges.
    """
    return _splits_and_merges(_Overlaps.of(table))


@dataclass(frozen=True, slots=True)
class _Overlaps:
    """Pairs of objects that share voxels; ``p`` and ``r`` index the objects of each side."""

    p: NDArray[np.int64]
    r: NDArray[np.int64]
    voxels: NDArray[np.int64]
    p_size: NDArray[np.int64]
    r_size: NDArray[np.int64]
    iou: NDArray[np.float64]

    @classmethod
    def of(cls, table: ContingencyTable) -> "_Overlaps":
        predicted, referenced = table.side_prediction(), table.side_reference()
        both = (table.prediction != 0) & (table.reference != 0)
        # Background, where present, is the first id: objects count from 0 after it.
        p_first = int(predicted.ids.size > 0 and predicted.ids[0] == 0)
        r_first = int(referenced.ids.size > 0 and referenced.ids[0] == 0)
        p, r = predicted.index[both] - p_first, referenced.index[both] - r_first
        p_size, r_size = predicted.voxels[p_first:], referenced.voxels[r_first:]
        voxels = table.voxels[both]
        iou = voxels / (p_size[p] + r_size[r] - voxels)
        return cls(p, r, voxels, p_size, r_size, iou)

    @property
    def n_prediction(self) -> int:
        return len(self.p_size)

    @property
    def n_reference(self) -> int:
        return len(self.r_size)


def _match(overlaps: _Overlaps, threshold: float) -> Matching:
    if not 0 < threshold <= 1:
        raise InputError(f"IoU threshold is {threshold}, expected more than 0 and at most 1")
    found = overlaps.iou >= threshold
    p, r = overlaps.p[found], overlaps.r[found]
    hits = len(p)
    if hits > min(len(np.unique(p)), len(np.unique(r))):
        # Possible only up to 0.5, where two objects can each claim half of a third.
        hits = _largest_matching(p, r, (overlaps.n_prediction, overlaps.n_reference))
    return Matching(
        threshold=float(threshold),
        true_positives=hits,
        false_positives=overlaps.n_prediction - hits,
        false_negatives=overlaps.n_reference - hits,
    )


def _largest_matching(p: NDArray[np.int64], r: NDArray[np.int64], shape: tuple[int, int]) -> int:
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import maximum_bipartite_matching

    graph = csr_array((np.ones(len(p), np.uint8), (p, r)), shape=shape)
    return int((maximum_bipartite_matching(graph, perm_type="column") >= 0).sum())


def _splits_and_merges(overlaps: _Overlaps) -> tuple[int, int]:
    pieces = np.bincount(overlaps.r[2 * overlaps.voxels > overlaps.p_size[overlaps.p]])
    contents = np.bincount(overlaps.p[2 * overlaps.voxels > overlaps.r_size[overlaps.r]])
    return tuple(int(np.maximum(many - 1, 0).sum()) for many in (pieces, contents))  # pyright: ignore[reportReturnType]


def _pairs(voxels: NDArray[np.int64]) -> float:
    """Ordered pairs of two different voxels with the same label."""
    sizes = voxels.astype(float)
    # Not a dot product: BLAS would wake its threads for less work than that takes.
    return float((sizes * sizes).sum() - sizes.sum())
