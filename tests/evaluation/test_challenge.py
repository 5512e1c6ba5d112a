"""The challenge's score against a slow, literal reading of its formula."""

import math

import cc3d
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import distance_transform_edt
from scipy.optimize import linear_sum_assignment

from lamella.core.errors import GeometryError, InputError
from lamella.evaluation.challenge import (
    InstanceCounts,
    SemanticCounts,
    combine_scores,
    score_instances_of_crop,
    score_semantic_of_crop,
)

VOXEL = (8.0, 4.0, 5.0)


def slow_matching(components, n, reference, ids):
    """Component of each reference object that has one, by a dense assignment."""
    cost = np.full((len(ids), n + len(ids)), 10.0**9)
    for r, i in enumerate(ids):
        cost[r, n + r] = 1_000_001
        for c in range(1, n + 1):
            inter = int(((reference == i) & (components == c)).sum())
            if inter:
                union = int(((reference == i) | (components == c)).sum())
                cost[r, c - 1] = int((1.0 - float(np.float32(inter / union))) * 1_000_000)
    pairs = zip(*linear_sum_assignment(cost), strict=True)
    return {ids[r]: int(c) + 1 for r, c in pairs if c < n}


def slow_instances(prediction, reference, voxel_size, reading):
    """The formula, step by step and over the whole crop."""
    components, n = cc3d.connected_components(prediction, return_N=True)
    ids = [int(i) for i in np.unique(reference) if i]
    cap = min(v * s / 2 for v, s in zip(voxel_size, reference.shape, strict=True))
    if n and ids and n / max(ids) > 10 + 50 * math.exp(-max(ids) / 5):
        return 0, 0, 0, []
    partner = slow_matching(components, n, reference, ids) if n and ids else {}
    renamed = np.zeros_like(components, dtype=np.int64)
    owner = {c: i for i, c in partner.items()}
    for c in range(1, n + 1):
        renamed[components == c] = owner.get(c, c if reading == "official" else -c)
    distances = []
    for i in ids:
        a, b = reference == i, renamed == i
        there = back = cap
        if b.any():
            there = distance_transform_edt(~b, sampling=voxel_size)[a].max()
            back = distance_transform_edt(~a, sampling=voxel_size)[b].max()
        distances.append(min(cap, max(there, back)))
    distances += [cap] * (n - len(partner))
    return len(partner), n - len(partner), len(ids) - len(partner), distances


def blobs(seed, shape=(12, 20, 22), n=8):
    """Balls with ids 1..n, some cut into pieces by those drawn later."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(shape, np.uint32)
    grid = np.indices(shape)
    for i in range(1, n + 1):
        center = np.array([rng.integers(0, s) for s in shape])[:, None, None, None]
        labels[((grid - center) ** 2).sum(0) <= rng.integers(2, 20)] = i
    values, dense = np.unique(labels, return_inverse=True)
    return dense.reshape(shape).astype(np.uint32) if values[0] == 0 else labels


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10**6), st.integers(0, 9), st.integers(0, 9),
    st.sampled_from(["official", "strict"]), st.integers(-2, 2),
)  # fmt: skip
def test_instances_are_those_of_the_formula(seed, n_reference, n_predicted, reading, shift):
    reference = blobs(seed, n=n_reference) if n_reference else np.zeros((12, 20, 22), np.uint32)
    prediction = np.roll(reference, shift, axis=1).copy()
    if n_predicted:
        noise = blobs(seed + 1, n=n_predicted)
        prediction[noise > 0] = noise[noise > 0] + 100
    tp, fp, fn, distances = slow_instances(prediction, reference, VOXEL, reading)
    found = score_instances_of_crop(prediction, reference, voxel_size=VOXEL, reading=reading)
    assert (found.true_positives, found.false_positives, found.false_negatives) == (tp, fp, fn)
    np.testing.assert_allclose(found.distances, np.float32(distances), rtol=0, atol=1e-9)
    expected = [1.01 ** (-d / np.linalg.norm(VOXEL)) for d in np.float32(distances).tolist()]
    np.testing.assert_allclose(found.closeness, expected, rtol=0, atol=1e-9)


def test_a_namesake_spoils_a_distance_only_in_the_official_reading():
    # Component 2 has no partner, and object 2 is matched by component 1.
    reference = np.zeros((10, 10, 30), np.uint32)
    reference[2:5, 2:5, 12:15] = 2
    prediction = np.zeros_like(reference)
    prediction[2:5, 2:5, 12:15] = 1
    prediction[9, 9, 29] = 1
    assert cc3d.connected_components(prediction)[9, 9, 29] == 2
    official, strict = (
        score_instances_of_crop(prediction, reference, voxel_size=(1, 1, 1), reading=reading)
        for reading in ("official", "strict")
    )
    assert strict.distances.tolist() == [0.0, 5.0]
    assert official.distances.tolist() == [5.0, 5.0]
    assert official.false_positives == strict.false_positives == 1


def test_dust_makes_the_official_program_give_a_crop_up():
    reference = np.zeros((20, 20, 20), np.uint32)
    reference[:3, :3, :3] = 1
    prediction = np.zeros_like(reference)
    prediction[::2, ::2, ::2] = 1
    found = score_instances_of_crop(prediction, reference, voxel_size=(1, 1, 1))
    assert "1000 predicted components for 1" in found.problem
    assert (found.true_positives, found.false_positives, len(found.distances)) == (0, 0, 0)
    score = combine_scores({"mito": [found]}).classes["mito"]
    assert score.problems == (found.problem,)


def test_labels_do_not_depend_on_the_size_of_ids():
    reference = blobs(3)
    large = np.where(reference > 0, reference.astype(np.uint64) * 10**12, 0).astype(np.uint64)
    prediction = np.roll(reference, 1, axis=2)
    small = score_instances_of_crop(prediction, reference, voxel_size=VOXEL, reading="strict")
    wide = score_instances_of_crop(prediction, large, voxel_size=VOXEL, reading="strict")
    np.testing.assert_array_equal(small.distances, wide.distances)


@given(st.integers(0, 10**6), st.integers(1, 4))
@settings(max_examples=10, deadline=None)
def test_threads_change_nothing(seed, n_threads):
    reference, prediction = blobs(seed), blobs(seed + 1)
    one, many = (
        score_instances_of_crop(prediction, reference, voxel_size=VOXEL, n_threads=n)
        for n in (1, n_threads)
    )
    np.testing.assert_array_equal(one.distances, many.distances)


# --- Pooling -------------------------------------------------------------------------------------


def test_voxels_and_objects_are_pooled_and_classes_count_the_same():
    counts = {
        "er": [SemanticCounts(8, 1, 1), SemanticCounts(0, 10, 0)],
        "nothing": [SemanticCounts(0, 0, 0)],
        "mito": [
            InstanceCounts(1, 0, 1, np.array([0.0, 100.0]), 10.0),
            InstanceCounts(1, 1, 0, np.array([10.0, 100.0]), 10.0),
        ],
    }
    score = combine_scores(counts)
    assert score.classes["er"].score == pytest.approx(8 / 20, abs=1e-12)
    assert score.classes["nothing"].score == 1.0
    f1 = 2 * 2 / (2 * 2 + 1 + 1)
    closeness = (1 + 1.01**-10 + 1.01**-1 + 1.01**-10) / 4
    assert score.classes["mito"].score == pytest.approx(math.sqrt(f1 * closeness), abs=1e-12)
    assert score.semantic == pytest.approx((0.4 + 1.0) / 2, abs=1e-12)
    assert score.overall == pytest.approx(math.sqrt(score.instance * score.semantic), abs=1e-12)


def test_semantic_counts_are_of_everything_above_zero():
    prediction = np.array([[0.0, 0.2, 1.0]])
    reference = np.array([[0, 0, 7]])
    assert score_semantic_of_crop(prediction, reference) == SemanticCounts(1, 1, 0)


def test_a_perfect_prediction_scores_one():
    reference = blobs(5, n=3)
    components = cc3d.connected_components(reference)
    found = score_instances_of_crop(components, components, voxel_size=VOXEL)
    assert combine_scores({"ves": [found]}).instance == 1.0


# --- Bad input -----------------------------------------------------------------------------------


def test_what_cannot_be_scored_is_refused():
    small, large = np.zeros((3, 3, 3), np.uint8), np.zeros((3, 3, 4), np.uint8)
    with pytest.raises(GeometryError, match="shape"):
        score_instances_of_crop(small, large, voxel_size=VOXEL)
    with pytest.raises(GeometryError, match="voxel size"):
        score_instances_of_crop(small, small, voxel_size=(1, 0, 1))
    with pytest.raises(InputError, match="integers"):
        score_instances_of_crop(small.astype(float), small, voxel_size=VOXEL)
    with pytest.raises(InputError, match="no crops"):
        combine_scores({"er": []})
    with pytest.raises(InputError, match="semantic and instance"):
        combine_scores({"er": [SemanticCounts(1, 0, 0), InstanceCounts(0, 0, 0, np.zeros(0), 1.0)]})
