"""Pixels inside outlines: those whose middle is inside, judged by scikit-image."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from skimage.draw import ellipse as skimage_ellipse
from skimage.measure import points_in_poly

from lamella.training.annotations.fill import Patch, cropped, ellipse, filled, joined
from lamella.training.annotations.shape import covered

SHAPE = (18, 23)
# Off the grid of pixel middles, where only a convention decides.
POINTS = st.lists(
    st.tuples(
        st.integers(-40, 280).map(lambda n: n / 10 + 0.013),
        st.integers(-40, 230).map(lambda n: n / 10 + 0.017),
    ),
    min_size=3,
    max_size=9,
)


def _whole(patch: Patch, shape=SHAPE) -> np.ndarray:
    result = np.zeros(shape, bool)
    (y, x), (height, width) = patch.start, patch.pixels.shape
    result[y : y + height, x : x + width] = patch.pixels
    return result


def _middles() -> np.ndarray:
    y, x = np.indices(SHAPE)
    return np.stack([x.ravel() + 0.5, y.ravel() + 0.5], axis=1)


@given(POINTS)
def test_polygons_are_those_of_scikit_image(points):
    ring = np.array(points)
    expected = points_in_poly(_middles(), ring).reshape(SHAPE)
    assert np.array_equal(_whole(filled([ring], SHAPE)), expected)


@given(POINTS, POINTS)
def test_rings_in_rings_are_holes(outer, inner):
    rings = [np.array(outer), np.array(inner)]
    both = [points_in_poly(_middles(), ring).reshape(SHAPE) for ring in rings]
    assert np.array_equal(_whole(filled(rings, SHAPE)), both[0] ^ both[1])
    union = joined([filled([ring], SHAPE) for ring in rings])
    assert np.array_equal(_whole(union), both[0] | both[1])


@given(st.integers(1, 17), st.integers(1, 22))
def test_neighbours_share_no_pixel_and_leave_none(row, column):
    corners = {
        (y0, y1, x0, x1)
        for y0, y1 in ((0, row), (row, 18))
        for x0, x1 in ((0, column), (column, 23))
    }
    total = np.zeros(SHAPE, int)
    for y0, y1, x0, x1 in corners:
        total += _whole(filled([np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], float)], SHAPE))
    assert (total == 1).all()


@given(
    st.integers(-30, 250).map(lambda n: n / 10 + 0.03),
    st.integers(-30, 200).map(lambda n: n / 10 + 0.03),
    st.integers(5, 180).map(lambda n: n / 10),
    st.integers(5, 180).map(lambda n: n / 10),
)
def test_ellipses_are_those_of_scikit_image(left, top, width, height):
    found = _whole(ellipse((left, top, left + width, top + height), SHAPE))
    rows, columns = skimage_ellipse(
        top + height / 2 - 0.5, left + width / 2 - 0.5, height / 2, width / 2, shape=SHAPE
    )
    expected = np.zeros(SHAPE, bool)
    expected[rows, columns] = True
    assert np.array_equal(found, expected)


def test_patches_become_shapes():
    pixels = np.zeros((6, 7), bool)
    pixels[2:4, 3:6] = True
    pixels[2, 3] = False
    shape = Patch((1, 2), pixels).to_shape("cell")
    assert shape is not None
    drawn = covered(shape, SHAPE)
    assert np.array_equal(np.argwhere(drawn), np.argwhere(pixels) + np.array([1, 2]))
    assert Patch((0, 0), np.zeros((3, 3), bool)).to_shape("cell") is None
    assert cropped(np.zeros((2, 2), bool)) is None


@pytest.mark.parametrize("ring", [[], [[1, 1]], [[1, 1], [2, 2]], [[50, 50], [60, 50], [60, 60]]])
def test_what_covers_nothing(ring):
    found = filled([np.array(ring, float).reshape(-1, 2)], SHAPE)
    assert not found.pixels.any()
    assert joined([found, found]).pixels.size == 0
