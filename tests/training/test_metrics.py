"""Scores are those of the whole data set, however it was cut into batches."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lamella.core.errors import InputError
from lamella.evaluation import count_overlaps, score_classes
from lamella.training.metrics import ConfusionCounts, mean_score
from lamella.training.target import Target

K = 4


def data(seed, n=6):
    rng = np.random.default_rng(seed)
    reference = rng.integers(0, K, (n, 5, 5))
    prediction = np.where(rng.random((n, 5, 5)) < 0.6, reference, rng.integers(0, K, (n, 5, 5)))
    valid = rng.random((n, 5, 5)) < 0.8
    return torch.from_numpy(prediction), torch.from_numpy(reference), torch.from_numpy(valid)


@given(st.integers(0, 10**6), st.lists(st.integers(1, 5), max_size=3), st.booleans())
def test_batches_change_nothing(seed, cuts, is_channels):
    prediction, reference, valid = data(seed)
    if is_channels:
        prediction = torch.stack([prediction == c for c in range(K)], 1)
        reference = torch.stack([reference == c for c in range(K)], 1).float()
        valid = valid[:, None].expand_as(reference)
    whole = ConfusionCounts.zeros(K)
    whole.add(prediction, Target(reference, valid, not is_channels))
    merged = ConfusionCounts.zeros(K)
    edges = [0, *sorted(set(cuts)), len(prediction)]
    for start, stop in itertools.pairwise(edges):
        part = ConfusionCounts.zeros(K)
        part.add(
            prediction[start:stop],
            Target(reference[start:stop], valid[start:stop], not is_channels),
        )
        merged = part.merged(merged)
    assert torch.equal(whole.counts, merged.counts)


@given(st.integers(0, 10**6))
def test_scores_are_those_of_the_evaluation_room(seed):
    prediction, reference, valid = data(seed)
    counts = ConfusionCounts.zeros(K)
    counts.add(prediction, Target(reference, valid, True))
    masked = np.where(valid, reference, 99)
    table = count_overlaps(prediction.numpy(), masked, ignore_label=99)
    theirs = score_classes(table, classes=tuple(range(K)))
    for c, ours in enumerate(counts.scores()):
        assert ours.iou == pytest.approx(theirs.iou[c], nan_ok=True)
        assert ours.dice == pytest.approx(theirs.dice[c], nan_ok=True)
        assert ours.precision == pytest.approx(theirs.precision[c], nan_ok=True)
        assert ours.recall == pytest.approx(theirs.recall[c], nan_ok=True)


def test_classes_and_channels_agree():
    prediction, reference, valid = data(1)
    one, many = ConfusionCounts.zeros(K), ConfusionCounts.zeros(K)
    target = Target(reference, valid, True)
    one.add(prediction, target)
    many.add(torch.stack([prediction == c for c in range(K)], 1), target.as_channels(K))
    assert torch.equal(one.counts, many.counts)


def test_a_class_that_never_occurs_counts_in_no_mean():
    counts = ConfusionCounts.zeros(3)
    counts.add(torch.tensor([[0, 1, 1]]), Target.of_classes(torch.tensor([[0, 1, 0]])))
    scores = counts.scores()
    assert math.isnan(scores[2].iou)
    assert mean_score(scores, "iou") == 0.5
    assert math.isnan(mean_score(ConfusionCounts.zeros(3).scores(), "iou"))


def test_ninety_five_percent_background_is_no_success():
    counts = ConfusionCounts.zeros(2)
    reference = torch.zeros(1, 100, dtype=torch.int64)
    reference[0, :5] = 1
    counts.add(torch.zeros_like(reference), Target.of_classes(reference))
    assert counts.scores()[1].accuracy == 0.95
    assert mean_score(counts.scores(), "iou") == 0.0


def test_what_does_not_fit_is_refused():
    counts = ConfusionCounts.zeros(2)
    with pytest.raises(InputError, match="class 5"):
        counts.add(torch.tensor([[0, 5]]), Target.of_classes(torch.tensor([[0, 1]])))
    with pytest.raises(InputError, match="shape"):
        counts.add(torch.tensor([[0]]), Target.of_classes(torch.tensor([[0, 1]])))
