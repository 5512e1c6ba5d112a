"""How sure a network was: the measures against their definitions, and labels that never change."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from lamella.inference.band import Band
from lamella.inference.confidence import MEASURES, leave_foreground, leave_softmax, measures_of
from lamella.inference.confidence import softmax as softmax_of
from lamella.inference.decode import Argmax, Foreground, Threshold, pick_largest
from lamella.inference.runtime import Mirrored, Spread
from lamella.volume import Box

THREE = MEASURES[:3]
ROUNDED = 0.51 / 255 + 2e-5
"""Half a step of 0..255, and rounding in float32."""


def decode(decoder, logits, weight=0.7):
    """Labels and maps (as 0..1) of one layer of mean logits (k, y, x)."""
    height, width = logits.shape[1:]
    band = Band(decoder, depth=1, region=Box((0, 0), (height, width)), n_layers=1)
    weights = np.full((1, height, width), weight, np.float32)
    band.add(logits[:, None].astype(np.float32), weights, Box((0, 0, 0), (1, height, width)))
    layers = band.leave(0, 1)
    return layers.labels[0], layers.probabilities[:, 0] / 255.0


def softmax(logits):
    share = np.exp(logits - logits.max(axis=0))
    return share / share.sum(axis=0)


@given(st.integers(2, 6), st.floats(0.2, 5.0), st.floats(0.01, 3.0), st.integers(0, 999))
def test_softmax_measures_are_those_of_the_distribution(k, temperature, weight, seed):
    logits = np.random.default_rng(seed).normal(0, 3, (k, 3, 5))
    decoder = Argmax(k, measures=THREE, temperature=temperature)
    _, (probability, margin, entropy) = decode(decoder, logits, weight)
    p = softmax(logits / temperature)
    ordered = np.sort(p, axis=0)
    assert np.abs(probability - ordered[-1]).max() < ROUNDED
    assert np.abs(margin - (ordered[-1] - ordered[-2])).max() < ROUNDED
    expected = -(p * np.log(np.maximum(p, 1e-300))).sum(axis=0) / np.log(k)
    assert np.abs(entropy - expected).max() < ROUNDED


@given(st.integers(1, 4), st.floats(0.1, 0.9), st.floats(0.3, 3.0), st.integers(0, 999))
def test_sigmoid_measures_tell_of_the_class_that_was_chosen(k, threshold, temperature, seed):
    logits = np.random.default_rng(seed).normal(0, 3, (k, 3, 5))
    decoder = Threshold(k, threshold=threshold, measures=THREE, temperature=temperature)
    labels, (probability, margin, entropy) = decode(decoder, logits)
    p = 1 / (1 + np.exp(-logits / temperature))
    scores = np.concatenate([1 - p.max(axis=0, keepdims=True), p])
    chosen = np.take_along_axis(scores, labels[None].astype(int), axis=0)[0]
    np.put_along_axis(scores, labels[None].astype(int), -np.inf, axis=0)
    assert np.abs(probability - chosen).max() < ROUNDED
    assert np.abs(margin - np.clip(chosen - scores.max(axis=0), 0, 1)).max() < ROUNDED
    bits = -(p * np.log2(p) + (1 - p) * np.log2(1 - p))
    assert np.abs(entropy - bits.max(axis=0)).max() < ROUNDED


def test_two_classes_and_one_sigmoid_say_the_same():
    logits = np.random.default_rng(0).normal(0, 2, (1, 4, 6))
    two = np.concatenate([np.zeros_like(logits), logits])
    one = decode(Threshold(1, measures=THREE), logits)
    both = decode(Argmax(2, measures=THREE), two)
    np.testing.assert_array_equal(one[0], both[0])
    np.testing.assert_allclose(one[1], both[1], atol=1.1 / 255)


def test_a_doubtful_boundary_is_as_doubtful_as_a_doubtful_outline():
    foreground = np.array([[0.5, 1.0, 1.0, 0.0]], np.float32)
    boundary = np.array([[0.0, 0.5, 1.0, 0.5]], np.float32)
    maps = np.empty((3, 1, 4), np.uint8)
    leave_foreground(foreground, boundary, (foreground > 0.5).astype(np.uint8), THREE, maps)
    assert maps[0, 0].tolist() == [128, 255, 255, 255]
    assert maps[1, 0].tolist() == [0, 0, 255, 255]
    assert maps[2, 0, 0] == maps[2, 0, 1] > 0
    assert maps[2, 0, 2] == maps[2, 0, 3] == 0


@given(st.sampled_from(["argmax", "threshold", "boundary", "distance"]), st.integers(0, 999))
def test_labels_are_the_same_bits_with_and_without(kind, seed):
    logits = np.random.default_rng(seed).normal(0, 2, (3, 7, 9)).astype(np.float32)

    def build(measures, *, has_spread):
        options = {"measures": measures, "has_spread": has_spread}
        if kind == "argmax":
            return Argmax(2, **options)
        if kind == "threshold":
            return Threshold(2, threshold=0.4, **options)
        return Foreground(2, linear=(1,) if kind == "distance" else (), **options)

    plain, channels = decode(build((), has_spread=False), logits[:2])
    sure, maps = decode(build(MEASURES, has_spread=True), logits)
    np.testing.assert_array_equal(plain, sure)
    np.testing.assert_array_equal(channels, maps[: len(channels)])


def test_the_spread_is_the_last_channel():
    logits = np.zeros((3, 1, 2))
    logits[2] = [[0.25, 0.5]]
    _, maps = decode(Argmax(2, measures=("tta_spread",), has_spread=True), logits)
    np.testing.assert_allclose(maps[0, 0], [0.25, 0.5], atol=ROUNDED)


def test_measures_of_a_run():
    assert measures_of(is_asked=False, has_spread=True) == ()
    assert measures_of(is_asked=True, has_spread=False) == THREE
    assert measures_of(is_asked=True, has_spread=True) == MEASURES


def test_very_sure_logits_stay_numbers():
    logits = np.array([[[1e4]], [[-1e4]], [[0.0]]], np.float32)
    maps = np.empty((3, 1, 1), np.uint8)
    leave_softmax(logits, np.ones((1, 1), np.float32), THREE, maps)
    assert maps.ravel().tolist() == [255, 255, 0]


class Lopsided:
    """A "network" that sees a ramp along the last axis: mirrored copies differ."""

    name, device, precision = "lopsided", "cpu", "fp32"
    batch_shape, n_outputs = (2, 1, 1, 3, 4), 3

    def __call__(self, batch):
        ramp = np.arange(4, dtype=np.float32)
        return np.concatenate([batch, batch * ramp, ramp - batch], axis=1).astype(np.float32)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("channel", [None, 1])
def test_spread_is_the_deviation_over_all_copies(activation, channel):
    batch = np.random.default_rng(1).normal(0, 1, Lopsided.batch_shape).astype(np.float32)
    spread = Spread(activation, channel=channel, temperature=1.5)
    mirrored = Mirrored(Lopsided(), axes=(3, 4), spread=spread)
    result = mirrored(batch)
    plain = Mirrored(Lopsided(), axes=(3, 4))(batch)
    assert mirrored.n_outputs == 4
    np.testing.assert_array_equal(result[:, :3], plain)
    flips = [(), (3,), (4,), (3, 4)]
    copies = np.stack([np.flip(Lopsided()(np.flip(batch, f)), f) for f in flips]) / 1.5
    if activation == "softmax":
        p = np.exp(copies) / np.exp(copies).sum(axis=2, keepdims=True)
    else:
        p = 1 / (1 + np.exp(-copies))
    which = plain.argmax(axis=1, keepdims=True) if channel is None else np.full_like(batch, 1, int)
    chosen = np.take_along_axis(p.std(axis=0), which, axis=1)
    np.testing.assert_allclose(result[:, 3:], chosen, atol=2e-5)


def test_copies_that_agree_have_no_spread():
    class Same(Lopsided):
        def __call__(self, batch):
            return np.concatenate([batch, -batch, batch * 0], axis=1)

    batch = np.random.default_rng(1).normal(0, 5, Lopsided.batch_shape).astype(np.float32)
    result = Mirrored(Same(), axes=(3, 4), spread=Spread())(batch)
    assert result[:, 3].max() < 1e-6


@pytest.mark.parametrize("axis", [0, 1])
def test_softmax_is_that_of_scipy_also_in_place(axis):
    from scipy.special import softmax as judge

    logits = np.random.default_rng(0).normal(0, 30, (3, 4, 5)).astype(np.float32)
    found = softmax_of(logits, axis=axis)
    assert found.dtype == np.float32
    assert_allclose(found, judge(logits, axis=axis), atol=1e-6)
    own = logits.copy()
    assert softmax_of(own, axis=axis, out=own) is own
    assert_array_equal(own, found)


@given(st.integers(1, 5), st.integers(0, 999))
def test_the_largest_above_a_limit_is_picked_and_the_lowest_of_equals(k, seed):
    rng = np.random.default_rng(seed)
    values = rng.integers(-2, 3, (k, 4, 6)).astype(np.float32)  # equals are many
    limit = rng.integers(-2, 3, (4, 6)).astype(np.float32)
    labels, best = np.full((4, 6), 9, np.uint8), limit.copy()
    pick_largest(values, best, labels)
    assert_array_equal(labels, np.concatenate([limit[None], values]).argmax(axis=0))
    assert_array_equal(best, np.maximum(limit, values.max(axis=0)))
