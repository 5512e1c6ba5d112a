"""Sources of tiles: channel first, whatever the axes; windows load each layer once."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.core.errors import AxesError, InputError
from lamella.inference.preview import coarse_source, plan_preview
from lamella.inference.slab import AveragedSlabs, VolumeSlabs, Window
from lamella.volume import Box, FunctionArray, Volume
from lamella.volume.pyramid import downsample_mean


@pytest.mark.parametrize("axes", ["yx", "zyx", "cyx", "czyx", "tczyx", "tyx"])
def test_every_order_of_axes_reads_as_czyx(axes):
    shape = tuple({"t": 1, "c": 3, "z": 4, "y": 5, "x": 6}[name] for name in axes)
    data = np.random.default_rng(0).integers(0, 999, shape).astype(np.int16)
    source = VolumeSlabs(Volume.from_array(data, axes=axes))
    n_z = 4 if "z" in axes else 1
    expected = data.reshape(3 if "c" in axes else 1, n_z, 5, 6)
    assert source.shape == (n_z, 5, 6)
    box = Box((0, 1, 2), (n_z, 4, 6))
    found = source.read(box)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected[(slice(None), *box.slices())])


def test_what_cannot_be_segmented_is_refused():
    with pytest.raises(AxesError, match="2 time points"):
        VolumeSlabs(Volume.from_array(np.zeros((2, 3, 4, 4)), axes="tzyx"))
    with pytest.raises(InputError, match="complex"):
        VolumeSlabs(Volume.from_array(np.zeros((3, 4, 4), np.complex64)))


def test_layers_that_are_asked_for_one_by_one_are_fetched_in_blocks():
    data = np.random.default_rng(0).normal(size=(150, 6, 5)).astype(np.float32)
    fetched = []

    def read(slices):
        fetched.append((slices[0].start, slices[0].stop))
        return data[slices]

    source = VolumeSlabs(Volume.from_array(FunctionArray(data.shape, np.float32, read)))
    for start in range(0, 150, 3):
        box = Box((start, 1, 0), (start + 3, 6, 4))
        np.testing.assert_array_equal(source.read(box)[0], data[box.slices()])
    assert fetched == [(0, 64), (64, 128), (128, 150)]
    source.read(Box((0, 0, 0), (150, 6, 5)))
    assert fetched[3:] == [(0, 150)], "what is deeper than a block is read at once"


@given(
    st.tuples(*[st.integers(1, 12)] * 3),
    st.tuples(*[st.integers(1, 5)] * 3),
    st.integers(0, 99),
)
def test_means_of_blocks(shape, factors, seed):
    data = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    coarse = AveragedSlabs(VolumeSlabs(Volume.from_array(data)), factors)
    found = coarse.read(Box((0, 0, 0), coarse.shape))[0]
    np.testing.assert_allclose(found, downsample_mean(data, factors), atol=1e-6)
    picked = AveragedSlabs(VolumeSlabs(Volume.from_array(data)), factors, picks_layers=True)
    layers = [min(z * factors[0], shape[0]) for z in range(coarse.shape[0])]
    middle = [(a + min(a + factors[0], shape[0]) - 1) // 2 for a in layers]
    np.testing.assert_allclose(
        picked.read(Box((0, 0, 0), picked.shape))[0],
        downsample_mean(data[middle], (1, *factors[1:])),
        atol=1e-6,
    )


@given(st.tuples(*[st.integers(1, 12)] * 3), st.tuples(*[st.integers(1, 6)] * 3), st.integers(1, 6))
def test_windows_copy_tiles_and_load_each_layer_once(shape, tile, stride):
    data = np.random.default_rng(0).normal(size=shape).astype(np.float32) + 10
    loaded = []

    class Counting(VolumeSlabs):
        def read(self, box):
            loaded.extend(range(box.start[0], box.stop[0]))
            return super().read(box)

    source = Counting(Volume.from_array(data))
    window = Window(source, region=Box((0, 0), shape[1:]), depth=tile[0])
    stride = min(stride, tile[0])
    padded = np.pad(data, [(t, t) for t in tile])
    for z in range(0, shape[0], stride):
        window.advance(z, z + tile[0])
        for y in (-1, 0, shape[1] - tile[1]):
            read_box = Box((z, y, 0), (z + tile[0], y + tile[1], tile[2]))
            out = np.full((1, *tile), np.nan, np.float32)
            window.copy_tile(read_box, out)
            at = tuple(slice(s + t, s + 2 * t) for s, t in zip(read_box.start, tile, strict=True))
            clipped = padded[at]
            if clipped.shape == tile:
                np.testing.assert_array_equal(out[0], clipped)
    assert sorted(loaded) == sorted(set(loaded))


@pytest.mark.parametrize(
    "shape", [(256, 256, 256), (192, 192, 192), (40, 1000, 1000), (64, 64, 64)]
)
def test_volume_previews_stay_within_a_few_percent(shape):
    n_planned = int(np.prod([max(1, np.ceil((n - 64) / 32) + 1) for n in shape]))
    preview = plan_preview(shape, tile=(64, 64, 64), n_planned=n_planned)
    assert preview.plan.n_tiles <= max(1, 0.035 * n_planned)
    assert all(
        -(-n // f) == m for n, f, m in zip(shape, preview.factors, preview.plan.shape, strict=True)
    )


def test_slices_are_thinned_out_before_they_are_blurred():
    preview = plan_preview((100, 512, 512), tile=(1, 256, 256), n_planned=900)
    assert preview.factors[1:] == (2, 2)
    assert preview.plan.n_tiles <= 31
    assert preview.plan.shape[0] >= 4
    image = plan_preview((1, 2000, 2000), tile=(1, 256, 256), n_planned=225)
    assert image.plan.n_tiles <= 7


def test_a_stored_level_is_read_instead_of_the_full_one():
    fine = np.random.default_rng(0).normal(size=(16, 16, 16)).astype(np.float32)
    full = VolumeSlabs(Volume.from_array(FunctionArray((16, 16, 16), np.float32, lambda s: 1 / 0)))
    level = VolumeSlabs(Volume.from_array(downsample_mean(fine, (2, 2, 2))))
    coarse = coarse_source(full, (4, 4, 4), is_2d=False, levels=(level,))
    np.testing.assert_allclose(
        coarse.read(Box((0, 0, 0), (4, 4, 4)))[0], downsample_mean(fine, (4, 4, 4)), atol=1e-6
    )
