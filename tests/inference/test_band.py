"""The fast kernels equal slow loops bit for bit, and blended logits equal MONAI's."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamella.core.errors import EngineError, ModelError
from lamella.inference.band import Band, gaussian_weights
from lamella.inference.decode import Argmax, Foreground, Threshold, label_dtype, logit_of
from lamella.inference.plan import make_plan
from lamella.volume.box import Box


def slow_blend(plan, logits_of, n_outputs, weights):
    """Weighted sums and labels in plain Python floats of type float32, voxel by voxel."""
    total = np.zeros((n_outputs, *plan.shape), np.float32)
    for row in plan.rows:
        for tile in plan.tiles(plan.columns[0], row):
            logits = logits_of(tile)
            for z, y, x in np.ndindex(*plan.tile):
                at = tuple(s + o for s, o in zip(tile.read.start, (z, y, x), strict=True))
                if any(a < 0 or a >= n for a, n in zip(at, plan.shape, strict=True)):
                    continue
                for k in range(n_outputs):
                    product = np.float32(weights[z, y, x] * logits[k, z, y, x])
                    total[(k, *at)] = np.float32(total[(k, *at)] + product)
    labels = np.zeros(plan.shape, np.uint8)
    for at in np.ndindex(*plan.shape):
        best, value = total[(0, *at)], 0
        for k in range(1, n_outputs):
            if total[(k, *at)] > best:
                best, value = total[(k, *at)], k
        labels[at] = value
    return total, labels


class Recorder(Argmax):
    """Argmax that also keeps what it was given."""

    def __init__(self, n_outputs):
        super().__init__(n_outputs)
        self.totals = []

    def decode(self, total, weight, labels, probabilities):
        self.totals.append(total.copy())
        super().decode(total, weight, labels, probabilities)


@settings(max_examples=12)
@given(
    st.tuples(*[st.integers(1, 6)] * 3),
    st.tuples(*[st.integers(1, 4)] * 3),
    st.sampled_from([0.0, 0.5]),
    st.integers(1, 3),
)
def test_kernels_equal_a_slow_reference_bit_for_bit(shape, tile, fraction, n_outputs):
    plan = make_plan(shape, tile=tile, overlap_fraction=fraction)
    weights = gaussian_weights(tile)

    def logits_of(one):
        seed = hash(one.read.start) % 2**32
        return np.random.default_rng(seed).standard_normal((n_outputs, *tile), np.float32)

    total, labels = slow_blend(plan, logits_of, n_outputs, weights)
    decoder = Recorder(n_outputs)
    (column,) = plan.columns
    band = Band(decoder, depth=tile[0], region=column.region, n_layers=shape[0])
    left = []
    for row in plan.rows:
        for one in plan.tiles(column, row):
            band.add(logits_of(one), weights, one.read)
        left.append(band.leave(*row.leave).labels)
    np.testing.assert_array_equal(np.concatenate(left), labels)
    np.testing.assert_array_equal(np.stack(decoder.totals, axis=1), total)


def test_a_region_drops_what_lies_outside_without_changing_the_rest():
    logits = np.random.default_rng(0).standard_normal((3, 4, 8, 8)).astype(np.float32)
    weights = gaussian_weights((4, 8, 8))
    read = Box((0, 0, 0), (4, 8, 8))
    whole = Band(Argmax(3), depth=4, region=Box((0, 0), (8, 8)), n_layers=4)
    part = Band(Argmax(3), depth=4, region=Box((2, 3), (7, 5)), n_layers=4)
    for band in (whole, part):
        band.add(logits, weights, read)
    expected = whole.leave(0, 4).labels[:, 2:7, 3:5]
    np.testing.assert_array_equal(part.leave(0, 4).labels, expected)


@pytest.mark.parametrize("tile", [(64, 64, 64), (32, 96, 64), (1, 256, 256), (3, 5, 7)])
def test_weights_equal_monai(tile):
    utils = pytest.importorskip("monai.data.utils")
    expected = utils.compute_importance_map(tile, mode="gaussian", sigma_scale=0.125).numpy()
    np.testing.assert_allclose(gaussian_weights(tile), expected, rtol=2e-6)


def test_values_that_are_not_finite_stop_the_run():
    band = Band(Argmax(2), depth=1, region=Box((0, 0), (2, 2)), n_layers=1)
    logits = np.zeros((2, 1, 2, 2), np.float32)
    logits[1, 0, 1, 1] = np.inf
    band.add(logits, np.ones((1, 2, 2), np.float32), Box((0, 0, 0), (1, 2, 2)))
    with pytest.raises(EngineError, match="not finite") as caught:
        band.leave(0, 1)
    assert "fp32" in caught.value.hint


def decode(decoder, logits, weight):
    """Labels and probabilities of one layer of mean logits (k, y, x)."""
    height, width = logits.shape[1:]
    band = Band(decoder, depth=1, region=Box((0, 0), (height, width)), n_layers=1)
    weights = np.full((1, height, width), weight, np.float32)
    band.add(logits[:, None].astype(np.float32), weights, Box((0, 0, 0), (1, height, width)))
    layers = band.leave(0, 1)
    return layers.labels[0], layers.probabilities[:, 0]


@given(st.floats(0.01, 3.0), st.integers(0, 99))
def test_argmax_confidence_is_the_softmax_of_the_mean(weight, seed):
    logits = np.random.default_rng(seed).normal(0, 3, (4, 3, 5))
    labels, confidence = decode(
        Argmax(4, measures=("probability",), temperature=2.0), logits, weight
    )
    np.testing.assert_array_equal(labels, logits.argmax(axis=0))
    softmax = np.exp(logits / 2) / np.exp(logits / 2).sum(axis=0)
    assert np.abs(confidence[0] / 255 - softmax.max(axis=0)).max() < 0.003


@given(st.floats(0.01, 3.0), st.floats(0.1, 0.9), st.integers(0, 99))
def test_threshold_picks_the_highest_channel_above_it(weight, threshold, seed):
    logits = np.random.default_rng(seed).normal(0, 3, (2, 3, 5))
    probability = 1 / (1 + np.exp(-logits))
    near = np.abs(probability - threshold).min() < 1e-4
    labels, _ = decode(Threshold(2, threshold=threshold), logits, weight)
    expected = np.where(probability.max(axis=0) > threshold, probability.argmax(axis=0) + 1, 0)
    if not near:
        np.testing.assert_array_equal(labels, expected)


def test_foreground_leaves_every_channel():
    logits = np.array([[[-2.0, 2.0]], [[0.25, 0.75]]])
    labels, probabilities = decode(Foreground(2, linear=(1,)), logits, 0.5)
    assert labels.tolist() == [[0, 1]]
    sigmoid = 255 / (1 + np.exp([2.0, -2.0]))
    np.testing.assert_allclose(probabilities[0, 0], sigmoid, atol=0.51)
    np.testing.assert_allclose(probabilities[1, 0], [64, 191], atol=0.51)


def test_label_types_and_thresholds():
    assert label_dtype(255) == np.uint8
    assert label_dtype(256) == np.uint16
    assert logit_of(0.5) == 0.0
    with pytest.raises(ModelError):
        logit_of(1.0)
