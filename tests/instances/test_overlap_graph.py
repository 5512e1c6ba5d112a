"""Overlap graph and assignment: equal to the slow way."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from lamella.core.errors import InputError
from lamella.instances.assignment import assign
from lamella.instances.matching import match_pairs, match_sparse
from lamella.instances.overlap_graph import build_overlap_graph

volumes = st.builds(
    lambda seed, shape, top: np.random.default_rng(seed).integers(0, top, shape).astype(np.uint16),
    st.integers(0, 2**32 - 1),
    st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(1, 9)),
    st.integers(1, 40),
)


@given(labels=volumes, max_distance_z=st.integers(1, 3))
def test_equals_counting_voxels(labels, max_distance_z):
    labels[labels > 20] = 0
    graph = build_overlap_graph(labels, max_distance_z=max_distance_z)
    z_of = graph.slice_of
    for k in range(graph.n_sections):
        mask = labels[z_of[k]] == graph.label[k]
        y, x = np.nonzero(mask)
        assert graph.area[k] == len(y)
        np.testing.assert_allclose(graph.centroid[k], (y.mean(), x.mean()))
        assert graph.first[k] == np.flatnonzero(mask.ravel())[0]
    full = [z for z in range(len(labels)) if labels[z].any()]
    expected = []
    for i in range(graph.n_sections):
        for j in range(i + 1, graph.n_sections):
            a, b = z_of[i], z_of[j]
            shared = int(((labels[a] == graph.label[i]) & (labels[b] == graph.label[j])).sum())
            distance = full.index(b) - full.index(a)
            stretch = np.diff(full)[full.index(a) : full.index(b)].max(initial=0)
            if shared and 0 < distance <= max_distance_z and stretch <= max_distance_z:
                expected.append([i, j, distance, shared])
    assert graph.edges.tolist() == expected


@given(labels=volumes, share=st.floats(0, 1))
def test_small_overlaps_are_left_out(labels, share):
    every = build_overlap_graph(labels)
    some = build_overlap_graph(labels, min_share=share)
    a, b, _, shared = every.edges.T
    kept = shared >= share * np.minimum(every.area[a], every.area[b])
    np.testing.assert_array_equal(some.edges, every.edges[kept])


def test_many_sections_and_wide_rows():
    labels = np.arange(1, 2 * 300 * 400 + 1, dtype=np.uint64).reshape(2, 300, 400) * 2**40
    graph = build_overlap_graph(labels)
    assert graph.n_sections == 240_000
    assert len(graph.edges) == 120_000


@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 7),
    extra=st.integers(0, 5),
    density=st.floats(0, 1),
)
def test_assignment_is_the_best(seed, n, extra, density):
    rng = np.random.default_rng(seed)
    gain = rng.integers(1, 50, (n, n + extra)) * (rng.random((n, n + extra)) < density)
    columns = assign(gain)
    assert len(set(columns.tolist())) == n
    rows, best = linear_sum_assignment(gain, maximize=True)
    assert gain[np.arange(n), columns].sum() == gain[rows, best].sum()


@given(seed=st.integers(0, 2**32 - 1), n=st.integers(2, 12), density=st.floats(0.1, 0.6))
def test_large_components_are_solved_alike(seed, n, density):
    rng = np.random.default_rng(seed)
    left, right = np.nonzero(rng.random((n, n)) < density)
    gain = rng.permutation(10**6)[: len(left)] + 1
    chosen = match_pairs(left, right, gain, n)
    assert len(set(left[chosen])) == len(chosen) == len(set(right[chosen]))
    table = np.zeros((n, n), np.int64)
    table[left, right] = gain
    rows, columns = linear_sum_assignment(table, maximize=True)
    assert gain[chosen].sum() == table[rows, columns].sum()
    if len(left):
        sparse = match_sparse(left, right, gain)
        assert gain[sparse].sum() == gain[chosen].sum()


def test_a_distance_below_one_is_refused():
    with pytest.raises(InputError, match="1 or more"):
        build_overlap_graph(np.zeros((1, 2, 2), np.uint8), max_distance_z=0)


def test_a_component_of_hundreds_goes_the_other_way():
    rng = np.random.default_rng(0)
    left, right = np.nonzero(rng.random((300, 300)) < 0.1)
    gain = rng.integers(1, 2**40, len(left))
    chosen = match_pairs(left, right, gain, 300)
    table = np.zeros((300, 300), np.int64)
    table[left, right] = gain
    rows, columns = linear_sum_assignment(table, maximize=True)
    assert gain[chosen].sum() == table[rows, columns].sum()
