"""Distances between surfaces: equal to the plain definition with scipy."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from lamella.core.errors import GeometryError, InputError
from lamella.evaluation import score_surface, surface_distances


def masks(seed, ndim):
    rng = np.random.default_rng(seed)
    shape = (9, 11, 12)[-ndim:]
    return [ndimage.gaussian_filter(rng.random(shape), 1) > t for t in rng.uniform(0.4, 0.6, 2)]


def reference_distances(here, there, spacing):
    rims = [m & ~ndimage.binary_erosion(m) for m in (here, there)]
    if not rims[1].any():
        return np.full(rims[0].sum(), np.inf)
    return ndimage.distance_transform_edt(~rims[1], sampling=spacing)[rims[0]]


@given(
    seed=st.integers(0, 2**32 - 1),
    ndim=st.sampled_from([2, 3]),
    spacing=st.tuples(*[st.floats(0.3, 8)] * 3),
    tolerance=st.floats(0, 5),
)
def test_equals_scipy(seed, ndim, spacing, tolerance):
    first, second = masks(seed, ndim)
    spacing = spacing[-ndim:]
    there, back = surface_distances(first, second, spacing=spacing)
    expected = [
        reference_distances(first, second, spacing),
        reference_distances(second, first, spacing),
    ]
    np.testing.assert_allclose(there, expected[0], rtol=1e-5)
    np.testing.assert_allclose(back, expected[1], rtol=1e-5)
    if not (len(there) and len(back)):
        return
    score = score_surface(first, second, spacing=spacing, tolerance=tolerance)
    worst = max(np.percentile(d, 95) for d in expected)
    assert score.hausdorff_95 == pytest.approx(worst, rel=1e-5)
    both = np.concatenate(expected)
    assert score.mean_distance == pytest.approx(both.mean(), rel=1e-5)
    assert score.hausdorff == pytest.approx(both.max(), rel=1e-5)
    # Distances on the tolerance itself may round either way.
    low, high = ((both <= tolerance * k).mean() for k in (1 - 1e-5, 1 + 1e-5))
    assert low <= score.surface_dice <= high


def test_spacing_matters_per_axis():
    mask = np.zeros((20, 20, 20), bool)
    mask[5:10, 5:10, 5:10] = True
    shifts = [
        score_surface(np.roll(mask, 2, axis), mask, spacing=(4, 2, 1), tolerance=3).hausdorff
        for axis in range(3)
    ]
    assert shifts == [8, 4, 2]


def test_a_thin_sheet_shifted_by_one_voxel():
    # Dice punishes what nobody can see; surface Dice at one voxel does not.
    sheet = np.zeros((20, 30, 30), bool)
    sheet[8:10] = True
    moved = np.roll(sheet, 1, 0)
    score = score_surface(moved, sheet, spacing=(1, 1, 1), tolerance=1)
    assert 2 * (moved & sheet).sum() / (moved.sum() + sheet.sum()) == 0.5
    assert score.surface_dice == 1


def test_far_away_objects_do_not_change_the_result():
    # The distance transform runs in the box around both masks only.
    small = np.zeros((10, 10, 10), bool)
    small[3:6, 3:6, 3:6] = True
    large = np.zeros((40, 60, 50), bool)
    large[20:30, 30:40, 15:25] = small
    moved = [np.roll(m, 1, 1) for m in (small, large)]
    scores = [
        score_surface(m, o, spacing=(2, 1, 1), tolerance=1)
        for m, o in zip(moved, (small, large), strict=True)
    ]
    assert scores[0] == scores[1]


def test_nothing_on_one_side_and_on_both():
    empty, one = np.zeros((4, 4, 4), bool), np.ones((4, 4, 4), bool)
    both = score_surface(empty, empty, spacing=(1, 1, 1), tolerance=1)
    assert math.isnan(both.hausdorff_95)
    assert math.isnan(both.surface_dice)
    for pair in ((empty, one), (one, empty)):
        score = score_surface(*pair, spacing=(1, 1, 1), tolerance=1)
        assert score.hausdorff_95 == math.inf
        assert score.surface_dice == 0


def test_misfits_are_named():
    ones = np.ones((3, 3), bool)
    with pytest.raises(GeometryError, match="do not fit"):
        score_surface(ones, np.ones((3, 4), bool), spacing=(1, 1), tolerance=1)
    with pytest.raises(GeometryError, match="do not fit"):
        score_surface(ones, ones, spacing=(1, 1, 1), tolerance=1)
    with pytest.raises(InputError, match="tolerance is -1"):
        score_surface(ones, ones, spacing=(1, 1), tolerance=-1)
