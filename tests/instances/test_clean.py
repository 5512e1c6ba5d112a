"""Cleaning: equal to the plain definition, in memory and slab by slab."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from lamella.core.errors import InputError
from lamella.instances import (
    CleanOptions,
    clean_labels,
    count_voxels,
    fill_holes,
    keep_largest,
    label_components,
    pipeline,
    relabel_sequential,
    remove_small,
)


def blobs(seed, shape=(9, 8, 10), n=3, dtype=np.uint16):
    """Labels with touching objects, specks and holes."""
    rng = np.random.default_rng(seed)
    labels = ndimage.zoom(rng.integers(0, n + 1, [max(1, s // 3) for s in shape]), 3, order=0)
    labels = labels[tuple(slice(s) for s in shape)]
    labels = np.pad(labels, [(0, s - k) for s, k in zip(shape, labels.shape, strict=True)])
    noise = rng.random(shape)
    labels[noise < 0.08] = 0
    labels[noise > 0.95] = n
    return labels.astype(dtype)


label_arrays = st.builds(
    blobs,
    seed=st.integers(0, 2**32 - 1),
    shape=st.sampled_from([(9, 8, 10), (1, 7, 9), (5, 1, 6), (13, 11)]),
    dtype=st.sampled_from([np.uint8, np.int32, np.uint64]),
)


@given(labels=label_arrays, min_size=st.integers(0, 60))
def test_remove_small(labels, min_size):
    expected = labels.copy()
    for value in np.unique(labels):
        if (labels == value).sum() < min_size:
            expected[labels == value] = 0
    cleaned = remove_small(labels, min_size)
    np.testing.assert_array_equal(cleaned, expected)
    assert cleaned.dtype == labels.dtype


@given(labels=label_arrays)
def test_fill_holes(labels):
    expected = labels.copy()
    for value in np.unique(labels[labels > 0]):
        alone = ndimage.binary_fill_holes(labels == value) & (labels == 0)
        # A pocket that also touches another object belongs to neither.
        pockets, n = ndimage.label(labels == 0)
        for pocket in range(1, n + 1):
            at = pockets == pocket
            faces = ndimage.generate_binary_structure(labels.ndim, 1)
            beside = ndimage.binary_dilation(at, faces) & ~at
            if alone[at].all() and (labels[beside] == value).all():
                expected[at] = value
    np.testing.assert_array_equal(fill_holes(labels), expected)


def test_fill_holes_of_one_object_is_scipys():
    mask = blobs(4, (20, 20, 20), n=1) > 0
    np.testing.assert_array_equal(fill_holes(mask), ndimage.binary_fill_holes(mask))


def test_fill_holes_per_slice_closes_tubes():
    tube = np.zeros((4, 7, 7), np.uint8)
    tube[:, 1:6, 1:6] = 3
    tube[:, 3, 3] = 0
    np.testing.assert_array_equal(fill_holes(tube), tube)
    assert (fill_holes(tube, per_slice=True)[:, 3, 3] == 3).all()
    assert (fill_holes(tube[0], max_size=0)[3, 3]) == 0


@given(labels=label_arrays)
def test_keep_largest(labels):
    cleaned = keep_largest(labels)
    for value in np.unique(labels[labels > 0]):
        pieces = label_components(labels == value)
        sizes = np.bincount(pieces.labels.ravel())[1:]
        expected = pieces.labels == 1 + np.argmax(sizes)
        np.testing.assert_array_equal(cleaned == value, expected)


@given(labels=label_arrays, order=st.sampled_from(["id", "scan"]))
def test_relabel(labels, order):
    new = relabel_sequential(labels, order=order)
    pairs = sorted({(int(n), int(o)) for n, o in zip(new.flat, labels.flat, strict=True) if o})
    assert [n for n, _ in pairs] == list(range(1, len(pairs) + 1))
    assert len({o for _, o in pairs}) == len(pairs)
    np.testing.assert_array_equal(new == 0, labels == 0)
    firsts = [int(np.flatnonzero(new.ravel() == n)[0]) for n, _ in pairs]
    assert [o for _, o in pairs] == sorted(o for _, o in pairs) or order == "scan"
    assert firsts == sorted(firsts) or order == "id"


def test_huge_sparse_ids_stay_exact():
    top = 2**64 - 1
    labels = np.array([[top, top, 0], [2**63, 5, top]], np.uint64)
    ids, counts = count_voxels(labels)
    assert ids.tolist() == [5, 2**63, top]
    assert counts.tolist() == [1, 1, 3]
    assert remove_small(labels, 2).tolist() == [[top, top, 0], [0, 0, top]]
    assert relabel_sequential(labels).tolist() == [[3, 3, 0], [2, 1, 3]]


options = st.builds(
    CleanOptions,
    fill_holes=st.booleans(),
    per_slice=st.booleans(),
    max_hole=st.sampled_from([None, 0, 1, 5]),
    min_size=st.integers(0, 20),
    keep_largest=st.booleans(),
    are_objects=st.booleans(),
    relabel=st.booleans(),
)


def clean_in_memory(labels, chosen):
    if chosen.fill_holes:
        labels = fill_holes(labels, max_size=chosen.max_hole, per_slice=chosen.per_slice)
    if chosen.min_size and not chosen.are_objects:
        pieces = label_components(labels)
        labels = np.where(remove_small(pieces.labels, chosen.min_size) > 0, labels, 0)
    if chosen.keep_largest:
        labels = keep_largest(labels)
    if chosen.min_size and chosen.are_objects:
        labels = remove_small(labels, chosen.min_size)
    return relabel_sequential(labels) if chosen.relabel else labels


@given(labels=label_arrays, chosen=options, slab=st.sampled_from([1, 100, 250, 2**24]))
def test_slab_by_slab_equals_in_memory(labels, chosen, slab, tmp_path_factory):
    scratch = tmp_path_factory.mktemp("scratch")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "_SLAB_VOXELS", slab)
        lazy = clean_labels(labels, chosen, scratch=scratch)
        expected = clean_in_memory(labels, chosen)
        assert lazy.dtype == expected.astype(lazy.dtype).dtype
        np.testing.assert_array_equal(lazy[...], expected)
        part = tuple(slice(n // 3, n) for n in labels.shape)
        np.testing.assert_array_equal(lazy[part], expected[part])


@pytest.mark.parametrize(
    ("labels", "part"),
    [
        (np.zeros((2, 2), np.float32), "float32"),
        (np.array([[0, -1], [1, 2]]), "down to -1"),
    ],
)
def test_bad_labels_are_named(labels, part):
    for function in (count_voxels, relabel_sequential, fill_holes):
        with pytest.raises(InputError) as caught:
            function(labels)
        assert part in caught.value.message


def test_empty_labels():
    empty = np.zeros((0, 3, 3), np.uint16)
    assert relabel_sequential(empty).shape == empty.shape
    assert fill_holes(empty).shape == empty.shape
    assert remove_small(empty, 3).shape == empty.shape
    assert keep_largest(empty).shape == empty.shape


def test_negative_sizes_are_refused():
    with pytest.raises(InputError, match="min_size is -1"):
        CleanOptions(min_size=-1)
