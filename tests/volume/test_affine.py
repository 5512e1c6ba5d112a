"""Affines: voxel centres, exact spacing, crops that stay where they were."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamella.core.errors import GeometryError
from lamella.volume.affine import Affine
from lamella.volume.box import Box

positive = st.floats(1e-3, 1e3)
anywhere = st.floats(-1e4, 1e4)


@st.composite
def affines(draw):
    spacing = tuple(draw(positive) for _ in range(3))
    origin = tuple(draw(anywhere) for _ in range(3))
    seed = draw(st.integers(0, 2**16))
    rotation, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    rows = tuple(tuple(float(v) for v in row) for row in rotation)
    return Affine(spacing, origin, rows)


@given(affines(), st.tuples(anywhere, anywhere, anywhere))
def test_inverse_apply_undoes_apply(affine, index):
    back = affine.inverse_apply(affine.apply(index))
    assert np.allclose(back, index, atol=1e-5, rtol=1e-9)


@given(affines())
def test_apply_is_the_matrix(affine):
    index = np.array([2.0, -1.0, 3.5])
    assert np.allclose(affine.apply(index), (affine.matrix @ np.append(index, 1.0))[:3])


@given(affines())
def test_matrix_can_be_taken_apart_again(affine):
    again = Affine.from_matrix(affine.matrix)
    assert again.is_close(affine, 1e-6)


@given(affines(), st.tuples(*[st.integers(0, 9)] * 3))
def test_a_crop_stays_where_it_was(affine, start):
    cropped = affine.cropped(Box(start, tuple(a + 2 for a in start)))
    assert np.allclose(cropped.apply((0, 0, 0)), affine.apply(start))
    assert cropped.spacing == affine.spacing


@given(affines(), st.tuples(*[st.integers(1, 8)] * 3))
def test_a_coarse_voxel_lies_at_the_mean_of_its_fine_ones(affine, factors):
    corners = np.stack(np.meshgrid(*[np.arange(f) for f in factors], indexing="ij"), -1)
    mean = affine.apply(corners.reshape(-1, 3)).mean(axis=0)
    assert np.allclose(affine.downsampled(factors).apply((0, 0, 0)), mean, atol=1e-6)


def test_spacing_is_kept_exactly_not_recomputed():
    affine = Affine.diagonal((0.1, 0.2, 0.3)).cropped(Box((3, 3, 3), (4, 4, 4)))
    assert affine.spacing == (0.1, 0.2, 0.3)


@pytest.mark.parametrize("bad", [(0.0, 1, 1), (-1.0, 1, 1), (float("nan"), 1, 1)])
def test_impossible_spacing_is_refused(bad):
    with pytest.raises(GeometryError, match="positive and finite"):
        Affine.diagonal(bad)


def test_a_singular_matrix_is_refused():
    with pytest.raises(GeometryError, match="singular"):
        Affine.from_matrix(np.diag([1.0, 0.0, 1.0, 1.0]))


def test_different_frames_are_never_close():
    assert not Affine.diagonal((1, 1, 1)).is_close(Affine.diagonal((1, 1, 1), frame="RAS"))
