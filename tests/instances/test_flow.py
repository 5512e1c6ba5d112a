"""Flows: targets decode to the labels they came from; heat and steps equal the slow way."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.core.errors import InputError
from lamella.instances.flow import FlowOptions, flow_instances, flow_targets
from lamella.instances.flow_kernels import diffuse, follow


def ellipsoids(seed, n, shape=(18, 26, 30)):
    """Whole ellipsoids, some of which touch; no voxel of one lies cut off from the rest."""
    rng = np.random.default_rng(seed)
    points = np.stack(np.indices(shape), -1)
    labels = np.zeros(shape, np.uint32)
    for _ in range(n):
        half = rng.uniform(2.5, 6, 3)
        center = rng.uniform(half, np.array(shape) - half)
        inside = (((points - center) / half) ** 2).sum(-1) <= 1
        if not labels[inside].any():
            labels[inside] = labels.max() + 1
    ids, first = np.unique(labels, return_index=True)
    order = np.argsort(first[ids > 0])
    table = np.zeros(len(ids), np.uint32)
    table[ids[ids > 0][order]] = np.arange(1, len(order) + 1)
    return table[labels]


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(0, 12))
def test_targets_decode_to_the_labels(seed, n):
    labels = ellipsoids(seed, n)
    found = flow_instances(labels > 0, flow_targets(labels))
    np.testing.assert_array_equal(found, labels)


@given(seed=st.integers(0, 2**32 - 1))
def test_targets_decode_after_storage_in_bytes(seed):
    labels = ellipsoids(seed, 8)
    stored = np.rint((flow_targets(labels) + 1) / 2 * 255).astype(np.uint8)
    found = flow_instances(labels > 0, stored / np.float32(127.5) - 1)
    np.testing.assert_array_equal(found, labels)


@given(seed=st.integers(0, 2**32 - 1))
def test_slices_too(seed):
    labels = ellipsoids(seed, 8)[9]
    # A cap of a few pixels beside a whole section has no centre of its own to flow to.
    labels[np.bincount(labels.ravel())[labels] < 12] = 0
    ids = np.unique(labels)
    flows = flow_targets(labels)
    assert flows.shape == (2, *labels.shape)
    found = flow_instances(labels > 0, flows)
    assert found.max() == len(ids) - (ids[0] == 0)
    pairs = np.unique(np.stack([found.ravel(), labels.ravel()]), axis=1)
    assert pairs.shape[1] == found.max() + (ids[0] == 0)


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 8))
def test_flows_are_unit_vectors_inside_and_nothing_outside(seed, n):
    labels = ellipsoids(seed, n)
    length = np.sqrt((flow_targets(labels) ** 2).sum(0))
    assert (length[labels == 0] == 0).all()
    is_unit = np.isclose(length[labels > 0], 1, atol=1e-5)
    assert is_unit.mean() > 0.99
    assert np.isclose(length[labels > 0][~is_unit], 0, atol=1e-5).all()


def test_values_of_the_labels_mean_nothing():
    labels = ellipsoids(3, 8)
    renamed = np.where(labels > 0, labels.astype(np.uint64) * 2**40, 0)
    np.testing.assert_array_equal(flow_targets(renamed), flow_targets(labels))


def test_a_bent_object_is_followed_around_its_corner():
    labels = np.zeros((3, 30, 30), np.uint32)
    labels[1, 3:27, 3:8] = labels[1, 22:27, 3:27] = 1
    labels[1, 3:18, 12:27] = 2
    np.testing.assert_array_equal(
        flow_instances(labels > 0, flow_targets(labels)), np.where(labels > 0, labels, 0)
    )


def slow_heat(inside, center, n_steps):
    heat = np.zeros(inside.shape)
    for _ in range(n_steps):
        heat[tuple(center)] += 1
        total = heat.copy()
        for axis in range(3):
            total += np.roll(heat, 1, axis) + np.roll(heat, -1, axis)
        heat = np.where(inside, total / 7, 0)
    return heat


@given(seed=st.integers(0, 2**32 - 1), n_steps=st.integers(1, 30))
def test_heat_equals_the_slow_way(seed, n_steps):
    inside = np.pad(np.random.default_rng(seed).random((3, 4, 5)) < 0.8, 1)
    inside[2, 2, 2] = True
    center = np.array([2, 2, 2])
    np.testing.assert_allclose(
        diffuse(inside, center, n_steps), slow_heat(inside, center, n_steps), rtol=1e-9
    )


@given(seed=st.integers(0, 2**32 - 1), n_steps=st.integers(1, 12))
def test_steps_equal_the_slow_way(seed, n_steps):
    from scipy.ndimage import map_coordinates

    rng = np.random.default_rng(seed)
    flow = rng.normal(0, 0.5, (3, 5, 6, 7)).astype(np.float32)
    start = rng.uniform(0, 4, (9, 3)).astype(np.float32)
    points = start.copy()
    follow(points, flow, n_steps)
    expected = start.astype(float)
    top = np.array(flow.shape[1:]) - 1
    for _ in range(n_steps):
        step = [map_coordinates(f, expected.T, order=1, mode="nearest") for f in flow]
        expected = np.clip(expected + np.transpose(step), 0, top)
    np.testing.assert_allclose(points, expected, atol=1e-3)


def test_few_votes_and_small_objects_are_dropped():
    labels = ellipsoids(1, 6)
    sizes = np.bincount(labels.ravel())[1:]
    flows = flow_targets(labels)
    least = int(np.sort(sizes)[-2])
    for options in (FlowOptions(min_votes=least), FlowOptions(min_size=least)):
        assert flow_instances(labels > 0, flows, options=options).max() == 2


def test_nothing_is_nothing():
    assert flow_instances(np.zeros((4, 4, 4), bool), np.zeros((3, 4, 4, 4))).max() == 0


def test_shapes_must_fit():
    with pytest.raises(InputError, match="one component per axis"):
        flow_instances(np.ones((4, 4, 4), bool), np.zeros((2, 4, 4, 4)))
    with pytest.raises(InputError, match="axes were given"):
        flow_targets(np.zeros(4, np.uint8))
    with pytest.raises(InputError, match="n_steps"):
        FlowOptions(n_steps=0)
