"""Reading on other voxels: the same numbers as inference, and nothing moved by half a voxel."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.core.errors import UnreadableFileError
from lamella.inference.resample import Taps
from lamella.training.cellmap.aligned import align
from lamella.training.cellmap.grid import Grid
from lamella.training.cellmap.regrid import (
    intensity_taps,
    read_block,
    share_taps,
    take_ids,
    take_intensities,
    take_presence,
)


def line(n, spacing=1.0, origin=0.0):
    return Grid((1, 1, n), (1.0, 1.0, spacing), (0.0, 0.0, origin))


def dense(taps, n):
    """The weights as one matrix over the whole axis."""
    if taps.weights is None:
        return np.eye(n)[taps.start : taps.stop]
    result = np.zeros((len(taps.weights), n))
    result[:, taps.start : taps.stop] = taps.weights
    return result


@given(st.integers(2, 90), st.integers(2, 90))
def test_intensities_are_resampled_as_at_inference(n_source, n_target):
    ratio = n_source / n_target
    source, target = line(n_source), line(n_target, ratio, (ratio - 1) / 2)
    theirs = Taps.make(n_source, n_target)
    expected = np.zeros((n_target, n_source))
    for row, (index, weight) in enumerate(zip(theirs.index, theirs.weight, strict=True)):
        np.add.at(expected[row], index, weight)
    np.testing.assert_allclose(
        dense(intensity_taps(2, source, target), n_source), expected, atol=1e-6
    )


@given(
    st.integers(4, 40),
    st.floats(0.3, 4.0),
    st.floats(-0.5, 0.5),
    st.integers(0, 5),
    st.integers(3, 9),
)
def test_a_ramp_stays_where_it_is(n, ratio, shift, first, width):
    """A ramp of positions read on other voxels gives their positions, to a tenth of a voxel."""
    source = line(n + 40)
    origin = 12 + first + shift
    target = line(width, ratio, origin)
    world = np.arange(n + 40, dtype=np.float32)
    taps = intensity_taps(2, source, target)
    found = taps.apply(world[taps.start : taps.stop][None, None], 2)[0, 0]
    wanted = origin + np.arange(width) * ratio
    inside = (wanted > 5) & (wanted < n + 34)
    np.testing.assert_allclose(found[inside], wanted[inside], atol=0.12)


@given(st.integers(1, 60), st.floats(0.25, 4.0), st.floats(-3.0, 3.0))
def test_weights_add_up_to_one(n, ratio, shift):
    for taps in (
        intensity_taps(2, line(n), line(9, ratio, shift)),
        share_taps(2, line(n), line(9, ratio, shift)),
    ):
        np.testing.assert_allclose(dense(taps, n).sum(1), 1.0, atol=1e-5)


def test_voxels_that_agree_are_copied():
    rng = np.random.default_rng(0)
    raw = rng.integers(0, 255, (6, 7, 8)).astype(np.uint8)
    source = Grid(raw.shape, (4.0, 2.3, 2.3), (10.0, 0.0, 1.0))
    target = Grid((3, 4, 5), source.spacing, source.world_of((2, 1, 3)))
    taps = [intensity_taps(axis, source, target) for axis in range(3)]
    assert all(along.weights is None for along in taps)
    block = read_block(raw, taps, path="raw")
    np.testing.assert_array_equal(take_intensities(block, taps), raw[2:5, 1:5, 3:8])


def test_presence_is_the_share_of_the_voxel():
    # Labels four times as fine: a voxel is of the class where more than half of it is.
    labels = np.zeros((1, 1, 16), np.uint8)
    labels[..., 0:3] = 1  # three quarters of the first
    labels[..., 4:6] = 1  # half of the second
    labels[..., 13:16] = 9
    found = take_presence(labels, line(16), line(4, 4.0, 1.5))
    assert found[0, 0].tolist() == [True, False, False, True]


@given(st.integers(0, 2**32 - 1))
def test_presence_on_voxels_twice_as_coarse_is_the_challenges(seed):
    labels = (np.random.default_rng(seed).random((4, 6, 8)) > 0.4).astype(np.uint8)
    fine = Grid(labels.shape, (2.0, 2.0, 2.0), (0.0, 0.0, 0.0))
    coarse = Grid((2, 3, 4), (4.0, 4.0, 4.0), (1.0, 1.0, 1.0))
    np.testing.assert_array_equal(
        take_presence(labels, fine, coarse), align(labels, fine, coarse, is_instance=False)
    )


def test_nothing_is_present_beyond_the_labels():
    labels = np.ones((2, 2, 2), np.uint8)
    source = Grid((2, 2, 2), (1.0,) * 3, (0.0,) * 3)
    found = take_presence(labels, source, Grid((4, 4, 4), (1.0,) * 3, (-1.0,) * 3))
    assert found.sum() == 8
    assert found[1:3, 1:3, 1:3].all()
    assert not take_presence(labels, source, Grid((2, 2, 2), (1.0,) * 3, (9.0,) * 3)).any()
    assert not take_ids(labels, source, Grid((2, 2, 2), (1.0,) * 3, (9.0,) * 3)).any()


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.5, 1.0, 1.7, 2.0, 3.0]))
def test_ids_are_never_mixed(seed, ratio):
    rng = np.random.default_rng(seed)
    ids = rng.choice([0, 3, 2**40, 77], (8, 8, 8))
    source = Grid(ids.shape, (1.0,) * 3, (0.0,) * 3)
    n = int(8 / ratio)
    target = Grid((n, n, n), (ratio,) * 3, ((ratio - 1) / 2,) * 3)
    found = take_ids(ids, source, target)
    assert set(np.unique(found)) <= {0, 3, 77, 2**40}
    # Objects are where the class is, whichever id they have.
    np.testing.assert_array_equal(found > 0, take_presence(ids, source, target))


def test_touching_objects_stay_two():
    ids = np.zeros((1, 1, 12), np.uint32)
    ids[..., 2:6], ids[..., 6:10] = 5, 6
    assert take_ids(ids, line(12), line(6, 2.0, 0.5))[0, 0].tolist() == [0, 5, 5, 6, 6, 0]


class Broken:
    """An array one of whose chunks cannot be decoded."""

    shape, chunks, ndim = (4, 4, 8), (4, 4, 4), 3

    def __getitem__(self, slices):
        if slices[2].stop > 4:
            raise RuntimeError("error during blosc decompression: -1")
        return np.zeros([s.stop - s.start for s in slices], np.uint8)


def test_a_corrupt_chunk_is_named():
    source = Grid((4, 4, 8), (1.0,) * 3, (0.0,) * 3)
    with pytest.raises(UnreadableFileError, match=r"chunk 0\.0\.1 of em/s0.*blosc") as caught:
        take_presence(Broken(), source, source, path="em/s0")
    assert "data.crops" in (caught.value.hint or "")
