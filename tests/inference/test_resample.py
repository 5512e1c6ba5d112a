"""Grids over the same extent: linear for intensities, nearest for labels, streamed."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.core.errors import InputError
from lamella.inference.layers import GridMap
from lamella.inference.resample import ResampledSlabs, nearest_index, target_shape
from lamella.inference.slab import VolumeSlabs
from lamella.volume import Box, Volume

shapes = st.tuples(*[st.integers(1, 14)] * 3)


def resampled(data, shape):
    return ResampledSlabs(VolumeSlabs(Volume.from_array(data)), shape)


@given(shapes, shapes, st.integers(0, 99), st.data())
def test_a_box_is_the_same_however_it_is_read(shape, target, seed, data):
    image = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    source = resampled(image, target)
    whole = source.read(Box((0, 0, 0), target))
    start = tuple(data.draw(st.integers(0, n - 1)) for n in target)
    stop = tuple(data.draw(st.integers(a + 1, n)) for a, n in zip(start, target, strict=True))
    box = Box(start, stop)
    np.testing.assert_array_equal(source.read(box), whole[(slice(None), *box.slices())])


@given(shapes, shapes)
def test_constants_stay_constant(shape, target):
    source = resampled(np.full(shape, 3.5, np.float32), target)
    np.testing.assert_allclose(source.read(Box((0, 0, 0), target)), 3.5, rtol=1e-6)


@pytest.mark.parametrize("target", [(20, 9, 31), (7, 24, 10), (40, 48, 20)])
def test_a_ramp_stays_where_it_is(target):
    shape = (20, 24, 20)
    for axis in range(3):
        ramp = np.broadcast_to(
            np.arange(shape[axis], dtype=np.float32).reshape(
                [-1 if i == axis else 1 for i in range(3)]
            ),
            shape,
        ).copy()
        found = resampled(ramp, target).read(Box((0, 0, 0), target))[0]
        at = (np.arange(target[axis]) + 0.5) * shape[axis] / target[axis] - 0.5
        profile = np.moveaxis(found, axis, 0)[:, 0, 0]
        inner = slice(3, -3)
        # A widened triangle that falls between voxels is a little off balance, as torch's is.
        is_coarser = shape[axis] > target[axis]
        np.testing.assert_allclose(profile[inner], at[inner], atol=0.1 if is_coarser else 1e-4)


@pytest.mark.parametrize("target", [(16, 16, 16), (48, 40, 56), (20, 64, 32)])
def test_equals_torch_with_antialiasing(target):
    torch = pytest.importorskip("torch")
    image = np.random.default_rng(0).normal(size=(32, 32)).astype(np.float32)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(image)[None, None], target[1:], mode="bilinear", antialias=True
    )[0, 0].numpy()
    volume = np.repeat(image[None], 3, axis=0)
    found = resampled(volume, (3, *target[1:])).read(Box((0, 0, 0), (3, *target[1:])))[0, 1]
    np.testing.assert_allclose(found, expected, atol=1e-5)


@given(st.integers(1, 60), st.integers(1, 60))
def test_nearest_is_monotone_and_nearest(n_from, n_to):
    index = nearest_index(n_from, n_to)
    assert (np.diff(index) >= 0).all()
    assert index[0] >= 0
    assert index[-1] < n_to
    at = (np.arange(n_from) + 0.5) * n_to / n_from - 0.5
    assert np.abs(index - at).max() <= 0.5 + 1e-9


@given(shapes, shapes, st.lists(st.integers(1, 13), max_size=4))
def test_layers_of_bands_partition_the_output(shape, network, cuts):
    grid = GridMap.make(shape, network)
    edges = sorted({0, network[0], *(c for c in cuts if c < network[0])})
    spans = [grid.layers_of(a, b) for a, b in itertools.pairwise(edges)]
    assert spans[0][0] == 0
    assert spans[-1][1] == shape[0]
    assert all(a[1] == b[0] for a, b in itertools.pairwise(spans))
    for (first, last), (a, b) in zip(spans, itertools.pairwise(edges), strict=True):
        for layer in range(first, last):
            assert a <= grid.network_position(0, layer) < b


def test_shapes_follow_spacing_beyond_the_tolerance():
    assert target_shape((10, 20), (1.05, 2.0), (1.0, 1.0), tolerance=0.1) == (10, 40)
    assert target_shape((1, 3), (0.2, 0.2), (1.0, 1.0), tolerance=0.1) == (1, 1)
    with pytest.raises(InputError, match="factor of 1e\\+03") as caught:
        target_shape((10,), (1000.0,), (1.0,), tolerance=0.1)
    assert "--spacing" in caught.value.hint
