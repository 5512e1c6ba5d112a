"""Resampler: exact geometry, ids kept, the same whatever is read, and back again."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.core.errors import AxesError, GeometryError, InputError
from lamella.inference.resampler import Resampler
from lamella.volume import Volume
from lamella.volume.labels import Labels

shapes = st.tuples(*[st.integers(1, 9)] * 3)
spacings = st.tuples(*[st.floats(0.3, 3.0)] * 3)
kernels = st.sampled_from(["linear", "cubic"])


def noise(shape, seed=0, **fields):
    data = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return Volume.from_array(data, **fields)


def ids(shape, seed=0, **fields):
    data = np.random.default_rng(seed).integers(0, 2**40, shape).astype(np.uint64)
    return Labels.from_array(data, is_instance=True, **fields)


@given(shapes, spacings, spacings)
def test_both_grids_fill_the_same_box(shape, have, wanted):
    volume = noise(shape, spacing=have, unit="um", origin=(1.0, -2.0, 3.0))
    resampler = Resampler(volume, wanted)
    result = resampler.resample(volume)
    assert result.spatial_shape == resampler.shape
    for corner in ((-0.5, -0.5, -0.5), None):
        old = volume.affine.apply(corner or np.array(shape) - 0.5)
        new = result.affine.apply(corner or np.array(resampler.shape) - 0.5)
        np.testing.assert_allclose(new, old, atol=1e-9 * 30)


@given(shapes, spacings, st.integers(0, 99))
def test_labels_come_back_from_any_finer_grid(shape, have, seed):
    labels = ids(shape, seed, spacing=have, unit="um")
    finer = Resampler(labels, [value / 1.7 for value in have])
    there = finer.resample_labels(labels)
    back = finer.restore_labels(there)
    np.testing.assert_array_equal(back.load(), labels.load())
    assert back.affine == labels.affine
    assert back.dtype == there.dtype == labels.dtype
    assert back.is_instance


@given(shapes, spacings, spacings, st.integers(0, 99))
def test_no_id_is_invented_and_the_shape_is_exact(shape, have, wanted, seed):
    labels = ids(shape, seed, spacing=have, unit="um")
    resampler = Resampler(labels, wanted)
    there = resampler.resample_labels(labels)
    back = resampler.restore_labels(there)
    assert there.shape == resampler.shape
    assert back.shape == shape
    assert set(np.unique(there.load())) <= set(np.unique(labels.load()))


@given(shapes, spacings, spacings, kernels, st.integers(0, 99), st.data())
def test_a_box_is_the_same_however_it_is_read(shape, have, wanted, kernel, seed, data):
    volume = noise(shape, seed, spacing=have)
    result = Resampler(volume, wanted).resample(volume, kernel=kernel)
    whole = result.load()
    start = [data.draw(st.integers(0, n - 1)) for n in result.shape]
    stop = [data.draw(st.integers(a + 1, n)) for a, n in zip(start, result.shape, strict=True)]
    box = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
    np.testing.assert_array_equal(np.asarray(result.data[box]), whole[box])


@given(shapes, spacings, spacings, kernels)
def test_constants_stay_constant(shape, have, wanted, kernel):
    volume = Volume.from_array(np.full(shape, 7, np.uint8), spacing=have)
    result = Resampler(volume, wanted).resample(volume, kernel=kernel)
    np.testing.assert_allclose(result.load(), 7, rtol=1e-5)


@pytest.mark.parametrize("kernel", ["linear", "cubic"])
def test_a_ramp_stays_where_it_is_in_the_world(kernel):
    z, y, x = np.indices((12, 20, 20), dtype=np.float32)
    volume = Volume.from_array(3 * z + 2 * y - x, spacing=(3.0, 1.0, 1.0), unit="um")
    result = Resampler.to_isotropic(volume).resample(volume, kernel=kernel)
    at = np.stack(np.indices(result.shape), -1).reshape(-1, 3)
    world = result.affine.apply(at).reshape(*result.shape, 3)
    expected = world @ (1.0, 2.0, -1.0)
    inner = (slice(6, -6), slice(2, -2), slice(2, -2))
    np.testing.assert_allclose(result.load()[inner], expected[inner], atol=2e-4)


def test_cubic_keeps_more_detail():
    x = np.linspace(0, 12 * np.pi, 96)
    wave = Volume.from_array(np.broadcast_to(np.sin(x), (1, 4, 96)).astype(np.float32))
    fine = Resampler(wave, (1, 1, 0.5))
    step = 12 * np.pi / 95
    expected = np.sin(((np.arange(192) + 0.5) / 2 - 0.5) * step)
    error = {
        kernel: np.abs(fine.resample(wave, kernel=kernel).load()[0, 0] - expected)[8:-8].max()
        for kernel in ("linear", "cubic")
    }
    assert error["cubic"] < 0.3 * error["linear"]


def test_identity_is_known():
    volume = noise((3, 4, 5), spacing=(1, 1, 1))
    assert Resampler.to_isotropic(volume).is_identity
    np.testing.assert_array_equal(
        Resampler.to_isotropic(volume).resample(volume).load(), volume.load()
    )


def test_channels_and_images_too():
    volume = noise((2, 4, 6, 6), axes="czyx", spacing=(2, 1, 1))
    result = Resampler.to_isotropic(volume).resample(volume)
    assert result.shape == (2, 8, 6, 6)
    one = Resampler.to_isotropic(volume).resample(volume.select("c", 1))
    np.testing.assert_array_equal(one.load(), result.load()[1])
    image = noise((6, 8), spacing=(2.0, 1.0))
    assert Resampler.to_isotropic(image).resample(image).shape == (12, 8)


def test_only_what_is_needed_is_read():
    read = []

    class Watched:
        shape, dtype, ndim = (64, 32, 32), np.dtype(np.uint8), 3

        def __getitem__(self, box):
            read.append(box[0].stop - box[0].start)
            return np.zeros([s.stop - s.start for s in box], np.uint8)

    volume = Volume.from_array(Watched(), spacing=(2, 1, 1))
    np.asarray(Resampler.to_isotropic(volume).resample(volume).data[40:44])
    assert sum(read) <= 4


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.0, 1, 1), (np.nan, 1, 1), (1e-9, 1e-9, 1e-9)])
def test_impossible_spacings_are_refused(spacing):
    with pytest.raises(GeometryError):
        Resampler(noise((4, 4, 4)), spacing)


def test_other_grids_are_refused():
    resampler = Resampler(noise((4, 4, 4)), (0.5, 1, 1))
    with pytest.raises(AxesError, match="not on the grid"):
        resampler.resample(noise((5, 4, 4)))
    with pytest.raises(AxesError, match="not on the grid"):
        resampler.restore_labels(ids((4, 4, 4)))
    with pytest.raises(InputError, match="interpolated"):
        resampler.resample(Volume.from_array(np.zeros((4, 4, 4), np.complex64)))
