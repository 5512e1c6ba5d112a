"""Overlap of classes: the textbook formulas, and what nothing means."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.evaluation import count_overlaps, score_classes


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 4))
def test_equals_the_formulas(seed, n):
    rng = np.random.default_rng(seed)
    prediction, reference = rng.integers(0, n + 1, (2, 6, 7, 8))
    scores = score_classes(count_overlaps(prediction, reference))
    for k, label in enumerate(scores.classes):
        p, r = prediction == label, reference == label
        hit = (p & r).sum()
        np.testing.assert_allclose(scores.dice[k], 2 * hit / (p.sum() + r.sum()))
        np.testing.assert_allclose(scores.iou[k], hit / (p | r).sum())
        np.testing.assert_allclose(scores.precision[k], hit / p.sum())
        np.testing.assert_allclose(scores.recall[k], hit / r.sum())
    np.testing.assert_allclose(scores.accuracy, (prediction == reference).mean())
    np.testing.assert_allclose(scores.mean_dice, scores.dice.mean())


def test_swapping_swaps_precision_and_recall():
    rng = np.random.default_rng(1)
    first, second = rng.integers(0, 3, (2, 9, 9))
    there, back = (
        score_classes(count_overlaps(*pair)) for pair in ((first, second), (second, first))
    )
    np.testing.assert_allclose(there.precision, back.recall)
    np.testing.assert_allclose(there.dice, back.dice)


def test_absent_classes():
    prediction = np.array([[0, 1, 1]])
    reference = np.array([[0, 2, 2]])
    scores = score_classes(count_overlaps(prediction, reference), [1, 2, 3])
    assert scores.dice[:2].tolist() == [0, 0]
    assert scores.precision[0] == 0
    assert np.isnan(scores.recall[0])
    assert np.isnan(scores.precision[1])
    assert scores.recall[1] == 0
    assert np.isnan([scores.dice[2], scores.iou[2], scores.precision[2], scores.recall[2]]).all()
    # The class that is nowhere counts in no mean.
    assert scores.mean_dice == 0


def test_nothing_at_all():
    empty = np.zeros((3, 3), np.uint8)
    scores = score_classes(count_overlaps(empty, empty))
    assert scores.classes == ()
    assert np.isnan(scores.mean_dice)
    assert scores.accuracy == 1
    none = np.zeros((0, 3), np.uint8)
    assert np.isnan(score_classes(count_overlaps(none, none)).accuracy)


def test_pixel_accuracy_is_not_the_score():
    # 95 % background: everything missed still has 95 % accuracy.
    reference = np.zeros((10, 10), np.uint8)
    reference[0, :5] = 1
    scores = score_classes(count_overlaps(np.zeros_like(reference), reference))
    assert scores.accuracy == pytest.approx(0.95)
    assert scores.mean_dice == 0
