"""Means of confidence maps over objects: equal to bincount, whatever blocks they are read in."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.core.errors import GeometryError, InputError, RunCancelledError
from lamella.core.progress import SilentSink
from lamella.measurement import confidence
from lamella.measurement.confidence import mean_by_class, mean_by_object
from lamella.volume import FunctionArray


class Chunked:
    """An array that tells of chunks, and remembers what was read."""

    def __init__(self, data, chunks):
        self.data, self.chunks = data, chunks
        self.shape, self.dtype, self.ndim = data.shape, data.dtype, data.ndim
        self.reads = []

    def __getitem__(self, index):
        self.reads.append(index)
        return self.data[index]


@given(
    shape=st.one_of(st.tuples(*[st.integers(1, 9)] * 3), st.tuples(*[st.integers(1, 9)] * 2)),
    n_maps=st.integers(1, 4),
    budget=st.sampled_from([1, 40, 200, 1 << 20]),
    chunk=st.integers(1, 4),
    dtype=st.sampled_from([np.uint8, np.uint16, np.int32, np.uint64]),
    seed=st.integers(0, 999),
)
def test_means_are_those_of_the_voxels(shape, n_maps, budget, chunk, dtype, seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 6, shape).astype(dtype) * (20 if dtype == np.uint8 else 1000)
    maps = rng.integers(0, 256, (n_maps, *shape), dtype=np.uint8)
    ids = np.setdiff1d(np.unique(labels), [0])
    patch = pytest.MonkeyPatch()
    patch.setattr(confidence, "_BLOCK_BYTES", budget)
    source = Chunked(maps, (n_maps, *(chunk,) * len(shape)))
    try:
        found = mean_by_object(labels, source, ids)
        known = mean_by_object(
            labels, source, ids, voxels=np.array([(labels == i).sum() for i in ids], np.int64)
        )
    finally:
        patch.undo()
    expected = [[maps[k][labels == i].mean() / 255 for k in range(n_maps)] for i in ids]
    np.testing.assert_allclose(found, np.array(expected).reshape(len(ids), n_maps), atol=1e-12)
    np.testing.assert_array_equal(found, known)


def test_ids_that_are_not_wanted_or_not_there():
    labels = np.array([[1, 1, 2, 0]], np.uint16)
    maps = np.array([[[255, 0, 51, 255]]], np.uint8)
    found = mean_by_object(labels, maps, np.array([2, 9], np.uint16))
    assert found[0, 0] == pytest.approx(0.2)
    assert np.isnan(found[1, 0])
    assert mean_by_object(labels, maps, np.zeros(0, np.uint16)).shape == (0, 1)


def test_every_chunk_is_read_once():
    maps = Chunked(np.zeros((3, 40, 50, 60), np.uint8), (3, 16, 32, 32))
    mean_by_object(np.ones(maps.shape[1:], np.uint8), maps, np.array([1], np.uint8))
    seen = np.zeros(maps.shape[1:], int)
    for index in maps.reads:
        seen[index[1:]] += 1
        assert index[1].start % 16 == 0
        assert index[2].start % 32 == 0
    assert (seen == 1).all()


@pytest.mark.parametrize("depth", [64, 512])
def test_memory_does_not_grow_with_z(depth, monkeypatch):
    monkeypatch.setattr(confidence, "_BLOCK_BYTES", 1 << 20)
    shape = (depth, 128, 128)
    labels = FunctionArray(shape, np.uint32, lambda s: np.full(_extent(s), 5, np.uint32))
    maps = FunctionArray((3, *shape), np.uint8, lambda s: np.full(_extent(s), 51, np.uint8))
    tracemalloc.start()
    found = mean_by_object(labels, maps, np.array([5], np.uint32))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_allclose(found, 0.2)
    assert peak < 24e6


def _extent(slices):
    return tuple(part.stop - part.start for part in slices)


def test_it_can_be_cancelled():
    sink = SilentSink()
    sink.token.cancel()
    labels = np.ones((4, 4), np.uint8)
    with pytest.raises(RunCancelledError):
        mean_by_object(labels, labels[None], np.array([1], np.uint8), sink=sink)


def test_maps_that_do_not_fit_are_refused():
    labels = np.ones((4, 4), np.uint8)
    ids = np.array([1], np.uint8)
    with pytest.raises(InputError, match="uint8"):
        mean_by_object(labels, np.ones((1, 4, 4), np.float32), ids)
    with pytest.raises(GeometryError, match="grid of the labels"):
        mean_by_object(labels, np.ones((1, 4, 5), np.uint8), ids)


def test_classes_weigh_their_objects_by_size():
    values = np.array([0.5, 1.0, np.nan, 0.25])
    voxels = np.array([30, 10, 5, 7])
    assert mean_by_class(values, voxels, np.array([2, 2, 2, 3])) == {2: 0.625, 3: 0.25}
