"""Reliability and temperature: known answers, and the same ones however voxels arrive."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.core.errors import InputError
from lamella.evaluation.calibration import Reliability, fit_temperature


def honest(n, k, temperature, seed):
    """Logits of a network that is too sure by a known factor, and classes drawn from the truth."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1.5, (k, n))
    share = np.exp(logits) / np.exp(logits).sum(axis=0)
    classes = (rng.random(n) < share.cumsum(axis=0)).argmax(axis=0)
    return logits * temperature, classes


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5, 6.0])
@pytest.mark.parametrize("k", [2, 5])
def test_a_known_temperature_is_found_again(k, temperature):
    logits, classes = honest(60_000, k, temperature, seed=k)
    found = fit_temperature(lambda: [(logits, classes)])
    assert found.value == pytest.approx(temperature, rel=0.04)
    assert found.loss_after <= found.loss_before + 1e-12
    assert found.n == 60_000


def test_one_channel_is_a_sigmoid():
    logits, classes = honest(60_000, 2, 3.0, seed=1)
    one = fit_temperature(lambda: [(logits[1:] - logits[:1], classes)])
    two = fit_temperature(lambda: [(logits, classes)])
    assert one.value == pytest.approx(two.value, rel=1e-6)


def test_it_makes_probabilities_honest():
    logits, classes = honest(80_000, 4, 3.0, seed=2)
    value = fit_temperature(lambda: [(logits, classes)]).value

    def error(t):
        share = np.exp(logits / t - (logits / t).max(axis=0))
        share /= share.sum(axis=0)
        curve = Reliability()
        curve.add(share.max(axis=0), share.argmax(axis=0) == classes)
        return curve.expected_error

    assert error(value) < 0.01
    assert error(1.0) > 0.1


@given(st.integers(1, 7), st.integers(0, 99))
def test_pieces_and_the_whole_give_the_same(n_pieces, seed):
    logits, classes = honest(500, 3, 2.0, seed)
    whole = fit_temperature(lambda: [(logits, classes)])
    parts = np.array_split(np.arange(500), n_pieces)
    again = fit_temperature(lambda: ((logits[:, p], classes[p]) for p in parts))
    assert again.value == pytest.approx(whole.value, rel=1e-6)


def test_ignored_voxels_do_not_count():
    logits, classes = honest(2000, 3, 2.0, seed=3)
    spoiled = np.concatenate([logits, np.full((3, 500), 9.0)], axis=1).reshape(3, 50, 50)
    marked = np.concatenate([classes, np.full(500, 255)]).reshape(50, 50)
    found = fit_temperature(lambda: [(spoiled, marked)], ignore_label=255)
    assert found.value == pytest.approx(fit_temperature(lambda: [(logits, classes)]).value)
    assert found.n == 2000


@pytest.mark.parametrize(
    ("logits", "classes", "words"),
    [
        (np.zeros((2, 4)), np.zeros(5, int), "expected"),
        (np.zeros((2, 4)), np.full(4, 2), "ignore_label"),
        (np.zeros((2, 0)), np.zeros(0, int), "no voxel"),
    ],
)
def test_blocks_that_do_not_fit_are_refused(logits, classes, words):
    with pytest.raises(InputError) as caught:
        fit_temperature(lambda: [(logits, classes)])
    assert words in f"{caught.value.message} {caught.value.hint}"


class TestReliability:
    @given(
        st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60),
        st.integers(1, 20),
        st.integers(1, 5),
    )
    def test_against_the_definition_in_any_pieces(self, voxels, n_bins, n_pieces):
        confidence = np.array([c for c, _ in voxels])
        right = np.array([r for _, r in voxels])
        curve = Reliability(n_bins=n_bins)
        for part in np.array_split(np.arange(len(voxels)), n_pieces):
            curve.add(confidence[part], right[part])
        which = np.minimum((confidence * n_bins).astype(int), n_bins - 1)
        gaps = [
            (which == k).sum() * abs(confidence[which == k].mean() - right[which == k].mean())
            for k in np.unique(which)
        ]
        assert curve.expected_error == pytest.approx(sum(gaps) / len(voxels), abs=1e-12)
        assert curve.n == len(voxels) == sum(one.n for one in curve.bins)
        assert curve.greatest_error >= curve.expected_error - 1e-12

    def test_maps_of_bytes_and_ignored_voxels(self):
        curve = Reliability(n_bins=10)
        maps = np.array([[255, 255], [51, 0]], np.uint8)
        curve.add(maps, [[True, True], [False, True]], ignore=[[False, False], [False, True]])
        assert curve.n == 3
        assert curve.expected_error == pytest.approx(0.2 / 3)
        assert curve.bins[2].accuracy == 0.0
        assert math.isnan(curve.bins[5].accuracy)

    def test_nothing_at_all_is_not_a_number(self):
        assert math.isnan(Reliability().expected_error)
        assert math.isnan(Reliability().greatest_error)

    def test_what_is_no_confidence_is_refused(self):
        with pytest.raises(InputError, match="expected 0 to 1"):
            Reliability().add([3.0], [True])
        with pytest.raises(InputError, match="shape"):
            Reliability().add([0.5, 0.5], [True])
        with pytest.raises(InputError, match="bins"):
            Reliability(n_bins=0)
