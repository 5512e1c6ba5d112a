"""Affinities: targets decode to the labels they came from; equal to the slow way."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.core.errors import InputError
from lamella.instances import label_components
from lamella.instances.affinity import (
    NEIGHBOURS,
    AffinityOptions,
    affinity_instances,
    affinity_targets,
)
from lamella.instances.mutex import grow_seeds, mutex_watershed

LONG = (*NEIGHBOURS, (-2, 0, 0), (0, -2, 0), (0, 0, -2), (0, -2, 2), (-1, -1, 0))


def random_objects(seed, shape, n):
    """Face-connected objects that touch each other everywhere, numbered by first voxel."""
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, n, shape).astype(np.uint8)
    return label_components(classes, connectivity=6).labels


volumes = st.builds(
    random_objects,
    st.integers(0, 2**32 - 1),
    st.tuples(st.integers(1, 5), st.integers(1, 7), st.integers(1, 7)),
    st.integers(1, 4),
)


@given(labels=volumes, offsets=st.sampled_from([NEIGHBOURS, LONG]))
def test_targets_decode_to_the_labels(labels, offsets):
    maps = affinity_targets(labels, offsets)
    found = affinity_instances(labels > 0, maps, options=AffinityOptions(offsets=offsets))
    np.testing.assert_array_equal(found, labels)


@given(labels=volumes)
def test_slices_have_offsets_of_their_own(labels):
    plane = label_components(labels[0], connectivity=4).labels
    options = AffinityOptions(offsets=((-1, 0), (0, -1), (-3, 0), (0, -3)))
    found = affinity_instances(plane > 0, affinity_targets(plane, options.offsets), options=options)
    np.testing.assert_array_equal(found, plane)


def slow_mutex(u, v, is_repulsive, n):
    """Wolf et al. 2018 with sets."""
    cluster = [{i} for i in range(n)]
    of = list(range(n))
    apart = set()
    for a, b, repels in zip(u, v, is_repulsive, strict=True):
        i, j = of[a], of[b]
        if i == j or frozenset((i, j)) in apart:
            continue
        if repels:
            apart.add(frozenset((i, j)))
            continue
        for node in cluster[j]:
            of[node] = i
        cluster[i] |= cluster[j]
        apart = {frozenset(i if k == j else k for k in pair) for pair in apart}
    return of


def slow_growth(u, v, seeds):
    """Kruskal with seeds, clusters as lists."""
    of, seed = list(range(len(seeds))), dict(enumerate(seeds))
    for a, b in zip(u, v, strict=True):
        i, j = of[a], of[b]
        if i == j or (seed[i] and seed[j] and seed[i] != seed[j]):
            continue
        seed[i] = seed[i] or seed[j]
        of = [i if k == j else k for k in of]
    return [seed[k] or -1 - min(i for i, other in enumerate(of) if other == k) for k in of]


@st.composite
def graphs(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n, m = draw(st.integers(2, 12)), draw(st.integers(1, 40))
    u = rng.integers(0, n, m)
    v = (u + rng.integers(1, n, m)) % n
    return u, v, rng.random(m) < draw(st.floats(0, 1)), n, rng.integers(0, 4, n)


def groups(values):
    return [list(values).index(value) for value in values]


@given(graphs())
def test_mutex_watershed_equals_the_slow_way(graph):
    u, v, is_repulsive, n, _ = graph
    assert groups(mutex_watershed(u, v, is_repulsive, n)) == groups(
        slow_mutex(u, v, is_repulsive, n)
    )


@given(graphs())
def test_growing_seeds_equals_the_slow_way(graph):
    u, v, _, _, seeds = graph
    assert grow_seeds(u, v, seeds).tolist() == slow_growth(u, v, seeds.tolist())


def two_balls():
    z, y, x = np.indices((15, 17, 28))
    labels = np.zeros(z.shape, np.uint32)
    labels[(z - 7) ** 2 + (y - 8) ** 2 + (x - 8) ** 2 <= 36] = 1
    labels[((z - 7) ** 2 + (y - 8) ** 2 + (x - 19) ** 2 <= 36) & (labels == 0)] = 2
    return labels


@pytest.mark.parametrize("offsets", [NEIGHBOURS, LONG])
def test_noise_does_not_join_touching_objects(offsets):
    labels = two_balls()
    rng = np.random.default_rng(0)
    maps = affinity_targets(labels, offsets)
    maps = np.clip(maps * 0.8 + 0.1 + rng.normal(0, 0.08, maps.shape), 0, 1)
    options = AffinityOptions(offsets=offsets, seed_threshold=0.85, min_seed_size=20, min_size=20)
    found = affinity_instances(labels > 0, maps, options=options)
    assert found.max() == 2
    assert (found == labels).mean() > 0.99


def test_long_offsets_keep_apart_what_a_leak_would_join():
    labels = two_balls()
    maps = affinity_targets(labels, LONG)
    maps[2, 7, 8, 15] = 0.95  # one wrong affinity between the balls
    short = affinity_instances(labels > 0, maps[:3])
    long = affinity_instances(labels > 0, maps, options=AffinityOptions(offsets=LONG))
    assert short.max() == 1
    assert long.max() == 2


def test_nothing_is_nothing():
    maps = np.zeros((3, 4, 4, 4), np.float32)
    assert affinity_instances(np.zeros((4, 4, 4), bool), maps).max() == 0
    alone = affinity_instances(np.ones((2, 1, 1), bool), maps[:, :2, :1, :1])
    assert alone.ravel().tolist() == [1, 2]


@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        (((-1, 0, 0), (0, -1)), "of two or of three"),
        (((-2, 0, 0),), "nothing can be joined"),
        (((-1, 0, 0), (0, 0, 0)), "with itself"),
    ],
)
def test_offsets_that_make_no_sense(offsets, message):
    with pytest.raises(InputError, match=message):
        AffinityOptions(offsets=offsets)


def test_shapes_must_fit():
    with pytest.raises(InputError, match="one map per offset"):
        affinity_instances(np.ones((4, 4, 4), bool), np.zeros((2, 4, 4, 4)))
    with pytest.raises(InputError, match="2 axes"):
        affinity_instances(np.ones((4, 4), bool), np.zeros((3, 4, 4)))
    with pytest.raises(InputError, match="does not fit"):
        affinity_targets(np.ones((4, 4), np.uint8))
