"""Laws of covers: write boxes partition the volume, read boxes contain them."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.core.errors import InputError
from lamella.volume.box import Box
from lamella.volume.grid import axis_starts, cover


@st.composite
def covers(draw):
    n = draw(st.integers(1, 3))
    shape = tuple(draw(st.integers(1, 40)) for _ in range(n))
    tile = tuple(draw(st.integers(1, 20)) for _ in range(n))
    overlap = tuple(draw(st.integers(0, size - 1)) for size in tile)
    return shape, tile, overlap


@given(covers())
def test_write_boxes_partition_the_volume(case):
    shape, tile, overlap = case
    hits = np.zeros(shape, np.int32)
    for item in cover(shape, tile, overlap):
        hits[item.write.slices()] += 1
    assert (hits == 1).all()


@given(covers())
def test_read_boxes_lie_inside_and_contain_their_write_boxes(case):
    shape, tile, overlap = case
    whole = Box.from_shape(shape)
    expected = tuple(min(a, b) for a, b in zip(shape, tile, strict=True))
    for item in cover(shape, tile, overlap):
        assert whole.contains(item.read)
        assert item.read.contains(item.write)
        assert item.read.shape == expected


@given(covers())
def test_neighbouring_read_boxes_share_at_least_the_overlap(case):
    shape, tile, overlap = case
    for length, size, shared in zip(shape, tile, overlap, strict=True):
        extent = min(size, length)
        stride = max(1, extent - shared)
        starts = axis_starts(length, extent, stride)
        assert all(b - a <= stride for a, b in itertools.pairwise(starts))


def test_tiles_come_in_z_major_order():
    starts = [item.read.start for item in cover((8, 8, 8), (4, 4, 4), (0, 0, 0))]
    assert starts == sorted(starts)


def test_an_overlap_as_large_as_the_tile_is_refused_with_both_numbers():
    with pytest.raises(InputError, match=r"overlap 4 .* tile 4"):
        cover((8,), (4,), (4,))
