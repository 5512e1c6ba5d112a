"""Agreement of objects: equal to scikit-image and to Cellpose's definition."""

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from lamella.core.errors import InputError
from lamella.evaluation import (
    adapted_rand,
    count_overlaps,
    count_splits_and_merges,
    match_objects,
    score_instances,
    variation_of_information,
)


def objects(rng, shape=(8, 9, 10), n=9):
    """Voronoi cells with background between some of them."""
    points = rng.random((n, len(shape))) * shape
    grid = np.stack(np.indices(shape), -1)
    cells = ((grid[..., None, :] - points) ** 2).sum(-1).argmin(-1) + 1
    return np.where(rng.permutation(n + 1)[cells] < n * 0.7, cells, 0)


def two_labelings(seed):
    rng = np.random.default_rng(seed)
    reference = objects(rng)
    prediction = np.roll(reference, rng.integers(-2, 3), rng.integers(0, 3))
    other = objects(rng)
    mixed = np.where(rng.random() < 0.5, prediction, other)
    return np.where(rng.random(reference.shape) < 0.9, mixed, 0), reference


def brute_force_true_positives(prediction, reference, threshold):
    """Cellpose's definition: the assignment with most pairs at the threshold."""
    p, r = np.unique(prediction[prediction > 0]), np.unique(reference[reference > 0])
    if not len(p) or not len(r):
        return 0
    iou = np.array(
        [
            [
                ((prediction == a) & (reference == b)).sum()
                / ((prediction == a) | (reference == b)).sum()
                for b in r
            ]
            for a in p
        ]
    )
    costs = -(iou >= threshold).astype(float) - iou / (2 * min(iou.shape))
    rows, columns = linear_sum_assignment(costs)
    return int((iou[rows, columns] >= threshold).sum())


@given(seed=st.integers(0, 2**32 - 1))
def test_equals_scikit_image(seed):
    from skimage.metrics import adapted_rand_error
    from skimage.metrics import variation_of_information as skimage_voi

    prediction, reference = two_labelings(seed)
    assume(prediction.any() and reference.any())
    table = count_overlaps(prediction, reference)
    split, merge = skimage_voi(reference, prediction)
    voi = variation_of_information(table)
    assert voi.split == pytest.approx(split, abs=1e-9)
    assert voi.merge == pytest.approx(merge, abs=1e-9)
    assert voi.total == pytest.approx(split + merge, abs=1e-9)
    split, merge = skimage_voi(reference, prediction, ignore_labels=[0])
    voi = variation_of_information(table, ignore_background=True)
    assert (voi.split, voi.merge) == pytest.approx((split, merge), abs=1e-9)
    error, _, _ = adapted_rand_error(reference, prediction)
    assert adapted_rand(table).error == pytest.approx(error, abs=1e-9)


@given(seed=st.integers(0, 2**32 - 1), threshold=st.sampled_from([0.1, 0.3, 0.5, 0.6, 0.9, 1.0]))
def test_matching_equals_cellpose(seed, threshold):
    prediction, reference = two_labelings(seed)
    found = match_objects(count_overlaps(prediction, reference), threshold)
    expected = brute_force_true_positives(prediction, reference, threshold)
    n_prediction = len(np.unique(prediction[prediction > 0]))
    n_reference = len(np.unique(reference[reference > 0]))
    assert found.true_positives == expected
    assert found.false_positives == n_prediction - expected
    assert found.false_negatives == n_reference - expected
    whole = n_prediction + n_reference - expected
    if whole:
        assert found.average_precision == pytest.approx(expected / whole)


def test_half_of_each_is_one_match_not_two():
    # At exactly 0.5 two predictions can each claim half of one reference object.
    table = count_overlaps(np.array([1, 1, 2, 2]), np.array([7, 7, 7, 7]))
    found = match_objects(table, 0.5)
    assert (found.true_positives, found.false_positives, found.false_negatives) == (1, 1, 0)


@given(seed=st.integers(0, 2**32 - 1))
def test_names_of_objects_do_not_matter(seed):
    prediction, reference = two_labelings(seed)
    rng = np.random.default_rng(seed)
    lut = np.concatenate([[0], rng.permutation(10**6)[: prediction.max() + 1] + 1])
    first = score_instances(count_overlaps(prediction, reference))
    second = score_instances(count_overlaps(lut[prediction], reference))
    assert first.matchings == second.matchings
    assert (first.n_splits, first.n_merges) == (second.n_splits, second.n_merges)
    np.testing.assert_allclose(first.panoptic_quality, second.panoptic_quality)
    np.testing.assert_allclose(first.voi.total, second.voi.total, atol=1e-12)


def test_perfect():
    reference = objects(np.random.default_rng(5))
    scores = score_instances(count_overlaps(reference, reference))
    assert scores.mean_average_precision == 1
    assert scores.panoptic_quality == 1
    assert scores.voi.total == 0
    assert scores.rand.error == pytest.approx(0, abs=1e-15)
    assert (scores.n_splits, scores.n_merges) == (0, 0)


def test_panoptic_quality_is_quality_times_recognition():
    reference = objects(np.random.default_rng(11), (16, 18, 20))
    scores = score_instances(count_overlaps(np.roll(reference, 1, 0), reference))
    assert 0 < scores.panoptic_quality < 1
    product = scores.segmentation_quality * scores.recognition_quality
    assert scores.panoptic_quality == pytest.approx(product)


def test_splits_and_merges():
    reference = np.repeat([1, 2, 3, 0], 12)
    split = reference.copy()
    split[4:8], split[8:12] = 10, 11
    assert count_splits_and_merges(count_overlaps(split, reference)) == (2, 0)
    merged = np.where(reference == 3, 2, reference)
    assert count_splits_and_merges(count_overlaps(merged, reference)) == (0, 1)
    # A rim of one voxel shared by neighbours is neither; and a binary IoU sees none of it.
    shifted = np.roll(reference, 1)
    assert count_splits_and_merges(count_overlaps(shifted, reference)) == (0, 0)
    assert count_splits_and_merges(count_overlaps(reference > 0, reference)) == (0, 2)


def test_nothing_on_one_side_and_on_both():
    empty, one = np.zeros((4, 4), int), np.ones((4, 4), int)
    both = score_instances(count_overlaps(empty, empty))
    assert math.isnan(both.panoptic_quality)
    assert math.isnan(both.mean_average_precision)
    assert math.isnan(both.rand.error)
    assert both.voi.total == 0
    for pair in ((empty, one), (one, empty)):
        scores = score_instances(count_overlaps(*pair))
        assert scores.mean_average_precision == 0
        assert scores.panoptic_quality == 0
        assert math.isnan(scores.segmentation_quality)


@pytest.mark.parametrize("threshold", [0, -1, 1.5, math.nan])
def test_impossible_thresholds(threshold):
    with pytest.raises(InputError, match="IoU threshold"):
        match_objects(count_overlaps(np.ones((2, 2), int), np.ones((2, 2), int)), threshold)
