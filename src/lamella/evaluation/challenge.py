"""The score of the CellMap segmentation challenge, per crop and pooled over crops.

Semantic classes: voxels are pooled over all crops, ``IoU = TP / (TP + FP + FN)``. Instance classes:
objects are pooled, and so are Hausdorff distances d, one for every reference object and one for
every predicted object without a partner::

    F1 = 2 TP / (2 TP + FP + FN)     H = mean of 1.01 ^ (-d / |voxel|)     score = sqrt(F1 H)
    overall = sqrt(mean over instance classes * mean over semantic classes)

Predicted objects are first cut into connected components (26 neighbours). Each reference object
takes at most one of them, so that the sum of ``1 - IoU`` is smallest and as many as possible are
taken. d is in nanometres, at most half the shortest side of the crop, which is also what objects
without a partner get.

Two readings:

* ``official`` scores as the challenge's own program does. There a component without a partner
  keeps its number, and where that number is also a reference object's, the component counts as a
  part of that object's partner when d is measured.
* ``strict`` leaves such components out of other objects' distances.

Sources: the challenge's scoring program, https://github.com/janelia-cellmap/cellmap-segmentation-challenge
(pooled scores of 2026); Huttenlocher et al. 1993 for the distance.

Examples:
    >>> reference = np.zeros((8, 8, 8), np.uint32)
    >>> reference[1:4, 1:4, 1:4], reference[5:7, 5:7, 5:7] = 1, 2
    >>> found = score_instances_of_crop(reference > 1, reference, voxel_size=(4.0, 4.0, 4.0))
    >>> found.true_positives, found.false_negatives, found.distances.tolist()
    (1, 1, [16.0, 0.0])
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lamella.core.errors import GeometryError, InputError
from lamella.evaluation.contingency import count_overlaps

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from lamella.evaluation.contingency import ContingencyTable

__all__ = [
    "ChallengeScore",
    "ClassScore",
    "InstanceCounts",
    "Reading",
    "SemanticCounts",
    "combine_scores",
    "score_instances_of_crop",
    "score_semantic_of_crop",
]

Reading = Literal["official", "strict"]

MAX_PAIRS = 5_000_000
"""Overlapping pairs beyond which the official program gives a crop up."""
_COST_SCALE = 1_000_000
_DECAY = 1.01


@dataclass(frozen=True, slots=True)
class SemanticCounts:
    """Voxels of one class in one crop."""

    true_positives: int
    false_positives: int
    false_negatives: int


@dataclass(frozen=True, slots=True, eq=False)
class InstanceCounts:
    """Objects of one class in one crop.

    Attributes:
        true_positives: reference objects with a partner.
        false_positives: predicted components without.
        false_negatives: reference objects without.
        distances: float64, nm: Hausdorff distance of every reference object, ascending by id, then
            of every component without a partner.
        voxel_diagonal: length of a voxel's diagonal, nm.
        problem: why the crop was given up, in which case it counts nothing; empty otherwise.
    """

    true_positives: int
    false_positives: int
    false_negatives: int
    distances: NDArray[np.float64]
    voxel_diagonal: float
    problem: str = ""

    @property
    def closeness(self) -> NDArray[np.float64]:
        """1.01 ^ (-d / voxel diagonal), 1 = the same shape, one value a distance."""
        return _DECAY ** (-self.distances / self.voxel_diagonal)


@dataclass(frozen=True, slots=True)
class ClassScore:
    """One class over all crops.

    Attributes:
        name: of the class.
        score: IoU of a semantic class, sqrt(F1 H) of an instance class.
        is_instance: which of the two.
        true_positives: voxels, or objects.
        false_positives: voxels, or objects.
        false_negatives: voxels, or objects.
        f1: of an instance class, else None.
        closeness: H of an instance class, else None.
        n_crops: crops that were pooled.
        problems: why crops were given up.
    """

    name: str
    score: float
    is_instance: bool
    true_positives: int
    false_positives: int
    false_negatives: int
    f1: float | None = None
    closeness: float | None = None
    n_crops: int = 0
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ChallengeScore:
    """All classes together.

    Attributes:
        classes: by name, in the order given.
        instance: plain mean over the instance classes; nan without any.
        semantic: plain mean over the semantic classes; nan without any.
    """

    classes: Mapping[str, ClassScore]
    instance: float
    semantic: float

    @property
    def overall(self) -> float:
        """Geometric mean of both; nan unless there are classes of both kinds."""
        return math.sqrt(self.instance * self.semantic)


def score_semantic_of_crop(prediction: NDArray[Any], reference: NDArray[Any]) -> SemanticCounts:
    """Count the voxels of one class in one crop; everything above 0 is the class.

    Args:
        prediction: (z, y, x), any number or bool.
        reference: same shape.

    Raises:
        GeometryError: when the shapes differ.
    """
    _check_shapes(prediction, reference)
    predicted, referenced = prediction > 0, reference > 0
    both = int(np.count_nonzero(predicted & referenced))
    return SemanticCounts(
        both,
        int(np.count_nonzero(predicted)) - both,
        int(np.count_nonzero(referenced)) - both,
    )


def score_instances_of_crop(
    prediction: NDArray[Any],
    reference: NDArray[Any],
    *,
    voxel_size: Sequence[float],
    reading: Reading = "official",
    n_threads: int = 2,
) -> InstanceCounts:
    """Match the objects of one class in one crop and measure how far their shapes are apart.

    Args:
        prediction: (z, y, x), integer ids or bool, 0 = background.
        reference: integer ids, same shape.
        voxel_size: distance of voxel centres per axis, nm.
        reading: see the module.
        n_threads: objects measured at a time; the result does not depend on it.

    Raises:
        GeometryError: when shapes or voxel size do not fit together.
        InputError: for labels that are not integers.
    """
    import cc3d

    _check_shapes(prediction, reference)
    if len(voxel_size) != reference.ndim or not all(size > 0 for size in voxel_size):
        raise GeometryError(
            f"voxel size {tuple(voxel_size)} does not fit a crop of shape {reference.shape}",
            hint="give one positive size per axis, in nm",
        )
    if prediction.dtype.kind == "f":
        raise InputError(
            f"predicted instances have dtype {prediction.dtype}, expected integers",
            hint="threshold probabilities, or give ids",
        )
    components, n_components = cc3d.connected_components(
        prediction if prediction.dtype != np.bool_ else prediction.view(np.uint8), return_N=True
    )
    table = count_overlaps(components, reference)
    referenced = table.side_reference()
    ids = referenced.ids[referenced.ids != 0]
    diagonal = float(np.linalg.norm(np.asarray(voxel_size, np.float64)))
    problem = _reason_to_give_up(n_components, ids, table)
    if problem:
        return InstanceCounts(0, 0, 0, np.zeros(0), diagonal, problem)
    partner = _match(table)
    cap = min(size * n / 2 for size, n in zip(voxel_size, reference.shape, strict=True))
    measured = _Distances(components, reference, tuple(map(float, voxel_size)), cap)
    parts = _parts(ids.tolist(), partner, n_components, reading)
    with ThreadPoolExecutor(max(1, n_threads)) as pool:
        distances = list(pool.map(measured.of, ids.tolist(), parts))
    n_matched = len(partner)
    unmatched = [cap] * (n_components - n_matched)
    # The official program keeps distances in single precision.
    values = np.array([*distances, *unmatched], np.float32).astype(np.float64)
    return InstanceCounts(
        n_matched, n_components - n_matched, len(ids) - n_matched, values, diagonal
    )


def combine_scores(
    counts: Mapping[str, Sequence[SemanticCounts] | Sequence[InstanceCounts]],
) -> ChallengeScore:
    """Pool the crops of every class.

    A class without voxels or objects on either side scores 1: there was nothing to find.

    Args:
        counts: crops of every class, all semantic or all instances.

    Raises:
        InputError: for a class with crops of both kinds, or with none.
    """
    classes = {name: _pool(name, crops) for name, crops in counts.items()}

    def mean(is_instance: bool) -> float:
        scores = [known.score for known in classes.values() if known.is_instance == is_instance]
        return sum(scores) / len(scores) if scores else math.nan

    return ChallengeScore(classes, mean(True), mean(False))


def _pool(name: str, crops: Sequence[SemanticCounts] | Sequence[InstanceCounts]) -> ClassScore:
    kinds = {type(crop) for crop in crops}
    if len(kinds) != 1:
        raise InputError(
            f"class {name!r} has {'no crops' if not crops else 'semantic and instance crops'}",
            hint="score every crop of a class in the same way",
        )
    true_positives = sum(crop.true_positives for crop in crops)
    false_positives = sum(crop.false_positives for crop in crops)
    false_negatives = sum(crop.false_negatives for crop in crops)
    wrong = false_positives + false_negatives
    instances = [crop for crop in crops if isinstance(crop, InstanceCounts)]
    if not instances:
        whole = true_positives + wrong
        score = true_positives / whole if whole else 1.0
        return ClassScore(
            name, score, False, true_positives, false_positives, false_negatives, n_crops=len(crops)
        )
    closeness = [crop.closeness for crop in instances]
    n_values = sum(len(values) for values in closeness)
    whole = 2 * true_positives + wrong
    if whole == 0 and n_values == 0:
        f1 = mean_closeness = 1.0
    else:
        f1 = 2 * true_positives / whole if whole else 0.0
        total = sum(float(np.sum(values)) for values in closeness)
        mean_closeness = total / n_values if n_values else 0.0
    return ClassScore(
        name,
        math.sqrt(f1 * mean_closeness),
        True,
        true_positives,
        false_positives,
        false_negatives,
        f1=f1,
        closeness=mean_closeness,
        n_crops=len(crops),
        problems=tuple(crop.problem for crop in instances if crop.problem),
    )


def _check_shapes(prediction: NDArray[Any], reference: NDArray[Any]) -> None:
    if prediction.shape != reference.shape:
        raise GeometryError(
            f"prediction has shape {prediction.shape}, reference has {reference.shape}",
            hint="bring the prediction to the grid of the crop first",
        )


def _reason_to_give_up(n_components: int, ids: NDArray[Any], table: ContingencyTable) -> str:
    """Why the official program would not match this crop; empty when it would."""
    if n_components == 0 or len(ids) == 0:
        return ""
    # It takes the largest id for the number of objects.
    n_objects = int(ids[-1])
    limit = 10.0 + 50.0 * math.exp(-n_objects / 5.0)
    if n_components / n_objects > limit:
        return (
            f"{n_components} predicted components for {n_objects} reference objects, more than"
            f" {limit:.1f} to one"
        )
    n_pairs = int(np.count_nonzero((table.prediction != 0) & (table.reference != 0)))
    if n_pairs > MAX_PAIRS:
        return f"{n_pairs} overlapping pairs, more than {MAX_PAIRS}"
    return ""


def _match(table: ContingencyTable) -> dict[int, int]:
    """Partner (component) of each matched reference object: least cost, one to one.

    The flow of the official program is an assignment in which every reference object may stay
    alone at a cost above that of any partner; costs are whole millionths of 1 - IoU.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import min_weight_full_bipartite_matching

    both = (table.prediction != 0) & (table.reference != 0)
    if not both.any():
        return {}
    sides = table.side_prediction(), table.side_reference()
    shared = table.voxels[both]
    union = sides[0].voxels[sides[0].index[both]] + sides[1].voxels[sides[1].index[both]] - shared
    overlap = (shared / union).astype(np.float32).astype(np.float64)
    cost = ((1.0 - overlap) * _COST_SCALE).astype(np.int64)
    objects, rows = np.unique(table.reference[both], return_inverse=True)
    components, columns = np.unique(table.prediction[both], return_inverse=True)
    n = len(objects)
    # One column of its own for every object that stays alone; + 1, as 0 would be no edge.
    graph = coo_matrix(
        (
            np.concatenate([cost + 1, np.full(n, _COST_SCALE + 2)]).astype(np.float64),
            (
                np.concatenate([rows, np.arange(n)]),
                np.concatenate([columns, len(components) + np.arange(n)]),
            ),
        ),
        shape=(n, len(components) + n),
    )
    row, column = min_weight_full_bipartite_matching(graph.tocsr())
    return {
        int(objects[r]): int(components[c])
        for r, c in zip(row.tolist(), column.tolist(), strict=True)
        if c < len(components)
    }


def _parts(
    ids: Sequence[int], partner: Mapping[int, int], n_components: int, reading: Reading
) -> list[tuple[int, ...]]:
    """For each reference object the components that stand for it when its distance is measured."""
    taken = set(partner.values())
    parts = []
    for object_id in ids:
        own = (partner[object_id],) if object_id in partner else ()
        has_namesake = object_id <= n_components and object_id not in taken
        parts.append((*own, object_id) if reading == "official" and has_namesake else own)
    return parts


class _Distances:
    """Hausdorff distances of objects, each in the box around it and its partner.

    The distance to a set of voxels does not depend on how much empty space lies around it, so the
    tight box gives the same values as the whole crop.
    """

    def __init__(
        self,
        components: NDArray[Any],
        reference: NDArray[Any],
        voxel_size: tuple[float, ...],
        cap: float,
    ) -> None:
        self._sides = components, reference
        self._voxel_size = voxel_size
        self._cap = cap
        self._boxes = _boxes(components), _boxes(reference)

    def of(self, object_id: int, parts: tuple[int, ...]) -> float:
        """Distance of a reference object to the union of some components, nm, at most the cap."""
        if not parts:
            return self._cap
        boxes = [self._boxes[1][object_id], *(self._boxes[0][part] for part in parts)]
        box = tuple(
            slice(min(b[axis].start for b in boxes), max(b[axis].stop for b in boxes))
            for axis in range(len(self._voxel_size))
        )
        component, reference = (side[box] for side in self._sides)
        predicted = component == parts[0]
        for part in parts[1:]:
            predicted |= component == part
        referenced = reference == object_id
        there = self._largest(referenced & ~predicted, predicted)
        if there >= self._cap:
            return self._cap
        return min(self._cap, max(there, self._largest(predicted & ~referenced, referenced)))

    def _largest(self, here: NDArray[np.bool_], there: NDArray[np.bool_]) -> float:
        """Largest distance of voxels of one set, outside the other, to the other."""
        from scipy.ndimage import distance_transform_edt

        if not here.any():
            return 0.0
        distances = np.asarray(distance_transform_edt(~there, sampling=self._voxel_size))
        return float(distances[here].max())


def _boxes(labels: NDArray[Any]) -> dict[int, tuple[slice, ...]]:
    from scipy.ndimage import find_objects

    # find_objects wants signed numbers; ids far beyond their number would cost it memory.
    values = np.unique(labels)
    values = values[values != 0]
    if len(values) == 0:
        return {}
    if int(values[-1]) > 4 * len(values) + 1000:
        ranks = np.searchsorted(values, labels).astype(np.int32) + 1
        ranks[labels == 0] = 0
        found = find_objects(ranks)
        return {int(v): box for v, box in zip(values.tolist(), found, strict=False)}
    found = find_objects(labels.astype(np.int32, copy=False))
    return {int(v): found[int(v) - 1] for v in values.tolist()}
