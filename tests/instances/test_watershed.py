"""Watershed: physical lengths, nothing lost, the same answer twice."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from lamella.core.errors import InputError
from lamella.instances import WatershedOptions, label_components, watershed_instances
from lamella.instances.flood import deep_maxima, flood, thin_by_distance


def touching_balls(spacing, centres, radius, extent):
    """Balls in physical coordinates, sampled on a grid."""
    shape = [int(e / s) for e, s in zip(extent, spacing, strict=True)]
    grid = np.ogrid[tuple(slice(0, n) for n in shape)]
    mask = np.zeros(shape, bool)
    for centre in centres:
        far = sum((g * s - c) ** 2 for g, s, c in zip(grid, spacing, centre, strict=True))
        mask |= far <= radius**2
    return mask


CENTRES = [(40.0, 30.0, 30.0), (40.0, 30.0, 62.0), (40.0, 58.0, 46.0)]


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (4.0, 1.0, 1.0), (1.0, 2.0, 2.0), (5, 2, 1)])
def test_touching_balls_on_any_grid(spacing):
    mask = touching_balls(spacing, CENTRES, 18.0, (80, 90, 95))
    assert label_components(mask).count == 1
    labels = watershed_instances(mask, spacing=spacing)
    assert labels.max() == 3
    at_centre = [
        labels[tuple(round(c / s) for c, s in zip(centre, spacing, strict=True))]
        for centre in CENTRES
    ]
    assert len(set(at_centre)) == 3
    np.testing.assert_array_equal(labels > 0, mask)


def test_seed_distance_is_physical():
    spacing = (4.0, 1.0, 1.0)
    mask = touching_balls(spacing, CENTRES[:2], 18.0, (80, 90, 95))
    near = WatershedOptions(min_seed_distance=30.0)
    far = WatershedOptions(min_seed_distance=34.0)
    assert watershed_instances(mask, spacing=spacing, options=near).max() == 2
    assert watershed_instances(mask, spacing=spacing, options=far).max() == 1


@given(seed=st.integers(0, 2**32 - 1), density=st.floats(0.3, 0.95), ndim=st.sampled_from([2, 3]))
def test_every_foreground_voxel_gets_an_object_and_no_object_is_in_two_pieces(seed, density, ndim):
    rng = np.random.default_rng(seed)
    mask = ndimage.median_filter(rng.random((9, 10, 11)[:ndim]) < density, 3)
    spacing = tuple(rng.uniform(0.5, 3.0, ndim))
    labels = watershed_instances(mask, spacing=spacing)
    np.testing.assert_array_equal(labels > 0, mask)
    pieces = label_components(labels, connectivity=4 if ndim == 2 else 6)
    # Growing goes through faces, so an object is one face-connected piece; and its number is the
    # rank of its first voxel.
    np.testing.assert_array_equal(pieces.labels, labels)


@given(seed=st.integers(0, 2**32 - 1))
def test_boundary_probability_separates(seed):
    rng = np.random.default_rng(seed)
    inside = np.zeros((20, 30), np.float32)
    inside[3:17, 3:27] = 0.9
    wall = int(rng.integers(8, 22))
    boundary = np.full(inside.shape, 0.05, np.float32)
    boundary[:, wall] = 0.8
    labels = watershed_instances(inside, boundary, spacing=(1.0, 1.0))
    assert labels.max() == 2
    np.testing.assert_array_equal(labels > 0, inside > 0.5)
    assert labels[5, wall - 2] != labels[5, wall + 2]


def test_foreground_that_is_all_boundary_is_not_lost():
    inside = np.zeros((12, 12), np.float32)
    inside[2:4, 2:4] = 0.9
    inside[6:10, 6:10] = 0.9
    boundary = np.zeros_like(inside)
    boundary[2:4, 2:4] = 0.9
    assert watershed_instances(inside, boundary, spacing=(1.0, 1.0)).max() == 2


def test_min_size_and_thresholds():
    inside = np.zeros((12, 12))
    inside[1:3, 1:3] = 0.6
    inside[5:11, 5:11] = 0.9
    spacing = (1.0, 1.0)
    assert watershed_instances(inside, spacing=spacing).max() == 2
    strict = WatershedOptions(foreground_threshold=0.7)
    assert watershed_instances(inside, spacing=spacing, options=strict).max() == 1
    large = WatershedOptions(min_size=5)
    labels = watershed_instances(inside, spacing=spacing, options=large)
    assert labels.max() == 1
    assert labels[7, 7] == 1


@pytest.mark.parametrize("value", [False, True])
def test_nothing_and_everything(value):
    labels = watershed_instances(np.full((4, 5, 6), value), spacing=(1, 1, 1))
    assert labels.dtype == np.uint32
    assert np.unique(labels).tolist() == [int(value)]


def test_two_runs_are_identical():
    rng = np.random.default_rng(3)
    mask = ndimage.gaussian_filter(rng.random((20, 30, 30)), 2) > 0.5
    first = watershed_instances(mask, spacing=(2.0, 1.0, 1.0))
    np.testing.assert_array_equal(first, watershed_instances(mask, spacing=(2.0, 1.0, 1.0)))


@given(seed=st.integers(0, 2**32 - 1), depth=st.integers(1, 12))
def test_deep_maxima_are_those_of_reconstruction(seed, depth):
    from skimage.morphology import local_maxima, reconstruction

    rng = np.random.default_rng(seed)
    height = ndimage.gaussian_filter(rng.random((6, 7, 8)), 1)
    height = np.round(height / height.max() * 30).astype(np.uint16)
    order = np.argsort(-height.astype(int), axis=None, kind="stable")
    # Half a level less keeps ties out: heights are whole numbers.
    found = deep_maxima(height, order, depth - 0.5)
    lowered = reconstruction(height - (depth - 0.5), height, footprint=np.ones((3, 3, 3)))
    _, expected = ndimage.label(local_maxima(lowered, connectivity=3), np.ones((3, 3, 3)))
    if (lowered == lowered.flat[0]).all():
        expected = 1  # scikit-image finds no maximum on a constant
    assert len(found) == expected


@given(seed=st.integers(0, 2**32 - 1), distance=st.floats(0.3, 12))
def test_thinning_equals_the_greedy_definition(seed, distance):
    rng = np.random.default_rng(seed)
    shape = (6, 9, 12)
    spacing = rng.uniform(0.4, 3, 3)
    peaks = rng.permutation(6 * 9 * 12)[:60]
    at = np.stack(np.unravel_index(peaks, shape), 1) * spacing
    expected = []
    for k in range(len(peaks)):
        gaps = np.sqrt(((at[expected] - at[k]) ** 2).sum(1))
        if (gaps >= distance).all():
            expected.append(k)
    assert thin_by_distance(peaks, shape, spacing, distance).tolist() == peaks[expected].tolist()


def test_flooding_agrees_with_scikit_image():
    from skimage.segmentation import watershed

    spacing = (1.0, 1.0, 1.0)
    mask = touching_balls(spacing, CENTRES, 18.0, (80, 90, 95))
    distance = ndimage.distance_transform_edt(mask)
    level = (1000 - distance * 10).astype(np.uint16)
    seeds = np.zeros(mask.shape, np.uint32)
    for k, centre in enumerate(CENTRES):
        seeds[tuple(int(c) for c in centre)] = k + 1
    expected = watershed(level, seeds.astype(int), mask=mask)
    flood(seeds, mask, level, 1001)
    # Only voxels as near to one object as to another may go either way.
    assert (seeds == expected).mean() > 0.999


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ((np.ones((3, 3), np.uint8), None, (1, 1)), "uint8"),
        ((np.ones((3, 3), bool), None, (1, 1, 1)), "spacing has 3 values"),
        ((np.ones((3, 3), bool), np.ones((3, 4)), (1, 1)), "(3, 4)"),
        ((np.ones(3, bool), None, (1,)), "1 axes"),
    ],
)
def test_bad_input_is_named(arguments, part):
    foreground, boundary, spacing = arguments
    with pytest.raises(InputError) as caught:
        watershed_instances(foreground, boundary, spacing=spacing)
    assert part in caught.value.message


def test_negative_options_are_refused():
    with pytest.raises(InputError, match="min_seed_distance is -1"):
        WatershedOptions(min_seed_distance=-1)
