"""How well labels agree with a reference: classes, objects, surfaces.

Nothing here imports torch; numba, scipy and edt are imported when a function needs them.
"""

from lamella.evaluation.calibration import (
    Reliability,
    ReliabilityBin,
    Temperature,
    fit_temperature,
)
from lamella.evaluation.challenge import (
    ChallengeScore,
    InstanceCounts,
    SemanticCounts,
    combine_scores,
    score_instances_of_crop,
    score_semantic_of_crop,
)
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
    "ChallengeScore",
    "Comparison",
    "ComparisonOptions",
    "ContingencyTable",
    "InstanceCounts",
    "InstanceScores",
    "Matching",
    "Reliability",
    "ReliabilityBin",
    "SemanticCounts",
    "SemanticScores",
    "SurfaceScore",
    "Temperature",
    "VariationOfInformation",
    "adapted_rand",
    "combine_scores",
    "compare_labels",
    "count_overlaps",
    "count_splits_and_merges",
    "fit_temperature",
    "match_objects",
    "score_classes",
    "score_instances",
    "score_instances_of_crop",
    "score_semantic_of_crop",
    "score_surface",
    "surface_distances",
    "variation_of_information",
]
