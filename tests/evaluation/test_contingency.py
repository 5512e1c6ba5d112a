"""The table of pairs: exact for any dtype, slab and number of threads."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.core.errors import GeometryError, InputError
from lamella.evaluation import contingency, count_overlaps

DTYPES = [bool, np.uint8, np.int16, np.uint32, np.int64, np.uint64]


def runs(rng, shape, dtype, top):
    """Labels with runs along x, as real ones have."""
    values = rng.integers(0, top + 1, shape)
    keep = rng.random(shape) < 0.6
    at = np.where(keep, 0, np.arange(shape[-1]))
    return np.take_along_axis(values, np.maximum.accumulate(at, axis=-1), -1).astype(dtype)


@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.sampled_from([(5, 6, 7), (1, 1, 1), (3, 9), (8,), (4, 3, 2, 5)]),
    dtypes=st.tuples(st.sampled_from(DTYPES), st.sampled_from(DTYPES)),
    slab_bytes=st.sampled_from([1, 300, 2**25]),
    n_threads=st.integers(1, 3),
)
def test_counts_every_pair(seed, shape, dtypes, slab_bytes, n_threads):
    rng = np.random.default_rng(seed)
    first, second = (runs(rng, shape, dtype, 1 if dtype is bool else 100) for dtype in dtypes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contingency, "_SLAB_BYTES", slab_bytes)
        table = count_overlaps(first, second, n_threads=n_threads)
    stacked = np.stack([first.ravel().astype(int), second.ravel().astype(int)])
    pairs, counts = np.unique(stacked, axis=1, return_counts=True)
    assert table.prediction.tolist() == pairs[0].tolist()
    assert table.reference.tolist() == pairs[1].tolist()
    assert table.voxels.tolist() == counts.tolist()
    assert table.total == first.size


def test_the_table_grows_in_the_middle_of_a_slab():
    rng = np.random.default_rng(0)
    first = rng.permutation(200_000).reshape(10, 100, 200).astype(np.uint32)
    table = count_overlaps(first, first[::-1])
    assert len(table.voxels) == first.size
    assert (table.voxels == 1).all()


def test_ids_of_64_bits():
    big = np.array([[2**64 - 1, 2**63, 3, 3]], np.uint64)
    table = count_overlaps(big, big)
    assert table.prediction.tolist() == [3, 2**63, 2**64 - 1]
    assert table.voxels.tolist() == [2, 1, 1]


def test_strided_ids_do_not_slow_the_hash_table_down():
    # Ids that are multiples of a power of two fall into one slot of a naive table.
    ids = (np.arange(60_000, dtype=np.uint64) << np.uint64(40)).reshape(60, 1000)
    assert len(count_overlaps(ids, ids).voxels) == ids.size


@pytest.mark.parametrize("shape", [(0, 4, 4), (4, 0, 4), (4, 4, 0)])
def test_empty_arrays(shape):
    assert count_overlaps(np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)).total == 0


@pytest.mark.parametrize("ignore", [-1, 255])
def test_ignored_voxels_are_not_counted(ignore):
    prediction = np.array([[1, 1, 2, 0]])
    reference = np.array([[1, ignore, ignore, 0]])
    table = count_overlaps(prediction, reference, ignore_label=ignore)
    assert table.total == 2
    assert table.reference.tolist() == [0, 1]


def test_different_shapes_are_named():
    with pytest.raises(GeometryError, match=r"\(2, 3\).*\(3, 2\)"):
        count_overlaps(np.zeros((2, 3), int), np.zeros((3, 2), int))


@pytest.mark.parametrize(
    ("reference", "part"),
    [(np.array([[0.0, 1.0]]), "float64"), (np.array([[0, -1]]), "down to -1")],
)
def test_bad_labels_are_named(reference, part):
    with pytest.raises(InputError) as caught:
        count_overlaps(np.array([[0, 1]]), reference)
    assert part in caught.value.message
