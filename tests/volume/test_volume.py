"""Volumes: lazy views, channels, corrections of the spacing, refusals."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.core.errors import AxesError, BoxOutOfBoundsError, GeometryError, InputError
from lamella.volume import Affine, Box, FunctionArray, LabelClass, Labels, Spacing, Volume
from lamella.volume.source import iter_slabs


def counting_volume(shape=(6, 8, 10)):
    """A volume that remembers which regions were read."""
    whole = np.arange(np.prod(shape), dtype=np.uint32).reshape(shape)
    reads = []

    def read(slices):
        reads.append(tuple((s.start, s.stop) for s in slices))
        return whole[slices]

    data = FunctionArray(shape, np.uint32, read)
    return Volume.from_array(data, spacing=(3.0, 2.0, 1.0), unit="nm"), whole, reads


@st.composite
def inner_boxes(draw, shape=(6, 8, 10)):
    start = tuple(draw(st.integers(0, n - 1)) for n in shape)
    stop = tuple(draw(st.integers(a + 1, n)) for a, n in zip(start, shape, strict=True))
    return Box(start, stop)


@given(inner_boxes())
def test_a_crop_reads_only_its_box_and_stays_in_place(box):
    volume, whole, reads = counting_volume()
    cropped = volume.crop(box)
    assert reads == []
    assert np.array_equal(cropped.load(), whole[box.slices()])
    assert reads == [tuple(zip(box.start, box.stop, strict=True))]
    assert np.allclose(cropped.affine.apply((0, 0, 0)), volume.affine.apply(box.start))


@given(inner_boxes())
def test_crops_of_crops_compose(box):
    volume, whole, _ = counting_volume()
    inner = Box((0, 0, 0), tuple(max(1, n // 2) for n in box.shape))
    twice = volume.crop(box).crop(inner)
    assert np.array_equal(twice.load(), whole[inner.shift(box.start).slices()])


def test_a_box_outside_is_refused():
    volume, _, _ = counting_volume()
    with pytest.raises(BoxOutOfBoundsError, match="reaches outside"):
        volume.crop(Box((0, 0, 0), (7, 8, 10)))


def test_select_drops_a_channel_axis_lazily():
    data = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    volume = Volume.from_array(data, axes="czyx", channel_names=("a", "b"))
    assert np.array_equal(volume.select("c", 1).load(), data[1])
    assert volume.select("c", 1).channel_names == ("b",)
    with pytest.raises(BoxOutOfBoundsError, match="there are 2"):
        volume.select("c", 2)


def test_a_bare_four_axis_array_is_not_guessed():
    with pytest.raises(AxesError, match="several things"):
        Volume.from_array(np.zeros((2, 3, 4, 5)))


@pytest.mark.parametrize("axes", ["xyz", "zz", "zy", "qyx"])
def test_impossible_axes_are_refused(axes):
    with pytest.raises(AxesError):
        Volume.from_array(np.zeros((2,) * len(axes)), axes=axes)


def test_with_spacing_takes_the_last_values_for_an_image():
    image = Volume.from_array(np.zeros((4, 4)))
    assert image.with_spacing(Spacing((9.0, 2.0, 3.0), "nm")).spacing == Spacing((2.0, 3.0), "nm")


def test_with_spacing_scales_the_pyramid_too():
    level = Volume.from_array(np.zeros((2, 2, 2)), spacing=(2, 2, 2))
    volume = Volume.from_array(np.zeros((4, 4, 4)), spacing=(1, 1, 1), levels=(level,))
    corrected = volume.with_spacing(Spacing((5.0, 5.0, 5.0), "nm"))
    assert corrected.levels[0].spacing == Spacing((10.0, 10.0, 10.0), "nm")


def test_same_grid_compares_places_not_units():
    a = Volume.from_array(np.zeros((2, 2, 2)), spacing=(10, 5, 5), unit="nm", origin=(20, 0, 0))
    b = Volume.from_array(
        np.zeros((2, 2, 2)), spacing=(0.01, 0.005, 0.005), unit="um", origin=(0.02, 0, 0)
    )
    assert a.same_grid(b)
    assert not a.same_grid(Volume.from_array(np.zeros((2, 2, 2))))


def test_labels_must_be_integers_and_lie_on_their_volume():
    volume = Volume.from_array(np.zeros((2, 3, 4)), spacing=(2, 1, 1), unit="nm")
    with pytest.raises(InputError, match="must be integers"):
        Labels.from_array(np.zeros((2, 2), np.float32))
    with pytest.raises(InputError, match="do not lie on"):
        Labels.like(volume, np.zeros((2, 3, 5), np.uint8))
    labels = Labels.like(volume, np.zeros((2, 3, 4), np.uint8), classes=(LabelClass(1, "a"),))
    assert labels.same_grid(volume)


def test_an_affine_of_the_wrong_rank_is_refused():
    with pytest.raises(GeometryError, match="does not fit"):
        Volume(
            np.zeros((2, 2)), Volume.from_array(np.zeros((2, 2))).axes, Affine.diagonal((1,) * 3)
        )


@given(st.integers(1, 40), st.integers(1, 5000))
def test_slabs_put_together_are_the_array(length, max_bytes):
    array = np.arange(length * 6, dtype=np.uint16).reshape(length, 3, 2)
    slabs = list(iter_slabs(array, max_bytes=max_bytes))
    assert np.array_equal(np.concatenate([data for _, data in slabs]), array)
    assert all(data.nbytes <= max(max_bytes, 12) for _, data in slabs)


def test_function_array_indexing_equals_numpy():
    whole = np.arange(60).reshape(3, 4, 5)
    lazy = FunctionArray(whole.shape, whole.dtype, lambda s: whole[s])
    for index in [0, -1, (1, slice(1, 3)), (..., 2), (slice(None), 3), (slice(2, 2),), ...]:
        assert np.array_equal(lazy[index], whole[index])
    with pytest.raises(BoxOutOfBoundsError, match="outside axis 0"):
        lazy[3]
    with pytest.raises(BoxOutOfBoundsError, match="step 2"):
        lazy[::2]
