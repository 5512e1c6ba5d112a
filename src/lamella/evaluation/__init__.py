"""How well labels agree with a reference: classes, objects, surfaces.

Nothing here imports torch; numba, scipy and edt are imported when a function needs them.
"""

from lamella.evaluation.comparison import Comparison, ComparisonOptions, compare_labels
from lamella.evaluation.contingency import ContingencyTable, count_overlaps
from lamella.evaluation.instance import (
    AdaptedRand,
    InstanceScores,
    Matching,
    VariationOfInformation,
    adapted_rand,
    count_splits_and_merges,
    match_objects,
    score_instances,
    variation_of_information,
)
from lamella.evaluation.semantic import SemanticScores, score_classes
from lamella.evaluation.surface import SurfaceScore, score_surface, surface_distances

__all__ = [
    "AdaptedRand",
    "Comparison",
    "ComparisonOptions",
    "ContingencyTable",
    "InstanceScores",
    "Matching",
    "SemanticScores",
    "SurfaceScore",
    "VariationOfInformation",
    "adapted_rand",
    "compare_labels",
    "count_overlaps",
    "count_splits_and_merges",
    "match_objects",
    "score_classes",
    "score_instances",
    "score_surface",
    "surface_distances",
    "variation_of_information",
]
